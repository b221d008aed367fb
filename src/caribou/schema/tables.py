"""The journal's tables as the ``.sql`` files declare them, and the statement that fills them.

The ``.sql`` files are the only place that names columns and types: what an insert needs is read
from them, so that the two cannot drift apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

__all__ = [
    "ALL_TABLES",
    "TABLES",
    "Column",
    "Table",
    "insert_statement",
    "parameter",
    "quote",
    "quote_text",
    "scripts",
]

# Filled in by the statement or by the server, never read from a journal line.
_NOT_IN_LINES = frozenset({"batch_id", "ingested_at"})

# Filled by Kestrel alone: no line of a journal is a row of these.
_REGISTRY = frozenset({"projects", "runs", "run_steps", "datapoints"})

_TABLE = re.compile(
    r"CREATE TABLE IF NOT EXISTS \{database\}\.(\w+)_rows\{on_cluster\}\n\(\n(.*?)\n\)\n(.*?);",
    re.DOTALL,
)
_COLUMN = re.compile(r"^ {4}([a-z_]+) (.+?)(?: DEFAULT (.+?))?(?: CODEC\(.+\))?,?$", re.MULTILINE)
_KEY = re.compile(r"ORDER BY \((.+)\)")
_ENGINE_VERSION = re.compile(r"ReplacingMergeTree\((\w+)\)")


@dataclass(frozen=True, slots=True)
class Column:
    """One column that journal lines fill; ``default`` is SQL text, empty for the type's own."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, slots=True)
class Table:
    """One journal table: its columns, and the key by which rows replace each other.

    ``identity`` is what tells two lines of the table apart: the sort key, and the version if the
    table has one.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    identity: tuple[str, ...]

    @property
    def rows_table(self) -> str:
        """The name of the table that is written to; the plain name is the view people query."""
        return f"{self.name}_rows"

    @property
    def structure(self) -> str:
        """Column names and types of a journal line, as ``input()`` and ``file()`` take them.

        A column with a default of its own is nullable here: defaults of the target do not apply to
        an ``INSERT ... SELECT``, so the statement has to tell an omitted key from a zero.
        """
        return ", ".join(
            f"{column.name} {f'Nullable({column.type})' if column.default else column.type}"
            for column in self.columns
        )


def quote(identifier: str) -> str:
    """Quote a database, table or column name for use in SQL."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def quote_text(text: str) -> str:
    """Quote a string literal for use in SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parameter(value: str | int | float | Sequence[str] | None) -> str:
    """Write a value as ClickHouse reads it for a ``{name:Type}`` parameter, on any engine."""
    if value is None:
        return "\\N"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\")
        return escaped.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    if isinstance(value, Sequence):
        return "[" + ", ".join(quote_text(item) for item in value) + "]"
    return str(value)


@functools.cache
def scripts() -> tuple[tuple[int, str, str], ...]:
    """Every migration in order: its number, its name and its SQL with placeholders.

    Read when this module is imported, and never in an event loop.
    """
    found = [
        (int(entry.name[:4]), entry.name.removesuffix(".sql"), entry.read_text("utf-8"))
        for entry in files("caribou.schema").iterdir()
        if entry.name.endswith(".sql")
    ]
    return tuple(sorted(found))


def _parse(sql: str) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for name, body, engine in _TABLE.findall(sql):
        key = _KEY.search(engine)
        if key is None:
            raise ValueError(f"table {name} has no sort key")
        version = _ENGINE_VERSION.search(engine)
        sort_key = tuple(key[1].split(", "))
        tables[name] = Table(
            name=name,
            columns=tuple(
                Column(*found) for found in _COLUMN.findall(body) if found[0] not in _NOT_IN_LINES
            ),
            key=sort_key,
            identity=(*sort_key, version[1]) if version else sort_key,
        )
    return tables


_DECLARED = _parse("".join(sql for _, _, sql in scripts()))

TABLES = {name: table for name, table in _DECLARED.items() if name not in _REGISTRY}
"""The journal's tables by name."""

ALL_TABLES = tuple(
    table for declared in _DECLARED.values() for table in (declared.rows_table, declared.name)
)
"""Every table and view of the schema, the registry's as well."""


def insert_statement(database: str, table: str, batch_id: str, *, path: str | None = None) -> str:
    """The statement that stores journal lines of ``table``, each marked with ``batch_id``.

    Args:
        database: the database that holds the tables.
        table: a journal table, a key of ``TABLES``.
        batch_id: stored in every row; lets the batch be read back.
        path: an NDJSON file on the engine's own machine; left out, the lines are the body of the
            request.
    """
    shape = TABLES[table]
    names = ", ".join(column.name for column in shape.columns)
    replaced = ", ".join(
        f"ifNull({column.name}, {column.default}) AS {column.name}"
        for column in shape.columns
        if column.default
    )
    selected = f"* REPLACE ({replaced})" if replaced else "*"
    structure = quote_text(shape.structure)
    if path is None:
        source, tail = f"input({structure})", " FORMAT JSONEachRow"
    else:
        source, tail = f"file({quote_text(path)}, JSONEachRow, {structure})", ""
    return (
        f"INSERT INTO {quote(database)}.{shape.rows_table} ({names}, batch_id) "
        f"SELECT {selected}, {quote_text(batch_id)} FROM {source}{tail}"
    )
