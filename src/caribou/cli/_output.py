"""Printing: rich tables in a terminal, tab-separated text in a pipe, JSON when asked.

Rich is imported only when a terminal is there to be written to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ._text import json_text, one_line, safe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "Column",
    "Update",
    "console",
    "in_terminal",
    "note",
    "print_json",
    "print_rows",
    "print_table",
    "progress",
    "without_noise",
]

Row = dict[str, Any]

# Characters of a text column that are worth having: rather than cut it to fewer than the first,
# columns are left out; with fewer than the second, a table is no table any more.
_CUT_TO = 14
_CUT_SHORT = 8
# What adding up floats leaves beyond these digits is noise, not money.
_SUMS = ("cost_usd", "total_cost_usd", "mean_score")
_DIGITS = 12
# Stands for null in a terminal.
_NOTHING = "-"


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a listing. ``key`` is its name in JSON and in a pipe, ``title`` in a terminal,
    where ``show`` turns the value into text.

    A column with a ``width`` holds text that may be cut, to that width and shorter; one that is
    ``whole`` only when there is nothing left to leave out, as ids often differ in their ends.
    Where a terminal is too narrow, columns are left out in the order of ``leave_out``, 1 first;
    those are left out as well when no row has anything there. Where that is not enough, each row
    is printed as lines of its own.
    """

    key: str
    title: str
    show: Callable[[Any], str] = str
    right: bool = False
    width: int | None = None
    whole: bool = False
    style: Callable[[Any], str] | str = ""
    leave_out: int = 0


def in_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def console(*, stderr: bool = False) -> Console:
    """A console that interprets nothing in what it is given."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """One line for the person, on standard error."""
    print(one_line(text), file=sys.stderr)


def print_json(rows: Iterable[Any]) -> None:
    """An array of objects, one a line."""
    opened = False
    for row in rows:
        sys.stdout.write((",\n" if opened else "[\n") + json_text(row))
        opened = True
    sys.stdout.write("\n]\n" if opened else "[]\n")


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Tab-separated lines under a line of names. Tabs and newlines in values are escaped."""
    for row in (columns, *rows):
        sys.stdout.write("\t".join(_cell(value) for value in row) + "\n")


def without_noise(row: Row) -> Row:
    """``row`` with costs and means as a person would have added them: 0.3, not 0.1 + 0.2."""
    sums = {key: row[key] for key in _SUMS if isinstance(row.get(key), float)}
    return row | {key: float(f"{value:.{_DIGITS}g}") for key, value in sums.items()}


def print_table(columns: Sequence[Column], rows: Sequence[Row], *, json: bool) -> None:
    """``rows`` as JSON, as a rich table, or tab-separated, whichever is wanted."""
    rows = [without_noise(row) for row in rows]
    if json:
        print_json(rows)
    elif not in_terminal():
        print_rows([c.key for c in columns], ([row.get(c.key) for c in columns] for row in rows))
    else:
        _print_rich(columns, rows)


def _print_rich(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    from rich import box
    from rich.table import Table

    out = console()
    cells = {c.key: [_rich_cell(c, row.get(c.key)) for row in rows] for c in columns}
    widths = _widths(columns, cells, out.width)
    if not widths:
        _print_blocks(out, columns, cells, len(rows))
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
        header_style="bold",
    )
    for column in columns:
        if column.key in widths:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                width=widths[column.key],
            )
    for i in range(len(rows)):
        table.add_row(*(cells[key][i] for key in widths))
    out.print(table)


def _print_blocks(
    out: Console, columns: Sequence[Column], cells: dict[str, list[Text]], count: int
) -> None:
    """Each row as lines of title and value."""
    from rich.table import Table

    for i in range(count):
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True, overflow="ellipsis", max_width=out.width // 2)
        table.add_column(overflow="fold")
        for column in columns:
            if not column.leave_out or _worth(cells[column.key][i]):
                table.add_row(one_line(column.title), cells[column.key][i])
        if i:
            out.print()
        out.print(table)


def _widths(columns: Sequence[Column], cells: dict[str, list[Text]], room: int) -> dict[str, int]:
    """The columns to show in ``room`` characters, and how wide each is; nothing if they are too
    many."""
    from rich.cells import cell_len

    widths: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for c in columns:
        if c.leave_out and not any(map(_worth, cells[c.key])):
            continue
        natural = max(cell_len(text) for text in (c.title, *(t.plain for t in cells[c.key])))
        wanted[c.key] = natural if c.width is None else min(natural, max(c.width, len(c.title)))
        cut = c.width is not None and not c.whole
        widths[c.key] = min(wanted[c.key], _CUT_TO) if cut else wanted[c.key]
    for rank in sorted({c.leave_out for c in columns if c.leave_out}):
        if _spare(widths, room) >= 0:
            break
        for column in columns:
            if column.leave_out == rank:
                widths.pop(column.key, None)
    if _spare(widths, room) < 0:
        for column in columns:
            if column.width is not None and column.key in widths:
                widths[column.key] = min(widths[column.key], _CUT_SHORT)
        if _spare(widths, room) < 0:
            return {}
    # What is left over goes to the texts that were cut.
    for key in widths:
        widths[key] += max(0, min(wanted[key] - widths[key], _spare(widths, room)))
    return widths


def _spare(widths: dict[str, int], room: int) -> int:
    return room - sum(width + 2 for width in widths.values()) + 2


def _worth(cell: Text) -> bool:
    return cell.plain not in ("", _NOTHING)


def _rich_cell(column: Column, value: Any) -> Text:
    from rich.text import Text

    if value is None:
        return Text(_NOTHING, style="dim")
    style = column.style if isinstance(column.style, str) else column.style(value)
    return Text(one_line(column.show(value), 500), style=style)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json_text(value)
    escaped = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return safe(escaped.replace("\r", "\\r"))


@contextmanager
def progress(title: str) -> Generator[Update]:
    """A bar on standard error, when that is a terminal; yields ``update(done, total)``."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    ) as bar:

        def update(done: int, total: int) -> None:
            # Made when there is something to show: most loads are over before that.
            if not bar.tasks:
                bar.add_task(title)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield update
