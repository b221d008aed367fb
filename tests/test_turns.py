"""Turn and intra indices, against a plain model of the rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import caribou.sync as caribou
from caribou import Event, Grade, InvalidType, InvalidValue, Message, ToolExecution
from caribou.testing import Capture, capture

ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", "critic"])
STEPS = st.one_of(
    ROLES.map(lambda role: ("message", role)),
    st.sampled_from([("grader", "assistant"), ("tool", ""), ("event", ""), ("grade", "")]),
)


def expected(steps: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """Written from the definition: split the conversation into turns, then number it."""
    turns: list[list[str]] = [[]]
    places: list[tuple[int, int]] = []
    latest = (0, 0)
    for kind, role in steps:
        if kind == "message":
            opens = role in ("user", "system", "assistant") and "assistant" in turns[-1]
            if opens:
                turns.append([])
            turns[-1].append(role)
            latest = (len(turns) - 1, len(turns[-1]) - 1)
        places.append(latest)
    return places


def log(kind: str, role: str) -> None:
    match kind:
        case "message":
            caribou.log(Message(role=role, content="x"))
        case "grader":
            caribou.log(Message(role=role, content="x", grader_name="judge"))
        case "tool":
            caribou.log(ToolExecution(name="t"))
        case "event":
            caribou.log(Event(name="e"))
        case _:
            caribou.log(Grade(score=1.0))


def places(captured: Capture) -> list[tuple[int, int]]:
    return [(row["turn_index"], row["intra_index"]) for row in captured.spans]


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_record_stands_where_the_rule_puts_it(steps: list[tuple[str, str]]) -> None:
    with capture() as captured:
        with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
            for kind, role in steps:
                log(kind, role)
        assert places(captured) == expected(steps)
        answers = sum(step == ("message", "assistant") for step in steps)
        messages = sum(kind == "message" for kind, _ in steps)
        summary = captured.traces[0]
        assert summary.get("turns", 0) == answers
        assert summary.get("messages", 0) == messages


def test_a_conversation_with_tools(caribou_capture: Capture) -> None:
    steps = ["system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant"]
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        for role in steps:
            log("message", role)
    assert places(caribou_capture) == [
        *((0, 0), (0, 1), (0, 2), (0, 3), (0, 4)),
        *((1, 0),),
        *((2, 0), (2, 1)),
    ]


def test_indices_set_by_hand_hold_for_the_next_message(caribou_capture: Capture) -> None:
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        log("message", "assistant")  # 0, 0
        caribou.increment_turn()
        log("event", "")  # already in the turn that was opened
        log("message", "user")  # 1, 0 and not a second step
        caribou.increment_intra()
        log("message", "assistant")  # 1, 1 and not a second step
        caribou.set_turn_index(7)
        log("message", "user")  # 7, 0
        caribou.set_turn_index(7)
        log("message", "assistant")  # 7, 1: the same turn goes on
        caribou.set_turn_index(7)
        log("message", "user")  # 7, 2: by hand, though the turn had its answer
        caribou.set_intra_index(9)
        log("message", "tool")  # 7, 9
        log("message", "tool")  # 7, 10
    expected_places = [(0, 0), (1, 0), (1, 0), (1, 1), (7, 0), (7, 1), (7, 2), (7, 9), (7, 10)]
    assert places(caribou_capture) == expected_places


@pytest.mark.parametrize("call", [caribou.set_turn_index, caribou.set_intra_index])
def test_an_index_is_a_number_from_zero(call: Any, caribou_capture: Capture) -> None:
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        for wrong in (None, "1", 1.0, True):
            with pytest.raises(InvalidType, match=r"int"):
                call(wrong)
        for wrong in (-1, 2**63):
            with pytest.raises(InvalidValue, match=r"from 0 up"):
                call(wrong)
        log("message", "user")
    assert places(caribou_capture) == [(0, 0)]


def test_numbers_of_a_class_of_their_own_are_numbers(caribou_capture: Capture) -> None:
    class Number(int):
        pass

    with caribou.trace_run({"datapoint_id": "d", "phase": "train"}):
        caribou.set_turn_index(Number(3))
        caribou.log(Message(role="user", content="a"))
        caribou.set_intra_index(Number(5))
        caribou.log(Message(role="user", content="b"))
    places = [(row["turn_index"], row["intra_index"]) for row in caribou_capture.messages]
    assert places == [(3, 0), (3, 5)]
