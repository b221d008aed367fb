"""Deliver rollouts to any OpenTelemetry ``SpanExporter``, as spans of the generic form.

An exporter is code of somebody else's. It runs in a thread of its own, and gets spans that were
made for this very call. It is believed when it says ``SUCCESS``, and nothing else it says counts.
Spans it has taken are remembered until their batch is acknowledged: what comes after them can fail
and be sent again without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from caribou._pace import Pace
from caribou.otel.generic import to_span
from caribou.otel.spans import decoded_row
from caribou.sinks._driver import Driver, Raised, ask
from caribou.sinks.base import Ambiguous, Batch, Misconfigured, Poison, Retry

if TYPE_CHECKING:
    from caribou.sinks._sdk_spans import Origin

__all__ = ["Exporter"]

_T = TypeVar("_T")

# What one call is given: as many spans as the SDK's own processor hands over, and of long ones no
# more than receivers take at once.
_SPANS_AT_ONCE = 512
_BYTES_AT_ONCE = 1 << 20
# Seconds that the exporter has for its last words.
_FAREWELL = 2.0

# The span's id and the version of its row: a rollout that is amended is told again.
_Key = tuple[str, int]


class Exporter:
    """The sink for one exporter; implements ``Sink``.

    Args:
        name: the sink's, the same in every process.
        exporter: the ``SpanExporter``.
        resource: attributes of the program that is traced, such as ``service.name``.
        timeout: seconds for one call of ``export()``.
    """

    def __init__(
        self,
        name: str,
        exporter: Any,
        *,
        resource: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.name = name
        self.exporter = exporter
        # Set where somebody else goes on with the same exporter: then it is not shut down.
        self.stays: bool = False
        self._resource = dict(resource or {})
        self._timeout = timeout
        self._driver = Driver.of(exporter)
        # By table, as there is one batch of each at a time.
        self._taken: dict[str, set[_Key]] = {table: set() for table in self.tables}
        self._in_doubt: dict[str, Future[Any]] = {}
        self._origin: Origin | None = None

    def __repr__(self) -> str:
        return f"Exporter({self.target!r})"

    @property
    def target(self) -> str:
        """The exporter's class."""
        kind = cast("type[object]", type(self.exporter))
        return f"{kind.__module__}.{kind.__qualname__}"

    @property
    def tables(self) -> frozenset[str]:
        """Records and summaries. What the other tables hold is in them."""
        return frozenset({"spans", "traces"})

    def load(self) -> None:
        """Import the SDK; see ``Sink``. Where it is missing, every batch says so."""
        with contextlib.suppress(ImportError):
            importlib.import_module("caribou.sinks._sdk_spans")

    async def send(self, batch: Batch) -> None:
        """Hand the batch's rows to the exporter; return when it has taken all of them.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        # A copy: a call that hangs outlives the view.
        data = bytes(batch.data)
        keys: set[_Key] = set()
        at = 0
        while at < len(data):
            at, seen = await self._call(batch.table, partial(self._export, batch.table, data, at))
            keys |= seen
        self._taken[batch.table] -= keys

    async def confirm(self, batch: Batch) -> bool:
        """False: what the exporter has taken of the batch is known, and left out of the next
        attempt.

        Raises:
            Retry: the call whose outcome is in doubt has still not returned.
        """
        call = self._in_doubt.get(batch.table)
        if call is not None and not call.done():
            seconds = self._driver.under_way or 0.0
            raise Retry(f"export() has not returned for {seconds:.0f} s")
        return False

    async def aclose(self) -> None:
        """Have the exporter flush and shut down, unless a call of it hangs; see ``Sink``."""
        # No thread can be started, it takes too long, or it raises: it was asked.
        with contextlib.suppress(RuntimeError, TimeoutError, Raised):
            await _outcome(self._driver.submit(self._bid_farewell), _FAREWELL)
        self._driver.release()

    async def _call(
        self, table: str, function: Callable[[], tuple[int, set[_Key]]]
    ) -> tuple[int, set[_Key]]:
        try:
            call = self._driver.submit(function)
        except RuntimeError as error:
            raise Retry(f"no thread can be started: {error}") from None
        try:
            return await _outcome(call, self._timeout)
        except Raised as error:
            raise Retry(f"export() raised {error}") from None
        except TimeoutError:
            if call.cancelled():
                raise Retry("an earlier call of export() has not returned") from None
            self._in_doubt[table] = call
            raise Ambiguous(f"export() did not return within {self._timeout:.0f} s") from None

    def _export(self, table: str, data: bytes, at: int) -> tuple[int, set[_Key]]:
        """In the exporter's thread: hand over the next spans of ``data``. Gives where the rest
        starts, and what was handed over or had been before.

        Raises:
            SinkError: one of its subclasses, for every failure of ours or of what it answered.
            Raised: what it raised.
        """
        try:
            from caribou.sinks._sdk_spans import Origin, ReadableSpan, SpanExportResult, untraced
        except ImportError as error:
            raise Misconfigured(
                f"the package of {error.name} is missing: pip install 'caribou-trace[otel]'"
            ) from None
        if self._origin is None:
            self._origin = Origin(self._resource)
        spans: list[ReadableSpan] = []
        keys: set[_Key] = set()
        upto = at + _BYTES_AT_ONCE
        pace = Pace()
        while at < min(upto, len(data)) and len(spans) < _SPANS_AT_ONCE:
            start, at = at, data.index(b"\n", at) + 1
            try:
                row = decoded_row(data[start : at - 1])
                span = to_span(table, row)
                if span is None:
                    continue
                key = span.span_id, int(row.get("version", 0))
                readable = self._origin.readable(span)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                raise Poison(f"a row is no span: {type(error).__name__}: {error}") from None
            if key not in self._taken[table]:
                spans.append(readable)
            keys.add(key)
            pace.pause()
        if spans:
            untraced()
            answer = ask(self.exporter, "export", spans)
            if answer is SpanExportResult.FAILURE:
                raise Retry("export() returned FAILURE, as one does that was shut down")
            if answer is not SpanExportResult.SUCCESS:
                said = type(answer).__name__
                raise Retry(f"export() returned a {said}, and not SpanExportResult.SUCCESS")
            self._taken[table] |= keys
        return at, keys

    def _bid_farewell(self) -> None:
        # Older exporters have no force_flush().
        with contextlib.suppress(Raised):
            ask(self.exporter, "force_flush", int(_FAREWELL / 2 * 1000))
        if not self.stays:
            with contextlib.suppress(Raised):
                ask(self.exporter, "shutdown")


async def _outcome(call: Future[_T], timeout: float) -> _T:
    """The result of a call. One that has not begun by the end of the time never does.

    Raises:
        TimeoutError: it has not returned.
    """
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(call)
    finally:
        call.cancel()
