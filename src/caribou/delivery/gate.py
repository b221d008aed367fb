"""When to try again: one gate per sink, shared by its couriers.

After a failure the gate closes for a jittered, growing while. Then one courier goes through to see
whether the backend is back; the others wait for what it finds. So a backend that is down sees one
attempt at a time, whatever the number of tables, and one that returns is used at once.
"""

from __future__ import annotations

import asyncio
import os

__all__ = ["Gate", "backoff"]

FIRST_DELAY = 0.25
LONGEST_DELAY = 15.0
LONGEST_RETRY_AFTER = 300.0
_SOONEST_NUDGE = 0.5


def backoff(failures: int, longest: float = LONGEST_DELAY) -> float:
    """Seconds to wait after so many failures in a row: doubling, with the upper half random.

    The randomness is the operating system's: the program's own generators are left alone.
    """
    ceiling = min(longest, FIRST_DELAY * 2 ** min(failures - 1, 16))
    return ceiling * (0.5 + 0.5 * int.from_bytes(os.urandom(2)) / 65535)


class Gate:
    """Open while the backend answers; otherwise lets one attempt through at a time."""

    def __init__(self) -> None:
        self.failures: int = 0
        self.failing: set[str] = set()
        """The tables in trouble: a success with one of them does not end that of another."""
        self._opens = 0.0
        self._not_before = 0.0
        self._asked_until = 0.0
        self._probing = False
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Return when an attempt may be made. The caller must then report how it went."""
        loop = asyncio.get_running_loop()
        while self.failures:
            delay = self._opens - loop.time()
            if delay <= 0 and not self._probing:
                self._probing = True
                return
            changed = self._changed
            try:
                async with asyncio.timeout(None if self._probing else delay):
                    await changed.wait()
            except TimeoutError:
                pass

    def passed(self) -> None:
        """The attempt reached the backend and it answered. One that was under way when another was
        told to wait does not shorten that."""
        if self.failures and (
            self._probing or asyncio.get_running_loop().time() >= self._asked_until
        ):
            self.failures = 0
            self._probing = False
            self._notify()

    def failed(self, retry_after: float | None = None) -> None:
        """The attempt failed for a reason that time may cure."""
        now = asyncio.get_running_loop().time()
        # Several couriers that were under way when the backend went down are one failure.
        if not self.failures or self._probing:
            self.failures += 1
            asked = min(retry_after or 0.0, LONGEST_RETRY_AFTER)
            self._asked_until = now + asked
            self._not_before = now + max(asked, _SOONEST_NUDGE)
            self._opens = now + max(asked, backoff(self.failures))
        self._probing = False
        self._notify()

    def abandoned(self) -> None:
        """The attempt was cancelled before its outcome was known."""
        self._probing = False
        self._notify()

    def nudge(self) -> None:
        """Somebody waits for delivery: try now, unless an attempt failed a moment ago or the
        backend asked for more time."""
        if self.failures:
            self._opens = min(self._opens, self._not_before)
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
