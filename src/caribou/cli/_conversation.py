"""One trace as a conversation, for a terminal or for a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from . import _format as fmt
from ._output import Row, console, in_terminal
from ._text import one_line, safe

__all__ = ["parsed", "print_conversation", "tool_calls"]

# In a terminal a long content is cut here unless all of it is asked for.
_MAX_LINES = 16
_MAX_CHARACTERS = 1600
# JSON wider than this is laid out over several lines.
_WIDTH = 96

# They are counted apart from each other.
_TOKENS = (
    ("input_tokens", "in"),
    ("cache_read_tokens", "read from cache"),
    ("cache_write_tokens", "written to cache"),
    ("output_tokens", "out"),
    ("reasoning_tokens", "of reasoning"),
)

_ROLE_STYLES = {
    "system": "bold magenta",
    "user": "bold blue",
    "assistant": "bold green",
    "tool": "bold yellow",
}


@dataclass(frozen=True, slots=True)
class _Line:
    """One piece of the page: ``title`` and ``body`` at a depth, or a rule across the page."""

    title: str = ""
    style: str = ""
    details: str = ""
    body: str = ""
    body_style: str = ""
    depth: int = 0
    rule: bool = False


def print_conversation(trace: Row, spans: list[Row], *, full: bool) -> None:
    """Print ``trace`` and its ``spans``, which are in order of ``seq``."""
    lines = [*_head(trace), *_body(spans)]
    if in_terminal():
        _print_rich(lines, full=full)
    else:
        for line in lines:
            _print_plain(line)


def _head(trace: Row) -> Iterator[_Line]:
    score = trace["score"]
    details = [trace["status"], f"score {fmt.score(score)}" if score is not None else "not scored"]
    yield _Line(f"Trace {trace['trace_id']}", "bold", " · ".join(details))
    step = trace["step_number"]
    where = [f"run {trace['run_id'] or '-'} ({trace['phase']})"]
    if step is not None and step >= 0:
        where.append(f"step {step}")
    where.append(f"datapoint {trace['datapoint_id']}")
    where += [f"{key} {trace[f'{key}_name']}" for key in ("env", "model") if trace[f"{key}_name"]]
    yield _Line(body=" · ".join(where))
    took = fmt.duration(trace["duration_ms"]) if trace["end_time"] else "no end recorded"
    yield _Line(body=f"{fmt.moment(trace['start_time'])} UTC · {took}")
    totals = [
        f"{word} {fmt.count(trace[key])}"
        for key, word in (
            ("turns", "turns"),
            ("messages", "messages"),
            ("tool_calls", "tool calls"),
            ("tool_errors", "tool errors"),
            ("input_tokens", "tokens in"),
            ("output_tokens", "tokens out"),
        )
        if trace[key]
    ]
    if trace["cost_usd"]:
        totals.append(f"cost {fmt.cost(trace['cost_usd'])}")
    if totals:
        yield _Line(body=" · ".join(totals))
    if trace["tags"]:
        yield _Line(body="tags: " + ", ".join(trace["tags"]))
    if trace["metadata"]:
        pairs = (f"{key}={one_line(str(value), 80)}" for key, value in trace["metadata"].items())
        yield _Line(body="metadata: " + ", ".join(pairs))
    if trace["error_message"] or trace["error_type"]:
        error = ": ".join(filter(None, (trace["error_type"], trace["error_message"])))
        yield _Line(body=error, body_style="red")
    if trace["traceback"]:
        yield _Line(body=trace["traceback"], body_style="dim")


def _body(spans: list[Row]) -> Iterator[_Line]:
    depths = _depths(spans)
    turn: int | None = None
    # What was shown by the id of the call: agent loops log the same text more than once.
    calls: dict[str, Any] = {}
    results: dict[str, str] = {}
    for span in spans:
        if span["turn_index"] != turn:
            turn = span["turn_index"]
            yield _Line(f"turn {turn}", rule=True)
        depth = depths[span["span_id"]]
        marks = [f"sanitized: {span['sanitized']}"] if span["sanitized"] else []
        marks += ["late"] if span["late"] else []
        kind = span["kind"]
        if kind == "message" or kind.startswith("grader."):
            yield from _message(span, depth, marks, results)
            calls |= _calls_by_id(span["tool_calls"])
        elif kind == "tool":
            shown = calls.get(span["tool_call_id"])
            yield from _tool(span, depth, marks, arguments_shown=shown)
            if span["tool_call_id"] and span["result"] is not None:
                results[span["tool_call_id"]] = span["result"]
        elif kind == "grade":
            yield from _grade(span, depth, marks)
        else:
            yield from _other(span, depth, marks)


def _depths(spans: list[Row]) -> dict[str, int]:
    """How many recorded scopes each span lies in."""
    depths: dict[str, int] = {}
    for span in spans:
        depths[span["span_id"]] = depths.get(span["parent_span_id"], -1) + 1
    return depths


def _message(span: Row, depth: int, marks: list[str], results: dict[str, str]) -> Iterator[_Line]:
    role = span["role"]
    grader = span["grader_name"]
    title = f"grader {grader} · {role}" if grader else role
    details = [span["model"], *_usage(span), *marks]
    content = span["content"] or ""
    if role == "tool":
        name = span["tool_name"]
        if results.get(span["tool_call_id"]) == content:
            yield _Line("tool message", "dim", "the result above", depth=depth)
            return
        title = f"tool message {name}".strip()
    style = _ROLE_STYLES.get(role, "bold cyan")
    yield _Line(title, style, _join(details), _content(span), depth=depth)
    for call in tool_calls(span["tool_calls"]):
        yield _Line(body=f"→ {call}", body_style="yellow", depth=depth)


def _tool(span: Row, depth: int, marks: list[str], *, arguments_shown: Any) -> Iterator[_Line]:
    failed = bool(span["error"]) or span["status"] == "ERROR"
    asked = span["requestor"] if span["requestor"] not in ("", "agent") else ""
    details = [f"asked by {asked}" if asked else "", *_usage(span), *marks]
    if failed:
        details.insert(0, "failed")
    style = "bold red" if failed else "bold yellow"
    title = f"tool {span['tool_name']}"
    arguments = span["arguments"]
    if arguments_shown is not None and parsed(arguments) == arguments_shown:
        arguments = ""
    yield _Line(title, style, _join(details), _readable(arguments), "dim", depth)
    if span["error"]:
        yield _Line(body=f"✗ {span['error']}", body_style="red", depth=depth)
    if span["result"] is not None:
        yield _Line(body=f"= {_readable(span['result'])}", depth=depth)


def _grade(span: Row, depth: int, marks: list[str]) -> Iterator[_Line]:
    score = span["score"]
    details = ["not scored" if score is None else fmt.score(score)]
    if span["total_count"]:
        details.append(f"{span['passed_count']} of {span['total_count']} passed")
    title = f"grade {span['grader_name'] or span['grader_type']}".strip()
    style = "bold cyan" if score is None else f"bold {fmt.score_style(score)}"
    details += [*_usage(span), *marks]
    yield _Line(title, style, _join(details), span["reasoning"] or "", depth=depth)
    for criterion in _parsed_list(span["criteria"]):
        yield _Line(body=f"- {_compact(criterion)}", depth=depth)


def _other(span: Row, depth: int, marks: list[str]) -> Iterator[_Line]:
    status = span["status"]
    kind = span["kind"]
    details = [*_usage(span), *marks]
    if kind != "event" and status not in ("", "COMPLETED"):
        details.insert(0, status)
    if kind not in ("event", "span"):
        details.insert(0, kind)
    style = "bold red" if status == "ERROR" else "bold cyan"
    word = "event" if kind == "event" else "span"
    title = f"{word} {span['name'].removeprefix(kind + '.')}"
    data = span["data"] if span["data"] not in (None, "", "{}") else ""
    yield _Line(title, style, _join(details), _readable(data), depth=depth)
    if span["status_message"]:
        yield _Line(body=span["status_message"], body_style="red", depth=depth)


def _usage(span: Row) -> list[str]:
    tokens = [f"{fmt.count(span[key])} {word}" for key, word in _TOKENS if span[key]]
    price = [fmt.cost(span["cost_usd"])] if span["cost_usd"] else []
    return [*tokens, *price, *([fmt.duration(span["duration_ms"])] if span["duration_ms"] else [])]


def tool_calls(calls: Any) -> Iterator[str]:
    """Each of a message's tool calls on a line; ``calls`` is a list or the JSON text of one."""
    for call in _parsed_list(calls):
        function = _function(call)
        arguments = function.get("arguments", "")
        shown = arguments if isinstance(arguments, str) else _compact(arguments)
        yield f"{function['name']} {shown}" if function.get("name") else _compact(call)


