"""``caribou sql``."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
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


# No option has a space after its dashes, or goes on over lines.
_COMMENT_FIRST = re.compile(r"--(\s|.*\n)")


class _Sql(click.Command):
    """Takes a statement that begins with a comment for one, not for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(
            ctx, [f" {text}" if _COMMENT_FIRST.match(text) else text for text in args]
        )


@click.command(cls=_Sql)
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
    text with a line of names. SQL may be - for standard input.
    """
    sql = require_read_only(_standard_input() if statement == "-" else statement)
    if as_json and form in ("csv", "parquet"):
        raise click.UsageError(f"--json and --format {form} are two formats: leave out one")
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
    if form == "json":
        _require_names(answer)
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


def _standard_input() -> str:
    try:
        with open(0, "rb", closefd=False) as file:
            return file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"standard input cannot be read: {reason}") from None


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


def _require_names(answer: bytes) -> None:
    """Raises StoreError if two columns would be one key of an object."""
    for line in answer.splitlines()[:1]:
        pairs: list[tuple[str, Any]] = json.loads(line, object_pairs_hook=list)
        names = Counter(name for name, _ in pairs)
        doubled = [name for name, count in names.items() if count > 1]
        if doubled:
            raise StoreError(f"several columns are named {doubled[0]!r}: name them apart with AS")


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
    if isinstance(value, float) and abs(value) < 1e12:
        # Sums of floats end in digits that nobody wants to read.
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
