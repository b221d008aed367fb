"""The functions that users call. How anything is recorded is found in the modules below."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from . import _process
from ._exporters import SpanExporter
from ._failures import MAX_MESSAGE
from ._log import log
from ._managers import NullRecorder, SpanManager, TraceManager
from ._meta import check_meta
from ._recording import active, captured, scope_for, set_defaults, skip_reason
from ._rollout import Recorder
from ._sanitize import MAX_INTEGER, storable_text
from ._scope import calling_frame, settle
from ._settings import Redact
from .delivery.accounting import FlushResult, Stats
from .errors import InvalidType, InvalidValue
from .records import Phase, RolloutStatus, TraceMeta

if TYPE_CHECKING:
    from .kestrel.client import KestrelClient

__all__ = [
    "Span",
    "Trace",
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


def configure(
    run_id: str | None = None,
    phase: Phase | None = None,
    *,
    clickhouse_url: str | None = None,
    clickhouse_database: str | None = None,
    clickhouse_user: str | None = None,
    clickhouse_password: str | None = None,
    kestrel_api_url: str | None = None,
    kestrel_api_key: str | None = None,
    langfuse_public_key: str | None = None,
    langfuse_secret_key: str | None = None,
    langfuse_host: str | None = None,
    otlp: str | Mapping[str, object] | None = None,
    exporters: Sequence[SpanExporter] | None = None,
    home: str | os.PathLike[str] | None = None,
    journal_dir: str | os.PathLike[str] | None = None,
    journal: Literal["disk", "memory"] | None = None,
    max_journal_bytes: int | None = None,
    sample_rate: float | None = None,
    redact: Redact | None = None,
    disabled: bool | None = None,
    debug: bool | None = None,
    batch_bytes: int | None = None,
    batch_rows: int | None = None,
    batch_age: float | None = None,
) -> None:
    """Set defaults. Safe to call many times: what is None stays as it was set before, or as the
    environment has it. Only what changed is restarted.

    Args:
        run_id: the run of rollouts that name none; in prod the project's name.
        phase: ``"train"``, ``"eval"`` or ``"prod"``, for rollouts that name none.
        clickhouse_url: ``http(s)://host:port`` of a ClickHouse server, or with the extra ``native``
            ``clickhouse(s)://host:port`` (``CLICKHOUSE_URL``); an empty text means none: the
            journal is the store.
        clickhouse_database: its database (``CLICKHOUSE_DATABASE``), by default ``caribou``.
        clickhouse_user: the user (``CLICKHOUSE_USER``).
        clickhouse_password: the password (``CLICKHOUSE_PASSWORD``).
        kestrel_api_url: ``http(s)://host:port`` of a Kestrel service (``KESTREL_API_URL``), with
            which rollouts are registered; an empty text means none.
        kestrel_api_key: its key (``KESTREL_API_KEY``).
        langfuse_public_key: the public key of a Langfuse project (``LANGFUSE_PUBLIC_KEY``), with
            which rollouts go there too; an empty text means none.
        langfuse_secret_key: its secret key (``LANGFUSE_SECRET_KEY``).
        langfuse_host: ``http(s)://host`` of Langfuse (``LANGFUSE_HOST``), by default
            ``https://us.cloud.langfuse.com``.
        otlp: the endpoint of an OTLP/HTTP backend (``OTEL_EXPORTER_OTLP_ENDPOINT``), to which
            ``/v1/traces`` is added, or ``{"endpoint": ..., "headers": {...}}``, in which there may
            also be ``compression`` (``"gzip"`` or ``"none"``), ``timeout`` (seconds for a request),
            ``certificate``, ``client_certificate`` and ``client_key`` (PEM files). None of it then
            comes from the environment. An empty text means none.
        exporters: OpenTelemetry ``SpanExporter`` objects, which get every rollout as spans. Each
            is called in a thread of its own, and shut down with ``shutdown()`` or when it is
            replaced. An empty list means none.
        home: Caribou's folder (``CARIBOU_HOME``), by default ``.caribou``.
        journal_dir: the journal's folder (``CARIBOU_JOURNAL_DIR``), by default ``journal`` in
            ``home``.
        journal: ``"disk"``, or ``"memory"`` to keep rows off the disk and lose them in a crash.
        max_journal_bytes: from this size on, the local store forgets the oldest of what Langfuse or
            an OTLP backend has; where that makes no room, new rollouts run untraced. By default
            2 GiB.
        sample_rate: the share of rollouts to record, 0.0 to 1.0; each is recorded whole or not at
            all.
        redact: ``redact(table, row)`` sees each row as a dict before it is written anywhere, and
            returns it as it may be written. Ids, times and the like stay as they are. If it raises,
            the row is written without its content.
        disabled: record nothing (``CARIBOU_DISABLED``).
        debug: show every record on standard error as it is logged (``CARIBOU_TRACE_DEBUG``).
        batch_bytes: deliver at most this many bytes of rows at once; by default 4 MiB.
        batch_rows: deliver at most this many rows at once; by default 50,000.
        batch_age: deliver a row after at most this many seconds; by default 0.5.

    Raises:
        InvalidType: an argument has the wrong type.
        InvalidValue: an argument has a value that cannot work.
        ConfigurationError: a variable of the environment has such a value.
    """
    arguments = dict(locals())
    given = {name: value for name, value in arguments.items() if value is not None}
    set_defaults(given)


class Trace(TraceManager):
    """What ``trace_run`` returns: ``async with`` it."""

    async def __aenter__(self) -> str:
        settings = active()
        recorder: Recorder
        capture = captured()
        if capture is not None:
            recorder = capture
        elif settings.disabled:
            recorder = NullRecorder(settings)
        else:
            # All that waits comes before anything is made current.
            recorder = await _process.ready()
        return self._open(recorder, skip_reason(recorder, self.trace_id), calling_frame(1))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(problem)


class Span(SpanManager):
    """What ``span`` returns: ``async with`` it."""

    async def __aenter__(self) -> None:
        parent = scope_for("span()")
        if parent is not None:
            self._open(parent, calling_frame(1))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(problem)


def trace_run(meta: TraceMeta | Mapping[str, object]) -> Trace:
    """One rollout: an asynchronous context manager that gives the trace's id, 32 hex digits.

    A rollout that returns is COMPLETED, one that raises is ERROR with what it raised (which goes on
    unchanged), one that is cancelled is ABORTED; ``set_status`` says otherwise. Within another
    rollout it is a rollout of its own.

    Args:
        meta: what the rollout is about; see :class:`TraceMeta`.

    Raises:
        InvalidType: ``meta`` is no dict, or a value in it has the wrong type.
        InvalidValue: a key is missing or unknown, or a value is outside what its key allows.
        ConfigurationError: a variable of the environment has a value that cannot work.
    """
    return Trace(check_meta(meta, active()))


def span(name: str, *, kind: str = "span", attributes: Mapping[str, object] | None = None) -> Span:
    """A scope within a rollout, for example an environment's step or a sub-agent: an asynchronous
    context manager. What is logged inside are its children.

    Args:
        name: what it is.
        kind: what kind of thing it is.
        attributes: anything else, by name.

    Raises:
        InvalidType: ``name`` or ``kind`` is no str, or ``attributes`` no dict.
        InvalidValue: ``name`` or ``kind`` is empty.
    """
    return Span(name, kind, attributes)


def add_meta(data: Mapping[str, object]) -> None:
    """Add keys and values to the rollout; a key that is there already is replaced.

    Args:
        data: the keys and values. Numbers can be searched by range. ``session_id`` and ``user_id``
            stand on each record that is logged afterwards, up to 200 characters, as tags do.

    Raises:
        InvalidType: it is no dict.
    """
    if not isinstance(data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"add_meta() takes a dict, not {type(data).__name__}")
    scope = scope_for("add_meta()")
    if scope is not None:
        scope.rollout.add_meta(data)


def add_tags(*tags: str) -> None:
    """Add tags to the rollout, to find it by.

    Args:
        tags: any texts that are not empty.

    Raises:
        InvalidType: a tag is no str.
        InvalidValue: a tag is empty.
    """
    for tag in tags:
        if not issubclass(type(tag), str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidType(f"add_tags() takes texts, not {type(tag).__name__}")
        if not str.__len__(tag):
            raise InvalidValue("add_tags(): a tag must not be empty")
    scope = scope_for("add_tags()")
    if scope is not None:
        scope.rollout.add_tags(tags)


def set_status(status: RolloutStatus, error_message: str | None = None) -> None:
    """Say how the rollout ended.

    Args:
        status: the outcome, or its name.
        error_message: what went wrong, if anything did.

    Raises:
        InvalidValue: there is no such status.
        InvalidType: ``error_message`` is no str.
    """
    try:
        outcome = RolloutStatus(status)
    except ValueError:
        known = ", ".join(RolloutStatus)
        raise InvalidValue(f"set_status() takes one of {known}, not {status!r}") from None
    if error_message is not None:
        _check_text("set_status()", "error_message", error_message)
    scope = scope_for("set_status()")
    if scope is not None:
        scope.rollout.set_status(outcome.value, error_message)


def set_error(message: str) -> None:
    """Mark the current span as errored; outside any span, the rollout.

    Args:
        message: what went wrong.

    Raises:
        InvalidType: it is no str.
    """
    _check_text("set_error()", "message", message)
    scope = scope_for("set_error()")
    if scope is None:
        return
    while scope.closed and scope is not scope.rollout.root and scope.parent is not None:
        scope = scope.parent
    if scope is scope.rollout.root:
        scope.rollout.set_status(RolloutStatus.ERROR.value, message)
    else:
        scope.error = storable_text(message, MAX_MESSAGE)


def increment_turn() -> None:
    """Open the next turn: the next message stands at its start."""
    scope = scope_for("increment_turn()")
    if scope is not None:
        scope.rollout.set_turn(scope.rollout.turn + 1)


def increment_intra() -> None:
    """Put the next message one place further in its turn than the latest one."""
    scope = scope_for("increment_intra()")
    if scope is not None:
        scope.rollout.set_intra(scope.rollout.intra + 1)


def set_turn_index(n: int) -> None:
    """Put the next messages in turn ``n``.

    Raises:
        InvalidType: ``n`` is no int.
        InvalidValue: ``n`` is negative.
    """
    n = _index("set_turn_index()", n)
    scope = scope_for("set_turn_index()")
    if scope is not None:
        scope.rollout.set_turn(n)


def set_intra_index(n: int) -> None:
    """Put the next message at place ``n`` of its turn.

    Raises:
        InvalidType: ``n`` is no int.
        InvalidValue: ``n`` is negative.
    """
    n = _index("set_intra_index()", n)
    scope = scope_for("set_intra_index()")
    if scope is not None:
        scope.rollout.set_intra(n)


def current_trace_id() -> str | None:
    """The id of the trace that the running code belongs to: 32 hex digits, or None."""
    scope = settle()
    return None if scope is None else scope.rollout.trace_id


async def flush(timeout: float = 5.0) -> FlushResult:
    """Wait until everything logged before the call is acknowledged by every sink.

    Args:
        timeout: seconds; the call returns by then, whatever the backend does. Cancelling it loses
            nothing.

    Returns:
        What was delivered and what was not.
    """
    capture = captured()
    if capture is not None:
        return capture.result()
    return await _process.flush(timeout)


async def shutdown(timeout: float = 10.0) -> FlushResult:
    """Flush, stop the I/O thread, and release files and connections.

    What could not be delivered stays in the journal for the next process. ``configure()`` or the
    next rollout starts again.

    Args:
        timeout: seconds; the call returns by then, whatever the backend does.

    Returns:
        What was delivered and what was not.
    """
    capture = captured()
    if capture is not None:
        return capture.result()
    return await _process.shutdown(timeout)


def stats() -> Stats:
    """How many rows were logged, delivered and dropped, per sink, and what is pending."""
    capture = captured()
    if capture is not None:
        return capture.stats()
    return _process.stats()


def get_kestrel_client() -> KestrelClient:
    """The client of the Kestrel service that is configured. Its calls are coroutines; ``.enabled``
    is False, and calls raise :class:`ConfigurationError`, when no ``KESTREL_API_URL`` is set.

    As long as the settings stay the same it is the same client, so ask for it wherever it is
    needed.

    Raises:
        MissingExtra: there is a service, and httpx is not installed.
        ConfigurationError: a variable of the environment has a value that cannot work.
    """
    # Late: most programs never ask for it.
    from .kestrel.client import shared_client

    settings = active()
    return shared_client(settings.kestrel_api_url, settings.kestrel_api_key)


def _check_text(call: str, argument: str, value: object) -> None:
    if not issubclass(type(value), str):
        raise InvalidType(f"{call}: {argument} must be a str, not {type(value).__name__}")


def _index(call: str, n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise InvalidType(f"{call} takes an int, not {type(n).__name__}")
    if not 0 <= n <= MAX_INTEGER:
        raise InvalidValue(f"{call} takes a number from 0 up, not {n}")
    # A plain one: the encoder takes no other.
    return int.__index__(n)
