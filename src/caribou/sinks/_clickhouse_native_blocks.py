"""Journal lines become one block of ClickHouse's native protocol.

The server names the columns and their types; what stands in a line is stored as ``FORMAT
JSONEachRow`` with the HTTP sink's settings stores it: objects, arrays and numbers as their own text
where a column is a String, null and what is left out as the column's default. Rows are added slice
by slice, so that whoever encodes can let others run in between.

Layouts: https://clickhouse.com/docs/interfaces/formats/Native and the server's own serializations.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import msgspec
from msgspec.structs import astuple

from caribou._varint import varint

__all__ = ["Block", "Layout", "Unreadable", "UnsupportedType"]

_DATETIME64 = re.compile(r"DateTime64\((\d)(?:, ?'[^']*')?\)")
_SECONDS = re.compile(r"(\d{10,})(?:\.(\d{0,9}))?")
_SHORT = 1 << 14


class Unreadable(ValueError):
    """A line holds what its column cannot."""


class UnsupportedType(ValueError):
    """The server's table has a column of a type that Caribou's tables never have."""


_VARINTS = [varint(number) for number in range(_SHORT)]


class Layout:
    """The columns of one table, in order, as a server declared them; made once, used often.

    Args:
        columns: name and type of each.
        fills: what stands for null and for what is left out, where it is not the type's own.

    Raises:
        UnsupportedType: a type is not one that Caribou's tables have.
    """

    def __init__(
        self, columns: Sequence[tuple[str, str]], fills: Mapping[str, int] | None = None
    ) -> None:
        self.columns = tuple(columns)
        self._fills = fills or {}
        # Columns are positions here: a name may be one that Python does not take.
        names = {f"c{number}": name for number, (name, _) in enumerate(columns)}
        fields = [
            (field, column.annotation, None)
            for field, column in zip(names, self.open_columns(), strict=True)
        ]
        self._row = msgspec.defstruct("Row", fields, rename=names, gc=False)
        self._decode = msgspec.json.Decoder(self._row).decode_lines

    def open_columns(self) -> list[_Column]:
        """Empty columns, to be filled with the values that :meth:`read` gives."""
        return [_column(kind, self._fills.get(name, 0)) for name, kind in self.columns]

    def read(self, lines: bytes) -> Sequence[Sequence[Any]]:
        """The values of whole lines, column by column; empty where there is no line.

        Raises:
            Unreadable: they are not JSON, or a value is of another kind than its column.
        """
        try:
            return list(zip(*map(astuple, self._decode(lines)), strict=True))
        except msgspec.MsgspecError as error:
            # What the message names is a place and kinds, never a value.
            raise Unreadable(str(error)) from None


class Block:
    """Rows on their way into one block; ``constants`` are columns with one text in every row."""

    def __init__(self, layout: Layout, constants: Mapping[str, str] | None = None) -> None:
        self.rows = 0
        self.layout = layout
        self._columns = layout.open_columns()
        self._constants = constants or {}

    def add(self, lines: bytes) -> None:
        """Add the rows of whole lines.

        Raises:
            Unreadable: a line holds what its column cannot; the block is of no use any more.
        """
        values = self.layout.read(lines)
        if not values:
            return
        count = len(values[0])
        try:
            for (name, _), column, given in zip(
                self.layout.columns, self._columns, values, strict=True
            ):
                constant = self._constants.get(name)
                column.add(given if constant is None else (constant,) * count)
        except (msgspec.MsgspecError, struct.error, OverflowError) as error:
            raise Unreadable(str(error)) from None
        self.rows += count

    def columns(self) -> Iterator[tuple[str, str, Iterator[bytes]]]:
        """Name, type and content of each column; the content in pieces."""
        for (name, kind), column in zip(self.layout.columns, self._columns, strict=True):
            yield name, kind, chain((column.prefix(),), column.parts())


class _Column(ABC):
    """Values of one type. ``annotation`` is how they are read from JSON, None being no value."""

    annotation: Any

    @abstractmethod
    def add(self, values: Sequence[Any]) -> None:
        """Add the values of some rows."""

    def nulls(self, values: Sequence[Any]) -> bytes:
        """A byte a value: 1 where there is none."""
        return bytes([value is None for value in values])

    def prefix(self) -> bytes:
        """What comes before all else of the column, that of what it is made of included."""
        return b""

    @abstractmethod
    def parts(self) -> Iterator[bytes]:
        """All else, in pieces."""


class _Fixed(_Column):
    """Numbers of eight bytes, or of one."""

    def __init__(self, annotation: Any, code: str, fill: float) -> None:
        self.annotation = annotation | None
        self._code = code
        self._fill = fill
        self._parts: list[bytes] = []

    def add(self, values: Sequence[Any]) -> None:
        missing = values.count(None)
        if missing == len(values) and not self._fill:
            self._parts.append(bytes(struct.calcsize(self._code) * missing))
            return
        if missing:
            fill = self._fill
            values = [fill if value is None else value for value in values]
        self._parts.append(struct.pack(f"<{len(values)}{self._code}", *values))

    def parts(self) -> Iterator[bytes]:
        yield from self._parts


class _Time(_Fixed):
    """Seconds as a decimal in quotes, which become ticks of ``10 ** -scale`` seconds."""

    def __init__(self, scale: int) -> None:
        super().__init__(str, "q", 0)
        self._scale = scale

    def add(self, values: Sequence[str | None]) -> None:
        super().add([None if value is None else self._ticks(value) for value in values])

    def _ticks(self, text: str) -> int:
        if self._scale == 9 and len(text) == 20 and text[10] == ".":
            digits = text[:10] + text[11:]
            if digits.isascii() and digits.isdigit():
                return int(digits)
        found = _SECONDS.fullmatch(text)
        if found is None:
            raise OverflowError("not a time in seconds since the epoch")
        return int(found[1] + (found[2] or "").ljust(9, "0")) // 10 ** (9 - self._scale)


class _String(_Column):
    """Texts of any length. What is no text in JSON is stored as the JSON that it is."""

    annotation = msgspec.Raw

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, values: Sequence[msgspec.Raw | str | None]) -> None:
        if values.count(None) == len(values):
            self._parts.append(bytes(len(values)))
            return
        pieces: list[bytes] = []
        append = pieces.append
        for value in values:
            if value is None:
                append(b"\0")
                continue
            if isinstance(value, str):
                text = value.encode()
            else:
                data = bytes(value)
                # The common text in line: a call for each takes as long again.
                text = data[1:-1] if data[0] == 0x22 and 0x5C not in data else _stored(data)
            size = len(text)
            append(_VARINTS[size] if size < _SHORT else varint(size))
            append(text)
        self._parts.append(b"".join(pieces))

    def nulls(self, values: Sequence[msgspec.Raw | None]) -> bytes:
        return bytes([value is None or bytes(value) == b"null" for value in values])

    def parts(self) -> Iterator[bytes]:
        yield from self._parts


class _LowCardinality(_Column):
    """Texts of which there are few: each once, and for every row its number."""

    annotation = str | None

    def __init__(self) -> None:
        # None is stored as the empty text that it stands for.
        self._numbers: dict[str | None, int] = {None: 0, "": 0}
        self._texts = [""]
        self._keys: list[int] = []

    def add(self, values: Sequence[str | None]) -> None:
        numbers = self._numbers
        for value in set(values).difference(numbers):
            numbers[value] = len(self._texts)
            self._texts.append(value or "")
        self._keys.extend(map(numbers.__getitem__, values))

    def prefix(self) -> bytes:
        return struct.pack("<q", 1)  # the version of this layout

    def parts(self) -> Iterator[bytes]:
        if not self._keys:
            return
        # Width of a key, and two flags: keys of this block's own, which are all there are.
        count = len(self._texts)
        width = 0 if count <= 1 << 8 else 1 if count <= 1 << 16 else 2
        texts = _String()
        texts.add(self._texts)
        yield struct.pack("<qq", 1 << 9 | 1 << 10 | width, count)
        yield from texts.parts()
        yield struct.pack("<q", len(self._keys))
        if width == 0:
            yield bytes(self._keys)
        else:
            yield struct.pack(f"<{len(self._keys)}{' HI'[width]}", *self._keys)


class _Nullable(_Column):
    """A byte a value that says whether it is none, then the values."""

    def __init__(self, inner: _Column) -> None:
        self.annotation = inner.annotation
        self._inner = inner
        self._nulls: list[bytes] = []

    def add(self, values: Sequence[Any]) -> None:
        empty = values.count(None) == len(values)
        self._nulls.append(b"\1" * len(values) if empty else self._inner.nulls(values))
        self._inner.add(values)

    def prefix(self) -> bytes:
        return self._inner.prefix()

    def parts(self) -> Iterator[bytes]:
        yield from self._nulls
        yield from self._inner.parts()


class _Array(_Column):
    """Where each row's items end, then the items of all rows."""

    def __init__(self, inner: _Column) -> None:
        self.annotation = list[inner.annotation] | None
        self._inner = inner
        self._end = _Ends()

    def add(self, values: Sequence[list[Any] | None]) -> None:
        self._end.add(values)
        self._inner.add([item for value in values if value for item in value])

    def prefix(self) -> bytes:
        return self._inner.prefix()

    def parts(self) -> Iterator[bytes]:
        yield from self._end.parts
        yield from self._inner.parts()


