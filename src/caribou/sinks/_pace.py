"""Work on rows in Python, at a pace that leaves the interpreter to others."""

from __future__ import annotations

import time

__all__ = ["Pace"]

_STRETCH = 0.0005
# Longer than it takes a thread that waits for the interpreter to wake up. A thread that lets go of
# it for a system call alone has it back before that, and the other waits until it is asked for
# after 5 ms, which is sys.getswitchinterval().
_BREATH = 0.00005


class Pace:
    """Counts from when it was made, or last paused."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> bool:
        """Sleep for 0.05 ms if 0.5 ms have passed. Whether it did: a coroutine then lets its loop
        have a turn, too."""
        if time.perf_counter() - self._since < _STRETCH:
            return False
        time.sleep(_BREATH)
        self._since = time.perf_counter()
        return True
