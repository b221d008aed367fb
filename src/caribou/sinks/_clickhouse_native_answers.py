"""Answers of the native protocol in the text formats that HTTP would give.

The protocol only carries columns of values. A SELECT is therefore asked for its rows as the server
itself formats them; what cannot be asked so, because it is no SELECT or the server is too old, has
plain values, which are written here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from caribou.errors import StoreError
from caribou.schema import quote_text
from caribou.sinks._clickhouse_native_connection import Answer, Connection

__all__ = ["formatted", "plain"]

# Formats that are what they are row by row, and the one that each row is written in.
_ROW_FORMATS = {
    "JSONEachRow": "JSONEachRow",
    "JSONCompact": "JSONCompactEachRow",
    "CSVWithNames": "CSV",
}
_SELECT = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(SELECT|WITH)\b", re.IGNORECASE | re.DOTALL)


async def formatted(
    connection: Connection, sql: str, settings: Mapping[str, str], form: str
) -> bytes:
    """Run one query and give its answer in ``form``.

    Raises:
        ServerError: the server answered that it failed.
        NoAnswer: no whole answer came.
        StoreError: only HTTP gives answers in this format.
    """
    row_format = _ROW_FORMATS.get(form)
    if row_format is None:
        raise StoreError(
            f"{form} cannot be had over the native protocol: set CLICKHOUSE_URL to the server's "
            f"HTTP interface for this; over the native one there are {', '.join(_ROW_FORMATS)}"
        )
    if connection.is_legacy or not _SELECT.match(sql):
        return plain(await connection.ask(sql, settings), form)
    columns: list[tuple[str, str]] = []
    if row_format != form:
        described = await connection.ask(f"DESCRIBE TABLE (\n{sql}\n)", settings)
        columns = [(_text(name), _text(kind)) for name, kind, *_ in _rows(described)]
    # The line breaks keep a comment at its end from going on.
    wrapped = f"SELECT formatRow({quote_text(row_format)}, *) FROM (\n{sql}\n)"
    answer = await connection.ask(wrapped, settings)
    return _assembled(form, columns, [row for block in answer.blocks for row in block[0]])


def plain(answer: Answer, form: str) -> bytes:
    """An answer of simple values in ``form``, which is one of those above or ``TabSeparated``."""
    columns = [(_text(name), _text(kind)) for name, kind in answer.columns]
    rows = [[_plain(value) for value in row] for row in _rows(answer)]
    names = [name for name, _ in columns]
    lines: list[bytes]
    match form:
        case "JSONEachRow":
            lines = [_json(dict(zip(names, row, strict=True))) + b"\n" for row in rows]
        case "JSONCompact":
            lines = [_json(row) + b"\n" for row in rows]
        case "CSVWithNames":
            lines = [_csv(row) for row in rows]
        case _:
            lines = ["\t".join(map(str, row)).encode() + b"\n" for row in rows]
    return _assembled(form, columns, lines)


def _assembled(form: str, columns: list[tuple[str, str]], lines: list[bytes]) -> bytes:
    match form:
        case "JSONCompact":
            meta = _json([{"name": name, "type": kind} for name, kind in columns])
            data = b",".join(line.rstrip(b"\n") for line in lines)
            return b'{"meta":%b,"data":[%b],"rows":%d}\n' % (meta, data, len(lines))
        case "CSVWithNames":
            return _csv([name for name, _ in columns]) + b"".join(lines)
        case _:
            return b"".join(lines)


def _rows(answer: Answer) -> Iterator[tuple[Any, ...]]:
    for block in answer.blocks:
        yield from zip(*block, strict=True)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return _text(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    if value is None or isinstance(value, int | float | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _csv(row: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(row)
    return text.getvalue().encode()
