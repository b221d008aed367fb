"""Segments to deliver: this process's own, or those of a dead process that were adopted."""

from __future__ import annotations

import contextlib
import mmap
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..journal.cursor import Cursor
from ..journal.journal import TABLES, Journal
from ..journal.owner import Owner, OwnerInfo, holds, stores, takes
from ..journal.reader import SegmentFile, count_rows, segment_files
from ..journal.segment import Segment
from ..sinks.base import Sink

__all__ = [
    "AdoptedSource",
    "OwnSource",
    "Readable",
    "Source",
    "concerns",
    "is_elsewhere",
    "is_record",
    "kept_tables",
]


def kept_tables(durable: Collection[str], *, on_disk: bool) -> frozenset[str]:
    """The tables whose store is the journal itself, given the names of the durable sinks.

    Rows in memory are no store that anybody could read. There they stay only where no sink takes
    what was traced, so that they are not thrown away unseen.
    """
    if not on_disk and any(takes(sink, "spans") for sink in durable):
        return frozenset()
    return frozenset(table for table in TABLES if not any(stores(sink, table) for sink in durable))


class Readable(Protocol):
    """What couriers need of a segment."""

    @property
    def table(self) -> str:
        """Its table."""
        ...

    @property
    def number(self) -> int:
        """Its number in the table's stream."""
        ...

    @property
    def committed(self) -> int:
        """How many of its bytes are whole rows."""
        ...

    @property
    def sealed(self) -> bool:
        """Whether nothing will be added."""
        ...

    @property
    def rows(self) -> int | None:
        """How many rows it has, where that is known once it is sealed."""
        ...

    @property
    def map(self) -> mmap.mmap:
        """Its bytes."""
        ...


class Source(ABC):
    """Segments of one owner, with the cursor of each sink that is to get them."""

    def __init__(
        self, name: str, cursors: dict[str, Cursor], tables: dict[str, frozenset[str]]
    ) -> None:
        """``tables`` gives, for each sink that has a cursor, the tables it takes."""
        self.name = name
        self.cursors = cursors
        self.users: int = 0
        """How many couriers are at work on it."""
        self.closed: bool = False
        self._tables = tables

    @abstractmethod
    def segments(self, table: str) -> Sequence[Readable]:
        """The segments of a table that may hold rows to deliver, oldest first."""

    @abstractmethod
    def settle(self, segment: Readable) -> None:
        """Let go of a sealed segment if there are sinks to take it and every one is done."""

    def _finish(self, segment: Readable) -> None:
        """Note which sinks have all of a segment, so that it takes no room in their cursors; also
        where others have not, as one may be away for thousands of segments."""
        for cursor in self._takers(segment.table):
            # In this order: what is sealed grows no more.
            if segment.sealed and _has_all(cursor, segment):
                cursor.finish(segment.table, segment.number)

    def _done(self, segment: Readable) -> bool:
        takers = self._takers(segment.table)
        return segment.sealed and all(_has_all(cursor, segment) for cursor in takers)

    def _takers(self, table: str) -> list[Cursor]:
        return [cursor for sink, cursor in self.cursors.items() if table in self._tables[sink]]

    def _taken(self, sinks: Collection[str]) -> frozenset[str]:
        """The tables that any of ``sinks`` takes."""
        return frozenset[str]().union(*(self._tables[sink] for sink in sinks))


def _has_all(cursor: Cursor, segment: Readable) -> bool:
    return cursor.acknowledged(segment.table, segment.number) >= segment.committed


