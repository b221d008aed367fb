"""A rollout from entry to exit: its summary, outcome, spans, totals, metadata and tags."""

from __future__ import annotations

import contextvars
import random
import sys
import threading
import time
from typing import Any

import pytest
from support.switches import frequent_switches

import caribou.sync as caribou
from caribou import Event, Grade, InvalidType, InvalidValue, Message, RolloutStatus, ToolExecution
from caribou.testing import Capture, capture

META = {"datapoint_id": "d", "phase": "train"}


def say(text: str = "x", role: str = "user", **more: Any) -> None:
    caribou.log(Message(role=role, content=text, **more))


def test_a_reader_sees_a_rollout_from_its_first_moment(caribou_capture: Capture) -> None:
    meta = META | {
        "run_id": "r",
        "step_number": 3,
        "env_name": "e",
        "model_name": "m",
        "grader_name": "g",
    }
    with caribou.trace_run(meta) as trace_id:
        (row,) = caribou_capture.rows("traces")
        assert row["status"] == "PENDING"
        assert row.items() >= (meta | {"trace_id": trace_id}).items()
        assert "end_time" not in row
    first, last = caribou_capture.rows("traces")
    assert last["status"] == "COMPLETED"
    assert (first.get("version", 0), last["version"]) == (0, 1)
    identity = {*meta, "trace_id", "root_span_id", "start_time"}
    assert {name: first[name] for name in identity} == {name: last[name] for name in identity}


def test_times_are_decimals_and_the_end_is_start_plus_duration(caribou_capture: Capture) -> None:
    before = time.time_ns()
    with caribou.trace_run(META):
        say(duration_ms=250.5)
        say()
    row = caribou_capture.traces[0]
    start, end = (row[name].split(".") for name in ("start_time", "end_time"))
    assert len(start[1]) == len(end[1]) == 9
    start_ns, end_ns = int("".join(start)), int("".join(end))
    assert before <= start_ns <= time.time_ns()
    assert end_ns - start_ns == int(row["duration_ms"] * 1e6) >= 0
    timed, plain = caribou_capture.messages
    took = int(timed["end_time"].replace(".", "")) - int(timed["start_time"].replace(".", ""))
    assert took == 250_500_000
    assert "end_time" not in plain


def test_a_clock_that_goes_backwards(
    caribou_capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system's clock is the one thing that a test cannot have for real.
    ticks = iter(range(2_000_000_000_000_000_000, 0, -1_000_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))
    with caribou.trace_run(META), caribou.span("step"):
        pass
    for row in (*caribou_capture.traces, *caribou_capture.spans):
        assert row["duration_ms"] >= 0
        assert row["end_time"] >= row["start_time"]


class Refused(Exception):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (ValueError("wrong"), "ERROR"),
        (KeyboardInterrupt(), "ABORTED"),
        (SystemExit(1), "ABORTED"),
        (GeneratorExit(), "ABORTED"),
        (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "ERROR"),
        (BaseExceptionGroup("stop", [KeyboardInterrupt()]), "ABORTED"),
        (BaseExceptionGroup("mixed", [KeyboardInterrupt(), ValueError("a")]), "ERROR"),
    ],
)
def test_what_a_rollout_raises_decides_its_status(
    caribou_capture: Capture, problem: BaseException, status: str
) -> None:
    with pytest.raises(type(problem)) as raised, caribou.trace_run(META), caribou.span("step"):
        raise problem
    assert raised.value is problem
    (trace,), (span,) = caribou_capture.traces, caribou_capture.spans
    assert (trace["status"], span["status"]) == (status, status)
    assert ("error_type" in trace) == (status == "ERROR")


def test_an_error_is_recorded_with_where_it_came_from(caribou_capture: Capture) -> None:
    def inner() -> None:
        raise KeyError("cause")

    def outer() -> None:
        try:
            inner()
        except KeyError as cause:
            raise Refused("at last \ud800") from cause

    with pytest.raises(Refused), caribou.trace_run(META):
        outer()
    (row,) = caribou_capture.traces
    assert row["error_type"].endswith("Refused")
    assert row["error_message"] == "at last �"
    assert "direct cause" in row["traceback"]
    assert "in inner" in row["traceback"]
    assert "KeyError: 'cause'" in row["traceback"]


def test_an_error_that_cannot_be_shown(caribou_capture: Capture) -> None:
    with pytest.raises(Unspeakable), caribou.trace_run(META):
        raise Unspeakable
    assert caribou_capture.traces[0]["error_message"] == "<the message could not be shown>"


def test_an_endless_traceback_is_cut(caribou_capture: Capture) -> None:
    def dig(depth: int) -> None:
        if depth:
            dig(depth - 1)
        raise RecursionError("x" * 100_000)

    with pytest.raises(RecursionError), caribou.trace_run(META):
        dig(500)
    (row,) = caribou_capture.traces
    assert "frames left out" in row["traceback"]
    assert len(row["traceback"]) < 70_000
    assert "truncated" in row["error_message"]


