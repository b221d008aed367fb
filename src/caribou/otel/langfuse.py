"""Rows as spans and scores in the form that Langfuse reads.

Its reader discards tokens on anything but generations, so they stand there and nowhere else; input
and output are ChatML; what belongs to the trace is repeated on every span as far as its row has it.
Metadata are texts, since Langfuse shows whole numbers of OTLP as JSON. As in ``generic``, a
generation has its own message only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from . import attributes as names
from .spans import (
    NOTHING,
    Attributes,
    CommonOf,
    Row,
    Span,
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

__all__ = ["to_score", "to_span"]

# The types a person can give to a span() by its kind.
_SCOPES: Final = frozenset(
    {"agent", "tool", "chain", "retriever", "guardrail", "evaluator", "embedding"}
)
_LEVELS: Final = {
    "": "DEFAULT",
    "PENDING": "DEFAULT",
    "COMPLETED": "DEFAULT",
    "TRUNCATED": "WARNING",
    "ABORTED": "WARNING",
}
_USAGE: Final = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_tokens": "input_cache_read",
    "cache_write_tokens": "input_cache_creation",
    "reasoning_tokens": "output_reasoning_tokens",
}
# What is the same in all rows of a rollout, or nearly all.
_METADATA_OF_TRACE: Final = ("run_id", "step_number", "datapoint_id", "env_name")
_WHOSE: Final = {"session": names.SESSION_ID, "tagged": names.TRACE_TAGS}
_METADATA: Final = tuple(
    (column, names.OBSERVATION_METADATA + column)
    for column in (
        "seq",
        "kind",
        "turn_index",
        "intra_index",
        "late",
        "sanitized",
        "requestor",
        "prompt",
        "grader_name",
        "grader_type",
    )
)
_TRACE_METADATA: Final = (
    "run_id",
    "phase",
    "step_number",
    "datapoint_id",
    "env_name",
    "model_name",
    "grader_name",
)
_OUTCOME: Final = ("status", "score", "turns", "messages", "tool_calls", "tool_errors")
_CHATML: Final = (
    ("tool_calls", "tool_calls"),
    ("tool_call_id", "tool_call_id"),
    ("tool_name", "name"),
)
_GRADE: Final = ("score", "reasoning", "criteria", "passed_count", "total_count")
_TRACE: Final = "rollout"
# https://langfuse.com/docs/observability/features/environments
_ENVIRONMENT: Final = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")


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
    get = row.get
    if table == "traces":
        return _rollout(row, _of_trace(row))
    common = _common(row)
    attributes: Attributes = {}
    given = get("attributes")
    if given:
        # Whoever gave one of these names means another value.
        attributes, common = {**common.attributes}, NOTHING
    for column, name in _METADATA:
        value = get(column)
        if value is not None:
            attributes[name] = value if type(value) is str else as_text(value)
    if given:
        for name, value in as_mapping(given).items():
            _metadata(attributes, name, value)
        if isinstance(given, str):
            _metadata(attributes, "attributes", given)
    span = base(row)
    kind = get("kind", "")
    make = _scope if is_scope(row) else _message if "role" in row else _KINDS.get(kind, _scope)
    make(row, attributes)
    if attributes[names.OBSERVATION_TYPE] == "event" and span["end_ns"] > span["start_ns"]:
        # Events of Langfuse have no end.
        attributes[names.OBSERVATION_TYPE] = "span"
    status = get("status")
    failed = status == "ERROR"
    if failed or status == "ABORTED":
        attributes[names.OBSERVATION_LEVEL] = _LEVELS.get(status, "ERROR")
        put(attributes, names.OBSERVATION_STATUS_MESSAGE, get("status_message"))
    _sizes(row, attributes)
    return Span(
        **span,
        name=str(row["name"]),
        kind="client" if attributes[names.OBSERVATION_TYPE] == "generation" else "internal",
        own=attributes,
        common=common,
        failed=failed,
        status_message=str(get("status_message") or "") if failed else "",
    )


def to_score(row: Row) -> dict[str, Any] | None:
    """One line of ``scores`` as the body of ``POST /api/public/scores``; None where nothing was
    scored, which is not 0.

    The same grade has the same id, so that sending it again changes nothing. It is the trace that
    is scored, as that is where people look for it.

    Raises:
        KeyError: the row has no ids.
    """
    if row.get("score") is None:
        return None
    wanted = ("run_id", "step_number", "datapoint_id", "span_id")
    score: dict[str, Any] = {
        "id": f"{row['trace_id']}-{row['span_id']}",
        "traceId": row["trace_id"],
        "name": str(row.get("grader_name") or "score"),
        "value": row["score"],
        "dataType": "NUMERIC",
        "metadata": {name: row[name] for name in wanted if row.get(name) is not None}
        | _original_bytes(row),
    }
    if row.get("reasoning"):
        score["comment"] = row["reasoning"]
    environment = str(row.get("phase") or "")
    if _ENVIRONMENT.fullmatch(environment):
        score["environment"] = environment
    return score


def _of_trace(row: Row) -> Attributes:
    """What every span of a trace says of it."""
    attributes: Attributes = {names.TRACE_NAME: agent_name(row) or _TRACE}
    environment = str(row.get("phase") or "")
    if _ENVIRONMENT.fullmatch(environment):
        attributes[names.ENVIRONMENT] = environment
    if environment == "eval" and row.get("run_id"):
        # https://langfuse.com/integrations/native/opentelemetry/experiments
        attributes[names.EXPERIMENT_ID] = str(row["run_id"])
        attributes[names.EXPERIMENT_NAME] = str(row["run_id"])
        put(attributes, names.EXPERIMENT_DATASET_ID, row.get("env_name"))
        put(attributes, names.EXPERIMENT_ITEM_ID, row.get("datapoint_id"))
    return attributes


def _of_record(row: Row) -> Attributes:
    """What every record's span says of its trace."""
    attributes = _of_trace(row)
    put_whose(attributes, row, row["tags"], **_WHOSE)
    for column in _METADATA_OF_TRACE:
        value = row.get(column)
        if value is not None:
            attributes[names.OBSERVATION_METADATA + column] = as_text(value)
    return attributes


