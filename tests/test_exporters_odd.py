"""Exporters that raise, hang or lie: they are tried again, and delay nobody."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.backend import running
from support.exporters import Odd, account, rollout, success
from support.rows import make_batch, span_lines
from support.servers import DoorServer
from support.waiting import wait_until

import caribou
import caribou.sync
from caribou import Message, _process, log
from caribou.sinks.base import Ambiguous, Batch, Retry
from caribou.sinks.exporters import Exporter


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging call waits for; opened at the end, so that no thread is left behind."""
    gate = threading.Event()
    yield gate
    _process.shutdown_blocking(0.5)
    gate.set()
    wait_until(lambda: not any(t.name == "caribou-exporter" for t in threading.enumerate()))


def failing(times: int, how: Callable[[], Any]) -> Callable[[Sequence[ReadableSpan]], Any]:
    left = iter(range(times))
    return lambda spans: SpanExportResult.SUCCESS if next(left, None) is None else how()


def summary_taken() -> None:
    """The summary of a rollout that goes on is no span: it is done with without the exporter, which
    is to be so by itself, and not only where no batch ends between it and the rest."""
    wait_until(lambda: account("exporter-odd") == (1, 1, 0))


class Equal:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def raising(error: BaseException) -> Callable[[], Any]:
    def raises() -> Any:
        raise error

    return raises


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Ugly(BaseException):
    def __str__(self) -> str:
        raise self


