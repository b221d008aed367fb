"""``configure(exporters=[...])``: what exporters get, how they are told apart, when they end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support.exporters import META, Odd, account, attributes, ids, rollout, success

import caribou
import caribou.sync
from caribou import Event, Grade, Message, ToolExecution, _process, log


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
