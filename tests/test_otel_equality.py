"""Everything that arrives says what ClickHouse holds, row by row."""

from __future__ import annotations

import pytest
from support.langfuse import langfuse, settings
from support.otlp import receiver
from support.readback import differences
from support.servers import DoorServer

import caribou.sync as caribou
from caribou import Event, Grade, Message, ToolExecution

CALLS = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}]

PARTS = [
    {"type": "text", "text": "Where?"},
    {"type": "image_url", "image_url": {"url": "https://example.org/elk.png"}},
]


def rollout(number: int) -> None:
    """One with everything that can be logged."""
    prod = number % 3 == 2
    meta = {
        "datapoint_id": f"task-{number % 4}",
        "phase": "prod" if prod else ("train", "eval")[number % 2],
        "run_id": "shop" if prod else f"run-{number % 2}",
        "env_name": "airline",
        "model_name": "elk-1",
    }
    if not prod:
        meta |= {"step_number": number, "grader_name": "judge"}
    with caribou.trace_run(meta):
        caribou.add_meta({"trial": number, "session_id": f"s{number % 2}", "user_id": "u"})
        caribou.add_tags("b", "a", f"t{number}")
        caribou.log(Message(role="system", content="Be an elk. \u2028 \U0001f98c \x1b[2J"))
        caribou.log(Message(role="user", content=PARTS))
        with caribou.span("episode", attributes={"seed": number, "nested": {"a": [1, None]}}):
            caribou.log(
                Message(
                    role="assistant",
                    content=None if number % 2 else "Let me look.",
                    tool_calls=CALLS,
                    model="elk-2",
                    provider="tundra",
                    input_tokens=100 + number,
                    output_tokens=7,
                    cache_read_tokens=number * 3,
                    cache_write_tokens=5,
                    reasoning_tokens=2,
                    cost_usd=0.001 * number,
                    duration_ms=12.5,
                    attributes={"temperature": 0.5},
                )
            )
            with caribou.span("browser", kind="tool"):
                caribou.log(
                    ToolExecution(
                        name="look",
                        call_id="c1",
                        arguments={"at": number},
                        result=[{"type": "text", "text": "sky"}],
                        requestor="agent",
                        duration_ms=3,
                    )
                )
            caribou.log(Message(role="tool", tool_call_id="c1", name="look", content="sky"))
            caribou.log(ToolExecution(name="walk", arguments="{not json", error="no legs"))
            caribou.log(Message(role="assistant", content="I am here.", output_tokens=3))
            if number % 4 == 3:
                caribou.set_error("lost")
        caribou.log(Event(name="reset", data={"seed": number}))
        caribou.log(Event(name="slow", duration_ms=5))
        caribou.log(Message(role="assistant", content="Good.", grader_name="judge", input_tokens=9))
        verdict = {"reasoning": "ß", "criteria": [{"n": 1}], "passed_count": 1, "total_count": 2}
        caribou.log(Grade(score=number / 10, grader_name="judge", **verdict))
        caribou.log(Grade(grader_type="exact"))
        if number == 5:
            caribou.set_status("TOOL_ERROR", "broken")


def test_row_by_row(door: DoorServer, database: str) -> None:
    with langfuse() as there, receiver() as collector:
        caribou.configure(
            **settings(there),
            otlp=collector.url,
            clickhouse_url=door.url,
            clickhouse_database=database,
        )
        for number in range(9):
            rollout(number)
        with pytest.raises(RuntimeError), caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
            raise RuntimeError("out of moss")
        assert caribou.shutdown(30).complete
        found, counts = differences(
            lambda sql: door.rows(sql.format(database=database)), collector, there
        )
    assert found == []
    assert counts["spans"] == 9 * 14
    assert counts["roots"] == 10
    assert counts["scores"] == 9
    assert counts["input_tokens"] == 9 * 109 + 36
