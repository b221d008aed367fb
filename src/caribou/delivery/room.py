"""Room in a journal that is at its bound, where it is the local store of what others have too."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import JournalError
from ..journal.journal import TABLES, Journal
from ..journal.owner import FORMAT, Owner, holds
from ..journal.reader import SegmentFile, segment_files
from .adoption import Adoption
from .source import OwnSource, is_elsewhere, is_record

__all__ = ["Room"]

_logger = logging.getLogger("caribou")

# Down to this share of the bound, so that it is not done for each segment.
_SHARE = 0.9
# Where the dead left nothing that can go, to look again and again would cost more than it brings.
_LOOK_AGAIN = 30.0


class Room:
    """Lets the oldest rows of the local store go once a sink that holds them has acknowledged them:
    those of this process, and those in folders of dead ones."""

    def __init__(
        self, journal: Journal, own: OwnSource, adoption: Adoption, durable: Collection[str]
    ) -> None:
        """``durable`` names the sinks of this process. Where none of them holds what is traced,
        nothing is let go."""
        self._journal = journal
        self._own = own
        self._adoption = adoption
        self._holds = any(holds(sink) for sink in durable)
        self._look_again = 0.0
        self._told = False

    async def make(self) -> None:
        """Bring a journal at its bound down to nine tenths of it, as far as rows can go."""
        own = self._journal.folder
        if own is None or not self._holds:
            return
        folders = [own]
        look = time.monotonic() >= self._look_again
        if look:
            await self._adoption.look()
            folders += self._adoption.others
        elif self._own.can_let_go:
            await self._adoption.count_again()
        else:
            return
        self._journal.count_others(self._adoption.other_bytes)
        # Others may have made room meanwhile.
        if not self._journal.full:
            return
        gone = await self._from_all(folders)
        if look and self._excess > 0:
            self._look_again = time.monotonic() + _LOOK_AGAIN
        if gone and not self._told:
            self._told = True
            _logger.warning(
                "The journal has reached its bound (max_journal_bytes, %d MiB). From now on the "
                "local store forgets the oldest of what Langfuse or an OTLP backend has, to make "
                "room for new rollouts. A server in CLICKHOUSE_URL keeps everything; a larger "
                "max_journal_bytes keeps more.",
                self._journal.max_bytes >> 20,
            )

    @property
    def _excess(self) -> int:
        return self._journal.bytes_held - int(self._journal.max_bytes * _SHARE)

    async def _from_all(self, folders: Sequence[Path]) -> int:
        """Go through the folders, the one with the oldest segment first; through all of them for
        records, which are nearly everything, before anything else goes. Returns the bytes gone."""
        begun: list[tuple[int, Path]] = []
        for folder in folders:
            begun.append((_begun(folder), folder))
            # One after another, so that the loop stays free.
            await asyncio.sleep(0)
        folders = [folder for _, folder in sorted(begun)]
        return await self._from(folders, records=True) + await self._from(folders, records=False)

    async def _from(self, folders: Sequence[Path], *, records: bool) -> int:
        gone = 0
        for folder in folders:
            if self._excess <= 0:
                break
            if folder == self._journal.folder:
                gone += self._own.let_go(self._excess, records=records)
                continue
            # Of another user, damaged, or going away just now: the next one.
            with suppress(OSError, ValueError, JournalError):
                size = _let_dead_go(folder, self._excess, records=records)
                gone += size
                self._adoption.other_bytes -= size
                self._journal.count_others(self._adoption.other_bytes)
            await asyncio.sleep(0)
        return gone


def _begun(folder: Path) -> int:
    return min(map(_written, segment_files(folder)), default=sys.maxsize)


def _written(file: SegmentFile) -> int:
    try:
        return file.path.stat().st_mtime_ns
    except OSError:
        return sys.maxsize


def _let_dead_go(folder: Path, size: int, *, records: bool) -> int:
    """Delete the oldest segments of a dead owner whose rows are elsewhere, ``size`` bytes of them,
    and the folder with the last; only of tables of ``records``, or of all. Returns how many bytes
    went."""
    owner = Owner.adopt(folder)
    if owner is None:
        return 0
    gone = 0
    try:
        if owner.info.format == FORMAT and is_elsewhere(folder, owner.info):
            for file in sorted(segment_files(folder), key=_written):
                if gone >= size:
                    break
                # Those of a later version are not ours to judge.
                if is_record(file.table, owner.info.sinks) or (
                    not records and file.table in TABLES
                ):
                    gone += file.path.stat().st_size
                    file.commit_path.unlink(missing_ok=True)
                    file.path.unlink()
    finally:
        if gone and not segment_files(folder):
            owner.remove()
        else:
            owner.release()
    return gone
