"""The slow path: whatever a record holds, make it storable and note what was done.

Nothing in here raises for what a value is or does. A value's own code (``__str__``, ``model_dump``)
runs guarded; sizes are bounded before work is done, not after. The notes are the words of
``sanitized`` in a row:

``surrogate`` a lone surrogate became U+FFFD; ``nonfinite`` NaN or an infinity became null;
``integer`` a number that fits no 64-bit integer, or not exactly; ``range`` a number outside what
its column means, dropped; ``object`` a value of another type was converted; ``key`` a key was
not text; ``cycle``, ``depth``, ``nodes`` a container refers to itself, is too deep, has too much in
it; ``truncated`` a text was cut; ``redaction_failed`` the redaction hook did not do its work.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from enum import Enum
from itertools import islice
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec.structs import asdict

from .records import Record

__all__ = [
    "MAX_DEPTH",
    "MAX_INTEGER",
    "MAX_LINE",
    "MAX_NODES",
    "MAX_STRING",
    "Cleaner",
    "encode",
    "encode_into",
    "storable_record",
    "storable_row",
    "storable_text",
]

MAX_STRING: Final = 1 << 20
"""Bytes of UTF-8 that one text may take; the rest is cut off."""
MAX_LINE: Final = 4 << 20
"""Bytes that one row may take in the journal, about."""
MAX_DEPTH: Final = 32
"""Containers within containers."""
MAX_NODES: Final = 20_000
"""Values in all the containers of one record."""
MAX_INTEGER: Final = (1 << 63) - 1
"""The largest number of an integer column."""

_encoder: Final = msgspec.json.Encoder()
encode: Final = _encoder.encode
encode_into: Final = _encoder.encode_into

_R = TypeVar("_R", bound=Record)

# Bytes of one text and of all text of a row, and the same where escapes made the row too large.
_ROOM: Final = (MAX_STRING, 3 << 20)
_TIGHT: Final = (64 << 10, 256 << 10)
_MAX_DIGITS: Final = 4000


# A subclass may have methods of its own; these are the interpreter's.
_dict_items: Final[Callable[[Any], Any]] = dict[Any, Any].items
_dict_len: Final[Callable[[Any], int]] = dict[Any, Any].__len__
_SEQUENCES: Final[tuple[Any, ...]] = (list, tuple, set, frozenset)


class Cleaner:
    """Cleans the values of one row, within one budget, and collects the notes."""

    __slots__ = ("_nodes", "_path", "_room", "_string", "marks")

    def __init__(self, string: int = _ROOM[0], room: int = _ROOM[1]) -> None:
        self.marks: set[str] = set()
        self._string = string
        self._room = room
        self._nodes = MAX_NODES
        self._path: set[int] = set()

    def column(self, clean: Callable[[Cleaner, object], Any], value: object) -> Any:
        """One column's value. Whatever went wrong with it, the rest of the row is kept."""
        try:
            return clean(self, value)
        except Exception:
            self.marks.add("object")
            return None

    def json(self, value: object, depth: int = 0) -> Any:
        """Any value as plain JSON: None, bool, int, float, str, list, dict."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, str):
            return self._cut(str.__str__(cast("str", value)))
        if issubclass(kind, int):
            return self._integer(int.__index__(cast("int", value)))
        if issubclass(kind, float):
            number = float.__float__(cast("float", value))
            if math.isfinite(number):
                return number
            self.marks.add("nonfinite")
            return None
        if depth >= MAX_DEPTH:
            self.marks.add("depth")
            return "…[too deep]"
        if id(value) in self._path:
            self.marks.add("cycle")
            return "…[cycle]"
        self._path.add(id(value))
        try:
            if issubclass(kind, dict):
                return self._dict(cast("dict[Any, Any]", value), depth)
            if issubclass(kind, _SEQUENCES):
                return self._list(cast("list[Any]", value), depth)
            self.marks.add("object")
            return self.json(self._plain(value), depth + 1)
        finally:
            self._path.discard(id(value))

    def text(self, value: object) -> str | None:
        """A column of text: other values become their text."""
        if value is None:
            return None
        if type(value) is str:
            return self._cut(value)
        plain = self.json(value)
        if issubclass(type(value), str):
            return plain
        self.marks.add("object")
        return plain if type(plain) is str else self._cut(encode(plain).decode())

    def count(self, value: object) -> int | None:
        """A column of whole numbers from 0."""
        number = self._number(value)
        if number is None:
            return None
        if type(number) is not int or type(value) is bool:
            self.marks.add("integer")
            number = int(number)
        if number < 0:
            self.marks.add("range")
            return None
        if number > MAX_INTEGER:
            self.marks.add("integer")
            return None
        return number

    def amount(self, value: object) -> float | None:
        """A column of numbers."""
        number = self._number(value)
        if number is None:
            return None
        if type(value) is bool:
            self.marks.add("object")
        try:
            return float(number)
        except OverflowError:
            self.marks.add("range")
            return None

    def duration(self, value: object) -> float | None:
        """A column of milliseconds: never negative."""
        return self._within(self.amount(value), 0.0, math.inf)

    def score(self, value: object) -> float | None:
        """A score: 0.0 to 1.0; NaN is how numerical code says "not scored", and no accident."""
        if issubclass(type(value), float) and math.isnan(cast("float", value)):
            return None
        return self._within(self.amount(value), 0.0, 1.0)

    def mapping(self, value: object) -> dict[str, Any] | None:
        """A column of names and values."""
        plain = self.json(value)
        if plain is None or isinstance(plain, dict):
            return cast("dict[str, Any] | None", plain)
        self.marks.add("object")
        return {"value": plain}

    def _within(self, number: float | None, low: float, high: float) -> float | None:
        if number is None or low <= number <= high:
            return number
        self.marks.add("range")
        return None

    def _number(self, value: object) -> int | float | None:
        """An exact int, a finite float, or None."""
        if value is None:
            return None
        number: int | float
        try:
            number = int.__index__(operator.index(cast("int", value)))
        except Exception:
            # int("7") is a number too, but text in a number's place is a mistake to be seen.
            if issubclass(type(value), str | bytes | bytearray):
                self.marks.add("object")
                return None
            try:
                number = float.__float__(float(cast("float", value)))
            except Exception:
                self.marks.add("object")
                return None
            if not math.isfinite(number):
                self.marks.add("nonfinite")
                return None
        return number

    def _integer(self, value: int) -> int | str:
        if -MAX_INTEGER - 1 <= value <= 2 * MAX_INTEGER + 1:
            return value
        self.marks.add("integer")
        # Python refuses to write longer numbers in decimal, as that takes quadratic time.
        if value.bit_length() > 3 * _MAX_DIGITS:
            return f"…[integer of {value.bit_length()} bits]"
        return str(value)

    def _cut(self, text: str) -> str:
        allowed = max(min(self._string, self._room), 0)
        kept = text[:allowed]
        try:
            raw = kept.encode()
        except UnicodeEncodeError:
            self.marks.add("surrogate")
            # Two halves of one character come together; a half alone is replaced.
            kept = kept.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            raw = kept.encode()
        whole = len(kept) if len(text) <= allowed else len(text)
        if len(raw) > allowed:
            kept = raw[:allowed].decode(errors="ignore")
        self._room -= min(len(raw), allowed)
        if len(kept) == whole:
            return kept
        self.marks.add("truncated")
        return f"{kept}…[truncated: {whole - len(kept)} characters]"

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        clean: dict[str, Any] = {}
        for key, inner in self._first(lambda: _dict_items(value), _dict_len(value)):
            name = self._key(key)
            if name in clean:
                name = f"{name}~{len(clean)}"
            clean[name] = self.json(inner, depth + 1)
        return clean

    def _list(self, value: Any, depth: int) -> list[Any]:
        base = next(base for base in _SEQUENCES if issubclass(type(value), base))
        items = self._first(lambda: base.__iter__(value), base.__len__(value))
        return [self.json(inner, depth + 1) for inner in items]

    def _first(self, iterate: Callable[[], Any], size: int) -> list[Any]:
        """As many items as the budget allows, with no code but the interpreter's own running
        between them; another thread may change the container all the same."""
        allowed = min(size, self._nodes)
        if allowed < size:
            self.marks.add("nodes")
        self._nodes -= allowed
        for _ in range(3):
            try:
                return list(islice(iterate(), allowed))
            except RuntimeError:
                continue
        self.marks.add("nodes")
        return []

    def _key(self, key: object) -> str:
        if type(key) is str:
            return self._cut(key)
        if issubclass(type(key), str):
            return self._cut(str.__str__(cast("str", key)))
        self.marks.add("key")
        plain = self.json(key, MAX_DEPTH - 2)
        return plain if type(plain) is str else encode(plain).decode()

    def _plain(self, value: object) -> object:
        """A value of some other type as something plainer. May run the value's own code."""
        try:
            return self._convert(value)
        except Exception:
            return f"<{type(value).__name__}>"

    def _convert(self, value: Any) -> object:
        kind: Any = cast("Any", type(value))
        if issubclass(kind, bytes | bytearray):
            if len(value) > self._string:
                self.marks.add("truncated")
            return bytes(value[: self._string]).decode("utf-8", "backslashreplace")
        if hasattr(kind, "isoformat"):
            return value.isoformat()
        if issubclass(kind, Enum):
            return value.value
        if issubclass(kind, msgspec.Struct):
            return asdict(value)
        if hasattr(kind, "__dataclass_fields__"):
            return {name: getattr(value, name, None) for name in kind.__dataclass_fields__}
        if hasattr(kind, "model_dump"):
            return value.model_dump()
        if kind.__module__ == "numpy" and hasattr(kind, "tolist") and value.size <= MAX_NODES:
            return value.tolist()
        return str(value)


