"""The one thread that does input and output, with an event loop of its own.

It is a daemon thread, so it can never keep a program from ending; everything that waits for it
does so with a deadline.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["IOThread"]

T = TypeVar("T")

_logger = logging.getLogger("caribou")


class IOThread:
    """Runs ``main()`` in an event loop in a thread until :meth:`stop`."""

    def __init__(
        self, main: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]
    ) -> None:
        """``ended`` is called as the last thing in the thread, however it ends."""
        self._main = main
        self._ended = ended
        self.refused: bool = False
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="caribou-io", daemon=True)

    def start(self) -> None:
        """Start the thread. It is at work once the loop runs; nobody has to wait for that.

        Python 3.12 starts no thread once the program has ended, and a system may be out of them.
        Then rows stay in the journal, for the next process.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            self.refused = True
            _logger.debug("The I/O thread cannot be started: %s", error)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def call(self, function: Callable[[], object]) -> None:
        """Run ``function`` in the loop soon; nothing happens once the thread has ended."""
        loop = self._loop
        if loop is not None:
            # The loop may be closed between the look and the call.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the loop; wait for the future with a timeout, always."""
        if not self.refused:
            self._ready.wait(5.0)
        if self._loop is None or not self.alive:
            coroutine.close()
            raise RuntimeError("the I/O thread is not at work")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self, timeout: float) -> bool:
        """Cancel ``main()`` and wait, at most ``timeout`` seconds, for the thread to end."""
        if self._task is not None:
            self.call(self._task.cancel)
        if not self.refused:
            self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def _run(self) -> None:
        # Not the program's own kind of loop: what suits its loop need not suit this thread.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            try:
                runner.run(self._start())
            except asyncio.CancelledError:
                pass
            except Exception:
                _logger.exception("The I/O thread failed; rows stay in the journal.")
        self._ended()

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ready.set()
        await self._main()
