"""Which processes of this machine may live, and which of their rollouts will never end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import JournalError
from ..journal.owner import host_name, is_alive, network_file_system, owner_folders, read_info
from ..journal.reader import read_rows, segment_files
from .base import Row
from .follow import decoded

__all__ = ["OpenRollouts", "begun_by_the_living", "keeps_rows_here", "may_live"]


def may_live(folder: Path) -> bool:
    """Whether the process that owns ``folder`` lives, or is of a host that cannot be judged."""
    if is_alive(folder) or network_file_system(folder) is None:
        return is_alive(folder)
    # The lock of another host's process may not be seen here.
    try:
        return read_info(folder).host != host_name()
    except JournalError:
        return False


def keeps_rows_here(folder: Path) -> bool:
    """Whether the owner of ``folder`` delivers its rows to no server."""
    try:
        return read_info(folder).local
    except JournalError:
        # `caribou doctor` tells of it; the other owners' rows are still wanted.
        return False


def begun_by_the_living(journal: Path) -> Iterator[str]:
    """The root span ids of all rollouts of processes that may live."""
    for folder in owner_folders(journal):
        if may_live(folder):
            for row in _Summaries(folder).new():
                yield row.get("root_span_id", "")


class OpenRollouts:
    """Follows the trace summaries of living processes, so that it knows what each had open when it
    died. Reads every line once and keeps the open ones only."""

    def __init__(self, journal: Path) -> None:
        """Take down who lives. Rollouts of all others must be given to :meth:`begin`."""
        self._journal = journal
        self._dead: set[str] = set()
        self._living: dict[str, _Owner] = {}
        self.interrupted: frozenset[str] = frozenset()
        """The root span ids of rollouts that stay PENDING for ever; another set when more do."""
        for folder in owner_folders(journal):
            if may_live(folder) and keeps_rows_here(folder):
                self._living[folder.name] = _Owner(folder)
            else:
                self._dead.add(folder.name)

    def begin(self, pending: Iterable[str]) -> None:
        """Of the root span ids that the store holds as PENDING, those that no living process began
        are interrupted. Call it once, with what was asked after the object was made."""
        begun = set[str]().union(*(owner.follow() for owner in self._living.values()))
        self.interrupted = frozenset(set(pending) - begun)

    def look(self) -> None:
        """Take note of what began, ended and died since the last time."""
        there = {folder.name: folder for folder in owner_folders(self._journal)}
        self._dead.intersection_update(there)
        for name, folder in there.items():
            if name in self._dead:
                continue
            if name not in self._living:
                if not keeps_rows_here(folder):
                    self._dead.add(name)
                    continue
                self._living[name] = _Owner(folder)
            # Asked first: what the dead wrote is all there when it is read then.
            lives = may_live(folder)
            owner = self._living[name]
            owner.follow()
            if not lives:
                self._end(name)
        for name in self._living.keys() - there.keys():
            self._end(name)

    def _end(self, name: str) -> None:
        still_open = self._living.pop(name).open
        if still_open:
            self.interrupted |= still_open
        self._dead.add(name)


class _Owner:
    def __init__(self, folder: Path) -> None:
        self._summaries = _Summaries(folder)
        self.open: set[str] = set()

    def follow(self) -> set[str]:
        """Read on; the root span ids of what was read."""
        seen: set[str] = set()
        for row in self._summaries.new():
            root = str(row.get("root_span_id", ""))
            seen.add(root)
            (self.open.add if row.get("status") == "PENDING" else self.open.discard)(root)
        return seen


class _Summaries:
    """The trace summaries of one owner, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Row]:
        read: dict[Path, int] = {}
        for segment in segment_files(self._folder):
            if segment.table == "traces":
                start = self._read.get(segment.path, 0)
                data = read_rows(segment, start)
                read[segment.path] = start + len(data)
                yield from decoded(data)
        self._read = read
