"""``configure(exporters=[...])``: what well-behaved exporters get, and what others may do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
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
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support.backend import running
from support.rows import make_batch, span_lines
from support.waiting import wait_until

import caribou
import caribou.sync
from caribou import Event, Grade, Message, ToolExecution, _process, log
from caribou.sinks.base import Ambiguous, Batch, Retry
from caribou.sinks.exporters import Exporter

META: dict[str, Any] = {"datapoint_id": "dp", "run_id": "run", "phase": "eval", "step_number": 3}


class Odd(SpanExporter):
    """An exporter that does what it is told, and keeps what it got."""

    def __init__(self, does: Callable[[Sequence[ReadableSpan]], Any] = lambda spans: None) -> None:
        self.does = does
        self.calls: list[list[str]] = []
        self.ended: list[str] = []
        self._inside = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        # Never two calls at once.
        assert self._inside.acquire(blocking=False)
        try:
            self.calls.append([ids(span) for span in spans])
            return self.does(spans)
        finally:
            self._inside.release()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.ended.append("force_flush")
        return True

    def shutdown(self) -> None:
        self.ended.append("shutdown")


def ids(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def success(spans: Sequence[ReadableSpan]) -> SpanExportResult:
    return SpanExportResult.SUCCESS


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging call waits for; opened at the end, so that no thread is left behind."""
    gate = threading.Event()
    yield gate
    _process.shutdown_blocking(0.5)
    gate.set()
    wait_until(lambda: not any(t.name == "caribou-exporter" for t in threading.enumerate()))


def rollout(count: int = 3, **meta: Any) -> None:
    with caribou.sync.trace_run({**META, **meta}):
        for number in range(count):
            log(Message(role="user", content=f"content {number}"))


def account(name: str) -> tuple[int, int, int]:
    stats = caribou.stats().sinks[name]
    assert stats.logged == stats.delivered + stats.pending + sum(stats.dropped.values())
    return stats.logged, stats.delivered, stats.pending


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_an_exporter_gets_every_record_once_and_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "trainer")
    exporter = InMemorySpanExporter()
    caribou.configure(exporters=[exporter])
    with (
        contextlib.suppress(ValueError),
        caribou.sync.trace_run({**META, "model_name": "m"}) as trace_id,
    ):
        log(Message(role="user", content="How many?"))
        with caribou.sync.span("setup", kind="environment"):
            with caribou.sync.span("inner"):
                log(Event(name="started", data={"port": 80}))
            log(ToolExecution(name="bash", arguments={"cmd": "ls"}, error="no"))
        log(Message(role="assistant", content="Two", input_tokens=10, cache_read_tokens=4))
        log(Grade(score=0.5, grader_name="judge"))
        raise ValueError("no more")
    assert caribou.sync.flush(10).complete
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert len(exporter.get_finished_spans()) == len(spans) == 8
    root = spans.pop("invoke_agent")
    assert root.parent is None
    assert root.status.status_code is StatusCode.ERROR
    assert root.status.description == "no more"
    assert [event.name for event in root.events] == ["exception"]
    names = {ids(span): name for name, span in spans.items()} | {ids(root): "root"}
    parents = {name: names[f"{span.parent.span_id:016x}"] for name, span in spans.items()}
    assert parents == {
        "message.user": "root",
        "setup": "root",
        "inner": "setup",
        "event.started": "inner",
        "execute_tool bash": "setup",
        "chat m": "root",
        "grade.judge": "root",
    }
    order = sorted(spans.values(), key=lambda span: attributes(span)["caribou.seq"])
    assert [span.name for span in order] == [
        *("message.user", "setup", "inner", "event.started", "execute_tool bash"),
        *("chat m", "grade.judge"),
    ]
    for span in (root, *spans.values()):
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == trace_id
        assert span.context.is_valid
        assert span.context.trace_flags.sampled
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        assert span.resource.attributes["service.name"] == "trainer"
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "caribou"
        assert span.instrumentation_scope.version == caribou.__version__
        assert attributes(span)["caribou.step_number"] == 3
        assert span.to_json()
    chat = spans["chat m"]
    assert chat.kind is SpanKind.CLIENT
    assert attributes(chat)["gen_ai.usage.input_tokens"] == 14
    assert attributes(chat)["gen_ai.request.model"] == "m"
    assert spans["execute_tool bash"].status.status_code is StatusCode.ERROR
    assert spans["setup"].status.status_code is StatusCode.UNSET
    # Scopes and the rollout are told of when they open as well.
    assert account("exporter-inmemoryspanexporter") == (11, 11, 0)
    assert caribou.stats().sinks["local"].delivered == 12