_common: Final = CommonOf(("session_id", "user_id", "phase", *_METADATA_OF_TRACE), _of_record)


def _rollout(row: Row, attributes: Attributes) -> Span:
    root, status = row["root_span_id"], str(row.get("status") or "")
    if names.EXPERIMENT_ID in attributes:
        attributes[names.EXPERIMENT_ITEM_ROOT] = root
    level = _LEVELS.get(status, "ERROR")
    attributes |= {
        names.OBSERVATION_TYPE: "agent",
        names.OPERATION_NAME: names.INVOKE_AGENT,
        names.OBSERVATION_LEVEL: level,
        names.OBSERVATION_INPUT: as_text(_some(row, ("datapoint_id", "env_name", "model_name"))),
        names.OBSERVATION_OUTPUT: as_text(_some(row, _OUTCOME)),
    }
    put(attributes, names.AGENT_NAME, agent_name(row) or None)
    metadata = as_mapping(row.get("metadata"))
    put_whose(attributes, metadata, tag_names(row), **_WHOSE)
    for name in _TRACE_METADATA:
        _metadata(attributes, name, row.get(name), names.TRACE_METADATA)
    for name, value in metadata.items():
        _metadata(attributes, name, value, names.TRACE_METADATA)
    reason = ": ".join(str(row[n]) for n in ("error_type", "error_message") if row.get(n))
    put(attributes, names.OBSERVATION_STATUS_MESSAGE, reason or None)
    _sizes(row, attributes)
    span = base({**row, "span_id": root, "parent_span_id": ""})
    return Span(
        **span,
        name=f"{names.INVOKE_AGENT} {agent_name(row)}".rstrip(),
        own=attributes,
        failed=level == "ERROR",
        status_message=reason if level == "ERROR" else "",
        events=exceptions(row, span["end_ns"]),
    )


