"""``caribou tail``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from .._settings import Settings, from_environment
from ..store import Row, open_store
from ..store.follow import JournalFollower
from . import _format as fmt
from ._conversation import tool_calls
from ._output import console, in_terminal
from ._text import json_text, one_line

__all__ = ["command"]

_JOURNAL_SECONDS = 0.2
_SERVER_SECONDS = 1.0
# Of what is there already, this much is shown.
_BACKLOG = 10
# In fewer columns than this, what happened comes before when.
_NARROW = 70
_TRACE_STYLES = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")

_SPANS = """
SELECT * FROM spans
WHERE start_time >= now64() - INTERVAL 10 MINUTE
    AND ingested_at >= parseDateTime64BestEffort({since:String}, 3, 'UTC') - INTERVAL 5 SECOND
    AND ({run:String} = '' OR run_id = {run:String})
ORDER BY start_time, seq
"""
_TRACES = """
SELECT * FROM traces
WHERE ifNull(end_time, start_time) >= now64() - INTERVAL 10 SECOND
    AND ({run:String} = '' OR run_id = {run:String})
ORDER BY ifNull(end_time, start_time)
"""


@click.command()
@click.option("--run", metavar="ID", help="Of this run only.")
@click.option("--json", "as_json", is_flag=True, help="Print one object a line.")
def command(run: str | None, as_json: bool) -> int:
    """Follow what is being recorded, until Ctrl-C.

    Without CLICKHOUSE_URL it follows the journals of this machine, of running processes too. With
    --json it prints one object a line, since there is no end at which to close an array.
    """
    settings = from_environment()
    follow = _follow_journal if settings.clickhouse_url is None else _follow_server
    show = _show_json if as_json else _show_rich if in_terminal() else _show_plain
    try:
        for table, row in follow(settings, run):
            show(table, row)
    except KeyboardInterrupt:
        # The one way it ends.
        return 0
    return 0


def _follow_journal(settings: Settings, run: str | None) -> Iterator[tuple[str, Row]]:
    follower = JournalFollower(settings.journal_dir)
    rows = [(table, row) for table, row in follower.new() if run in (None, row.get("run_id"))]
    rows = rows[-_BACKLOG:]
    while True:
        yield from rows
        sys.stdout.flush()
        time.sleep(_JOURNAL_SECONDS)
        rows = [(table, row) for table, row in follower.new() if run in (None, row.get("run_id"))]


def _follow_server(settings: Settings, run: str | None) -> Iterator[tuple[str, Row]]:
    seen: set[tuple[Any, ...]] = set()
    with open_store(settings) as store:
        since = store.rows("SELECT now64(3, 'UTC') AS now")[0]["now"]
        while True:
            now = store.rows("SELECT now64(3, 'UTC') AS now")[0]["now"]
            found = [("traces", row) for row in store.rows(_TRACES, {"run": run or ""})]
            found += [
                ("spans", row) for row in store.rows(_SPANS, {"run": run or "", "since": since})
            ]
            since = now
            keys: set[tuple[Any, ...]] = set()
            for table, row in sorted(found, key=lambda item: str(item[1]["start_time"])):
                key = (table, row["trace_id"], row.get("span_id"), row["status"])
                keys.add(key)
                if key not in seen:
                    yield table, row
            seen = keys
            sys.stdout.flush()
            time.sleep(_SERVER_SECONDS)


def _show_json(table: str, row: Row) -> None:
    sys.stdout.write(json_text({"table": table, **row}) + "\n")


def _show_plain(table: str, row: Row) -> None:
    name, text = _summary(table, row)
    sys.stdout.write(f"{_clock(row)}\t{row.get('trace_id', '')}\t{name}\t{one_line(text)}\n")


def _show_rich(table: str, row: Row) -> None:
    from rich.text import Text

    trace = str(row.get("trace_id", ""))
    name, text = _summary(table, row)
    out = console()
    line = Text().append(f"{_clock(row)}  " if out.width >= _NARROW else "", "dim")
    line.append(f"{one_line(trace[:8])}  ", style=_TRACE_STYLES[hash(trace) % len(_TRACE_STYLES)])
    width = 28 if out.width >= _NARROW else 14
    line.append(f"{one_line(name, width):<{width}} ", style="bold" if table == "traces" else "")
    line.append(one_line(text, 400), style="red" if row.get("status") == "ERROR" else "")
    out.print(line, no_wrap=True, overflow="ellipsis", crop=True)


def _clock(row: Row) -> str:
    return str(row.get("end_time") or row.get("start_time") or "")[11:19]


def _summary(table: str, row: Row) -> tuple[str, str]:
    """The name of what happened, and a line about it."""
    if table == "traces":
        return _trace_summary(row)
    parts: list[str] = []
    if row.get("score") is not None:
        parts.append(fmt.score(row["score"]))
    for key in ("error", "status_message", "content", "arguments", "result", "reasoning", "data"):
        value = row.get(key)
        if value not in (None, "", [], {}):
            parts.append(value if isinstance(value, str) else json_text(value))
    parts += [f"→ {call}" for call in tool_calls(row.get("tool_calls") or "")]
    return str(row.get("name", "")), "  ".join(parts)


def _trace_summary(row: Row) -> tuple[str, str]:
    where = f"{row.get('run_id', '')} {row.get('datapoint_id', '')}".strip()
    if row.get("status") == "PENDING":
        return "rollout begins", where
    parts = [str(row.get("status", "")), where]
    if row.get("score") is not None:
        parts.append(f"score {fmt.score(row['score'])}")
    if row.get("duration_ms") is not None:
        parts.append(fmt.duration(row["duration_ms"]))
    if row.get("error_message"):
        parts.append(str(row["error_message"]))
    return "rollout ends", "  ".join(parts)