def _calls_by_id(text: str) -> dict[str, Any]:
    """The arguments of each call that has an id."""
    calls = ((_dict(call).get("id"), _function(call)) for call in _parsed_list(text))
    return {key: parsed(call.get("arguments")) for key, call in calls if isinstance(key, str)}


def _function(call: Any) -> dict[str, Any]:
    return _dict(_dict(call).get("function", call))


def _content(span: Row) -> str:
    """The content as text; parts that are not text are shown as the JSON they are."""
    content = span["content"] or ""
    if "content" not in span["structured"]:
        return _readable(content)
    parts = [_dict(part) for part in _parsed_list(content)]
    return "\n".join(
        part["text"] if isinstance(part.get("text"), str) else _readable(_compact(part))
        for part in parts
    )


def _parsed_list(text: Any) -> list[Any]:
    value = parsed(text)
    return cast("list[Any]", value) if isinstance(value, list) else []


def parsed(value: Any) -> Any:
    """What JSON text holds; anything else as it is."""
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return value


def _dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _readable(text: str) -> str:
    """JSON of more than a line's length laid out; everything else as it is."""
    if len(text) < _WIDTH or text[0] not in "{[":
        return text
    try:
        return _laid_out(json.loads(text), "")
    except (ValueError, RecursionError):
        return text


