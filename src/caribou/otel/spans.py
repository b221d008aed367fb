"""A span as plain data, and what both mappers ask of a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, cast

import msgspec

from caribou._version import __version__

from . import attributes as names

__all__ = [
    "LONGEST_VALUE",
    "NOTHING",
    "Attributes",
    "Common",
    "CommonOf",
    "Row",
    "Span",
    "SpanEvent",
    "Value",
    "agent_name",
    "as_mapping",
    "as_text",
    "base",
    "bounded",
    "decoded_row",
    "exceptions",
    "is_open",
    "is_scope",
    "model_of",
    "nanoseconds",
    "put",
    "put_whose",
    "resource_attributes",
    "sizes",
    "tag_names",
    "total",
    "whole",
]

Row: TypeAlias = Mapping[str, Any]
"""A decoded line of the journal; ``docs/design.md`` has the keys of each table."""

Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = dict[str, Value]

LONGEST_VALUE: Final = 512 << 10
"""Bytes of UTF-8 that one value of a row may have; backends refuse requests of some megabytes."""

_MOST_COMMON: Final = 1024
# Ordinary ones have some hundred.
_MOST_CHARACTERS: Final = 4096
# Made once: a union written in a call is made anew each time, which costs more than the look.
_PLAIN: Final = (str, bool, int, float)
_OVERSIZE: Final = "oversize"
# Columns that hold values of many names; one that is large is not to take the others with it.
_COLLECTIONS: Final = frozenset({"metadata", "attributes", "tags"})

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict).decode


class SpanEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at one moment of a span; ``time_ns`` counts from the epoch."""

    name: str
    time_ns: int
    attributes: Mapping[str, Value]


class Common:
    """Attributes of all spans of a trace: one object for them all, so that an encoder may keep in
    ``encoded`` what it makes of them."""

    __slots__ = ("attributes", "encoded")

    def __init__(self, attributes: Mapping[str, Value]) -> None:
        self.attributes: Mapping[str, Value] = attributes
        self.encoded: bytes | None = None


NOTHING: Final = Common({})


class CommonOf:
    """Makes what rows of a rollout have in common once, and keeps it."""

    def __init__(self, columns: Sequence[str], make: Callable[[Row], Attributes]) -> None:
        """``make`` is given these columns of a row, and its tags, and nothing else."""
        self._columns = columns
        self._make = make
        self._kept: dict[object, Common] = {}

    def __call__(self, row: Row) -> Common:
        """What ``row`` has in common with the others.

        Raises:
            TypeError: one of the columns is an object or an array.
        """
        values = (tuple(tag_names(row)), *map(row.get, self._columns))
        # 1 and True are equal.
        key = values, *map(type, values)
        common = self._kept.get(key)
        if common is None:
            given = zip(("tags", *self._columns), (list(values[0]), *values[1:]), strict=True)
            common = Common(self._make(dict(given)))
            # A hook may make anything of a row.
            if len(str(values)) <= _MOST_CHARACTERS:
                if len(self._kept) >= _MOST_COMMON:
                    self._kept.clear()
                self._kept[key] = common
        return common


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One span of OpenTelemetry.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        parent_span_id: as well; empty for a root.
        name: what a person sees.
        kind: its role between services.
        start_ns: nanoseconds since the epoch.
        end_ns: as well; the start for what took no time.
        own: values by name.
        common: more of them, with other names.
        failed: its status is an error.
        status_message: why, where somebody said so.
        events: what happened in it.
    """

    trace_id: str
    span_id: str
    parent_span_id: str = ""
    name: str
    kind: Literal["internal", "client"] = "internal"
    start_ns: int
    end_ns: int
    own: Mapping[str, Value]
    common: Common = NOTHING
    failed: bool = False
    status_message: str = ""
    events: tuple[SpanEvent, ...] = ()

    @property
    def attributes(self) -> dict[str, Value]:
        """All its attributes."""
        return {**self.common.attributes, **self.own}


def decoded_row(line: bytes) -> Row:
    """A line as a row whose values are of a size that backends take.

    Raises:
        ValueError: it is no JSON object.
    """
    row = _decode(line)
    return bounded(row) if len(line) > LONGEST_VALUE else row


def resource_attributes(resource: Mapping[str, str]) -> dict[str, str]:
    """What tells where spans come from: ``resource`` are attributes of the program's, its service's
    name among them."""
    return {
        names.SERVICE_NAME: names.UNKNOWN_SERVICE,
        names.SDK_NAME: "caribou",
        names.SDK_LANGUAGE: "python",
        names.SDK_VERSION: __version__,
        **resource,
    }


def whole(number: int) -> int:
    """A number as attributes have room for it, which a sum of token counts may be more than."""
    return max(-(1 << 63), min(number, (1 << 63) - 1))


def is_open(row: Row) -> bool:
    """Whether this is the first row of a scope or a rollout, written when it opened. Its last one
    is to come."""
    return row.get("status") == "PENDING" and "end_time" not in row


def is_scope(row: Row) -> bool:
    """Whether the row is of a ``span()``, whose kind may be any word, also that of a record."""
    return "version" in row


def base(row: Row) -> dict[str, Any]:
    """What every span has from its row: ids and times.

    Raises:
        KeyError: the row has no ids or no time.
        ValueError: a time is malformed.
    """
    start = nanoseconds(row["start_time"])
    end = row.get("end_time")
    return {
        "trace_id": row["trace_id"],
        "span_id": row["span_id"],
        "parent_span_id": row.get("parent_span_id") or "",
        "start_ns": start,
        # Clocks may be set back.
        "end_ns": start if end is None else max(start, nanoseconds(end)),
    }


def nanoseconds(text: str) -> int:
    """A time of a line, ``"1790000000.408435526"``, as nanoseconds since the epoch."""
    if len(text) == 20 and text[10] == ".":  # as all of this century are
        return int(text[:10] + text[11:])
    seconds, _, fraction = text.partition(".")
    return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))


def agent_name(row: Row) -> str:
    """Who acts: in prod the project, else the environment; empty where nobody said."""
    own, other = row.get("env_name"), row.get("run_id")
    if row.get("phase") == "prod":
        own, other = other, own
    elif not own:
        # A run is no agent: each would have its own name.
        other = None
    return str(own or other or "")


def tag_names(row: Row) -> list[str]:
    """The tags of a rollout, or of what is in it; none where a hook made something else of them."""
    tags = row.get("tags")
    return list(map(str, cast("list[object]", tags))) if isinstance(tags, list) else []


def put_whose(
    attributes: Attributes, given: Row, tags: list[str], *, session: str, tagged: str
) -> None:
    """Set the session and the user that ``given`` has, and tags, by which spans are found.
    ``session`` and ``tagged`` are the names of attributes."""
    put(attributes, session, given.get("session_id") or None)
    put(attributes, names.USER_ID, given.get("user_id") or None)
    if tags:
        attributes[tagged] = tags


def model_of(row: Row) -> str:
    """The model of a message: its own, or that of the rollout; of a grader only its own."""
    model = row.get("model")
    if model or str(row.get("kind", "")).startswith("grader."):
        return str(model or "")
    return str(row.get("model_name") or "")


def as_text(value: object) -> str:
    """A value as one text: a str as it is, anything else as JSON."""
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) else _encode(value).decode()


def as_mapping(value: object) -> Mapping[str, Any]:
    """An object; empty for what was none, or is cut."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def put(attributes: Attributes, name: str, value: object) -> None:
    """Set an attribute unless there is nothing to tell. Objects and arrays become JSON."""
    if value is None:
        return
    attributes[name] = value if isinstance(value, _PLAIN) else as_text(value)


