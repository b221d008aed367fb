"""What the debug console shows of a row: one line, indented by scope, harmless to a terminal."""

from __future__ import annotations

import functools
import itertools
import re
import time
import unicodedata
from collections.abc import Iterator
from typing import Any, cast

import msgspec

__all__ = ["Lines", "cut", "harmless", "width_of"]

_INDENT = "  "
# However deep a scope lies, most of the line is for what happened in it.
_DEEPEST = 12
_MOST_SCOPES = 10_000
# Of a long value only the beginning is looked at: reading all of it would hold up the program.
_LOOKED_AT = 200
_DECODED = 4096
# Text in which every character takes one column.
_NARROW = re.compile("[ -~\xa1-\xac\xae-\u02ff…→]*")
# A letter with more marks than any language needs paints over the lines around it.
_MOST_MARKS = 3

# Printable as Unicode has it, and yet not to be seen: joiners, fillers and variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200d\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

_KINDS = {"message": "36", "tool": "33", "grade": "32", "event": "35"}
_TRACES = ("36", "35", "32", "33", "34", "96", "95", "92", "93", "94")
_DIM, _BOLD, _RED = "2", "1", "31"

_TAKEN = ("input_tokens", "cache_read_tokens", "cache_write_tokens")
_GIVEN = ("output_tokens", "reasoning_tokens")

# Text and how it is shown: the parameters of "select graphic rendition", empty for as it is.
_Segment = tuple[str, str]


class _Row(msgspec.Struct):
    """What is looked at in a row of ``spans`` or ``traces``. Values that can be long are not
    decoded."""

    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    start_time: str = ""
    end_time: str = ""
    kind: str = ""
    name: str = ""
    status: str = ""
    status_message: str = ""
    version: int = 0
    turn_index: int = 0
    intra_index: int = 0
    duration_ms: float | None = None
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    score: float | None = None
    phase: str = ""
    run_id: str = ""
    step_number: int | None = None
    datapoint_id: str = ""
    turns: int = 0
    usage: dict[str, dict[str, float]] = {}
    error_type: str = ""
    error_message: str | None = None
    late: bool = False
    content: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()
    arguments: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    reasoning: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Row).decode


def harmless(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal acts upon or that is not seen.

    Line breaks and other white space become one space; controls, bidirectional overrides, lone
    surrogates and the like are shown as escapes; what only joins or varies its neighbours goes.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _UNSEEN.sub("", " ".join(text.split()))
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escape(char) for char in text)
    return text if _NARROW.fullmatch(text) else "".join(_with_few_marks(text))


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode()


def _with_few_marks(text: str) -> Iterator[str]:
    marks = 0
    for char in text:
        marks = marks + 1 if not _cells(char) else 0
        if marks <= _MOST_MARKS:
            yield char


@functools.lru_cache(1024)
def _cells(char: str) -> int:
    if unicodedata.east_asian_width(char) in "WF":
        return 2
    return 0 if unicodedata.category(char) in ("Mn", "Me") else 1


def width_of(text: str) -> int:
    """The columns that a harmless text takes in a terminal."""
    return len(text) if _NARROW.fullmatch(text) else sum(map(_cells, text))


def cut(text: str, width: int) -> str:
    """A harmless text in at most ``width`` columns; one that is cut ends in an ellipsis."""
    if width_of(text) <= width:
        return text
    if width <= 0:
        return ""
    if _NARROW.fullmatch(text):
        return text[: width - 1] + "…"
    columns = itertools.accumulate(map(_cells, text))
    kept = sum(1 for _ in itertools.takewhile(lambda column: column < width, columns))
    return text[:kept] + "…"


class Lines:
    """Makes lines of rows, and remembers which scopes they lie in."""

    def __init__(self) -> None:
        # How deep what is in a scope stands, by the scope's id; the one used last comes last.
        self._inside: dict[str, int] = {}

    def line(self, row: bytes, *, width: int, colour: bool) -> str:
        """The line for a row of ``spans`` or ``traces``, with its line break; empty for one that
        says nothing new. ``width`` is the most columns it takes."""
        try:
            shown = _decode(row)
            segments = self._rollout(shown) if not shown.span_id else self._span(shown)
        except (msgspec.DecodeError, ValueError, ArithmeticError):
            # A column of a later version, or a redaction hook that changed a type.
            return ""
        return _painted(segments, width, colour=colour)

    def _rollout(self, row: _Row) -> list[_Segment]:
        if row.version > 1:
            # Told again, as something was logged after the end.
            return []
        turns = f"{row.turns} turn{'' if row.turns == 1 else 's'}" if row.turns else ""
        head = list(_head(row, turns))
        if row.status == "PENDING":
            step = "" if row.step_number is None else f"step {row.step_number}"
            where = " · ".join(filter(None, (row.phase, row.run_id, step, row.datapoint_id)))
            return [*head, ("● rollout", _BOLD), (f"  {harmless(where)}", "")]
        failed = row.status not in ("COMPLETED", "TRUNCATED", "ABORTED")
        outcome = (harmless(row.status), _RED if failed else "32")
        tail = [("■ rollout ", _BOLD), outcome, *_facts(row)]
        why = ": ".join(filter(None, (row.error_type, row.error_message)))
        return [*head, *tail, (f"  {_first(why)}", _RED)]

    def _span(self, row: _Row) -> list[_Segment]:
        depth = self._depth(row.parent_span_id)
        opens, ends = row.status == "PENDING", row.version == 1
        if opens:
            self._inside[row.span_id] = depth + 1
            if len(self._inside) > _MOST_SCOPES:
                del self._inside[next(iter(self._inside))]
        turn = f"{row.turn_index}.{row.intra_index}"
        segments = [*_head(row, turn), (_INDENT * min(depth, _DEEPEST), "")]
        failed = row.status == "ERROR"
        kind, name = _label(row)
        colour = _RED if failed else _KINDS.get(kind, "34")
        if opens or ends:
            segments.append(("▶ " if opens else "◀ ", colour))
        segments += [(kind, _DIM), (f" {name}" if name else "", colour)]
        if ends:
            segments.append((f"  {harmless(row.status)}", colour))
        segments += _facts(row)
        if row.late:
            segments.append(("  late", _DIM))
        if row.score is not None or kind == "grade":
            score = "not scored" if row.score is None else f"{row.score:.3f}"
            segments.append((f"  {score}", _BOLD))
        if failed:
            segments.append((f"  ✗ {harmless(row.status_message)}", _RED))
        return [*segments, ("  " + "  ".join(filter(None, _contents(row))), "")]

    def _depth(self, parent: str) -> int:
        """How many scopes a row lies in, as far as they are remembered."""
        depth = self._inside.pop(parent, 0)
        if depth:
            self._inside[parent] = depth
        return depth


