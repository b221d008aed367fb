"""The four records: what each becomes, and what is refused at the call."""

from __future__ import annotations

from typing import Any

import pytest

import caribou.sync as caribou
from caribou import Event, Grade, InvalidType, Message, ToolExecution
from caribou.testing import Capture

META = {"datapoint_id": "d", "phase": "eval", "model_name": "elk-1"}

# What each line has besides the record's own fields.
_PLACE = {
    *("run_id", "trace_id", "phase", "datapoint_id", "model_name", "parent_span_id", "seq"),
    *("span_id", "start_time", "end_time", "turn_index", "intra_index"),
}


def logged(captured: Capture, *records: Any) -> list[dict[str, Any]]:
    """The rows of records logged in one rollout, without their place."""
    with caribou.trace_run(META):
        for record in records:
            caribou.log(record)
    return [
        {name: value for name, value in row.items() if name not in _PLACE}
        for row in captured.spans[-len(records) :]
    ]


def test_a_message_with_everything(caribou_capture: Capture) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = Message(
        role="assistant",
        content="hello",
        tool_calls=calls,
        tool_call_id="c0",
        name="n",
        model="elk-2",
        provider="tundra",
        input_tokens=1,
        output_tokens=2,
        cache_read_tokens=3,
        cache_write_tokens=4,
        reasoning_tokens=5,
        cost_usd=0.25,
        duration_ms=1.5,
        prompt="p",
        attributes={"a": 1},
    )
    assert logged(caribou_capture, message) == [
        {
            "kind": "message",
            "name": "message.assistant",
            "role": "assistant",
            "content": "hello",
            "tool_calls": calls,
            "tool_call_id": "c0",
            "tool_name": "n",
            "model": "elk-2",
            "provider": "tundra",
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
            "reasoning_tokens": 5,
            "cost_usd": 0.25,
            "duration_ms": 1.5,
            "prompt": "p",
            "attributes": {"a": 1},
        }
    ]


def test_a_message_of_a_grader_has_its_kind(caribou_capture: Capture) -> None:
    (row,) = logged(caribou_capture, Message(role="user", content="ok?", grader_name="judge"))
    assert (row["kind"], row["name"]) == ("grader.judge", "grader.judge")
    assert row["grader_name"] == "judge"


def test_a_tool_execution(caribou_capture: Capture) -> None:
    fine = ToolExecution(
        name="look", call_id="c", arguments={"at": "sky"}, result="blue", requestor="agent"
    )
    assert logged(caribou_capture, fine) == [
        {
            "kind": "tool",
            "name": "tool.look",
            "structured": ["arguments"],
            "tool_name": "look",
            "tool_call_id": "c",
            "arguments": {"at": "sky"},
            "result": "blue",
            "requestor": "agent",
        }
    ]


@pytest.mark.parametrize("error", ["no sky", ""])
def test_a_tool_with_an_error_is_an_error(caribou_capture: Capture, error: str) -> None:
    (row,) = logged(caribou_capture, ToolExecution(name="look", error=error))
    assert (row["status"], row["status_message"], row["error"]) == ("ERROR", error, error)
    assert caribou_capture.traces[0]["tool_errors"] == 1


@pytest.mark.parametrize(
    ("value", "structured"),
    [("text", False), ([{"type": "text"}], True), ({"a": 1}, True), (42, True), (None, False)],
)
def test_a_value_that_is_no_text_stays_json(
    caribou_capture: Capture, value: Any, structured: bool
) -> None:
    message, tool = logged(
        caribou_capture,
        Message(role="user", content=value),
        ToolExecution(name="t", result=value, arguments=value),
    )
    if not isinstance(value, int):
        assert message.get("content") == value
        assert ("content" in message.get("structured", [])) == structured
    assert tool.get("result") == value
    assert ("result" in tool.get("structured", [])) == structured