class OwnSource(Source):
    """The journal that this process is writing."""

    def __init__(
        self, journal: Journal, tables: dict[str, frozenset[str]], durable: Collection[str]
    ) -> None:
        """``durable`` names the sinks whose acknowledgement lets a segment go. Of tables that none
        of them stores the journal is the store, and segments stay."""
        # A sink that is only watching (the console) starts afresh in every process.
        folder = journal.folder
        cursors = {sink: Cursor(folder if sink in durable else None, sink) for sink in tables}
        super().__init__(journal.name, cursors, tables)
        self._journal = journal
        self._kept = kept_tables(durable, on_disk=journal.owner is not None)
        # Full segments that stay, in the order in which they were full, each with how far the
        # summaries had got by then.
        self._full: dict[Segment, tuple[Segment, int]] = {}

    def segments(self, table: str) -> Sequence[Readable]:
        """As in :class:`Source`."""
        return tuple(self._journal.streams[table].segments)

    def settle_all(self) -> None:
        """Settle every segment."""
        for table, stream in self._journal.streams.items():
            for segment in tuple(stream.segments):
                self.settle(segment)
                if segment.sealed and table in self._kept and segment not in self._full:
                    summaries = self._journal.streams["traces"].segments[-1]
                    self._full[segment] = (summaries, summaries.committed)

    def let_go(self, size: int, *, records: bool) -> int:
        """Delete the oldest of the full segments that stay, ``size`` bytes of them if there are so
        many whose rows every sink has. Returns how many went.

        Args:
            size: bytes.
            records: only of tables whose every row a sink got (:func:`is_record`). Metadata, tags
                and scores that no sink takes go when the summaries that were written by then are
                acknowledged: as a rule they stand in later ones, too.
        """
        gone = 0
        for segment in tuple(self._full):
            if gone >= size:
                break
            if records and not is_record(segment.table, self.cursors):
                continue
            if self._can_go(segment):
                del self._full[segment]
                self._journal.discard(segment)
                gone += segment.size
        return gone

    @property
    def can_let_go(self) -> bool:
        """Whether there is anything for :meth:`let_go`."""
        return any(map(self._can_go, self._full))

    def _can_go(self, segment: Segment) -> bool:
        return self._done(segment) and self._acknowledged(*self._full[segment])

    def _acknowledged(self, summaries: Segment, end: int) -> bool:
        return summaries not in self.segments("traces") or all(
            cursor.acknowledged("traces", summaries.number) >= end
            for cursor in self._takers("traces")
        )

    def settle(self, segment: Readable) -> None:
        """As in :class:`Source`."""
        assert isinstance(segment, Segment)
        self._finish(segment)
        if segment.table not in self._kept and self._done(segment):
            self._journal.release(segment)
        elif segment.sealed and any(_has_all(c, segment) for c in self._takers(segment.table)):
            # Whoever is behind maps it again: neither a backlog nor a store is to take memory.
            segment.rest()

    @property
    def delivered(self) -> bool:
        """Whether every sink has everything, so that the journal's files can go."""
        stored = any(segment.committed for table in self._kept for segment in self.segments(table))
        return not stored and all(
            cursor.acknowledged(table, segment.number) >= segment.committed
            for sink, cursor in self.cursors.items()
            for table in self._tables[sink]
            for segment in self.segments(table)
        )


class _DeadSegment:
    """A segment of a dead owner: sealed, mapped for reading when its turn comes."""

    def __init__(self, file: SegmentFile) -> None:
        self.file = file
        self.table = file.table
        self.number = file.number
        # After a power failure the length may be there without the rows.
        self.committed = min(file.committed(), file.path.stat().st_size)
        self.sealed = True
        self.rows: int | None = None
        self._map: mmap.mmap | None = None

    @property
    def map(self) -> mmap.mmap:
        if self._map is None:
            with self.file.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def unmap(self) -> None:
        if self._map is not None:
            # A send that is being cancelled may still hold a view: the map then goes with it.
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None