def storable_text(value: str, limit: int = MAX_STRING) -> str:
    """One text on its own: cut to ``limit`` bytes, lone surrogates replaced."""
    return Cleaner(string=limit).json(value)


def storable_record(record: _R) -> tuple[_R, bytes, set[str]]:
    """A record whose every value is storable, its JSON, and the notes."""
    kind = type(record)
    given = {
        column: getattr(record, field)
        for field, column in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
    }
    clean, marks = _storable(given, _CLEAN)
    stored = kind(**dict(zip(kind.__struct_fields__, clean.values(), strict=True)))
    return stored, encode(stored), marks


def storable_row(table: str, row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """A whole row with every value storable, without what is no column; and the notes."""
    clean = _CLEAN_TRACES if table == "traces" else _CLEAN
    return _storable({name: value for name, value in row.items() if name in clean}, clean)


def _storable(
    given: dict[str, Any], clean: dict[str, Callable[[Cleaner, object], Any]]
) -> tuple[dict[str, Any], set[str]]:
    cleaner = Cleaner()
    row = {name: cleaner.column(clean[name], value) for name, value in given.items()}
    if len(encode(row)) > MAX_LINE:
        # Escapes take six bytes for one: again, with room for that.
        cleaner = Cleaner(*_TIGHT)
        row = {name: cleaner.column(clean[name], value) for name, value in given.items()}
    return row, cleaner.marks


def _columns(clean: Callable[[Cleaner, object], Any], names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), clean)


_CLEAN: Final[dict[str, Callable[[Cleaner, object], Any]]] = {
    **_columns(
        Cleaner.text,
        "run_id trace_id phase datapoint_id env_name model_name parent_span_id span_id start_time "
        "end_time kind name role tool_call_id tool_name model provider error requestor "
        "grader_name grader_type reasoning prompt status status_message sanitized root_span_id "
        "error_type error_message traceback entity_type entity_id key tag time session_id user_id",
    ),
    **_columns(
        Cleaner.json, "content tool_calls arguments result criteria data structured tags value late"
    ),
    **_columns(
        Cleaner.count,
        "step_number seq turn_index intra_index input_tokens output_tokens cache_read_tokens "
        "cache_write_tokens reasoning_tokens passed_count total_count version turns messages",
    ),
    **_columns(Cleaner.amount, "cost_usd value_number"),
    **_columns(Cleaner.duration, "duration_ms"),
    **_columns(Cleaner.score, "score"),
    **_columns(Cleaner.mapping, "attributes metadata usage"),
}
_CLEAN_TRACES: Final = {**_CLEAN, "tool_calls": Cleaner.count, "tool_errors": Cleaner.count}
