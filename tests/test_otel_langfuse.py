"""Rows as Langfuse reads them, against what they must be."""

from __future__ import annotations

import pytest
from support.golden import (
    ANSWER,
    ASSISTANT,
    CALL,
    END,
    EVENT,
    EXCEPTION,
    GRADE,
    JUDGE,
    ROOT,
    SCOPE,
    SUMMARY,
    TOOL,
    USER,
    Golden,
    expected,
    plain,
)

from caribou.otel.langfuse import to_span

OF_TRACE = {
    "langfuse.trace.name": "airline",
    "langfuse.environment": "eval",
    "langfuse.experiment.id": "nightly",
    "langfuse.experiment.name": "nightly",
    "langfuse.experiment.dataset.id": "airline",
    "langfuse.experiment.item.id": "task-7",
    "session.id": "s-1",
    "user.id": "u-1",
    "langfuse.trace.tags": ["b", "a"],
}
META = "langfuse.observation.metadata."
IN_LANGFUSE = OF_TRACE | {
    f"{META}run_id": "nightly",
    f"{META}step_number": "3",
    f"{META}datapoint_id": "task-7",
    f"{META}env_name": "airline",
    f"{META}seq": "4",
    f"{META}turn_index": "1",
    f"{META}intra_index": "2",
}
LANGFUSE: dict[str, Golden] = {
    "assistant": (
        ASSISTANT,
        {"name": "message.assistant", "kind": "client", "end_ns": END},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "generation",
            "langfuse.observation.output": {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [CALL],
            },
            "langfuse.observation.model.name": "gpt-4o-2026",
            "langfuse.observation.usage_details": {
                "input": 100,
                "output": 20,
                "input_cache_read": 30,
                "input_cache_creation": 5,
                "output_reasoning_tokens": 7,
            },
            "langfuse.observation.cost_details": {"total": 0.0125},
            "gen_ai.operation.name": "chat",
            "gen_ai.system": "openai",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-2026",
            "gen_ai.usage.input_tokens": 135,
            "gen_ai.usage.output_tokens": 27,
            f"{META}kind": "message",
            f"{META}provider": "openai",
            f"{META}temperature": "0.5",
            f"{META}stop": '["\\n"]',
        },
    ),
    "user": (
        USER,
        {"name": "message.user"},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "event",
            "langfuse.observation.input": [{"role": "user", "content": USER["content"]}],
            f"{META}kind": "message",
        },
    ),
    "answer of a tool": (
        ANSWER,
        {"name": "message.tool"},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "event",
            "langfuse.observation.input": [
                {"role": "tool", "content": "blue", "tool_call_id": "c1", "name": "look"}
            ],
            f"{META}kind": "message",
        },
    ),
    "tool": (
        TOOL,
        {"name": "tool.look", "end_ns": END, "failed": True, "status_message": "clouds"},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "tool",
            "langfuse.observation.level": "ERROR",
            "langfuse.observation.status_message": "clouds",
            "langfuse.observation.input": {"at": "sky"},
            "langfuse.observation.output": "nothing seen",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "look",
            "gen_ai.tool.call.id": "c1",
            f"{META}kind": "tool",
            f"{META}error": "clouds",
            f"{META}requestor": "agent",
        },
    ),
    "grade": (
        GRADE,
        {"name": "grade.judge"},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "evaluator",
            "langfuse.observation.output": {
                "score": 0.5,
                "reasoning": "half of it",
                "criteria": [{"name": "polite", "passed": True}],
                "passed_count": 1,
                "total_count": 2,
            },
            f"{META}kind": "grade",
            f"{META}grader_name": "judge",
            f"{META}grader_type": "llm",
        },
    ),
    "message of a grader": (
        JUDGE,
        {"name": "grader.judge", "kind": "client"},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "generation",
            "langfuse.observation.output": {"role": "assistant", "content": "Half of it."},
            "langfuse.observation.usage_details": {"input": 9},
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 9,
            f"{META}kind": "grader.judge",
            f"{META}grader_name": "judge",
        },
    ),
    "event": (
        EVENT,
        {"name": "event.reset"},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "event",
            "langfuse.observation.input": {"seed": 1},
            f"{META}kind": "event",
        },
    ),
    "event that took its time": (
        EVENT | {"end_time": "1790000001.908435526"},
        {"name": "event.reset", "end_ns": END},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "span",
            "langfuse.observation.input": {"seed": 1},
            f"{META}kind": "event",
        },
    ),
    "scope": (
        SCOPE,
        {"name": "browser", "end_ns": END},
        IN_LANGFUSE
        | {
            "langfuse.observation.type": "tool",
            "langfuse.observation.level": "WARNING",
            f"{META}kind": "tool",
        },
    ),
    "rollout": (
        SUMMARY,
        {
            "span_id": ROOT,
            "parent_span_id": "",
            "name": "invoke_agent airline",
            "end_ns": END,
            "failed": True,
            "status_message": "ValueError: no sky",
            "events": [EXCEPTION],
        },
        OF_TRACE
        | {
            "langfuse.experiment.item.root_observation_id": ROOT,
            "langfuse.observation.type": "agent",
            "langfuse.observation.level": "ERROR",
            "langfuse.observation.status_message": "ValueError: no sky",
            "langfuse.observation.input": {
                "datapoint_id": "task-7",
                "env_name": "airline",
                "model_name": "gpt-4o",
            },
            "langfuse.observation.output": {
                "status": "TOOL_ERROR",
                "score": 0.5,
                "turns": 2,
                "messages": 6,
                "tool_calls": 1,
                "tool_errors": 1,
            },
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "airline",
            "langfuse.trace.metadata.run_id": "nightly",
            "langfuse.trace.metadata.phase": "eval",
            "langfuse.trace.metadata.step_number": "3",
            "langfuse.trace.metadata.datapoint_id": "task-7",
            "langfuse.trace.metadata.env_name": "airline",
            "langfuse.trace.metadata.model_name": "gpt-4o",
            "langfuse.trace.metadata.grader_name": "judge",
            "langfuse.trace.metadata.trial": "3",
            "langfuse.trace.metadata.session_id": "s-1",
            "langfuse.trace.metadata.user_id": "u-1",
        },
    ),
}


@pytest.mark.parametrize("name", LANGFUSE)
def test_langfuse(name: str) -> None:
    row, fields, attributes = LANGFUSE[name]
    span = to_span("traces" if row is SUMMARY else "spans", row)
    assert plain(span, attributes) == expected(fields, attributes)
