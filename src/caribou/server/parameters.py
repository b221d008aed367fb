"""Reading a request as its route says: every refusal names the field, what was given and what is
allowed. And the cursors of lists."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from ..kestrel.models import LONGEST_ID
from .backend import Backend
from .bodies import read_body
from .problems import Problem
from .routing import Call, Query, Route

__all__ = [
    "LARGEST_INTEGER",
    "LONGEST_TEXT",
    "TIMES",
    "as_utc",
    "read_call",
    "read_cursor",
    "write_cursor",
]

TIMES: Final = "a time from 1970 to 2261, as in 2026-01-31T12:00:00Z (UTC if it names no zone)"
LONGEST_TEXT: Final = LONGEST_ID
LARGEST_INTEGER: Final = 2**63 - 1
_MOST_PARAMETERS: Final = 100
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


async def read_call(request: web.Request, route: Route, backend: Backend) -> Call:
    """The request, checked and converted.

    Raises:
        Problem: a part of it is not what the route takes.
    """
    parts = {part.name: part for part in route.parts}
    path = {
        name: _convert(parts.get(name) or Query(name), text)
        for name, text in request.match_info.items()
    }
    query = _read_query(request, route.query)
    body = None if route.body is None else await read_body(request, route.body)
    return Call(request=request, backend=backend, path=path, query=query, body=body)


def write_cursor(kind: str, values: Sequence[Any]) -> str:
    """An opaque cursor for the list ``kind`` that goes on after ``values``: str, int, float, None
    or datetime."""
    return base64.urlsafe_b64encode(msgspec.json.encode([kind, *values])).rstrip(b"=").decode()


def read_cursor(text: str, kind: str, types: Sequence[Any]) -> list[Any]:
    """The values that :func:`write_cursor` was given, each of the type told.

    Raises:
        Problem: it is not a cursor, or is one of another list or another order.
    """
    try:
        raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
        found: list[Any] = msgspec.json.decode(raw, type=list[Any])
        if len(found) != len(types) + 1 or found[0] != kind:
            raise ValueError
        return [
            msgspec.convert(value, expected)
            for value, expected in zip(found[1:], types, strict=True)
        ]
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise Problem(
            400,
            "this cursor does not belong to this list in this order",
            field="cursor",
            given=text,
            allowed="the next_cursor of the page before, with the same filters and sort",
            hint="leave cursor out to begin again",
        ) from None


def _read_query(request: web.Request, known: Sequence[Query]) -> dict[str, Any]:
    exact = {query.name: query for query in known if not query.prefix}
    prefixes = [query for query in known if query.prefix]
    values: dict[str, Any] = {name: [] if q.many else q.default for name, q in exact.items()}
    values |= {query.name: {} for query in prefixes}
    if len(request.query) > _MOST_PARAMETERS:
        raise Problem(400, "too many query parameters", allowed=f"at most {_MOST_PARAMETERS}")
    seen: set[str] = set()
    for name, text in request.query.items():
        query = exact.get(name) or next((q for q in prefixes if _below(q, name)), None)
        if query is None:
            raise Problem(
                400,
                "this query parameter is not known here",
                field=name,
                given=text,
                allowed=sorted(f"{q.name}KEY" if q.prefix else q.name for q in known),
            )
        if name in seen and not query.many:
            raise Problem(
                400, "this query parameter is given more than once", field=name, allowed="one value"
            )
        seen.add(name)
        if query.kind == "cursor" and not text:
            continue  # as good as none: the first page
        value = _convert(query, text, name)
        if query.prefix:
            values[query.name][name.removeprefix(query.name)] = value
        elif query.many:
            values[name].append(value)
        else:
            values[name] = value
    return values


def _below(query: Query, name: str) -> bool:
    return name.startswith(query.name) and len(name) > len(query.name) and "\0" not in name


def _convert(query: Query, text: str, name: str = "") -> Any:
    value, allowed = _CONVERT[query.kind](text)
    low, high = query.minimum, query.maximum
    if low is not None or high is not None:
        allowed = f"{allowed} {_range(low, high)}"
    if query.choices:
        allowed = list(query.choices)
    if (
        value is None
        or (low is not None and value < low)
        or (high is not None and value > high)
        or (query.choices and value not in query.choices)
    ):
        raise Problem(
            400,
            "this value cannot be used",
            field=name or query.name,
            given=text,
            allowed=allowed,
        )
    return value


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"up to {high}"
    return f"from {low} up" if high is None else f"from {low} to {high}"


def _text(text: str) -> tuple[str | None, Any]:
    usable = len(text) <= LONGEST_TEXT and "\0" not in text
    return text if usable else None, f"at most {LONGEST_TEXT} characters, none of them NUL"


def _cursor(text: str) -> tuple[str | None, Any]:
    return text, "a next_cursor"


def _integer(text: str) -> tuple[int | None, Any]:
    number = int(text) if _INTEGER.fullmatch(text) else None
    if number is not None and abs(number) > LARGEST_INTEGER:
        number = None
    return number, "a whole number of 64 bits"


def _number(text: str) -> tuple[float | None, Any]:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None, "a number"


def as_utc(time: datetime) -> datetime | None:
    """The time in UTC, which it is taken for when it names no zone; None if no column holds it."""
    try:
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        return None
    return time if 1970 <= time.year <= 2261 else None


def _time(text: str) -> tuple[datetime | None, Any]:
    try:
        return as_utc(datetime.fromisoformat(text)), TIMES
    except ValueError:
        return None, TIMES


def _flag(text: str) -> tuple[bool | None, Any]:
    return _FLAGS.get(text.lower()), ["true", "false"]


_CONVERT: Final[Mapping[str, Any]] = {
    "text": _text,
    "cursor": _cursor,
    "integer": _integer,
    "number": _number,
    "time": _time,
    "flag": _flag,
}