class _Map(_Column):
    """Where each row's pairs end, then the keys of all rows, then the values."""

    def __init__(self, key: _Column, value: _Column) -> None:
        self.annotation = dict[str, value.annotation] | None
        self._key, self._value = key, value
        self._end = _Ends()

    def add(self, values: Sequence[dict[str, Any] | None]) -> None:
        self._end.add(values)
        present = [value for value in values if value]
        self._key.add([key for value in present for key in value])
        self._value.add([item for value in present for item in value.values()])

    def prefix(self) -> bytes:
        return self._key.prefix() + self._value.prefix()

    def parts(self) -> Iterator[bytes]:
        yield from self._end.parts
        yield from self._key.parts()
        yield from self._value.parts()


class _Ends:
    """How many items there are up to the end of each row."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._last = 0

    def add(self, values: Sequence[Any]) -> None:
        sizes = (len(value) if value else 0 for value in values)
        ends = list(accumulate(sizes, initial=self._last))
        self._last = ends[-1]
        self.parts.append(struct.pack(f"<{len(values)}Q", *ends[1:]))


def _stored(data: bytes) -> bytes:
    """The UTF-8 of what a String column stores for a piece of JSON."""
    if data.startswith(b'"'):
        return _decode_text(data).encode()
    return b"" if data == b"null" else data


_decode_text: Callable[[bytes], str] = msgspec.json.Decoder(str).decode


def _column(kind: str, fill: int = 0) -> _Column:
    """A column of a ClickHouse type."""
    outer, _, rest = kind.partition("(")
    inner = rest[:-1]
    match outer:
        case "String":
            return _String()
        case "Int64":
            return _Fixed(int, "q", fill)
        case "UInt64":
            return _Fixed(int, "Q", fill)
        case "Float64":
            return _Fixed(float, "d", fill)
        case "Bool" | "UInt8":
            return _Fixed(bool, "B", fill)
        case "LowCardinality" if inner == "String":
            return _LowCardinality()
        case "Nullable":
            return _Nullable(_column(inner))
        case "Array":
            return _Array(_column(inner))
        case "Map":
            key, _, value = inner.partition(", ")
            return _Map(_column(key), _column(value))
        case _:
            pass
    found = _DATETIME64.fullmatch(kind)
    if found is None:
        raise UnsupportedType(kind)
    return _Time(int(found[1]))