class AdoptedSource(Source):
    """The folder of a dead process, locked by this one.

    What no sink of this process takes is left in it: rows of the local store, of sinks that this
    process does not know, and tables of a later version.
    """

    def __init__(self, owner: Owner, tables: dict[str, frozenset[str]]) -> None:
        """``tables`` names the sinks that are to get what is in there, and what they take."""
        cursors = {sink: Cursor(owner.folder, sink) for sink in tables}
        super().__init__(owner.name, cursors, tables)
        self.owner = owner
        files = segment_files(owner.folder)
        self._segments = [_DeadSegment(file) for file in files if file.table in TABLES]
        self._ours = self._taken(tables)
        self._everybody = _Everybody(owner.folder, {*owner.info.sinks, *tables})
        self._leaves = any(file.table not in TABLES for file in files)

    def segments(self, table: str) -> Sequence[Readable]:
        """As in :class:`Source`."""
        return [segment for segment in self._segments if segment.table == table]

    def all_segments(self) -> Sequence[Readable]:
        """Every segment in the folder, of every table."""
        return tuple(self._segments)

    def waits(self, sink: str) -> bool:
        """Whether ``sink`` has not acknowledged all of it."""
        cursor = self.cursors[sink]
        return any(
            cursor.acknowledged(segment.table, segment.number) < segment.committed
            for segment in self._segments
            if segment.table in self._tables[sink]
        )

    def pending_rows(self, sink: str) -> int:
        """Rows that ``sink`` has not acknowledged."""
        total = 0
        for segment in self._segments:
            if segment.table in self._tables[sink]:
                start = self.cursors[sink].acknowledged(segment.table, segment.number)
                if start < segment.committed:
                    total += count_rows(segment.map, start, segment.committed)
                    segment.unmap()
        return total

    def settle(self, segment: Readable) -> None:
        """As in :class:`Source`."""
        assert isinstance(segment, _DeadSegment)
        table = segment.table
        self._finish(segment)
        if (table in self._ours or not segment.committed) and self._done(segment):
            segment.unmap()
            self._segments.remove(segment)
            if segment.committed and not self._everybody.stored(segment, self.cursors):
                self._leaves = True
            else:
                segment.file.path.unlink(missing_ok=True)
                segment.file.commit_path.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether nothing is left in here for the sinks of this process."""
        return not any(segment.table in self._ours for segment in self._segments)

    def close(self) -> None:
        """Give the folder up: remove it when it is empty, else leave it to the next adopter."""
        self.closed = True
        for segment in self._segments:
            segment.unmap()
        if self._segments or self._leaves:
            self.owner.release()
        else:
            self.owner.remove()


class _Everybody:
    """All sinks that a dead owner's rows are for: those it named, and those of this process."""

    def __init__(self, folder: Path, sinks: Collection[str]) -> None:
        self._cursors = {sink: Cursor(folder, sink) for sink in sinks}

    def stored(self, file: Readable | SegmentFile, ours: Mapping[str, Cursor]) -> bool:
        """Whether the rows of a segment are stored elsewhere and nobody waits for them.

        ``ours`` are the cursors of the sinks of this process, which move on.
        """
        takers = [sink for sink in self._cursors if takes(sink, file.table)]
        return any(stores(sink, file.table) for sink in takers) and not any(
            self.waits(sink, file, ours) for sink in takers
        )

    def waits(self, sink: str, file: Readable | SegmentFile, ours: Mapping[str, Cursor]) -> bool:
        """Whether ``sink`` has not acknowledged all rows of a segment."""
        cursor = ours.get(sink) or self._cursors[sink]
        end = file.committed() if isinstance(file, SegmentFile) else file.committed
        return cursor.acknowledged(file.table, file.number) < end


def concerns(folder: Path, info: OwnerInfo, sinks: Iterable[Sink]) -> bool:
    """Whether a dead owner's folder holds rows that ``sinks`` wait for, or something that can go:
    segments without rows or whose rows are stored, or nothing at all."""
    tables = {sink.name: sink.tables for sink in sinks}
    everybody = _Everybody(folder, {*info.sinks, *tables})
    files = segment_files(folder)
    for file in files:
        takers = [sink for sink, taken in tables.items() if file.table in taken]
        if takers and (
            not file.committed()
            or any(everybody.waits(sink, file, {}) for sink in takers)
            or everybody.stored(file, {})
        ):
            return True
    return not files


def is_record(table: str, sinks: Iterable[str]) -> bool:
    """Whether what is in ``table`` was told to one of ``sinks`` row by row. Summaries were not: by
    that of a rollout that goes on, or was killed, nothing is told."""
    return table in ("spans", "scores") and any(takes(sink, table) for sink in sinks)


def is_elsewhere(folder: Path, info: OwnerInfo) -> bool:
    """Whether what a dead owner traced is somewhere else than in its folder: each of the sinks that
    it named has acknowledged all that it takes, and one of them is no exporter."""
    if not any(holds(sink) for sink in info.sinks):
        return False
    everybody = _Everybody(folder, info.sinks)
    return not any(
        takes(sink, file.table) and everybody.waits(sink, file, {})
        for file in segment_files(folder)
        for sink in info.sinks
    )
