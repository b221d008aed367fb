"""One row of each kind, and how spans are compared with what they must be."""

from __future__ import annotations

import json
from typing import Any

from caribou.otel.spans import Span

Golden = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""A row, the fields of its span that are not as usual, and its attributes."""

TRACE = "0af7651916cd43dd8448eb211c80319c"
ROOT, SPAN = "b7ad6b7169203331", "00f067aa0ba902b7"
START, END = 1790000000_408435526, 1790000001_908435526

CONSTANT: dict[str, Any] = {
    "trace_id": TRACE,
    "run_id": "nightly",
    "phase": "eval",
    "step_number": 3,
    "datapoint_id": "task-7",
    "env_name": "airline",
    "model_name": "gpt-4o",
}
PLACED: dict[str, Any] = CONSTANT | {
    "parent_span_id": ROOT,
    "session_id": "s-1",
    "user_id": "u-1",
    "tags": ["b", "a"],
    "seq": 4,
    "span_id": SPAN,
    "start_time": "1790000000.408435526",
    "turn_index": 1,
    "intra_index": 2,
}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sky"}'}}

ASSISTANT = PLACED | {
    "kind": "message",
    "name": "message.assistant",
    "end_time": "1790000001.908435526",
    "duration_ms": 1500.0,
    "role": "assistant",
    "content": "Let me look.",
    "tool_calls": [CALL],
    "model": "gpt-4o-2026",
    "provider": "openai",
    "input_tokens": 100,
    "output_tokens": 20,
    "cache_read_tokens": 30,
    "cache_write_tokens": 5,
    "reasoning_tokens": 7,
    "cost_usd": 0.0125,
    "attributes": {"temperature": 0.5, "stop": ["\n"]},
}
USER = PLACED | {
    "kind": "message",
    "name": "message.user",
    "role": "user",
    "structured": ["content"],
    "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/elk.png"}},
    ],
}
ANSWER = PLACED | {
    "kind": "message",
    "name": "message.tool",
    "role": "tool",
    "tool_name": "look",
    "tool_call_id": "c1",
    "content": "blue",
}
TOOL = PLACED | {
    "kind": "tool",
    "name": "tool.look",
    "end_time": "1790000001.908435526",
    "duration_ms": 1500.0,
    "status": "ERROR",
    "status_message": "clouds",
    "tool_name": "look",
    "tool_call_id": "c1",
    "error": "clouds",
    "requestor": "agent",
    "arguments": {"at": "sky"},
    "result": "nothing seen",
}
GRADE = PLACED | {
    "kind": "grade",
    "name": "grade.judge",
    "score": 0.5,
    "grader_name": "judge",
    "grader_type": "llm",
    "reasoning": "half of it",
    "passed_count": 1,
    "total_count": 2,
    "criteria": [{"name": "polite", "passed": True}],
}
JUDGE = PLACED | {
    "kind": "grader.judge",
    "name": "grader.judge",
    "role": "assistant",
    "grader_name": "judge",
    "content": "Half of it.",
    "input_tokens": 9,
}
EVENT = PLACED | {"kind": "event", "name": "event.reset", "data": {"seed": 1}}
SCOPE = PLACED | {
    "kind": "tool",
    "name": "browser",
    "status": "ABORTED",
    "version": 1,
    "end_time": "1790000001.908435526",
    "duration_ms": 1500.0,
}
SUMMARY = CONSTANT | {
    "root_span_id": ROOT,
    "start_time": "1790000000.408435526",
    "end_time": "1790000001.908435526",
    "duration_ms": 1500.0,
    "grader_name": "judge",
    "status": "TOOL_ERROR",
    "error_type": "ValueError",
    "error_message": "no sky",
    "traceback": "Traceback ...",
    "turns": 2,
    "messages": 6,
    "tool_calls": 1,
    "tool_errors": 1,
    "input_tokens": 109,
    "output_tokens": 20,
    "cost_usd": 0.0125,
    "usage": {"gpt-4o-2026": {"input_tokens": 100}},
    "score": 0.5,
    "tags": ["b", "a"],
    "metadata": {"trial": "3", "session_id": "s-1", "user_id": "u-1"},
    "version": 1,
}

EXCEPTION = (
    "exception",
    END,
    {
        "exception.type": "ValueError",
        "exception.message": "no sky",
        "exception.stacktrace": "Traceback ...",
    },
)


def plain(span: Span | None, golden: dict[str, Any]) -> dict[str, Any]:
    """A span as the golden ones are written: JSON in attributes decoded where those have it so."""
    assert span is not None
    attributes = {
        name: json.loads(value)
        if isinstance(value, str) and isinstance(golden.get(name), dict | list)
        else value
        for name, value in span.attributes.items()
    }
    events = [(event.name, event.time_ns, dict(event.attributes)) for event in span.events]
    told = set(span.__struct_fields__) - {"own", "common"}
    fields = {name: getattr(span, name) for name in told}
    return fields | {"attributes": attributes, "events": events}


def expected(fields: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "parent_span_id": ROOT,
        "kind": "internal",
        "start_ns": START,
        "end_ns": START,
        "failed": False,
        "status_message": "",
        "events": [],
    }
    return plain | fields | {"attributes": attributes}