ODDITIES: dict[str, tuple[Callable[[], Any], str]] = {
    "failure": (lambda: SpanExportResult.FAILURE, "returned FAILURE"),
    "none": (lambda: None, "returned a NoneType"),
    "true": (lambda: True, "returned a bool"),
    "equal": (Equal, "returned a Equal"),
    "exception": (raising(RuntimeError("no \x1b[31m disk")), r"RuntimeError: no \x1b[31m disk"),
    "unspeakable": (raising(Unspeakable()), "raised Unspeakable"),
    "ugly": (raising(Ugly()), "raised Ugly"),
    "exit": (raising(SystemExit(3)), "raised SystemExit: 3"),
    "interrupt": (raising(KeyboardInterrupt()), "raised KeyboardInterrupt"),
    "timeout": (raising(TimeoutError()), "raised TimeoutError"),
    "cancelled": (raising(asyncio.CancelledError()), "raised CancelledError"),
    "stop": (raising(StopIteration()), "raised StopIteration"),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_one_that_fails_is_tried_again_and_delays_nobody(
    oddity: str, caplog: pytest.LogCaptureFixture
) -> None:
    how, reason = ODDITIES[oddity]
    odd, healthy = Odd(failing(2, how)), InMemorySpanExporter()
    caribou.configure(exporters=[odd, healthy])
    rollout()
    wait_until(lambda: account("exporter-inmemoryspanexporter") == (5, 5, 0))
    assert len(healthy.get_finished_spans()) == 4
    wait_until(lambda: account("exporter-odd")[2] == 0)
    assert reason in caplog.text
    assert caplog.text.count("Rows wait in the journal") == 1
    # What failed was tried again, whole, and what was taken was not.
    taken = Counter(span for call in odd.calls[2:] for span in call)
    assert len(taken) == 4
    assert set(taken.values()) == {1}


def test_a_call_that_hangs_delays_nobody(gate: threading.Event) -> None:
    hanging = Odd(lambda spans: SpanExportResult.SUCCESS if gate.wait() else None)
    healthy = InMemorySpanExporter()
    caribou.configure(exporters=[hanging, healthy])
    rollout(opened=summary_taken)
    wait_until(lambda: len(healthy.get_finished_spans()) == 4)
    began = time.monotonic()
    assert not caribou.sync.flush(0.5).complete
    assert time.monotonic() - began < 1.5
    assert account("exporter-odd") == (5, 1, 4)
    began = time.monotonic()
    assert not caribou.sync.shutdown(0.5).complete
    assert time.monotonic() - began < 1.5
    assert len(hanging.calls) == 1
    # No last words while it hangs.
    assert hanging.ended == []


def test_clickhouse_gets_its_rows_beside_one_that_hangs(
    door: DoorServer, database: str, gate: threading.Event
) -> None:
    hanging = Odd(lambda spans: gate.wait())
    caribou.configure(clickhouse_url=door.url, clickhouse_database=database, exporters=[hanging])
    rollout(100, opened=summary_taken)
    wait_until(lambda: account("clickhouse")[2] == 0)
    (count,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(count["n"]) == 100
    assert account("exporter-odd") == (102, 1, 101)


def test_a_call_that_hangs_is_the_only_one_whoever_configures_what(gate: threading.Event) -> None:
    hanging = Odd(lambda spans: SpanExportResult.SUCCESS if gate.wait() else None)
    caribou.configure(exporters=[hanging])
    rollout()
    wait_until(lambda: len(hanging.calls) == 1)
    caribou.configure(batch_rows=7)
    rollout()
    assert not caribou.sync.flush(0.5).complete
    assert len(hanging.calls) == 1
    gate.set()
    assert caribou.sync.flush(20).complete
    taken = [span for call in hanging.calls for span in call]
    assert len(taken) == len(set(taken)) == 8


def test_an_exporter_that_is_taken_back_is_not_shut_down(gate: threading.Event) -> None:
    def slow(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        gate.wait()
        return SpanExportResult.SUCCESS

    kept, holding = Odd(success), Odd(slow)
    caribou.configure(exporters=[kept, holding])
    rollout()
    # The first runtime cannot end yet, as one of its exporters hangs.
    caribou.configure(exporters=[])
    caribou.configure(exporters=[kept])
    rollout()
    gate.set()
    assert caribou.sync.flush(10).complete
    assert "shutdown" in holding.ended
    assert "shutdown" not in kept.ended
    assert len({span for call in kept.calls for span in call}) == 8


def test_a_call_that_returns_late_is_believed(gate: threading.Event) -> None:
    exporter = Odd(lambda spans: SpanExportResult.SUCCESS if gate.wait() else None)
    asyncio.run(_returning_late(exporter, gate))


async def _returning_late(exporter: Odd, gate: threading.Event) -> None:
    sink = Exporter("exporter-odd", exporter, timeout=0.1)
    batch, other = make_batch(span_lines(3)), make_batch(summaries(), table="traces")
    with pytest.raises(Ambiguous, match="did not return within 0"):
        await sink.send(batch)
    with pytest.raises(Retry, match="has not returned for 0 s"):
        await sink.confirm(batch)
    # Nothing else is asked of it meanwhile, and what was given up never is.
    with pytest.raises(Retry, match="an earlier call"):
        await sink.send(other)
    gate.set()
    assert not await until_known(sink, batch)
    await sink.send(batch)
    assert [len(call) for call in exporter.calls] == [3]
    await sink.send(other)
    assert [len(call) for call in exporter.calls] == [3, 1]
    # The same rows in another batch are not the same.
    await sink.send(batch)
    assert [len(call) for call in exporter.calls] == [3, 1, 3]
    await sink.aclose()
    assert exporter.ended == ["force_flush", "shutdown"]


def test_a_call_that_fails_late_is_made_again(gate: threading.Event) -> None:
    def fail_late(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if gate.is_set():
            return SpanExportResult.SUCCESS
        gate.wait()
        return SpanExportResult.FAILURE

    exporter = Odd(fail_late)
    asyncio.run(_failing_late(exporter, gate))
    assert [len(call) for call in exporter.calls] == [3, 3]


async def _failing_late(exporter: Odd, gate: threading.Event) -> None:
    sink = Exporter("exporter-odd", exporter, timeout=0.1)
    batch = make_batch(span_lines(3))
    with pytest.raises(Ambiguous):
        await sink.send(batch)
    gate.set()
    assert not await until_known(sink, batch)
    await sink.send(batch)
    await sink.aclose()


async def until_known(sink: Exporter, batch: Batch) -> bool:
    while True:
        try:
            return await sink.confirm(batch)
        except Retry:
            await asyncio.sleep(0.01)


def summaries() -> list[dict[str, Any]]:
    (line,) = span_lines(1, root_span_id="00000000000000ff", status="COMPLETED")
    return [{name: line[name] for name in ("trace_id", "root_span_id", "start_time", "status")}]


def test_what_was_taken_of_a_batch_is_not_sent_again() -> None:
    answers = iter([SpanExportResult.SUCCESS, SpanExportResult.FAILURE])
    exporter = Odd(lambda spans: next(answers, SpanExportResult.SUCCESS))
    asyncio.run(_failing_half_way(exporter))
    first, failed, again, last = exporter.calls
    assert len(set(first + again + last)) == len(first + again + last) == 1200
    assert failed == again


async def _failing_half_way(exporter: Odd) -> None:
    sink = Exporter("exporter-odd", exporter)
    batch = make_batch(span_lines(1200))
    with pytest.raises(Retry, match="FAILURE"):
        await sink.send(batch)
    await sink.send(batch)
    await sink.aclose()


@pytest.mark.asyncio
async def test_a_row_that_is_no_span_is_set_aside_and_its_neighbours_arrive_once(
    tmp_path: Path,
) -> None:
    exporter = Odd(success)
    lines = span_lines(600)
    del lines[520]["span_id"]
    sink: Any = Exporter("exporter-odd", exporter)
    async with running(tmp_path, sink) as delivery:
        for line in lines:
            delivery.journal.streams["spans"].append(json.dumps(line).encode())
        await delivery.flush()
        assert delivery.account == (600, 599, 0, {"dead_letter": 1})
    taken = [span for call in exporter.calls for span in call]
    assert len(taken) == len(set(taken)) == 599


def test_one_that_changes_its_spans_changes_no_other() -> None:
    def change(spans: Any) -> Any:
        for span in spans:
            span._attributes = {"changed": True}
            span._name = "changed"
        seen.extend(spans)
        spans.clear()
        return SpanExportResult.FAILURE if len(seen) < 8 else SpanExportResult.SUCCESS

    seen: list[ReadableSpan] = []
    changing, healthy = Odd(change), InMemorySpanExporter()
    caribou.configure(exporters=[changing, healthy])
    rollout()
    caribou.sync.flush(1)
    wait_until(lambda: account("exporter-odd")[2] == 0)
    assert len({id(span) for span in seen}) == len(seen) >= 8
    assert {span.name for span in healthy.get_finished_spans()} == {"message.user", "invoke_agent"}


@pytest.mark.filterwarnings("ignore:log.. was called outside")
def test_one_that_calls_back_is_no_trouble() -> None:
    def call_back(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert not caribou.sync.flush(0.1).complete
        log(Message(role="user", content="from inside"))
        assert caribou.current_trace_id() is None
        return SpanExportResult.SUCCESS

    exporter = Odd(call_back)
    caribou.configure(exporters=[exporter])
    before = caribou.stats().outside_rollout
    rollout()
    assert caribou.sync.flush(10).complete
    assert sum(map(len, exporter.calls)) == 4
    assert caribou.stats().outside_rollout - before == len(exporter.calls)


def test_one_that_ends_caribou_from_inside_is_no_trouble(gate: threading.Event) -> None:
    def end(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        caribou.sync.shutdown(0.2)
        return SpanExportResult.SUCCESS

    exporter = Odd(end)
    caribou.configure(exporters=[exporter])
    rollout()
    began = time.monotonic()
    caribou.sync.flush(2)
    assert time.monotonic() - began < 3


def test_instrumented_libraries_make_no_spans_of_what_an_exporter_does() -> None:
    suppressed: list[object] = []

    def look(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        suppressed.append(context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY))
        return SpanExportResult.SUCCESS

    caribou.configure(exporters=[Odd(look)])
    rollout()
    assert caribou.sync.flush(10).complete
    assert set(suppressed) == {True}
    assert context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY) is None


def test_an_exporter_that_hangs_when_it_ends_keeps_no_deadline_waiting(
    gate: threading.Event,
) -> None:
    exporter = Odd(success)
    exporter.shutdown = gate.wait  # type: ignore[method-assign,assignment]
    caribou.configure(exporters=[exporter])
    rollout()
    began = time.monotonic()
    caribou.sync.shutdown(1)
    assert time.monotonic() - began < 2