def _laid_out(value: Any, indent: str) -> str:
    """JSON in which what fits on a line stays on one."""
    flat = _compact(value)
    if len(indent) + len(flat) <= _WIDTH or not isinstance(value, dict | list):
        return flat
    inner = indent + "  "
    if isinstance(value, list):
        parts = [_laid_out(item, inner) for item in cast("list[Any]", value)]
        left, right = "[", "]"
    else:
        items = cast("dict[str, Any]", value).items()
        parts = [f"{_compact(key)}: {_laid_out(item, inner)}" for key, item in items]
        left, right = "{", "}"
    return left + "".join(f"\n{inner}{part}," for part in parts)[:-1] + f"\n{indent}{right}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _join(details: list[str]) -> str:
    return " · ".join(filter(None, details))


def _print_plain(line: _Line) -> None:
    indent = "  " * line.depth
    if line.rule:
        print(f"\n--- {line.title} ---")
        return
    if line.title:
        print(indent + one_line("  ".join(filter(None, (line.title, line.details)))))
        indent += "  "
    elif line.depth == 0:
        indent = "  "
    if line.body:
        for part in safe(line.body).split("\n"):
            print(indent + part)


def _print_rich(lines: list[_Line], *, full: bool) -> None:
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.text import Text

    out = console()
    for line in lines:
        if line.rule:
            out.print()
            out.print(Rule(Text(line.title, style="dim"), align="left", style="dim"))
            continue
        # However deep it lies, most of the line is for the text.
        indent = min(2 * line.depth, out.width // 4)
        if line.title:
            text = Text(one_line(line.title), style=line.style)
            text.append(f"  {one_line(line.details)}" if line.details else "", style="not bold dim")
            out.print(Padding(text, (0, 0, 0, indent), expand=False))
        if line.body:
            body = safe(line.body) if full else _cut(safe(line.body))
            out.print(
                Padding(Text(body, style=line.body_style), (0, 0, 0, indent + 2), expand=False)
            )


def _cut(text: str) -> str:
    lines = text.split("\n")
    kept = "\n".join(lines[:_MAX_LINES])[:_MAX_CHARACTERS].rstrip()
    rest = len(text) - len(kept)
    # A few characters more are not worth a note.
    if rest < 80:
        return text
    return f"{kept}\n… {fmt.count(rest)} characters more (--full shows them)"
