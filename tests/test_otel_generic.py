"""Rows as spans in the conventions for generative AI, against what they must be."""

from __future__ import annotations

import pytest
from support.golden import (
    ANSWER,
    ASSISTANT,
    END,
    EVENT,
    EXCEPTION,
    GRADE,
    JUDGE,
    ROOT,
    SCOPE,
    START,
    SUMMARY,
    TOOL,
    USER,
    Golden,
    expected,
    plain,
)

from caribou.otel.generic import to_span

COMMON = {
    "caribou.run_id": "nightly",
    "caribou.phase": "eval",
    "caribou.step_number": 3,
    "caribou.datapoint_id": "task-7",
    "caribou.env_name": "airline",
    "caribou.model_name": "gpt-4o",
    "gen_ai.conversation.id": "s-1",
    "user.id": "u-1",
    "caribou.tags": ["b", "a"],
}
IN_PLACE = COMMON | {"caribou.seq": 4, "caribou.turn_index": 1, "caribou.intra_index": 2}
GENERIC: dict[str, Golden] = {
    "assistant": (
        ASSISTANT,
        {"name": "chat gpt-4o-2026", "kind": "client", "end_ns": END},
        IN_PLACE
        | {
            "caribou.kind": "message",
            "gen_ai.operation.name": "chat",
            "gen_ai.system": "openai",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-2026",
            "gen_ai.output.messages": [
                {
                    "role": "assistant",
                    "parts": [
                        {"type": "text", "content": "Let me look."},
                        {
                            "type": "tool_call",
                            "id": "c1",
                            "name": "look",
                            "arguments": '{"at":"sky"}',
                        },
                    ],
                    "finish_reason": "tool_call",
                }
            ],
            "gen_ai.usage.input_tokens": 135,
            "gen_ai.usage.output_tokens": 27,
            "gen_ai.usage.cache_read.input_tokens": 30,
            "gen_ai.usage.cache_creation.input_tokens": 5,
            "gen_ai.usage.reasoning.output_tokens": 7,
            "caribou.usage.cost_usd": 0.0125,
            "caribou.attributes.temperature": 0.5,
            "caribou.attributes.stop": '["\\n"]',
        },
    ),
    "user": (
        USER,
        {"name": "message.user"},
        IN_PLACE
        | {
            "caribou.kind": "message",
            "gen_ai.input.messages": [
                {
                    "role": "user",
                    "parts": [
                        {"type": "text", "content": "What is this?"},
                        {
                            "type": "image_url",
                            "image_url": {"url": "https://example.org/elk.png"},
                        },
                    ],
                }
            ],
        },
    ),
    "answer of a tool": (
        ANSWER,
        {"name": "message.tool"},
        IN_PLACE
        | {
            "caribou.kind": "message",
            "gen_ai.tool.name": "look",
            "gen_ai.tool.call.id": "c1",
            "gen_ai.input.messages": [
                {
                    "role": "tool",
                    "parts": [{"type": "tool_call_response", "id": "c1", "response": "blue"}],
                }
            ],
        },
    ),
    "tool": (
        TOOL,
        {
            "name": "execute_tool look",
            "end_ns": END,
            "failed": True,
            "status_message": "clouds",
        },
        IN_PLACE
        | {
            "caribou.kind": "tool",
            "caribou.error": "clouds",
            "caribou.requestor": "agent",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "look",
            "gen_ai.tool.call.id": "c1",
            "gen_ai.tool.call.arguments": '{"at":"sky"}',
            "gen_ai.tool.call.result": "nothing seen",
            "error.type": "_OTHER",
        },
    ),
    "grade": (
        GRADE,
        {
            "name": "grade.judge",
            "events": [
                (
                    "gen_ai.evaluation.result",
                    START,
                    {
                        "gen_ai.evaluation.name": "judge",
                        "gen_ai.evaluation.score.value": 0.5,
                        "gen_ai.evaluation.explanation": "half of it",
                    },
                )
            ],
        },
        IN_PLACE
        | {
            "caribou.kind": "grade",
            "caribou.grader_name": "judge",
            "caribou.grader_type": "llm",
            "caribou.passed_count": 1,
            "caribou.total_count": 2,
            "caribou.criteria": '[{"name":"polite","passed":true}]',
        },
    ),
    "message of a grader": (
        JUDGE,
        # The model of the rollout is not the grader's.
        {"name": "chat", "kind": "client"},
        IN_PLACE
        | {
            "caribou.kind": "grader.judge",
            "caribou.grader_name": "judge",
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 9,
            "gen_ai.output.messages": [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": "Half of it."}],
                    "finish_reason": "stop",
                }
            ],
        },
    ),
    "event": (
        EVENT,
        {"name": "event.reset"},
        IN_PLACE | {"caribou.kind": "event", "caribou.data": '{"seed":1}'},
    ),
    "scope": (
        SCOPE,
        {"name": "execute_tool browser", "end_ns": END},
        IN_PLACE
        | {
            "caribou.kind": "tool",
            "caribou.status": "ABORTED",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "browser",
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
            "status_message": "no sky",
            "events": [EXCEPTION],
        },
        COMMON
        | {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "airline",
            "gen_ai.request.model": "gpt-4o",
            "error.type": "ValueError",
            "caribou.grader_name": "judge",
            "caribou.status": "TOOL_ERROR",
            "caribou.turns": 2,
            "caribou.messages": 6,
            "caribou.tool_calls": 1,
            "caribou.tool_errors": 1,
            "caribou.input_tokens": 109,
            "caribou.output_tokens": 20,
            "caribou.cost_usd": 0.0125,
            "caribou.usage": '{"gpt-4o-2026":{"input_tokens":100}}',
            "caribou.score": 0.5,
            "caribou.metadata.trial": "3",
            "caribou.metadata.session_id": "s-1",
            "caribou.metadata.user_id": "u-1",
        },
    ),
}


@pytest.mark.parametrize("name", GENERIC)
def test_generic(name: str) -> None:
    row, fields, attributes = GENERIC[name]
    span = to_span("traces" if row is SUMMARY else "spans", row)
    assert plain(span, attributes) == expected(fields, attributes)