@pytest.mark.parametrize("status", [RolloutStatus.TRUNCATED, "GRADER_TIMEOUT"])
def test_a_status_that_was_set_stays(caribou_capture: Capture, status: Any) -> None:
    run = caribou.trace_run(META)
    run.__enter__()
    caribou.set_status(status, "said before")
    problem = ValueError("late")
    run.__exit__(ValueError, problem, None)
    (row,) = caribou_capture.traces
    assert row["status"] == str(status)
    assert row["error_message"] == "said before"
    assert row["error_type"] == "ValueError"


def test_no_such_status() -> None:
    with pytest.raises(InvalidValue, match=r"COMPLETED.*not 'DONE'"):
        caribou.set_status("DONE")  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="error_message"):
        caribou.set_status(RolloutStatus.ERROR, 5)  # type: ignore[arg-type]


def test_spans_are_written_when_they_open_and_when_they_close(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        say("above")
        with caribou.span("step", kind="environment", attributes={"n": 1}):
            (opened,) = [r for r in caribou_capture.rows("spans") if r["name"] == "step"]
            say("inside")
            with caribou.span("deeper"):
                say("deepest")
        say("below")
    root = caribou_capture.traces[0]["root_span_id"]
    by_name = {row.get("content", row["name"]): row for row in caribou_capture.spans}
    step = by_name["step"]
    assert (opened["status"], "end_time" in opened) == ("PENDING", False)
    assert (step["status"], step["kind"], step["version"]) == ("COMPLETED", "environment", 1)
    assert step["attributes"] == {"n": 1}
    key = ("run_id", "trace_id", "seq", "span_id", "start_time")
    assert [opened.get(name) for name in key] == [step.get(name) for name in key]
    parents = {name: row["parent_span_id"] for name, row in by_name.items()}
    assert parents == {
        "above": root,
        "step": root,
        "inside": step["span_id"],
        "deeper": step["span_id"],
        "deepest": by_name["deeper"]["span_id"],
        "below": root,
    }
    order = [
        row.get("content", row["name"])
        for row in sorted(caribou_capture.spans, key=lambda row: row["seq"])
    ]
    assert order == ["above", "step", "inside", "deeper", "deepest", "below"]


def test_set_error_marks_the_span_it_is_in(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        with caribou.span("bad"):
            caribou.set_error("it broke")
        with caribou.span("good"):
            pass
    bad, good = caribou_capture.spans
    assert (bad["status"], bad["status_message"]) == ("ERROR", "it broke")
    assert (good["status"], "status_message" in good) == ("COMPLETED", False)
    assert caribou_capture.traces[0]["status"] == "COMPLETED"


def test_set_error_outside_a_span_marks_the_rollout(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        caribou.set_error("it broke")
    (row,) = caribou_capture.traces
    assert (row["status"], row["error_message"]) == ("ERROR", "it broke")


def test_totals_are_sums_by_model(caribou_capture: Capture) -> None:
    with caribou.trace_run(META | {"model_name": "elk"}):
        say("hello", input_tokens=5)
        say(role="assistant", input_tokens=10, output_tokens=1, cost_usd=0.5, cache_read_tokens=3)
        say(role="assistant", model="fox", output_tokens=7, reasoning_tokens=2, cost_usd=0.25)
        say(role="assistant", grader_name="judge", model="owl", input_tokens=100)
        caribou.log(ToolExecution(name="t"))
        caribou.log(ToolExecution(name="t", error="x"))
        caribou.log(Event(name="e"))
        caribou.log(Grade(score=0.25))
        caribou.log(Grade(score=0.75))
    (row,) = caribou_capture.traces
    assert row["usage"] == {
        "elk": {"input_tokens": 15, "output_tokens": 1, "cache_read_tokens": 3, "cost_usd": 0.5},
        "fox": {"output_tokens": 7, "reasoning_tokens": 2, "cost_usd": 0.25},
        "owl": {"input_tokens": 100},
    }
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (115, 8, 0.75)
    assert (row["turns"], row["messages"]) == (2, 3)
    assert (row["tool_calls"], row["tool_errors"], row["score"]) == (2, 1, 0.75)


def test_totals_never_leave_their_columns(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        for number in range(150):
            say(model=f"m{number}", input_tokens=2**63 - 1, cost_usd=1.7e308)
            say(model="same", output_tokens=2**63 - 1, cost_usd=1.7e308)
    (row,) = caribou_capture.traces
    assert row["input_tokens"] == row["output_tokens"] == 2**63 - 1
    assert row["cost_usd"] == sys.float_info.max
    assert len(row["usage"]) <= 101
    assert row["usage"]["(others)"]["input_tokens"] == 2**63 - 1


def test_threads_may_share_a_rollout(caribou_capture: Capture) -> None:
    threads, each = 8, 1500
    with caribou.trace_run(META), frequent_switches():

        def work() -> None:
            for _ in range(each):
                say(role="assistant", input_tokens=1, cost_usd=1.0)
                caribou.log(ToolExecution(name="t", error="e"))

        workers = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,))
            for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    (row,) = caribou_capture.traces
    total = threads * each
    assert (row["messages"], row["turns"], row["tool_calls"]) == (total, total, total)
    assert (row["input_tokens"], row["cost_usd"], row["tool_errors"]) == (total, total, total)
    spans = caribou_capture.rows("spans")
    assert sorted(span["seq"] for span in spans) == list(range(1, 2 * total + 1))
    assert len({span["span_id"] for span in spans}) == 2 * total
    # Each assistant message is a turn of its own, whichever thread it came from.
    turns = [span["turn_index"] for span in spans if span["kind"] == "message"]
    assert sorted(turns) == list(range(total))


def test_a_rollout_within_a_rollout_is_its_own(caribou_capture: Capture) -> None:
    with caribou.trace_run(META) as outer:
        say("outer")
        with (
            caribou.span("step"),
            caribou.trace_run({"datapoint_id": "i", "phase": "eval"}) as inner,
        ):
            say("inner")
        say("outer again")
    assert outer != inner
    assert {row["content"]: row["trace_id"] for row in caribou_capture.messages} == {
        "outer": outer,
        "inner": inner,
        "outer again": outer,
    }
    roots = {row["trace_id"]: row["root_span_id"] for row in caribou_capture.traces}
    assert all(row["parent_span_id"] == roots[row["trace_id"]] for row in caribou_capture.messages)


def test_metadata_rows(caribou_capture: Capture) -> None:
    with caribou.trace_run(META | {"run_id": "r"}) as trace_id:
        caribou.add_meta({"text": "t", "whole": 0, "part": 1.5, "flag": True, "none": None})
        caribou.add_meta({"nested": {"a": [1]}, "text": "edited"})
    rows = caribou_capture.metadata
    assert {row["entity_id"] for row in rows} == {trace_id}
    assert {(row["entity_type"], row["run_id"]) for row in rows} == {("trace", "r")}
    values = [(row["key"], row["value"], row.get("value_number")) for row in rows]
    assert values == [
        ("text", "t", None),
        ("whole", "0", 0.0),
        ("part", "1.5", 1.5),
        ("flag", "true", None),
        ("none", "null", None),
        ("nested", {"a": [1]}, None),
        ("text", "edited", None),
    ]
    assert rows[-1]["version"] > rows[0]["version"]
    assert caribou_capture.traces[0]["metadata"] == {
        "text": "edited",
        "whole": "0",
        "part": "1.5",
        "flag": "true",
        "none": "null",
        "nested": '{"a":[1]}',
    }


def test_tags_are_written_once(caribou_capture: Capture) -> None:
    with caribou.trace_run(META | {"run_id": "r"}) as trace_id:
        caribou.add_tags("a", "b", "a")
        caribou.add_tags("b", "c")
    expected = [{"tag": tag, "run_id": "r", "trace_id": trace_id} for tag in "abc"]
    assert caribou_capture.tags == expected
    assert caribou_capture.traces[0]["tags"] == ["a", "b", "c"]


@pytest.mark.parametrize("wrong", [5, None, b"a"])
def test_a_tag_is_text(wrong: Any) -> None:
    with pytest.raises(InvalidType, match="add_tags"):
        caribou.add_tags("a", wrong)
    with pytest.raises(InvalidType, match="add_meta"):
        caribou.add_meta(wrong)
    with pytest.raises(InvalidValue, match="empty"):
        caribou.add_tags("")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"name": 5}, InvalidType),
        ({"name": ""}, InvalidValue),
        ({"name": "s", "kind": None}, InvalidType),
        ({"name": "s", "attributes": ["a"]}, InvalidType),
    ],
)
def test_wrong_arguments_of_a_span(arguments: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="span"):
        caribou.span(**arguments)


def test_a_manager_is_entered_once(caribou_capture: Capture) -> None:
    run = caribou.trace_run(META)
    with run:
        pass
    with pytest.raises(caribou.CaribouError, match="entered before"), run:
        pass
    assert len(caribou_capture.traces) == 1


def test_ids_do_not_follow_a_seed() -> None:
    ids = []
    for _ in range(2):
        random.seed(7)
        state = random.getstate()
        with capture() as captured, caribou.trace_run(META):
            say()
        assert random.getstate() == state
        ids += [captured.traces[0]["trace_id"], captured.messages[0]["span_id"]]
    assert len(set(ids)) == 4
