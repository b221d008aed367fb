"""The journal of this process: one stream a table, and the upkeep that keeps callers from waiting.

Callers only ever touch :meth:`Stream.append <caribou.journal.stream.Stream.append>`. Everything
else in here runs in the I/O thread: standby segments are made before they are needed, delivered
ones are blanked and used again, and the bound on the journal's size is watched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .owner import Owner
from .segment import Segment
from .stream import SEGMENT_BYTES, Stream

__all__ = ["TABLES", "Journal"]

TABLES: tuple[str, ...] = (
    *("spans", "traces", "entity_metadata", "trace_tags", "scores"),
    "registrations",
)

_logger = logging.getLogger("caribou")

# A burst of the one busy table fills a segment faster than one is made while callers hold the GIL.
_STANDBY = {"spans": 2}
# Delivered segments that are kept to be used again: as many as a sink that is slow now and then
# leaves a busy caller in need of.
_SPARE = {"spans": 4}
# The segment being written, and what a healthy sink is just taking.
_KEPT_MAPPED = 2
_WARNING_INTERVAL = 300.0
# Bytes, or a quarter of the bound, by which it may be passed while room is looked for.
_BEYOND = 64 << 20


class Journal:
    """The streams of this process, on disk below ``root`` or, with ``root`` None, in memory."""

    def __init__(
        self,
        root: Path | None,
        *,
        sinks: Mapping[str, str],
        max_bytes: int,
        rolled: Callable[[], None],
        successor: Callable[[str], Stream],
    ) -> None:
        """Open the journal: a few milliseconds of file work.

        ``sinks`` maps the name of each sink that must acknowledge what it takes to its target.
        Segments that none takes stay (they are the local store). Where ``root`` cannot be written
        the journal is kept in memory, with one warning.
        """
        self.max_bytes: int = max_bytes
        self.owner: Owner | None = None
        self._numbers = dict.fromkeys(TABLES, 0)
        self._other_bytes = 0
        self._at_bound = False
        self._disk_full = False
        self._disk_error: str | None = None
        self._root = root
        self._sinks = dict(sinks)
        # Batches of two processes must never have the same id.
        self._name = f"memory-{os.urandom(8).hex()}"
        self._warn_again = 0.0
        if root is not None:
            try:
                self.owner = Owner.create(root, sinks)
            except OSError as error:
                loss = (
                    "a crash of this process loses what was not delivered"
                    if sinks
                    else "as there is no server to deliver to, all of it is lost with this process"
                )
                _logger.warning(
                    "The journal cannot be kept in %s (%s): it is kept in memory, and %s. "
                    "CARIBOU_JOURNAL_DIR names another folder.",
                    root,
                    error.strerror,
                    loss,
                )
        elif not sinks:
            _logger.warning(
                "The journal is kept in memory and there is no server to deliver to: what is "
                "recorded is lost with this process. CLICKHOUSE_URL names a server."
            )
        self.streams: dict[str, Stream] = {
            table: Stream(table, self._make, rolled, successor) for table in TABLES
        }

    @property
    def folder(self) -> Path | None:
        """The folder of this process; None in memory."""
        return None if self.owner is None else self.owner.folder

    @property
    def name(self) -> str:
        """A name for this process's rows that no other process has."""
        return self._name if self.owner is None else self.owner.name

    @property
    def bytes_held(self) -> int:
        """Bytes of segments that wait for delivery or, in local mode, are kept."""
        return self._other_bytes + sum(
            segment.size
            for stream in self.streams.values()
            for segment in tuple(stream.segments)[:-1]
        )

    @property
    def full(self) -> bool:
        """Whether its bound is reached."""
        return self.bytes_held >= self.max_bytes

    @property
    def accepting(self) -> bool:
        """Whether new rollouts are recorded. Whole traces are refused where there is no room, so
        what is in progress is never torn."""
        return not self._at_bound and not self._disk_full

    def count_others(self, held: int) -> None:
        """Set how many bytes other owners' segments take below the same root."""
        self._other_bytes = held

    def upkeep(self) -> None:
        """Put a backlog to rest, and make the missing standby segments. Far beyond the bound,
        rollouts are refused at once: room may be looked for while a busy program writes gigabytes.

        Called in the I/O thread, whenever a segment was sealed and from time to time.
        """
        if self.owner is not None and not self.owner.folder.is_dir():
            self._start_anew()
        for stream in self.streams.values():
            for segment in tuple(stream.segments)[:-_KEPT_MAPPED]:
                segment.rest()
        self._make_standby()
        if self._disk_error is not None:
            # Met by a caller, who must not log: a handler might call back.
            _logger.warning(
                "The journal cannot grow in %s (%s): rollouts in progress are kept in memory, new "
                "ones are not traced until there is room.",
                self.folder,
                self._disk_error,
            )
            self._disk_error = None
        if self.bytes_held > self.max_bytes + max(self.max_bytes // 4, _BEYOND):
            self._at_bound = True

    def watch_bound(self) -> None:
        """Accept no rollouts at the bound, and accept them again below it. For the I/O thread, once
        room was made if there is any to be made."""
        self._at_bound = self.full
        if self._at_bound and time.monotonic() >= self._warn_again:
            self._warn_again = time.monotonic() + _WARNING_INTERVAL
            _logger.warning(
                "The journal holds %d MiB, its bound (max_journal_bytes): new rollouts are not "
                "traced until there is room.",
                self.max_bytes >> 20,
            )

    def _start_anew(self) -> None:
        """Somebody deleted the folder. What is mapped goes on; what follows gets a new one."""
        assert self.owner is not None
        assert self._root is not None
        with contextlib.suppress(OSError):
            lost, self.owner = self.owner, Owner.create(self._root, self._sinks)
            lost.release()
            for stream in self.streams.values():
                stream.standby.clear()
            _logger.warning("The journal's folder %s was deleted under it.", lost.folder)

    def _make_standby(self) -> None:
        for stream in self.streams.values():
            # One that is being delivered comes back: to use it again is cheaper than a new one.
            wanted = max(1, _STANDBY.get(stream.table, 1) - len(stream.segments) + 1)
            # Counted beforehand: a busy caller takes them as fast as they are made.
            for _ in range(wanted - len(stream.standby)):
                segment = self._make_on_disk(stream.table, stream.next_size())
                if segment is None:
                    return
                stream.standby.append(segment)
        if self._disk_full and self.owner is not None:
            self._disk_full = False
            self._disk_error = None
            _logger.warning("The journal's disk takes data again: new rollouts are traced.")

    def release(self, segment: Segment) -> None:
        """Every reader is done with this sealed segment: use it again, or let it go."""
        stream = self.streams[segment.table]
        stream.segments.remove(segment)
        room = len(stream.standby) < _SPARE.get(segment.table, 1)
        usable = segment.size >= stream.next_size() and segment.size <= SEGMENT_BYTES
        if room and usable and segment.folder == self.folder:
            try:
                segment.recycle(self._next_number(segment.table))
            except OSError:
                # A full disk, no descriptors left, or the folder is gone: do without it.
                pass
            else:
                stream.standby.append(segment)
                return
        segment.remove()
        segment.close()

    def discard(self, segment: Segment) -> None:
        """Delete a sealed segment. Not to be used again: who is reading it may read on."""
        self.streams[segment.table].segments.remove(segment)
        segment.remove()
        segment.close()

    def close(self, *, delivered: bool) -> None:
        """Let go of everything. Rows that were not delivered stay on disk for the next process.

        ``delivered`` says that every sink has acknowledged every row: the folder is removed.
        """
        for stream in self.streams.values():
            stream.close()
            for segment in (*stream.segments, *stream.standby):
                # The folder may have been deleted, and that is no reason to keep the rest.
                with contextlib.suppress(OSError):
                    segment.close(cut=not delivered)
        if self.owner is None:
            return
        owner, self.owner = self.owner, None
        if delivered or not any(owner.folder.glob("*.ndjson")):
            owner.remove()
        else:
            owner.release()

    def abandon(self) -> None:
        """In a forked child: let go of everything of the parent's, touching none of its files."""
        for stream in self.streams.values():
            stream.abandon()
        if self.owner is not None:
            self.owner.release()
            self.owner = None

    def _next_number(self, table: str) -> int:
        self._numbers[table] += 1
        return self._numbers[table]

    def _make(self, table: str, size: int) -> Segment:
        """A segment for a caller that has none waiting: on disk, or in memory if the disk is full.

        What a rollout in progress logs is kept even so; new rollouts are refused until there is
        room (``accepting``).
        """
        return self._make_on_disk(table, size) or Segment(
            table, self._next_number(table), size, None
        )

    def _make_on_disk(self, table: str, size: int) -> Segment | None:
        number = self._next_number(table)
        try:
            return Segment(table, number, size, self.folder)
        except OSError as error:
            if not self._disk_full:
                self._disk_full = True
                self._disk_error = error.strerror or str(error)
            return None