def test_a_grade_and_its_score_row(caribou_capture: Capture) -> None:
    grade = Grade(
        score=0.5,
        grader_name="judge",
        grader_type="llm",
        reasoning="half",
        criteria=[{"name": "c", "passed": True}],
        passed_count=1,
        total_count=2,
    )
    (row,) = logged(caribou_capture, grade)
    assert (row["kind"], row["name"], row["score"]) == ("grade", "grade.judge", 0.5)
    assert (row["passed_count"], row["total_count"]) == (1, 2)
    (score,) = caribou_capture.rows("scores")
    span = caribou_capture.spans[0]
    assert score["span_id"] == span["span_id"]
    assert (score["grader_name"], score["score"], score["reasoning"]) == ("judge", 0.5, "half")
    assert caribou_capture.traces[0]["score"] == 0.5


@pytest.mark.parametrize(
    ("grade", "name"),
    [
        (Grade(score=1, grader_type="exact"), "grade.exact"),
        (Grade(score=0.0), "grade"),
        (Grade(), "grade"),
    ],
)
def test_a_grade_goes_by_what_is_known(caribou_capture: Capture, grade: Grade, name: str) -> None:
    (row,) = logged(caribou_capture, grade)
    assert row["name"] == name


@pytest.mark.parametrize("score", [None, float("nan")])
def test_not_scored_is_not_zero(caribou_capture: Capture, score: float | None) -> None:
    _, row = logged(caribou_capture, Grade(score=1.0), Grade(score=score))
    assert "score" not in row
    assert "sanitized" not in row
    assert "score" not in caribou_capture.rows("scores")[1]
    assert "score" not in caribou_capture.traces[0]


@pytest.mark.parametrize("score", [-0.1, 1.1, 2, float("inf")])
def test_a_score_out_of_range_is_left_out_and_noted(caribou_capture: Capture, score: float) -> None:
    (row,) = logged(caribou_capture, Grade(score=score, reasoning="kept"))
    assert "score" not in row
    assert row["reasoning"] == "kept"
    assert row["sanitized"] in ("range", "nonfinite")


def test_an_event(caribou_capture: Capture) -> None:
    (row,) = logged(caribou_capture, Event(name='re"set\n', data={"level": 3}))
    assert row == {"kind": "event", "name": 'event.re"set\n', "data": {"level": 3}}


def test_a_record_is_stored_as_it_was_when_logged(caribou_capture: Capture) -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "before"}]
    with caribou.trace_run(META):
        caribou.log(Message(role="user", content=parts))
        parts[0]["text"] = "after"
        parts.clear()
    assert caribou_capture.messages[0]["content"] == [{"type": "text", "text": "before"}]


def test_records_are_immutable() -> None:
    message = Message(role="user")
    with pytest.raises(AttributeError):
        message.role = "assistant"  # type: ignore[misc]


def test_a_subclass_is_stored_as_its_record(caribou_capture: Capture) -> None:
    class Mine(Message, frozen=True, kw_only=True):
        trace_id: str = "not a column of the user's"

    (row,) = logged(caribou_capture, Mine(role="user", content="x"))
    assert row == {"kind": "message", "name": "message.user", "role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("text", ["log()", "Message", "not str"]),
        ({"role": "user"}, ["log()", "not dict"]),
        (None, ["log()", "NoneType"]),
        (Message, ["log()", "not "]),
        (Message(content="x"), ["Message", "role", "missing"]),  # type: ignore[call-arg]
        (Message(role=None), ["Message", "role", "None"]),  # type: ignore[arg-type]
        (ToolExecution(), ["ToolExecution", "name", "missing"]),  # type: ignore[call-arg]
        (Event(), ["Event", "name", "missing"]),  # type: ignore[call-arg]
        (Event(name=None), ["Event", "name", "None"]),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_refused_and_records_nothing(
    caribou_capture: Capture, item: Any, words: list[str]
) -> None:
    with caribou.trace_run(META):
        with pytest.raises(InvalidType) as refused:
            caribou.log(item)
        caribou.log(Message(role="user", content="first"))
    assert all(word in str(refused.value) for word in words), refused.value
    (row,) = caribou_capture.spans
    assert (row["seq"], row["turn_index"], row["intra_index"]) == (1, 0, 0)
    assert caribou_capture.traces[0]["messages"] == 1


@pytest.mark.parametrize("kind", [str, int, dict])
def test_a_mistake_is_refused_outside_a_rollout_too(kind: type) -> None:
    with pytest.raises(InvalidType, match=r"log\(\) takes"):
        caribou.log(kind())  # type: ignore[arg-type]
