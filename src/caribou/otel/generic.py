"""Rows as spans in the conventions for generative AI, for any OTLP backend.

An assistant message is one call of the model and carries that message alone: what it answers stands
in the spans before it, in order of ``caribou.seq``. To repeat the conversation in every call would
take bytes by the square of its length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from . import attributes as names
from .spans import (
    Attributes,
    CommonOf,
    Row,
    Span,
    SpanEvent,
    agent_name,
    as_mapping,
    as_text,
    base,
    exceptions,
    is_open,
    is_scope,
    model_of,
    put,
    put_whose,
    sizes,
    tag_names,
    total,
)

__all__ = ["to_span"]

# What is the same in all rows of a rollout, or nearly all.
_CONSTANTS: Final = ("run_id", "phase", "step_number", "datapoint_id", "env_name", "model_name")
_WHOSE: Final = {"session": names.CONVERSATION_ID, "tagged": "caribou.tags"}
# Other columns that are told as they are, and their names.
_EVERYWHERE: Final = tuple(
    (column, names.CARIBOU + column)
    for column in (
        "seq",
        "kind",
        "turn_index",
        "intra_index",
        "late",
        "sanitized",
    )
)
_WORDS: Final = frozenset({str, int, bool})
_SUMMARY: Final = (
    "run_id",
    "phase",
    "step_number",
    "datapoint_id",
    "env_name",
    "model_name",
    "grader_name",
    "status",
    "turns",
    "messages",
    "tool_calls",
    "tool_errors",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "usage",
    "score",
)
_GRADE: Final = ("grader_name", "grader_type", "passed_count", "total_count", "criteria")
# The kinds of span() that the conventions have an operation for, and where the name stands.
_OPERATIONS: Final = {
    "agent": (names.INVOKE_AGENT, names.AGENT_NAME),
    "tool": (names.EXECUTE_TOOL, names.TOOL_NAME),
}
_NOT_FAILURES: Final = frozenset({"COMPLETED", "TRUNCATED", "ABORTED", "PENDING"})


def to_span(table: str, row: Row) -> Span | None:
    """One line of ``spans`` or ``traces`` as a span; None for one that is written when a scope
    opens.

    Raises:
        KeyError: the row has no ids or no time.
        TypeError: a column has a value of the wrong type.
        ValueError: a time is malformed.
    """
    if is_open(row):
        return None
    if table == "traces":
        return _rollout(row)
    kind = str(row.get("kind", ""))
    attributes: Attributes = {}
    for column, name in _EVERYWHERE:
        value = row.get(column)
        if value is not None:
            attributes[name] = value if type(value) in _WORDS else as_text(value)
    make = _scope if is_scope(row) else _message if "role" in row else _KINDS.get(kind, _scope)
    span: dict[str, Any] = base(row) | {
        "name": row["name"],
        "own": attributes,
        "common": _common(row),
    }
    make(row, span, attributes)
    if row.get("status") == "ERROR":
        span |= {"failed": True, "status_message": str(row.get("status_message") or "")}
        attributes.setdefault(names.ERROR_TYPE, names.ERROR_OTHER)
    own = row.get("attributes")
    if own:
        for name, value in as_mapping(own).items():
            put(attributes, f"{names.ATTRIBUTES}.{name}", value)
        if isinstance(own, str):
            attributes[names.ATTRIBUTES] = own
    _sizes(row, attributes)
    return Span(**span)


def _of_trace(row: Row) -> Attributes:
    """What every record's span says of its trace."""
    attributes: Attributes = {}
    put_whose(attributes, row, row["tags"], **_WHOSE)
    for column in _CONSTANTS:
        put(attributes, names.CARIBOU + column, row.get(column))
    return attributes


_common: Final = CommonOf(("session_id", "user_id", *_CONSTANTS), _of_trace)


def _rollout(row: Row) -> Span:
    attributes: Attributes = {names.OPERATION_NAME: names.INVOKE_AGENT}
    agent = agent_name(row)
    put(attributes, names.AGENT_NAME, agent or None)
    put(attributes, names.REQUEST_MODEL, row.get("model_name"))
    metadata = as_mapping(row.get("metadata"))
    put_whose(attributes, metadata, tag_names(row), **_WHOSE)
    for name in _SUMMARY:
        put(attributes, names.CARIBOU + name, row.get(name))
    for key, value in metadata.items():
        put(attributes, names.METADATA + key, value)
    _sizes(row, attributes)
    failed = row.get("status") not in _NOT_FAILURES
    span = base({**row, "span_id": row["root_span_id"], "parent_span_id": ""})
    if failed:
        attributes[names.ERROR_TYPE] = str(row.get("error_type") or row.get("status"))
    return Span(
        **span,
        name=f"{names.INVOKE_AGENT} {agent}".rstrip(),
        own=attributes,
        failed=failed,
        status_message=str(row.get("error_message") or "") if failed else "",
        events=exceptions(row, span["end_ns"]),
    )


