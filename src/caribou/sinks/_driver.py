"""Calls to an object of somebody else's, which may do anything: in a thread, one at a time.

A call that hangs keeps the thread. Nobody waits for it without a limit, and nothing else is asked
of the object until it has returned.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ._console_lines import harmless
from .base import SinkError

__all__ = ["Driver", "Raised", "ask"]

_MOST_REASON = 300


class Raised(Exception):
    """What the object raised, as text: the exception itself may be of any kind, and one that asks
    for the end of the program would end the I/O loop."""


def ask(driven: object, method: str, *arguments: object) -> Any:
    """Call a method of the object.

    Raises:
        Raised: whatever it raised.
    """
    try:
        return getattr(driven, method)(*arguments)
    except BaseException as error:
        raise _raised(error) from None


def _raised(error: BaseException) -> Raised:
    try:
        said = str(error)
    except BaseException:
        said = ""
    name = type(error).__name__
    return Raised(harmless(f"{name}: {said}"[:_MOST_REASON] if said else name))


class Driver:
    """The thread that calls one object, shared by all who drive that object."""

    def __init__(self, driven: object) -> None:
        # Kept, so that no other object can have its id.
        self._driven = driven
        self._users = 0
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._began: float | None = None

    @classmethod
    def of(cls, driven: object) -> Driver:
        """The driver of an object: the same one for as long as anybody uses it, or a call is under
        way. Every call needs a :meth:`release`."""
        with _lock:
            driver = _drivers.setdefault(id(driven), cls(driven))
            driver._users += 1
            # At once: Python 3.12 starts no thread once the program has ended.
            with contextlib.suppress(RuntimeError):
                driver._start()
            return driver

    def release(self) -> None:
        """One user less. With the last one the thread ends, once it can."""
        with _lock:
            self._users -= 1
            if self._thread is None:
                self._forget()
            else:
                self._jobs.put(None)

    @property
    def under_way(self) -> float | None:
        """For how many seconds a call has been under way; None if none is."""
        began = self._began
        return None if began is None else time.monotonic() - began

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Call ``function`` in the thread, once those before it have returned. It may raise
        ``SinkError`` and :class:`Raised`.

        Raises:
            RuntimeError: no thread can be started: the program ends, or the system is out of them.
        """
        future: Future[Any] = Future()
        with _lock:
            self._start()
            self._jobs.put((future, function))
        return future

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="caribou-exporter", daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                with _lock:
                    if self._forget():
                        return
                continue
            future, function = job
            if not future.set_running_or_notify_cancel():
                continue
            self._began = time.monotonic()
            try:
                result = function()
            except (SinkError, Raised) as error:
                self._began = None
                future.set_exception(error)
            except BaseException as error:
                self._began = None
                future.set_exception(_raised(error))
            else:
                self._began = None
                future.set_result(result)
            # While it waits for the next job nothing of this one is kept.
            del job, future, function

    def _forget(self) -> bool:
        """End its use if nobody has come in the meantime."""
        if self._users:
            return False
        _drivers.pop(id(self._driven), None)
        return True


_lock = threading.Lock()
_drivers: dict[int, Driver] = {}


def _after_fork_in_child() -> None:
    global _lock
    # Threads are not inherited. The parent's calls are none of the child's business.
    _lock = threading.Lock()
    _drivers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
