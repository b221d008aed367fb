"""What spans and observations say, read back as rows, and compared with what ClickHouse holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from support.langfuse import Langfuse, Observation
from support.otlp import Received, Receiver

SPANS = """
SELECT toUnixTimestamp64Nano(start_time) AS start_ns, toUnixTimestamp64Nano(end_time) AS end_ns,
    * EXCEPT (start_time, end_time, ingested_at, batch_id)
FROM {database}.spans WHERE status != 'PENDING' ORDER BY trace_id, seq
"""
TRACES = """
SELECT toUnixTimestamp64Nano(start_time) AS start_ns, toUnixTimestamp64Nano(end_time) AS end_ns,
    * EXCEPT (start_time, end_time) FROM {database}.traces ORDER BY trace_id
"""
SCORES = "SELECT * FROM {database}.scores"

Row = dict[str, Any]
Rows = Callable[[str], list[Row]]

_PLACE = ("run_id", "phase", "step_number", "datapoint_id", "env_name", "turn_index", "intra_index")
_TOKENS = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_tokens": "input_cache_read",
    "cache_write_tokens": "input_cache_creation",
    "reasoning_tokens": "output_reasoning_tokens",
}
_SUMS = ("input_tokens", "output_tokens", "cost_usd")
_TOTALS = ("turns", "messages", "tool_calls", "tool_errors")


def differences(rows: Rows, receiver: Receiver, there: Langfuse) -> tuple[list[str], Row]:
    """What differs between what ``rows`` finds by SQL and what arrived; and what was compared."""
    spans, traces, scores = rows(SPANS), rows(TRACES), rows(SCORES)
    found: list[str] = []
    whose = {row["trace_id"]: _whose(row["metadata"], row["tags"]) for row in traces}
    wanted = {
        (row["trace_id"], row["span_id"]): _wanted(row) | whose[row["trace_id"]] for row in spans
    }
    roots = {(row["trace_id"], row["root_span_id"]): _wanted_root(row) for row in traces}
    _compare(found, "otlp", {k: _from_span(s) for k, s in receiver.spans.items()}, wanted, roots)
    seen = {(o["traceId"], o["id"]): _from_observation(o) for o in there.observations().values()}
    _compare(found, "langfuse", seen, wanted, roots)
    # Records come in order; a scope's row comes when it ends, behind those of what was in it.
    scopes = {row["parent_span_id"] for row in spans}
    for name, received in (("otlp", receiver), ("langfuse", there)):
        came = [key for key in received.spans if key in wanted and key[1] not in scopes]
        places = [(key[0], wanted[key]["seq"]) for key in sorted(came, key=lambda key: key[0])]
        if places != sorted(places):
            found.append(f"{name}: the order differs")
    scored = {
        (row["trace_id"], row["span_id"]): (row["grader_name"], row["score"], row["reasoning"])
        for row in scores
        if row["score"] is not None
    }
    given = {
        (score["traceId"], score["metadata"]["span_id"]): (
            score["name"],
            score["value"],
            score.get("comment", ""),
        )
        for score in there.scores.values()
    }
    if scored != given:
        found.append(f"scores: {given!r:.500}, but should be {scored!r:.500}")
    counts = {"spans": len(wanted), "roots": len(roots), "scores": len(scored)}
    for name in _SUMS:
        counts[name] = sum(row[name] or 0 for row in wanted.values())
    return found, counts


def _compare(
    found: list[str],
    name: str,
    seen: dict[tuple[str, str], Row],
    wanted: dict[tuple[str, str], Row],
    roots: dict[tuple[str, str], Row],
) -> None:
    everything = wanted | roots
    if seen.keys() != everything.keys():
        missing, more = everything.keys() - seen.keys(), seen.keys() - everything.keys()
        found.append(f"{name}: {len(missing)} spans are missing, {len(more)} are nobody's")
    for key in seen.keys() & everything.keys():
        for column, value in seen[key].items():
            if value != everything[key][column]:
                found.append(
                    f"{name} {key} {column}: {value!r:.300}, but should be "
                    f"{everything[key][column]!r:.300}"
                )


def _whose(given: Row, tags: list[str]) -> Row:
    """Session, user and tags: where they came before any record, every span has them."""
    return {name: given.get(name) for name in ("session_id", "user_id")} | {"tags": tags}


def _wanted(row: Row) -> Row:
    whole = {name: int(row[name]) for name in ("start_ns", "seq", "turn_index", "intra_index")}
    tokens = {name: None if row[name] is None else int(row[name]) for name in _TOKENS}
    texts = ("tool_call_id", "tool_name", "requestor", "provider", "grader_name", "grader_type")
    grader = row["kind"].startswith("grader.")
    answers = row["role"] == "assistant"
    return (
        _own(row, (*_PLACE, "trace_id", "parent_span_id", "kind"))
        | whole
        | {"end_ns": whole["start_ns"] if row["end_ns"] is None else int(row["end_ns"])}
        | {name: _plain(row[name]) for name in texts}
        | tokens
        | {
            "role": _plain(row["role"]),
            "content": _logged(row, "content"),
            "tool_calls": _plain(row["tool_calls"]),
            "arguments": _logged(row, "arguments"),
            "result": _logged(row, "result"),
            "error": _plain(row["error"]),
            "model": _plain(row["model"] or ("" if grader else row["model_name"]))
            if answers
            else None,
            "cost_usd": row["cost_usd"],
            "score": row["score"],
            "reasoning": _plain(row["reasoning"]),
            "criteria": _plain(row["criteria"]),
            "passed_count": _number(row["passed_count"]),
            "total_count": _number(row["total_count"]),
            "data": _plain(row["data"]),
            "failed": row["status"] == "ERROR",
            "status_message": _plain(row["status_message"]) if row["status"] == "ERROR" else None,
            "attributes": {name: _plain(value) for name, value in row["attributes"].items()},
        }
    )


def _wanted_root(row: Row) -> Row:
    failed = row["status"] not in ("COMPLETED", "TRUNCATED", "ABORTED")
    return (
        _own(row, (*_PLACE[:5], "trace_id"))
        | _whose(row["metadata"], row["tags"])
        | {
            "parent_span_id": "",
            "start_ns": int(row["start_ns"]),
            "end_ns": int(row["end_ns"]),
            "status": row["status"],
            "score": row["score"],
            "failed": failed,
            "metadata": row["metadata"],
            "totals": {name: int(row[name]) for name in _TOTALS},
            "tokens": (int(row["input_tokens"]), int(row["output_tokens"]), row["cost_usd"]),
        }
    )


def _from_span(span: Received) -> Row:
    a = span.attributes
    place = {name: a.get(f"caribou.{name}") for name in _PLACE}
    read: Row = {name: place[name] for name in _PLACE[:5]} | {
        "trace_id": span.trace_id,
        "parent_span_id": span.parent_span_id,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "failed": span.failed,
        "session_id": a.get("gen_ai.conversation.id"),
        "user_id": a.get("user.id"),
        "tags": a.get("caribou.tags", []),
    }
    if not span.parent_span_id:
        return read | {
            "status": a["caribou.status"],
            "score": a.get("caribou.score"),
            "metadata": _below(a, "caribou.metadata."),
            "totals": {name: a.get(f"caribou.{name}", 0) for name in _TOTALS},
            "tokens": tuple(
                a.get(f"caribou.{name}", 0)
                for name in ("input_tokens", "output_tokens", "cost_usd")
            ),
        }
    usage = {name: a.get(f"gen_ai.usage.{name}") for name in ("input_tokens", "output_tokens")}
    cached = a.get("gen_ai.usage.cache_read.input_tokens")
    written = a.get("gen_ai.usage.cache_creation.input_tokens")
    reasoned = a.get("gen_ai.usage.reasoning.output_tokens")
    if usage["input_tokens"] is not None:
        usage["input_tokens"] -= (cached or 0) + (written or 0)
    if usage["output_tokens"] is not None:
        usage["output_tokens"] -= reasoned or 0
    messages = a.get("gen_ai.output.messages") or a.get("gen_ai.input.messages")
    (message,) = json.loads(messages) if messages else ({},)
    role, parts = message.get("role"), message.get("parts", [])
    (event,) = span.events or [("", 0, {})]
    result = event[2]
    return read | place | usage | {
        "seq": a["caribou.seq"],
        "kind": a["caribou.kind"],
        "role": role,
        "content": _content(role, parts),
        "tool_calls": [
            {
                "id": part["id"],
                "type": "function",
                "function": {"name": part["name"], "arguments": part["arguments"]},
            }
            for part in parts
            if part["type"] == "tool_call"
        ]
        or None,
        "cache_read_tokens": cached,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoned,
        "cost_usd": a.get("caribou.usage.cost_usd"),
        # A scope of the kind has its own name there.
        "tool_name": message.get("name", a.get("gen_ai.tool.name"))
        if "caribou.status" not in a
        else None,
        "tool_call_id": a.get("gen_ai.tool.call.id"),
        "arguments": _plain(a.get("gen_ai.tool.call.arguments")),
        "result": _deep(a.get("gen_ai.tool.call.result")),
        "error": _plain(a.get("caribou.error")),
        "requestor": a.get("caribou.requestor"),
        "model": a.get("gen_ai.request.model"),
        "provider": a.get("gen_ai.provider.name") if role == "assistant" else None,
        "grader_name": a.get("caribou.grader_name"),
        "grader_type": a.get("caribou.grader_type"),
        "score": result.get("gen_ai.evaluation.score.value"),
        "reasoning": _plain(result.get("gen_ai.evaluation.explanation")),
        "criteria": _plain(a.get("caribou.criteria")),
        "passed_count": a.get("caribou.passed_count"),
        "total_count": a.get("caribou.total_count"),
        "data": _plain(a.get("caribou.data")),
        "status_message": _plain(span.status_message),
        "attributes": {n: _plain(v) for n, v in _below(a, "caribou.attributes.").items()},
    }  # fmt: skip


def _from_observation(o: Observation) -> Row:
    meta, trace = o["metadata"], o["traceMetadata"]
    read: Row = {
        "trace_id": o["traceId"],
        "parent_span_id": o["parentObservationId"] or "",
        "start_ns": o["start_ns"],
        "end_ns": o["end_ns"],
        "failed": o["level"] == "ERROR",
        "phase": o["environment"],
        "session_id": o["sessionId"],
        "user_id": o["userId"],
        "tags": o["tags"],
    }
    if o["parentObservationId"] is None:
        known = (*_PLACE[:5], "model_name", "grader_name")
        output = o["output"]
        return read | {
            "run_id": trace.get("run_id"),
            "datapoint_id": trace["datapoint_id"],
            "status": output["status"],
            "score": output.get("score"),
            "metadata": {k: v for k, v in trace.items() if k not in known},
            "totals": {name: output.get(name, 0) for name in _TOTALS},
        }
    message = o["output"] if o["type"] == "generation" else {}
    if o["name"].startswith("message.") and not message:
        (message,) = o["input"]
    role = message.get("role")
    attributes = o["attributes"]
    return (
        read
        | {name: meta.get(name) for name in ("run_id", "datapoint_id", "env_name", "kind")}
        | {name: int(meta[name]) for name in ("seq", "turn_index", "intra_index")}
        | {name: o["usageDetails"].get(known) for name, known in _TOKENS.items()}
        | {
            "role": role,
            "content": _deep(message.get("content")),
            "tool_calls": message.get("tool_calls"),
            "tool_call_id": message.get("tool_call_id", attributes.get("gen_ai.tool.call.id")),
            "tool_name": message.get("name", attributes.get("gen_ai.tool.name")),
            "cost_usd": o["costDetails"].get("total"),
            "model": o["model"] if role == "assistant" else None,
            "provider": attributes.get("gen_ai.provider.name"),
            "grader_name": meta.get("grader_name"),
            "grader_type": meta.get("grader_type"),
            "requestor": meta.get("requestor"),
            "error": _plain(meta.get("error")),
            "status_message": _plain(o["statusMessage"]) if o["level"] == "ERROR" else None,
        }
        | (
            {"arguments": _plain(o["input"]), "result": _deep(o["output"])}
            if o["name"].startswith("tool.")
            else {}
        )
        | (
            {
                name: (o["output"] or {}).get(name)
                for name in ("score", "reasoning", "criteria", "passed_count", "total_count")
            }
            if o["type"] == "evaluator"
            else {}
        )
        | ({"data": o["input"]} if o["name"].startswith("event.") else {})
    )


def _content(role: str | None, parts: list[Row]) -> Any:
    if role == "tool":
        return _deep(parts[0]["response"])
    texts = [part for part in parts if part["type"] != "tool_call"]
    if len(texts) == 1 and texts[0]["type"] == "text":
        return _deep(texts[0]["content"])
    back = [
        {"type": "text", "text": part["content"]} if part["type"] == "text" else part
        for part in texts
    ]
    return back or None


def _own(row: Row, names: tuple[str, ...]) -> Row:
    own: Row = {}
    for name in names:
        value = row.get(name)
        own[name] = value if name == "parent_span_id" else None if value in ("", None) else value
    if own.get("step_number") is not None:
        own["step_number"] = int(own["step_number"])
    return own


def _logged(row: Row, name: str) -> Any:
    # Where nothing was logged is told from the empty text, but not of arguments.
    return _plain(row[name]) if name == "arguments" else _deep(row[name])


def _deep(value: Any) -> Any:
    """A value as JSON where it is a text of some."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _plain(value: Any) -> Any:
    return None if value in ("", None) else _deep(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _below(given: Row, prefix: str) -> Row:
    return {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
