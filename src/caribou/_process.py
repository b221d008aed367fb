"""The runtime of this process, made when first needed.

There is at most one at work. It is made by the first rollout (off the caller's loop) or the first
blocking call, and ends with ``shutdown()``; what is logged later starts another. A forked child
lets go of what it inherited and makes its own. At interpreter exit a bounded flush runs.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

from ._runtime import Runtime
from ._settings import Settings, from_environment
from .delivery.accounting import FlushResult, SinkStats, Stats
from .errors import CaribouError
from .journal.stream import Stream

__all__ = [
    "count_outside",
    "current",
    "flush",
    "flush_blocking",
    "ready",
    "reconfigure",
    "shutdown",
    "shutdown_blocking",
    "stats",
]

_logger = logging.getLogger("caribou")

T = TypeVar("T")

EXIT_TIMEOUT = 5.0
RETIRE_TIMEOUT = 30.0


class _Retirement(threading.Thread):
    """The end of a runtime that ``configure()`` has replaced, in the background."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(name="caribou-retire", daemon=True)
        self.runtime = runtime
        self.complete = False

    def run(self) -> None:
        self.complete = self.runtime.close(RETIRE_TIMEOUT).complete


# Held while a runtime is made or replaced.
_lock = threading.RLock()
# Held while the I/O thread imports what it needs. Both are held across every fork: a child that was
# forked in the middle of an import can never import that module.
_import_lock = threading.RLock()
_current: Runtime | None = None
_settings: Settings | None = None
_last_stats: dict[str, SinkStats] = {}
_retiring: list[_Retirement] = []
_inherited: list[Runtime] = []


def current() -> Runtime:
    """The runtime of this process, made now if there is none.

    Raises:
        ConfigurationError: the environment holds a setting that cannot work.
    """
    runtime = _current
    if runtime is not None and runtime.alive:
        return runtime
    return _make()


async def ready() -> Runtime:
    """As :func:`current`, but what has to touch files is done in a worker thread."""
    runtime = _current
    if runtime is not None and runtime.alive:
        return runtime
    return await _in_thread(_make)


def reconfigure(settings: Settings) -> None:
    """Use ``settings`` from now on.

    A runtime whose journal and delivery they leave as they are goes on; another one delivers what
    it has and ends in the background, while the next rollout starts its successor.
    """
    global _settings, _current
    with _lock:
        _settings = settings
        for retirement in _retiring:
            # What an earlier call took an exporter from may still be ending.
            retirement.runtime.succeeded_by(settings)
        previous = _current
        if previous is None:
            return
        if _needs(previous.settings) == _needs(settings):
            previous.settings = settings
            return
        _current = None
        previous.succeeded_by(settings)
        retirement = _Retirement(previous)
        retirement.start()
        _retiring.append(retirement)


def _needs(settings: Settings) -> Settings:
    """The part of the settings that journal and delivery are built from."""
    return msgspec.structs.replace(
        settings, run_id=None, phase=None, sample_rate=1.0, redact=None, disabled=False
    )


def stats() -> Stats:
    """Counts since this process's runtime was made; see :class:`Stats`."""
    runtime = _current
    sinks = _last_stats if runtime is None else runtime.sink_stats()
    return Stats(
        sinks=sinks | _replaced_stats(),
        journal_bytes=0 if runtime is None else runtime.journal.bytes_held,
        outside_rollout=_outside,
    )


def _replaced_stats() -> dict[str, SinkStats]:
    """The accounts of runtimes that are ending because ``configure()`` replaced them."""
    return {
        f"{name} (replaced)": account
        for retirement in tuple(_retiring)
        for name, account in retirement.runtime.sink_stats().items()
    }


_outside = 0


def count_outside() -> None:
    """Count a call that had no rollout to belong to."""
    global _outside
    _outside += 1


def flush_blocking(timeout: float = 5.0) -> FlushResult:
    """As :func:`flush`, blocking the calling thread."""
    began = time.monotonic()
    runtime = _current
    if runtime is None:
        return _result(began, timeout, None)
    lost = not runtime.alive
    if lost:
        # The successor of a lost I/O thread delivers what that one left in the journal.
        runtime = _make()
    return _result(began, timeout, runtime.flush(timeout, recovered=lost))


