"""An event loop in a thread of its own, for callers that block.

There is one in a process, made when first needed. It ends with the program, and closes what is
open in it; a forked child makes its own.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["run"]

T = TypeVar("T")

_EXIT_TIMEOUT: Final = 1.0  # seconds


class _Background:
    """The thread and its loop, from construction on."""

    def __init__(self) -> None:
        started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]
        started = concurrent.futures.Future()

        def work() -> None:
            import asyncio

            async def main() -> None:
                end = asyncio.Event()
                started.set_result((asyncio.get_running_loop(), end))
                await end.wait()

            # Not the program's own kind of loop: what suits its loop need not suit this thread.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(main())

        self._thread = threading.Thread(target=work, name="caribou-kestrel", daemon=True)
        self._thread.start()
        self.loop, self._end = started.result()

    def stop(self, timeout: float) -> None:
        """End the thread; wait for that, but not for longer than ``timeout`` seconds."""
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout)


_lock = threading.Lock()
_background: _Background | None = None


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background's loop, and block for what it returns or raises."""
    import asyncio

    try:
        loop = _current().loop
    except BaseException:
        coroutine.close()
        raise
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        # Ctrl-C, for example: nobody waits for it any more.
        future.cancel()
        raise


def _current() -> _Background:
    global _background
    with _lock:
        if _background is None:
            _background = _Background()
        return _background


def _stop() -> None:
    global _background
    with _lock:
        background, _background = _background, None
    if background is not None:
        background.stop(_EXIT_TIMEOUT)


def _after_fork() -> None:
    global _lock, _background
    _lock, _background = threading.Lock(), None


atexit.register(_stop)
os.register_at_fork(after_in_child=_after_fork)
