"""Taking over what dead processes left in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..errors import JournalError
from ..journal.owner import FORMAT, Owner, OwnerInfo, owner_folders, read_info
from ..journal.reader import segment_files, set_aside_torn
from .accounting import Notices
from .courier import Link
from .dead_letters import DeadLetters
from .source import AdoptedSource, concerns

__all__ = ["Adoption"]

# Each adopted folder holds a file descriptor for its lock, and the program needs some too.
_MOST_AT_ONCE = 8


class Adoption:
    """The folders of dead processes that this one has taken over, a few at a time.

    Attributes:
        sources: those that still hold rows.
        owners: how many were taken over so far.
        more: whether others were left for later.
        others: folders that were left alone.
        other_bytes: bytes of segments in them.
    """

    def __init__(
        self,
        root: Path | None,
        own_folder: Callable[[], Path | None],
        links: Sequence[Link],
        durable: Mapping[str, str],
        dead_letters: DeadLetters,
        *,
        adopt_any: bool,
    ) -> None:
        """Rows are taken that were meant for a target in ``durable``, or with ``adopt_any`` all."""
        self.sources: list[AdoptedSource] = []
        self.owners: int = 0
        self.more: bool = False
        self.others: list[Path] = []
        self.other_bytes: int = 0
        self._root = root
        self._own_folder = own_folder
        self._links = [link for link in links if link.sink.name in durable]
        self._dead_letters = dead_letters
        self._adopt_any = adopt_any
        self._notices = Notices()
        self._looking = asyncio.Lock()
        self._left = False
        self._left_folders: list[Path] = []
        self._left_bytes = 0

    async def look(self) -> None:
        """Adopt folders whose owner is dead, until there are enough for now.

        What a sink waits for that does not take anything now holds up no other: such folders are
        left, and given back when their places are needed.
        """
        async with self._looking:
            self._left, self._left_folders, self._left_bytes = False, [], 0
            await self._look()
            # Not before the end: who waits for everything must not take half a look for a whole.
            self.more = self._left
            self.others, self.other_bytes = self._left_folders, self._left_bytes

    async def count_again(self) -> None:
        """Count what is in the folders that were left alone, which costs far less than a look."""
        async with self._looking:
            held = 0
            for folder in self.others:
                held += _held(folder)
                await asyncio.sleep(0)
            self.other_bytes = held

    async def _look(self) -> None:
        if self._root is None:
            return
        taken = {source.owner.folder for source in self.sources}
        for folder in owner_folders(self._root):
            if folder in taken or folder == self._own_folder():
                continue
            if len(self.sources) >= _MOST_AT_ONCE and not self._give_back():
                self._left = True
                return
            try:
                self._consider(folder)
            except (OSError, ValueError, JournalError) as error:
                # Of another user, of a newer format, damaged, or just going away: the next one.
                self._notices.warn(
                    str(folder), "What a process left in %s cannot be taken over: %s", folder, error
                )
            # One after another, so that the loop stays free.
            await asyncio.sleep(0)

    def close_finished(self) -> None:
        """Give up the folders that have nothing left."""
        for source in [source for source in self.sources if source.finished]:
            self.sources.remove(source)
            source.close()

    def _give_back(self) -> bool:
        """Make room: give up folders that only sinks in trouble wait for. False if there is none
        that no courier is at work on."""
        idle = [
            source
            for source in self.sources
            if not source.users and all(link.failures for link in self._links_waiting(source))
        ]
        for source in idle:
            self.sources.remove(source)
            self.owners -= 1
            for link in self._links_waiting(source):
                # They are some other account's again, perhaps this one's later.
                link.ledger.recovered -= source.pending_rows(link.sink.name)
            source.close()
        # Perhaps the look has passed them already.
        self._left = self._left or bool(idle)
        return bool(idle)

    def _links_waiting(self, source: AdoptedSource) -> list[Link]:
        return [
            link
            for link in self._links
            if link.sink.name in source.cursors and source.waits(link.sink.name)
        ]

    def close(self) -> None:
        """Give up every folder; what is left in one is there for the next process."""
        while self.sources:
            self.sources.pop().close()

    def abandon(self) -> None:
        """In a forked child: let go of the locks, which are the parent's."""
        while self.sources:
            self.sources.pop().owner.release()

    def _consider(self, folder: Path) -> None:
        owner = Owner.adopt(folder) if self._is_ours(folder) else None
        if owner is None:
            self._left_folders.append(folder)
            self._left_bytes += _held(folder)
            return
        try:
            source = self._take(owner)
        except BaseException:
            owner.release()
            raise
        self.owners += 1
        self.sources.append(source)

    def _is_ours(self, folder: Path) -> bool:
        info = read_info(folder)
        if info.format != FORMAT:
            raise JournalError(f"it has format {info.format}, this version knows {FORMAT}")
        links = self._links_for(info)
        if not links or not concerns(folder, info, [link.sink for link in links]):
            return False
        at_work = [link.sink for link in links if not link.failures]
        if len(at_work) == len(links) or (at_work and concerns(folder, info, at_work)):
            return True
        # Adopting it would help nobody now.
        self._left = True
        return False

    def _links_for(self, info: OwnerInfo) -> list[Link]:
        return [
            link
            for link in self._links
            if self._adopt_any or info.sinks.get(link.sink.name) == link.sink.target
        ]

    def _take(self, owner: Owner) -> AdoptedSource:
        links = self._links_for(owner.info)
        for file in segment_files(owner.folder):
            add_torn = self._dead_letters.add_torn
            set_aside_torn(file, partial(add_torn, owner.name, file.table, file.number))
        source = AdoptedSource(owner, {link.sink.name: link.sink.tables for link in links})
        rows = [(link, source.pending_rows(link.sink.name)) for link in links]
        for segment in source.all_segments():
            source.settle(segment)
        for link, pending in rows:
            link.ledger.recovered += pending
        return source


def _held(folder: Path) -> int:
    """Bytes of the segments in a folder."""
    held = 0
    for file in segment_files(folder):
        # A live process may use the segment again under another name, or delete it, at any moment.
        with suppress(FileNotFoundError):
            held += file.path.stat().st_size
    return held
