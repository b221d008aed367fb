"""A record and its place in a rollout become one line of JSON.

The common record is checked in one look and encoded as it is; anything odd about it goes the slow
way through ``_sanitize``. What is constant in a scope was encoded when the scope was opened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final, TypeAlias, TypeVar

from msgspec.structs import astuple

from ._sanitize import MAX_DEPTH, MAX_INTEGER, MAX_STRING, encode, storable_record, storable_text
from .errors import InvalidType
from .records import MISSING, Event, Grade, Message, Record, ToolExecution

__all__ = [
    "WHOSE",
    "Body",
    "event_body",
    "grade_body",
    "labels",
    "message_body",
    "prefix",
    "row",
    "stamp",
    "times",
    "tool_body",
    "trace_fields",
]

# Work that the fast path may hand to the encoder: one a character, and this much a value. It keeps
# shared and huge containers out, for which the slow path counts exactly.
_BUDGET: Final = MAX_STRING
_NODE: Final = 64

_CONTENT: Final = b',"structured":["content"]'
_ARGUMENTS: Final = b',"structured":["arguments"]'
_RESULT: Final = b',"structured":["result"]'
_BOTH: Final = b',"structured":["arguments","result"]'

WHOSE: Final = ("session_id", "user_id")
"""The metadata that stand on every record as well."""

# Characters that Langfuse takes for a session, a user or a tag; it drops what is longer.
# https://langfuse.com/docs/observability/features/sessions and .../features/tags
_MAX_FIELD: Final = 200
# Bytes of JSON for all tags of a line: they are repeated in every one.
_MAX_TAGS: Final = 2048

_MAX_LABELS: Final = 1000
_labels: dict[tuple[str, str], bytes] = {}


_R = TypeVar("_R", bound=Record)

Body: TypeAlias = tuple[_R, bytes, bytes]
"""A storable record, its JSON, and what its row notes about it: nothing, or columns that start with
a comma. An ordinary tuple, as a named one takes longer to make than a common record to check."""


def message_body(message: Message) -> Body[Message]:
    """Check and encode a message.

    Raises:
        InvalidType: it has no role.
    """
    (
        role,
        content,
        tool_call_id,
        name,
        model,
        provider,
        grader_name,
        prompt,
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens,
        reasoning_tokens,
        cost_usd,
        duration_ms,
        tool_calls,
        attributes,
    ) = astuple(message)
    try:
        if (
            type(role) is str
            and (tool_call_id is None or type(tool_call_id) is str)
            and (name is None or type(name) is str)
            and (model is None or type(model) is str)
            and (provider is None or type(provider) is str)
            and (grader_name is None or type(grader_name) is str)
            and (prompt is None or type(prompt) is str)
            and (input_tokens is None or _is_count(input_tokens))
            and (output_tokens is None or _is_count(output_tokens))
            and (cache_read_tokens is None or _is_count(cache_read_tokens))
            and (cache_write_tokens is None or _is_count(cache_write_tokens))
            and (reasoning_tokens is None or _is_count(reasoning_tokens))
            and (cost_usd is None or _is_amount(cost_usd))
            and (duration_ms is None or _is_duration(duration_ms))
            and (attributes is None or type(attributes) is dict)
            and _weigh_all(content, tool_calls, attributes) >= 0
        ):
            body = encode(message)
            if len(body) <= MAX_STRING:
                structured = content is not None and type(content) is not str
                return message, body, _CONTENT if structured else b""
    except Exception:
        # Whatever a value did to be looked at, the slow path copes with it.
        pass
    if role is MISSING:
        raise InvalidType("Message: role is missing; give a str such as 'user' or 'assistant'")
    if role is None:
        raise InvalidType("Message: role must be a str such as 'user' or 'assistant', not None")
    stored, body, marks = storable_record(message)
    return stored, body, _notes(marks, ("content",), stored)


def tool_body(tool: ToolExecution) -> Body[ToolExecution]:
    """Check and encode a tool execution.

    Raises:
        InvalidType: it has no name.
    """
    name, call_id, error, requestor, duration, arguments, result, attributes = astuple(tool)
    try:
        if (
            type(name) is str
            and (call_id is None or type(call_id) is str)
            and (error is None or type(error) is str)
            and (requestor is None or type(requestor) is str)
            and (duration is None or _is_duration(duration))
        ):
            left = _weigh_all(arguments, result, attributes)
            if left >= 0 and (attributes is None or type(attributes) is dict):
                body = encode(tool)
                if len(body) <= MAX_STRING:
                    notes = b""
                    if arguments is not None and type(arguments) is not str:
                        notes = _ARGUMENTS
                    if result is not None and type(result) is not str:
                        notes = _BOTH if notes else _RESULT
                    return tool, body, notes
    except Exception:
        # Whatever a value did to be looked at, the slow path copes with it.
        pass
    _require_name(name, "ToolExecution")
    stored, body, marks = storable_record(tool)
    return stored, body, _notes(marks, ("arguments", "result"), stored)


def grade_body(grade: Grade) -> Body[Grade]:
    """Check and encode a grade."""
    score, *texts, passed, total, duration, criteria, attributes = astuple(grade)
    try:
        if (
            (score is None or (type(score) is float and 0.0 <= score <= 1.0))
            and all(text is None or type(text) is str for text in texts)
            and (passed is None or _is_count(passed))
            and (total is None or _is_count(total))
            and (duration is None or _is_duration(duration))
            and _weigh_all(criteria, attributes) >= 0
            and (attributes is None or type(attributes) is dict)
        ):
            body = encode(grade)
            if len(body) <= MAX_STRING:
                return grade, body, b""
    except Exception:
        # Whatever a value did to be looked at, the slow path copes with it.
        pass
    stored, body, marks = storable_record(grade)
    return stored, body, _notes(marks, (), stored)


def event_body(event: Event) -> Body[Event]:
    """Check and encode an event.

    Raises:
        InvalidType: it has no name.
    """
    name, duration, data, attributes = astuple(event)
    try:
        if (
            type(name) is str
            and (duration is None or _is_duration(duration))
            and _weigh_all(data, attributes) >= 0
            and (attributes is None or type(attributes) is dict)
        ):
            body = encode(event)
            if len(body) <= MAX_STRING:
                return event, body, b""
    except Exception:
        # Whatever a value did to be looked at, the slow path copes with it.
        pass
    _require_name(name, "Event")
    stored, body, marks = storable_record(event)
    return stored, body, _notes(marks, (), stored)


def labels(kind: str, name: str) -> bytes:
    """``"kind"`` and ``"name"`` as JSON members; a program has few, so they are kept."""
    known = _labels.get((kind, name))
    if known is None:
        texts = encode(storable_text(kind)), encode(storable_text(name))
        known = b'"kind":%b,"name":%b' % texts
        if len(_labels) < _MAX_LABELS and len(known) < 1024:
            _labels[kind, name] = known
    return known


def prefix(constants: Mapping[str, object]) -> bytes:
    """The start of every line of a rollout: an object that is still open."""
    return encode({name: value for name, value in constants.items() if value is not None})[:-1]


def trace_fields(metadata: Mapping[str, str], tags: Sequence[str]) -> bytes:
    """Whose a rollout is: its session, user and tags as members that follow others of a line, as
    far as each line has room for them. The summary has all of them."""
    fields: dict[str, object] = {}
    for name in WHOSE:
        value = metadata.get(name)
        if value and len(value) <= _MAX_FIELD:
            fields[name] = value
    first: list[str] = []
    room = _MAX_TAGS
    for tag in tags:
        if len(tag) <= _MAX_FIELD:
            room -= len(encode(tag)) + 1
            if room < 0:
                break
            first.append(tag)
    if first:
        fields["tags"] = first
    return b"," + encode(fields)[1:-1] if fields else b""


def row(start: bytes, columns: Mapping[str, object]) -> bytes:
    """A whole line: ``start``, a prefix, and more columns; those that are None are left out."""
    more = encode({name: value for name, value in columns.items() if value is not None})
    return b"%b,%b" % (start, more[1:])


def stamp(nanoseconds: int) -> bytes:
    """A time in seconds since the epoch, as the decimal that stands quoted in a line: always with
    ten digits before the point, as ClickHouse takes fewer for a calendar date."""
    return b"%010d.%09d" % divmod(max(nanoseconds, 0), 1_000_000_000)


def times(duration_ms: float | None) -> bytes:
    """``start_time``, and with a duration ``end_time``, of what ends now."""
    now = time.time_ns()
    end = b"%019d" % now
    if duration_ms is None:
        return b'"start_time":"%b.%b"' % (end[:-9], end[-9:])
    start = b"%019d" % (now - int(min(duration_ms * 1e6, now)))
    return b'"start_time":"%b.%b","end_time":"%b.%b"' % (
        start[:-9],
        start[-9:],
        end[:-9],
        end[-9:],
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _is_amount(value: object) -> bool:
    return (type(value) is float and value - value == 0.0) or (
        type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER
    )


def _is_duration(value: object) -> bool:
    return (type(value) is float or type(value) is int) and 0 <= value < math.inf


def _weigh_all(first: Any, second: Any = None, third: Any = None) -> int:
    """What is left of the budget after these columns; negative if the slow path must look.

    Only None, text, list and dict stand in such a column as they are.
    """
    left = _BUDGET
    for value in (first, second, third):
        if value is not None:
            kind = type(value)  # pyright: ignore[reportUnknownVariableType]
            if kind is str:
                left -= len(value)
            elif kind is dict or kind is list:
                left = _weigh(value, left, MAX_DEPTH)
            else:
                return -1
            if left < 0:
                break
    return left


def _weigh(value: object, left: int, depth: int) -> int:
    """``_weigh_all`` for one container: nothing but plain JSON in it, and little enough."""
    items: Any = value
    left -= _NODE * len(items)
    if left < 0 or not depth:
        return -1
    if type(value) is dict:
        for key in items:
            if type(key) is not str:
                return -1
            left -= len(key)
        items = items.values()
    for item in items:
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is str:
            left -= len(item)
        elif kind is float:
            if not _is_amount(item):
                return -1
        elif kind is dict or kind is list:
            left = _weigh(item, left, depth - 1)
        elif kind is int:
            if not -MAX_INTEGER <= item <= MAX_INTEGER:
                return -1
        elif item is not None and kind is not bool:
            return -1
        if left < 0:
            return -1
    return left


def _require_name(name: object, record: str) -> None:
    if name is MISSING:
        raise InvalidType(f"{record}: name is missing; give a str")
    if name is None:
        raise InvalidType(f"{record}: name must be a str, not None")


def _notes(marks: set[str], columns: tuple[str, ...], stored: Record) -> bytes:
    notes: dict[str, object] = {}
    if marks:
        notes["sanitized"] = ",".join(sorted(marks))
    structured = [name for name in columns if not isinstance(getattr(stored, name), str | NoneType)]
    if structured:
        notes["structured"] = structured
    return b"," + encode(notes)[1:-1] if notes else b""