def shutdown_blocking(timeout: float = 10.0) -> FlushResult:
    """As :func:`shutdown`, blocking the calling thread."""
    global _current, _last_stats
    began = time.monotonic()
    with _lock:
        runtime, _current = _current, None
    if runtime is None:
        return _result(began, timeout, None)
    result = runtime.close(timeout)
    _last_stats = result.sinks
    return _result(began, timeout, result)


def _result(began: float, timeout: float, result: FlushResult | None) -> FlushResult:
    """The result of a call that began then: what the current runtime says, and whether those that
    ``configure()`` replaced got rid of theirs in the time that is left."""
    complete = True
    sinks = _last_stats if result is None else result.sinks
    for retirement in tuple(_retiring):
        retirement.join(max(0.0, began + timeout - time.monotonic()))
        if not retirement.is_alive():
            with suppress(ValueError):
                _retiring.remove(retirement)
        complete = complete and retirement.complete
    if result is None:
        complete = complete and not any(sink.pending for sink in sinks.values())
    else:
        complete = complete and result.complete
    sinks = sinks | _replaced_stats()
    return FlushResult(complete=complete, seconds=time.monotonic() - began, sinks=sinks)


async def flush(timeout: float = 5.0) -> FlushResult:
    """Wait until everything logged before the call is acknowledged by every sink.

    Args:
        timeout: seconds; the call returns by then, whatever the backend does, and the result
            says what is pending. Cancelling it loses nothing.
    """
    if _current is None and not _retiring:
        return flush_blocking(timeout)
    return await _in_thread(lambda: flush_blocking(timeout))


async def shutdown(timeout: float = 10.0) -> FlushResult:
    """Flush, stop the I/O thread and release files and connections.

    What could not be delivered by then stays in the journal and is delivered by the next process.
    ``configure()`` or the next rollout starts again.

    Args:
        timeout: seconds; the call returns by then, whatever the backend does.
    """
    if _current is None and not _retiring:
        return shutdown_blocking(timeout)
    return await _in_thread(lambda: shutdown_blocking(timeout))


def _make() -> Runtime:
    global _current, _settings
    lost: Runtime | None = None
    with _lock:
        if _current is not None and not _current.alive:
            lost, _current = _current, None
    if lost is not None:
        # Its thread is gone. Once its folder is let go of, the next runtime adopts its rows. Not
        # under the lock: callers that log into it meanwhile come here for its successor.
        lost.close(0.0)
    with _lock:
        if _settings is None:
            _settings = from_environment()
        if _current is None:
            _current = Runtime(_settings, successor=_successor, importing=_import_lock)
        return _current


def _successor(table: str) -> Stream:
    return current().streams[table]


async def _in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own and wait for it without blocking the loop.

    A thread of its own, as a program that uses up its pool of workers must not hold up a deadline.
    Cancelling the wait leaves ``function``, which is bounded in time, to finish.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        import anyio
        import anyio.to_thread

        return await anyio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
    # anyio could do it here too, but importing its asyncio half would hold the loop for 30 ms.
    from concurrent.futures import Future

    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=work, name="caribou-wait", daemon=True).start()
    except RuntimeError:
        # Python 3.12 starts no thread once the program has ended.
        work()
    return await asyncio.wrap_future(future)


def _before_fork() -> None:
    _lock.acquire()
    _import_lock.acquire()


def _after_fork_in_parent() -> None:
    _import_lock.release()
    _lock.release()


def _after_fork_in_child() -> None:
    global _current, _lock, _import_lock
    _lock = threading.RLock()
    _import_lock = threading.RLock()
    inherited = [retirement.runtime for retirement in _retiring]
    _retiring.clear()
    if _current is not None:
        inherited.append(_current)
        _current = None
    for runtime in inherited:
        runtime.abandon()
    # Never collected: closing the copy of an event loop would take the parent's file descriptors
    # out of the epoll instance that both share.
    _inherited.extend(inherited)


def _at_exit() -> None:
    try:
        shutdown_blocking(EXIT_TIMEOUT)
    except (CaribouError, OSError):
        # Rows are in the journal, and a program that is ending has nobody to tell.
        _logger.debug("The flush at exit failed", exc_info=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
# After threads that outlive the main one were joined, and after the program's own callbacks, which
# are registered later. Executors are gone by then; the I/O thread uses none.
atexit.register(_at_exit)