def _head(row: _Row, turn: str) -> Iterator[_Segment]:
    stamp = row.end_time or row.start_time
    seconds, _, fraction = stamp.partition(".")
    clock = time.strftime("%H:%M:%S", time.localtime(int(seconds or 0)))
    yield f"{clock}.{fraction[:3]:0<3} ", _DIM
    trace = harmless(row.trace_id[:8])
    yield trace, _TRACES[int(trace, 16) % len(_TRACES)] if _is_hex(trace) else ""
    yield f" {turn:>7}  ", _DIM


def _is_hex(text: str) -> bool:
    return re.fullmatch("[0-9a-f]+", text) is not None


def _label(row: _Row) -> tuple[str, str]:
    """The kind and what the name says beyond it: records are named ``tool.search``."""
    kind, name = harmless(row.kind), harmless(row.name[:_LOOKED_AT])
    if kind.startswith("grader."):
        return "grader", cut(kind.removeprefix("grader."), 40)
    return cut(kind, 20), cut(name.removeprefix(kind).removeprefix(".") or "", 40)


def _facts(row: _Row) -> list[_Segment]:
    facts: list[str] = []
    if row.duration_ms is not None:
        facts.append(_duration(row.duration_ms))
    buckets = {bucket: getattr(row, bucket) for bucket in (*_TAKEN, *_GIVEN)}
    # A rollout's own columns say nothing of the caches.
    usage = list(row.usage.values()) or [buckets]
    taken, given = (
        int(sum(model.get(bucket, 0) for model in usage for bucket in direction))
        for direction in (_TAKEN, _GIVEN)
    )
    if taken or given:
        facts.append(f"{taken:,} → {given:,} tokens")
    return [(f"  {' · '.join(facts)}", _DIM)] if facts else []


def _duration(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms" if milliseconds >= 1 else f"{milliseconds:.1f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _contents(row: _Row) -> Iterator[str]:
    """The first of what was said, asked and answered."""
    yield _text(row.content)
    calls = _value(row.tool_calls)
    if calls:
        for call in cast("list[Any]", calls) if isinstance(calls, list) else [calls]:
            yield f"→ {_first(_called(call))}"
    yield _text(row.arguments)
    result = _text(row.result)
    yield f"= {result}" if result else ""
    yield _text(row.reasoning)
    yield _text(row.data)


def _called(call: Any) -> str:
    function = _member(call, "function") or call
    name, arguments = _member(function, "name"), _member(function, "arguments")
    return _plain(call) if name is None else f"{name} {_plain(arguments)}"


def _text(raw: msgspec.Raw) -> str:
    """The first of a value: of text, of the texts among parts of a message, or of JSON."""
    value = _value(raw)
    if isinstance(value, list):
        texts = [_member(part, "text") for part in cast("list[Any]", value)]
        if any(isinstance(text, str) for text in texts):
            shown = [text for text in texts if isinstance(text, str)]
            rest = len(texts) - len(shown)
            value = " ".join(shown) + (f" (+{rest} more)" if rest else "")
    return _first(_plain(value))


def _first(text: str) -> str:
    shown = harmless(text[:_LOOKED_AT])
    return shown if len(text) <= _LOOKED_AT else f"{shown}…"


def _member(value: Any, key: str) -> Any:
    return cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None


def _plain(value: Any) -> str:
    """A text as it is, and anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value in (None, [], {}) else msgspec.json.encode(value).decode()


def _value(raw: msgspec.Raw) -> Any:
    """What JSON holds; of a long value, the beginning as text."""
    data = bytes(memoryview(raw)[:_DECODED])
    if len(memoryview(raw)) == len(data):
        return msgspec.json.decode(data) if data else None
    if not data.startswith(b'"'):
        return data.decode(errors="ignore")
    # The cut may have gone through a character or an escape, the longest of which are two of six.
    for end in range(len(data), len(data) - 13, -1):
        try:
            return msgspec.json.decode(data[:end] + b'"', type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return ""


def _painted(segments: list[_Segment], width: int, *, colour: bool) -> str:
    """The segments as a line, in as many columns as there are."""
    painted: list[str] = []
    for text, style in segments:
        columns = width_of(text)
        part = text if columns <= width else cut(text, width)
        width -= columns
        painted.append(f"\x1b[{style}m{part}\x1b[0m" if colour and style and part else part)
        if width <= 0:
            break
    line = "".join(painted).rstrip()
    return f"{line}\n" if line else ""