def total(*counts: int | None) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def exceptions(row: Row, time_ns: int) -> tuple[SpanEvent, ...]:
    """What a rollout raised, as an event at its end."""
    if not row.get("error_type"):
        return ()
    attributes: Attributes = {}
    put(attributes, names.EXCEPTION_TYPE, row["error_type"])
    put(attributes, names.EXCEPTION_MESSAGE, row.get("error_message"))
    put(attributes, names.EXCEPTION_STACKTRACE, row.get("traceback"))
    return (SpanEvent(name=names.EXCEPTION, time_ns=time_ns, attributes=attributes),)


def bounded(row: Row, longest: int = LONGEST_VALUE) -> Row:
    """The row with every value that is larger than ``longest`` bytes cut between two characters.

    What was no text is JSON text then. Of metadata and attributes each value is cut for itself,
    the largest first, and of tags whole ones are kept. How large each column was is told by
    :func:`sizes`.
    """
    kept: dict[str, Any] = {}
    oversize: dict[str, int] = {}
    for name, value in row.items():
        kept[name] = value
        if isinstance(value, str | list | dict):
            data = as_text(cast("object", value)).encode()
            if len(data) > longest:
                oversize[name] = len(data)
                if name not in _COLLECTIONS or isinstance(value, str):
                    kept[name] = _first(data, longest)
                elif isinstance(value, dict):
                    kept[name] = _members(cast("dict[str, object]", value), longest)
                else:
                    kept[name] = _leading(cast("list[object]", value), longest)
    return kept | {_OVERSIZE: oversize} if oversize else row


def _members(given: Mapping[str, object], longest: int) -> dict[str, object]:
    """The members of an object in ``longest`` bytes: the small ones whole, the others cut to equal
    shares, and left out where there is no room for more than the key."""
    texts = {key: as_text(value).encode() for key, value in given.items()}
    kept: dict[str, object] = {}
    smallest_first = sorted(texts, key=lambda key: len(key) + len(texts[key]))
    for done, key in enumerate(smallest_first):
        data, name = texts[key], len(key.encode())
        room = longest // (len(texts) - done) - name
        if room < min(len(data), 1):
            continue
        kept[key] = given[key] if len(data) <= room else _first(data, room)
        longest -= name + min(len(data), room)
    return {key: kept[key] for key in given if key in kept}


def _leading(given: Sequence[object], longest: int) -> list[object]:
    """The items from the first on that have ``longest`` bytes in all."""
    ends = itertools.accumulate(len(as_text(item).encode()) for item in given)
    return [item for item, end in zip(given, ends, strict=True) if end <= longest]


def _first(data: bytes, longest: int) -> str:
    """Of a text in UTF-8, whole characters in ``longest`` bytes."""
    return data[:longest].decode(errors="ignore")


def sizes(row: Row) -> Mapping[str, int]:
    """The bytes that values had which :func:`bounded` cut, by column."""
    return row.get(_OVERSIZE) or {}
