"""The same names for programs without an event loop: ``import caribou.sync as caribou``.

What waits, blocks the calling thread here; everything else is the very same function. A program
may use both sides at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from . import _process
from ._api import (
    add_meta,
    add_tags,
    configure,
    current_trace_id,
    increment_intra,
    increment_turn,
    log,
    set_error,
    set_intra_index,
    set_status,
    set_turn_index,
    stats,
)
from ._managers import NullRecorder, SpanManager, TraceManager
from ._meta import check_meta
from ._recording import active, captured, scope_for, skip_reason
from ._rollout import Recorder
from ._scope import calling_frame
from ._version import __version__
from .delivery.accounting import FlushResult, SinkStats, Stats
from .errors import (
    CaribouError,
    ConfigurationError,
    InvalidType,
    InvalidValue,
    JournalError,
    KestrelError,
    MissingExtra,
    StoreError,
)
from .records import Event, Grade, Message, RolloutStatus, ToolExecution, TraceMeta

if TYPE_CHECKING:
    from .kestrel.blocking import BlockingKestrelClient

__all__ = [
    "CaribouError",
    "ConfigurationError",
    "Event",
    "FlushResult",
    "Grade",
    "InvalidType",
    "InvalidValue",
    "JournalError",
    "KestrelError",
    "Message",
    "MissingExtra",
    "RolloutStatus",
    "SinkStats",
    "Stats",
    "StoreError",
    "ToolExecution",
    "TraceMeta",
    "__version__",
    "add_meta",
    "add_tags",
    "configure",
    "current_trace_id",
    "flush",
    "get_kestrel_client",
    "increment_intra",
    "increment_turn",
    "log",
    "set_error",
    "set_intra_index",
    "set_status",
    "set_turn_index",
    "shutdown",
    "span",
    "stats",
    "trace_run",
]


class Trace(TraceManager):
    """What ``trace_run`` returns: ``with`` it."""

    def __enter__(self) -> str:
        recorder = captured() or _recorder()
        skipped = skip_reason(recorder, self.trace_id)
        return self._open(recorder, skipped, calling_frame(1))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(problem)


class Span(SpanManager):
    """What ``span`` returns: ``with`` it."""

    def __enter__(self) -> None:
        parent = scope_for("span()")
        if parent is not None:
            self._open(parent, calling_frame(1))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(problem)


def trace_run(meta: TraceMeta | Mapping[str, object]) -> Trace:
    """As :func:`caribou.trace_run`, for ``with``.

    Raises:
        InvalidType: ``meta`` is no dict, or a value in it has the wrong type.
        InvalidValue: a key is missing or unknown, or a value is outside what its key allows.
        ConfigurationError: a variable of the environment has a value that cannot work.
    """
    return Trace(check_meta(meta, active()))


def span(name: str, *, kind: str = "span", attributes: Mapping[str, object] | None = None) -> Span:
    """As :func:`caribou.span`, for ``with``.

    Raises:
        InvalidType: ``name`` or ``kind`` is no str, or ``attributes`` no dict.
        InvalidValue: ``name`` or ``kind`` is empty.
    """
    return Span(name, kind, attributes)


def flush(timeout: float = 5.0) -> FlushResult:
    """As :func:`caribou.flush`, blocking for at most ``timeout`` seconds."""
    capture = captured()
    return capture.result() if capture is not None else _process.flush_blocking(timeout)


def shutdown(timeout: float = 10.0) -> FlushResult:
    """As :func:`caribou.shutdown`, blocking for at most ``timeout`` seconds."""
    capture = captured()
    return capture.result() if capture is not None else _process.shutdown_blocking(timeout)


def get_kestrel_client() -> BlockingKestrelClient:
    """As :func:`caribou.get_kestrel_client`, with calls that block; also in a thread whose event
    loop is running.

    Raises:
        MissingExtra: there is a service, and httpx is not installed.
        ConfigurationError: a variable of the environment has a value that cannot work.
    """
    # Late: most programs never ask for it.
    from .kestrel.blocking import shared_blocking_client

    settings = active()
    return shared_blocking_client(settings.kestrel_api_url, settings.kestrel_api_key)


def _recorder() -> Recorder:
    settings = active()
    return NullRecorder(settings) if settings.disabled else _process.current()
