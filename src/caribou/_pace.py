"""Work on rows in Python, at a pace that leaves the interpreter to others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

__all__ = ["Pace", "in_a_hurry"]

_STRETCH = 0.0005
# Longer than it takes a thread that waits for the interpreter to wake up. A thread that lets go of
# it for a system call alone has it back before that, and the other waits until it is asked for
# after 5 ms, which is sys.getswitchinterval().
_BREATH = 0.00005
# A hurry is over then at the latest, whatever becomes of the thread.
_LONGEST_HURRY = 0.01

_hurry_until = 0.0


@contextlib.contextmanager
def in_a_hurry() -> Generator[None]:
    """While a caller's thread makes some system calls, whoever works at a pace stands still: after
    each call the caller would else wait for the rest of a stretch. Of several at once, the first
    to be through ends it for all."""
    global _hurry_until
    _hurry_until = time.perf_counter() + _LONGEST_HURRY
    try:
        yield
    finally:
        _hurry_until = 0.0


class Pace:
    """Counts from when it was made, or last paused."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> bool:
        """Sleep for 0.05 ms if 0.5 ms have passed, and as long as a caller is in a hurry. Whether
        it did: a coroutine then lets its loop have a turn, too."""
        now = time.perf_counter()
        if now - self._since < _STRETCH and now >= _hurry_until:
            return False
        time.sleep(_BREATH)
        while time.perf_counter() < _hurry_until:
            time.sleep(_BREATH)
        self._since = time.perf_counter()
        return True