def _message(row: Row, attributes: Attributes) -> None:
    message = {"role": row["role"], "content": row.get("content")}
    for column, name in _CHATML:
        value = row.get(column)
        if value is not None:
            message[name] = value
    # Whatever has tokens or a cost is a generation, as they would count nowhere else.
    called = "cost_usd" in row or not _USAGE.keys().isdisjoint(row)
    if row["role"] != "assistant" and not called:
        attributes[names.OBSERVATION_TYPE] = "event"
        attributes[names.OBSERVATION_INPUT] = as_text([message])
        return
    attributes[names.OBSERVATION_TYPE] = "generation"
    attributes[names.OBSERVATION_OUTPUT] = as_text(message)
    attributes[names.OPERATION_NAME] = names.CHAT
    model = model_of(row) or None
    put(attributes, names.OBSERVATION_MODEL, model)
    put(attributes, names.REQUEST_MODEL, model)
    put(attributes, names.SYSTEM, row.get("provider"))
    put(attributes, names.PROVIDER_NAME, row.get("provider"))
    _metadata(attributes, "provider", row.get("provider"))
    _usage(row, attributes)


def _usage(row: Row, attributes: Attributes) -> None:
    usage = {known: row[name] for name, known in _USAGE.items() if row.get(name) is not None}
    if usage:
        attributes[names.OBSERVATION_USAGE] = as_text(usage)
    cached = row.get("cache_read_tokens"), row.get("cache_write_tokens")
    put(attributes, names.INPUT_TOKENS, total(row.get("input_tokens"), *cached))
    put(
        attributes,
        names.OUTPUT_TOKENS,
        total(row.get("output_tokens"), row.get("reasoning_tokens")),
    )
    if row.get("cost_usd") is not None:
        attributes[names.OBSERVATION_COST] = as_text({"total": row["cost_usd"]})


def _tool(row: Row, attributes: Attributes) -> None:
    attributes[names.OBSERVATION_TYPE] = "tool"
    attributes[names.OPERATION_NAME] = names.EXECUTE_TOOL
    put(attributes, names.TOOL_NAME, row.get("tool_name"))
    put(attributes, names.TOOL_CALL_ID, row.get("tool_call_id"))
    if row.get("arguments") is not None:
        attributes[names.OBSERVATION_INPUT] = as_text(row["arguments"])
    if row.get("result") is not None:
        attributes[names.OBSERVATION_OUTPUT] = as_text(row["result"])
    _metadata(attributes, "error", row.get("error"))


def _grade(row: Row, attributes: Attributes) -> None:
    attributes[names.OBSERVATION_TYPE] = "evaluator"
    attributes[names.OBSERVATION_OUTPUT] = as_text(_some(row, _GRADE))


def _event(row: Row, attributes: Attributes) -> None:
    attributes[names.OBSERVATION_TYPE] = "event"
    if row.get("data") is not None:
        attributes[names.OBSERVATION_INPUT] = as_text(row["data"])


def _scope(row: Row, attributes: Attributes) -> None:
    kind = str(row.get("kind", ""))
    attributes[names.OBSERVATION_TYPE] = kind if kind in _SCOPES else "span"


_KINDS: Final[dict[str, Callable[[Row, Attributes], None]]] = {
    "tool": _tool,
    "grade": _grade,
    "event": _event,
}


def _some(row: Row, columns: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in columns if row.get(name) is not None}


def _metadata(
    attributes: Attributes, name: str, value: object, prefix: str = names.OBSERVATION_METADATA
) -> None:
    if value is not None and value != "":
        attributes[prefix + name] = as_text(value)


def _sizes(row: Row, attributes: Attributes) -> None:
    for name, size in _original_bytes(row).items():
        _metadata(attributes, name, size)


def _original_bytes(row: Row) -> dict[str, int]:
    return {f"original_bytes.{name}": size for name, size in sizes(row).items()}
