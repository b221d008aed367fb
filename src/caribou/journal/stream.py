"""The stream of one table: the segments of this process, in the order they were written.

``append`` runs in the caller's thread for every row that is logged. It takes a lock, copies the
row into the map, publishes the new length, and returns: no system call, no allocation beyond a few
small integers. When a segment is full the next one is already waiting, made by the I/O thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .segment import Segment

__all__ = ["Stream"]

SEGMENT_BYTES = 4 << 20
# Small, so that a short-lived process is cheap; the busy table starts with more.
_FIRST_BYTES = {"spans": 1 << 20}
_LEAST_BYTES = 256 << 10


class Stream:
    """The rows of one table, appended by any thread and read by the I/O thread.

    ``rows`` counts what was appended. ``segments`` are those that hold rows some reader may still
    want, the last one being written; ``standby`` those that wait to be used.
    """

    __slots__ = (
        "_busy",
        "_closed",
        "_commit",
        "_end",
        "_latest_size",
        "_lock",
        "_make",
        "_map",
        "_nested",
        "_rolled",
        "_rows_before",
        "_size",
        "_successor",
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
        self._lock = threading.RLock()
        self._busy = False
        self._closed = False
        self._nested: list[bytes] = []
        self._use(make(table, _FIRST_BYTES.get(table, _LEAST_BYTES)))

    def append(self, line: bytes) -> None:
        """Append one row, ``line`` being JSON and a newline. Once this returns, a kill of the
        process loses it no more.

        A finaliser or a signal handler may log while this very thread is in here. Such a nested
        call leaves its row to the call around it, which appends it right after its own.
        """
        length = len(line)
        with self._lock:
            if self._busy:
                self._nested.append(line)
                return
            try:
                self._busy = True
                end = self._end + length
                fits = end <= self._size
                if fits:
                    self._map[self._end : end] = line
                    self._end = self._commit[0] = end
                    self.rows += 1
            finally:
                self._busy = False
            if fits:
                if self._nested:
                    self._append_nested()
                return
        self._append_slowly(line)

    def next_size(self) -> int:
        """Bytes of the next segment: small at first, so that a short-lived process is cheap."""
        return min(SEGMENT_BYTES, max(_LEAST_BYTES, self._latest_size * 4))

    def close(self) -> None:
        """Send every later row to the successor. Rows in here stay for readers."""
        with self._lock:
            self._detach()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, touching none of its files."""
        # Another thread of the parent may have held the lock when it forked.
        self._lock = threading.RLock()
        self._busy = False
        self._nested.clear()
        self._detach()
        for segment in (*self.segments, *self.standby):
            segment.close()
        self.segments.clear()
        self.standby.clear()

    def _append_slowly(self, line: bytes) -> None:
        """The row does not fit, or rows go elsewhere by now."""
        with self._lock:
            if self._busy:
                self._nested.append(line)
                return
            # Another thread may have rolled since it did not fit.
            if not self._closed and self._end + len(line) > self._size:
                try:
                    self._busy = True
                    self._roll(len(line))
                finally:
                    self._busy = False
            closed = self._closed
        # Not under the lock: making a successor takes others, and so may whoever is told.
        if closed:
            self._successor(self.table).append(line)
        else:
            self._rolled()
            self.append(line)
        if self._nested:
            self._append_nested()

    def _append_nested(self) -> None:
        lines, self._nested = self._nested, []
        for line in lines:
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
        segment = segment or self._make(self.table, max(need, self.next_size()))
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
        self._map = segment.map
        self._commit = segment.commit
        self._end = 0
        self.segments.append(segment)
        self._size = self._latest_size = segment.size

    def _detach(self) -> None:
        self._closed = True
        self._size = -1
        if self.segments:
            self.segments[-1].sealed = True
