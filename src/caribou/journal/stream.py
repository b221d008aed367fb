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
        "_commit",
        "_lock",
        "_make",
        "_map",
        "_nested",
        "_pos",
        "_rolled",
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
        self.segments: list[Segment] = []
        self.standby: deque[Segment] = deque()
        self._make = make
        self._rolled = rolled
        self._successor = successor
        self._lock = threading.RLock()
        self._busy = False
        self._nested: list[bytes] = []
        self._use(make(table, _FIRST_BYTES.get(table, _LEAST_BYTES)))

    def append(self, line: bytes) -> None:
        """Append one row, ``line`` being JSON and a newline. Once this returns, a kill of the
        process loses it no more."""
        length = len(line)
        with self._lock:
            if self._busy:
                # A finaliser or a signal handler logs while this very thread is in here.
                self._nested.append(line)
                return
            self._busy = True
            try:
                end = self._pos + length
                if end > self._size >= 0:
                    self._roll(length)
                    end = length
                if self._size >= 0:
                    self._map[self._pos : end] = line
                    self._pos = end
                    self._commit[0] = end
                    self.rows += 1
                    line = b""
            finally:
                self._busy = False
            if self._nested:
                self._append_nested()
        if line:
            # Closed. Not under the lock: making a successor takes others.
            self._successor(self.table).append(line)

    def next_size(self) -> int:
        """Bytes of the next segment: small at first, so that a short-lived process is cheap."""
        return min(SEGMENT_BYTES, max(_LEAST_BYTES, self._size * 4))

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

    def _append_nested(self) -> None:
        lines, self._nested = self._nested, []
        for line in lines:
            self.append(line)

    def _roll(self, need: int) -> None:
        """Seal the full segment and go on in the next one."""
        current = self.segments[-1]
        current.sealed = True
        segment: Segment | None = None
        while self.standby and segment is None:
            segment = self.standby.popleft()
            if segment.size < need:
                # A row larger than the standby: keep that one for the rows that follow.
                self.standby.append(segment)
                segment = None
                break
        self._use(segment or self._make(self.table, max(need, self.next_size())))
        self._rolled()

    def _use(self, segment: Segment) -> None:
        self._map = segment.map
        self._commit = segment.commit
        self._size = segment.size
        self._pos = 0
        self.segments.append(segment)

    def _detach(self) -> None:
        if self.segments:
            self.segments[-1].sealed = True
        self._size = -1
        self._pos = 0
