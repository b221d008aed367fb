"""The stream of one table: the segments of this process, in the order they were written.

``append`` runs in the caller's thread for every row that is logged. It copies the row into the map,
publishes the new length, and returns: no system call, no lock, no allocation beyond a few small
integers. When a segment is full the next one is already waiting, made by the I/O thread.

No lock, as taking one costs as much as the copy. CPython switches threads only at calls and at the
ends of loops, and there is neither between taking a stream and letting go of it. What can get in
between is a finaliser (3.11 collects garbage where a slice is made) or a tracing debugger; they
find the stream taken, and go the slow way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from caribou._pace import in_a_hurry

from .segment import Segment

__all__ = ["Stream"]

SEGMENT_BYTES = 4 << 20
# Small, so that a short-lived process is cheap; the busy table starts with more.
_FIRST_BYTES = {"spans": 1 << 20}
_LEAST_BYTES = 256 << 10
_HURRIED_BYTES = 1 << 20


class Stream:
    """The rows of one table, appended by any thread and read by the I/O thread.

    ``rows`` counts what was appended. ``segments`` are those that hold rows some reader may still
    want, the last one being written; ``standby`` those that wait to be used.
    """

    __slots__ = (
        "_closed",
        "_commit",
        "_end",
        "_latest_size",
        "_lock",
        "_make",
        "_map",
        "_queue",
        "_rolled",
        "_rows_before",
        "_size",
        "_successor",
        "_taken",
        "rows",
        "segments",
        "standby",
        "table",
    )

    def __init__(
        self,
        table: str,
        make: Callable[[str, int], Segment],
        rolled: Callable[[], None],
        successor: Callable[[str], Stream],
    ) -> None:
        """``make(table, size)`` gives a fresh segment and never fails; ``rolled`` is told when a
        segment was sealed; ``successor(table)`` is the stream to use once this one is closed."""
        self.table: str = table
        self.rows: int = 0
        self._rows_before = 0
        self.segments: list[Segment] = []
        self.standby: deque[Segment] = deque()
        self._make = make
        self._rolled = rolled
        self._successor = successor
        # Held while a segment is changed for the next, and by those who wait for that.
        self._lock = threading.RLock()
        self._taken = False
        self._closed = False
        self._queue: list[bytes] = []
        self._use(make(table, _FIRST_BYTES.get(table, _LEAST_BYTES)))

    def append(self, line: bytes | bytearray) -> None:
        """Append one row: a line of JSON without the newline, which is in the segment already.
        Once this returns, a kill of the process loses it no more, and ``line`` may be changed.

        A finaliser or a signal handler may log while this very thread is in here. Such a nested
        call leaves its row to the call around it, which appends it right after its own.
        """
        length = len(line)
        fits, taken = False, True
        try:
            # Each of these is one statement, so that a debugger that stops at lines cannot come
            # between.
            taken, self._taken = self._taken, True
            if not taken:
                end = self._end + length
                after = end + 1
                if after <= self._size:
                    self._map[self._end : end], self._end, self._commit[0] = line, after, after
                    fits = True
                    self.rows += 1
        except ValueError:
            # Closed and unmapped while a finaliser held this up.
            pass
        finally:
            if not taken:
                self._taken = False
        if not fits:
            self._append_slowly(line)
        elif self._queue:
            self._append_queue()

    def next_size(self) -> int:
        """Bytes of the next segment: small at first, so that a short-lived process is cheap."""
        return min(SEGMENT_BYTES, max(_LEAST_BYTES, self._latest_size * 4))

    def close(self) -> None:
        """Send every later row to the successor. Rows in here stay for readers."""
        with self._lock:
            self._detach()
        self._append_queue()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, touching none of its files."""
        # Another thread of the parent may have held the lock when it forked.
        self._lock = threading.RLock()
        self._taken = False
        self._queue.clear()
        self._detach()
        for segment in (*self.segments, *self.standby):
            segment.close()
        self.segments.clear()
        self.standby.clear()

    def _append_slowly(self, line: bytes | bytearray) -> None:
        """The row does not fit, or somebody is in here, or rows go elsewhere by now."""
        with self._lock:
            taken, self._taken = self._taken, True
            if taken:
                # By a call below this one, or one that a debugger holds up.
                self._queue.append(bytes(line))
            else:
                try:
                    # Another thread may have rolled since it did not fit.
                    if not self._closed and self._end + len(line) >= self._size:
                        self._roll(len(line) + 1)
                finally:
                    self._taken = False
            closed = self._closed
        if taken:
            if not self._taken:
                self._append_queue()
            return
        # Not under the lock: making a successor takes others, and so may whoever is told.
        if closed:
            self._successor(self.table).append(line)
        else:
            self._rolled()
            self.append(line)
        self._append_queue()

    def _append_queue(self) -> None:
        # One by one: a finaliser may come between and do the same.
        for _ in range(len(self._queue)):
            try:
                line = self._queue.pop(0)
            except IndexError:
                return
            self.append(line)

    def _roll(self, need: int) -> None:
        """Go on in the next segment, and seal the full one."""
        segment: Segment | None = None
        if self.standby:
            segment = self.standby.popleft()
            if segment.size < need:
                # A row larger than the standby: keep that one for the rows that follow.
                self.standby.append(segment)
                segment = None
        if segment is None:
            # None is waiting, so the caller is kept: by a millisecond, not by ten.
            with in_a_hurry():
                segment = self._make(self.table, max(need, min(self.next_size(), _HURRIED_BYTES)))
        if self._closed:
            # By a signal handler, just now.
            segment.close(cut=True)
            return
        full = self.segments[-1]
        full.rows = self.rows - self._rows_before
        self._rows_before = self.rows
        self._use(segment)
        full.sealed = True

    def _use(self, segment: Segment) -> None:
        size, rows, commit = segment.size, segment.map, segment.commit
        # No call from here on: a signal handler that raises must not leave half of it.
        self._size = self._latest_size = size
        self._map = rows
        self._commit = commit
        self._end = 0
        self.segments += [segment]

    def _detach(self) -> None:
        self._closed = True
        self._size = -1
        if self.segments:
            self.segments[-1].sealed = True
