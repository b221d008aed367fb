"""``caribou sql``."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from ..errors import StoreError
from ..store import require_read_only
from ._options import json_option
from ._output import Column, in_terminal, print_json, print_rows, print_table
from ._store import opened_store
from ._text import safe

__all__ = ["binary_output", "command"]


@click.command()
@click.argument("statement", metavar="SQL")
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json", "csv", "parquet")),
    default="table",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@json_option
def command(statement: str, form: str, output: Path | None, as_json: bool) -> None:
    """Run one SELECT, as a table, JSON, CSV, Parquet.

    Over traces, spans, scores, entity_metadata and trace_tags. In a pipe a table is tab-separated
    text with a line of names.
    """
    sql = require_read_only(statement)
    form = "json" if as_json else form
    if form == "table" and output is not None:
        raise click.UsageError("a table is for reading; give --format json, csv or parquet with -o")
    if form == "parquet" and output is None and in_terminal():
        raise click.UsageError("Parquet is binary: give a file with -o FILE")
    with opened_store() as store:
        if form == "table":
            answer = store.query(sql, format="JSONCompact")
        else:
            engine_format = {"json": "JSONEachRow", "csv": "CSVWithNames", "parquet": "Parquet"}
            answer = store.query(sql, format=engine_format[form])
    if form == "table":
        _print_answer(answer)
    elif form == "json" and output is None:
        print_json(json.loads(line) for line in answer.splitlines())
    elif form == "json":
        with binary_output(output) as file:
            file.write(b"[\n" + b",\n".join(answer.splitlines()) + b"\n]\n")
    elif form == "csv" and output is None and in_terminal():
        sys.stdout.write(safe(answer.decode("utf-8", "backslashreplace")))
    else:
        with binary_output(output) as file:
            file.write(answer)


@contextmanager
def binary_output(path: Path | None) -> Generator[BinaryIO]:
    """``path`` opened for writing, or standard output.

    Raises:
        StoreError: the file cannot be written.
    """
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with path.open("wb") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def _print_answer(answer: bytes) -> None:
    try:
        parsed: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise StoreError("the statement's answer is no table; try --format csv") from None
    names: list[str] = [column["name"] for column in parsed["meta"]]
    rows: list[list[Any]] = parsed["data"]
    if not in_terminal():
        print_rows(names, rows)
        return
    numeric = ("Int", "UInt", "Float", "Decimal", "Nullable(Int", "Nullable(UInt", "Nullable(Float")
    columns: list[Column] = []
    for i, name in enumerate(names):
        number = parsed["meta"][i]["type"].startswith(numeric)
        columns.append(Column(str(i), name, _show, right=number, width=None if number else 200))
    print_table(
        columns, [{str(i): value for i, value in enumerate(row)} for row in rows], json=False
    )


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