def test_what_an_exporter_took_stays_in_the_local_store(tmp_path: Path) -> None:
    caribou.configure(exporters=[InMemorySpanExporter()])
    rollout()
    assert caribou.sync.shutdown().complete
    (segment,) = (tmp_path / "home/journal").glob("*/spans-*.ndjson")
    assert segment.read_text().count("content") == 6


def test_many_spans_are_handed_over_a_few_at_a_time() -> None:
    exporter = Odd(success)
    caribou.configure(exporters=[exporter])
    rollout(3000)
    assert caribou.sync.flush(20).complete
    spans = [span for call in exporter.calls for span in call]
    assert len(spans) == len(set(spans)) == 3001
    assert max(map(len, exporter.calls)) <= 512


def failing(times: int, how: Callable[[], Any]) -> Callable[[Sequence[ReadableSpan]], Any]:
    left = iter(range(times))
    return lambda spans: SpanExportResult.SUCCESS if next(left, None) is None else how()


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


ODDITIES: dict[str, tuple[Callable[[], Any], str]] = {
    "failure": (lambda: SpanExportResult.FAILURE, "returned FAILURE"),
    "none": (lambda: None, "returned a NoneType"),
    "true": (lambda: True, "returned a bool"),
    "equal": (Equal, "returned a Equal"),
    "exception": (raising(RuntimeError("no \x1b[31m disk")), r"RuntimeError: no \x1b[31m disk"),
    "unspeakable": (raising(Unspeakable()), "raised Unspeakable"),
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
    began = time.monotonic()
    caribou.sync.flush(0.2)
    assert time.monotonic() - began < 1
    assert len(healthy.get_finished_spans()) == 4
    assert account("exporter-inmemoryspanexporter") == (5, 5, 0)
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
    rollout()
    began = time.monotonic()
    result = caribou.sync.flush(0.5)
    assert time.monotonic() - began < 1.5
    assert not result.complete
    assert account("exporter-odd") == (5, 0, 5)
    assert len(healthy.get_finished_spans()) == 4
    began = time.monotonic()
    assert not caribou.sync.shutdown(0.5).complete
    assert time.monotonic() - began < 1.5
    assert len(hanging.calls) == 1
    # No last words while it hangs.
    assert hanging.ended == []


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
    rollout()
    assert caribou.sync.flush(10).complete
    assert sum(map(len, exporter.calls)) == 4
    assert caribou.stats().outside_rollout == len(exporter.calls)


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


def test_exporters_of_one_class_are_told_apart() -> None:
    odder = type("Ödd/../Exporter", (Odd,), {})
    exporters = [Odd(success), odder(success), Odd(success), odder(success)]
    caribou.configure(exporters=exporters)
    rollout()
    assert caribou.sync.flush(10).complete
    names = ["exporter-dd-exporter", "exporter-dd-exporter-2", "exporter-odd", "exporter-odd-2"]
    assert sorted(set(caribou.stats().sinks) - {"local"}) == names
    assert [sum(map(len, exporter.calls)) for exporter in exporters] == [4] * 4


def test_shutdown_ends_an_exporter_and_a_new_one_takes_its_place() -> None:
    first, second = Odd(success), Odd(success)
    caribou.configure(exporters=[first])
    rollout()
    assert caribou.sync.shutdown(10).complete
    assert first.ended == ["force_flush", "shutdown"]
    caribou.configure(exporters=[second])
    rollout()
    assert caribou.sync.flush(10).complete
    assert sum(map(len, first.calls)) == sum(map(len, second.calls)) == 4


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


def test_an_exporter_that_stays_is_neither_restarted_nor_shut_down() -> None:
    exporters = [Odd(success)]
    caribou.configure(exporters=exporters)
    rollout()
    runtime = _process.current()
    caribou.configure(exporters=exporters)
    caribou.configure(run_id="another")
    assert _process.current() is runtime
    caribou.configure(batch_rows=7)
    rollout()
    assert _process.current() is not runtime
    assert caribou.sync.flush(10).complete
    assert exporters[0].ended == ["force_flush"]
    assert sum(map(len, exporters[0].calls)) == 8
    caribou.configure(exporters=[])
    assert caribou.sync.flush(10).complete
    assert exporters[0].ended == ["force_flush", "force_flush", "shutdown"]


class Hostile:
    export = shutdown = success

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


def test_an_exporter_is_neither_compared_nor_shown() -> None:
    exporters: Any = [Hostile(), Hostile()]
    caribou.configure(exporters=exporters)
    caribou.configure(exporters=exporters, batch_rows=8)
    assert "[Hostile, Hostile]" in repr(_process._settings)
    caribou.configure(exporters=[])


class Unusable:
    def shutdown(self) -> None: ...

    @property
    def export(self) -> None:
        raise RuntimeError("no attribute")


FORM = "exporters must be a list of OpenTelemetry SpanExporters, with export() and shutdown()"
ONE = Odd(success)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (ONE, TypeError, f"{FORM}, not Odd"),
        ("otlp", TypeError, f"{FORM}, not str"),
        ({ONE}, TypeError, f"{FORM}, not set"),
        ([Odd], TypeError, f"{FORM}; Odd is a class, and not an object of it"),
        ([ONE, "x"], TypeError, f"{FORM}; str is none"),
        ([None], TypeError, f"{FORM}; NoneType is none"),
        ([Unusable()], TypeError, f"{FORM}; Unusable is none"),
        ((ONE, ONE), ValueError, "exporters must not hold the same object twice"),
    ],
)
def test_what_is_no_exporter_is_refused(value: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        caribou.configure(exporters=value)
    assert str(caught.value) == message


def run(program: str, home: Path) -> subprocess.CompletedProcess[str]:
    preamble = """
    import os, sys, caribou, caribou.sync
    from caribou import Message, log
    def rollout():
        with caribou.sync.trace_run({"datapoint_id": "dp", "run_id": "run", "phase": "train"}):
            log(Message(role="user", content="hello"))
    """
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(preamble) + textwrap.dedent(program)],
        env=os.environ | {"CARIBOU_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


IN_MEMORY = """
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
caribou.configure(exporters=[exporter])
"""


def test_what_a_process_left_goes_to_the_next_with_such_an_exporter(tmp_path: Path) -> None:
    ended = run(f"{IN_MEMORY}\nrollout()\nos._exit(0)", tmp_path / "home")
    assert (ended.returncode, ended.stderr) == (0, "")
    exporter = InMemorySpanExporter()
    caribou.configure(exporters=[exporter])
    rollout(1)
    assert caribou.sync.shutdown(10).complete
    assert sorted(span.name for span in exporter.get_finished_spans()) == [
        *["invoke_agent"] * 2,
        *["message.user"] * 2,
    ]


def test_a_program_ends_in_time_beside_one_that_hangs(tmp_path: Path) -> None:
    program = """
    import threading, time
    class Hanging:
        def export(self, spans):
            threading.Event().wait()
        def shutdown(self): ...
    caribou.configure(exporters=[Hanging()])
    rollout()
    """
    began = time.monotonic()
    ended = run(program, tmp_path / "home")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert time.monotonic() - began < 12


def test_a_forked_child_exports_its_own(tmp_path: Path) -> None:
    program = f"""
    {textwrap.indent(IN_MEMORY, "    ").strip()}
    rollout()
    caribou.sync.flush(10)
    pid = os.fork()
    if not pid:
        exporter.clear()
    rollout()
    assert caribou.sync.flush(10).complete
    print(len(exporter.get_finished_spans()), flush=True)
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    """
    ended = run(program, tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split()) == ["2", "4"]


def test_without_the_sdk_the_rows_are_kept(tmp_path: Path) -> None:
    program = """
    sys.modules["opentelemetry.sdk"] = None
    class Own:
        def export(self, spans): raise AssertionError
        def shutdown(self): ...
    caribou.configure(exporters=[Own()])
    rollout()
    result = caribou.sync.shutdown(1)
    print(result.complete, result.sinks["exporter-own"].pending)
    """
    ended = run(program, tmp_path / "home")
    assert ended.stdout == "False 3\n"
    assert "pip install 'caribou-trace[otel]'" in ended.stderr
