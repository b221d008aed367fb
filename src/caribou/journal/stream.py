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

# What ``_size`` is while there is no segment to append to, so that nothing fits.
_ROLLING = 0
_CLOSED = -1


class Stream:
    """The rows of one table, appended by any thread and read by the I/O thread.

    ``rows`` counts what was appended. ``segments`` are those that hold rows some reader may still
    want, the last one being written; ``standby`` those that wait to be used.
    """

    __slots__ = (
        "_commit",
        "_latest_size",
        "_lock",
        "_make",
        "_map",
        "_nested",
        "_published",
        "_reserved",
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
        self._nested: list[bytes] = []
        self._use(make(table, _FIRST_BYTES.get(table, _LEAST_BYTES)))

    def append(self, line: bytes) -> None:
        """Append one row, ``line`` being JSON and a newline. Once this returns, a kill of the
        process loses it no more.

        A finaliser or a signal handler may log while this very thread is in here. The row of such
        a nested call lies behind the one under way, and is published together with it.
        """
        with self._lock:
            start = self._reserved
            end = start + len(line)
            if end <= self._size:
                self._reserved = end
                try:
                    self._map[start:end] = line
                except BaseException:
                    self._reserved = start
                    raise
                self.rows += 1
                if start == self._published:
                    self._published = self._commit[0] = self._reserved
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
        self._nested.clear()
        self._detach()
        for segment in (*self.segments, *self.standby):
            segment.close()
        self.segments.clear()
        self.standby.clear()

    def _append_slowly(self, line: bytes) -> None:
        """The row does not fit, or rows go elsewhere by now."""
        with self._lock:
            size = self._size
            if size == _ROLLING or self._reserved != self._published:
                # Nested: the call around this one appends it when it is done itself.
                self._nested.append(line)
                return
            if size != _CLOSED:
                self._size = _ROLLING
                try:
                    self._roll(len(line))
                except BaseException:
                    self._size = size
                    raise
        # Not under the lock: making a successor takes others.
        stream = self._successor(self.table) if size == _CLOSED else self
        stream.append(line)

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
        full = self.segments[-1]
        self._use(segment or self._make(self.table, max(need, self.next_size())))
        full.sealed = True
        self._rolled()

    def _use(self, segment: Segment) -> None:
        self._map = segment.map
        self._commit = segment.commit
        self._reserved = self._published = 0
        self.segments.append(segment)
        self._size = self._latest_size = segment.size

    def _detach(self) -> None:
        if self.segments:
            self.segments[-1].sealed = True
        self._size = _CLOSED
        self._reserved = self._published = 0