def _message(row: Row, span: dict[str, Any], attributes: Attributes) -> None:
    message: dict[str, Any] = {"role": row["role"], "parts": _parts(row)}
    if row.get("tool_name") and row["role"] != "tool":
        message["name"] = row["tool_name"]
    put(attributes, "caribou.grader_name", row.get("grader_name"))
    put(attributes, "caribou.prompt", row.get("prompt"))
    if row["role"] == "tool":
        put(attributes, names.TOOL_NAME, row.get("tool_name"))
        put(attributes, names.TOOL_CALL_ID, row.get("tool_call_id"))
    if row["role"] != "assistant":
        attributes[names.INPUT_MESSAGES] = as_text([message])
        _usage(row, attributes)
        return
    model = model_of(row)
    span |= {"name": f"{names.CHAT} {model}".rstrip(), "kind": "client"}
    message["finish_reason"] = "tool_call" if row.get("tool_calls") else "stop"
    attributes[names.OPERATION_NAME] = names.CHAT
    attributes[names.OUTPUT_MESSAGES] = as_text([message])
    put(attributes, names.REQUEST_MODEL, model or None)
    put(attributes, names.SYSTEM, row.get("provider"))
    put(attributes, names.PROVIDER_NAME, row.get("provider"))
    _usage(row, attributes)


def _usage(row: Row, attributes: Attributes) -> None:
    """Tokens as the conventions count them: what was cached is part of the input, what was
    reasoned part of the output. In rows they are apart."""
    read, write = row.get("cache_read_tokens"), row.get("cache_write_tokens")
    reasoning = row.get("reasoning_tokens")
    put(attributes, names.INPUT_TOKENS, total(row.get("input_tokens"), read, write))
    put(attributes, names.OUTPUT_TOKENS, total(row.get("output_tokens"), reasoning))
    put(attributes, names.CACHE_READ_TOKENS, read)
    put(attributes, names.CACHE_WRITE_TOKENS, write)
    put(attributes, names.REASONING_TOKENS, reasoning)
    put(attributes, names.COST_USD, row.get("cost_usd"))


def _tool(row: Row, span: dict[str, Any], attributes: Attributes) -> None:
    tool = str(row.get("tool_name") or "")
    span["name"] = f"{names.EXECUTE_TOOL} {tool}".rstrip()
    attributes[names.OPERATION_NAME] = names.EXECUTE_TOOL
    put(attributes, names.TOOL_NAME, tool)
    put(attributes, names.TOOL_CALL_ID, row.get("tool_call_id"))
    for name, column in (
        (names.TOOL_CALL_ARGUMENTS, "arguments"),
        (names.TOOL_CALL_RESULT, "result"),
    ):
        if row.get(column) is not None:
            attributes[name] = as_text(row[column])
    put(attributes, "caribou.error", row.get("error"))
    put(attributes, "caribou.requestor", row.get("requestor"))


def _grade(row: Row, span: dict[str, Any], attributes: Attributes) -> None:
    """The conventions have an evaluation as an event; the span is what took the time."""
    for name in _GRADE:
        put(attributes, names.CARIBOU + name, row.get(name))
    result: Attributes = {}
    grader = str(row["name"]).removeprefix("grade.")
    put(result, names.EVALUATION_NAME, grader)
    put(result, names.EVALUATION_SCORE, row.get("score"))
    put(result, names.EVALUATION_EXPLANATION, row.get("reasoning"))
    end = span["end_ns"]
    span["events"] = (SpanEvent(name=names.EVALUATION_RESULT, time_ns=end, attributes=result),)


def _event(row: Row, span: dict[str, Any], attributes: Attributes) -> None:
    put(attributes, "caribou.data", row.get("data"))


def _scope(row: Row, span: dict[str, Any], attributes: Attributes) -> None:
    put(attributes, "caribou.status", row.get("status"))
    known = _OPERATIONS.get(str(row.get("kind", "")))
    if known is not None:
        operation, named = known
        attributes[names.OPERATION_NAME] = operation
        attributes[named] = row["name"]
        span["name"] = f"{operation} {row['name']}"


_KINDS: Final[dict[str, Callable[[Row, dict[str, Any], Attributes], None]]] = {
    "tool": _tool,
    "grade": _grade,
    "event": _event,
}


def _parts(row: Row) -> list[Any]:
    """The parts of a message. Those that are not text stay as they were logged: the conventions
    allow parts of any type."""
    content = row.get("content")
    if row["role"] == "tool":
        return [{"type": "tool_call_response", "id": row.get("tool_call_id"), "response": content}]
    parts: list[Any] = []
    for part in cast("list[Any]", content if isinstance(content, list) else [content]):
        if isinstance(part, str):
            parts.append({"type": "text", "content": part})
        elif as_mapping(part).get("type") == "text" and "text" in part:
            parts.append({"type": "text", "content": part["text"]})
        elif part is not None:
            parts.append(part if "type" in as_mapping(part) else {"type": "json", "content": part})
    calls = row.get("tool_calls")
    for call in cast("list[Any]", calls if isinstance(calls, list) else []):
        function = as_mapping(as_mapping(call).get("function"))
        if "name" in function:
            parts.append(
                {
                    "type": "tool_call",
                    "id": call.get("id"),
                    "name": function["name"],
                    "arguments": function.get("arguments"),
                }
            )
        else:
            parts.append({"type": "tool_call", "call": call})
    if isinstance(calls, str):
        parts.append({"type": "tool_call", "call": calls})
    return parts


def _sizes(row: Row, attributes: Attributes) -> None:
    for name, size in sizes(row).items():
        attributes[names.ORIGINAL_BYTES + name] = size
