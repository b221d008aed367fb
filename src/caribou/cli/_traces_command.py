"""``caribou traces``."""

from __future__ import annotations

import click

from ..store import Store
from . import _format as fmt
from ._options import Filters, filter_options, json_option
from ._output import Column, Row, in_terminal, note, print_table
from ._store import note_empty, opened_store, with_interrupted

__all__ = ["command", "find_traces", "print_traces"]

_SQL = """
SELECT
    trace_id, root_span_id, run_id, phase, step_number, datapoint_id, env_name, model_name,
    status, score, turns, messages, tool_calls, tool_errors, input_tokens, output_tokens, cost_usd,
    duration_ms, start_time, end_time, error_type, error_message, tags, metadata
FROM traces
WHERE {where}
ORDER BY start_time DESC, trace_id
LIMIT {{limit:UInt64}}
"""

_COLUMNS = (
    Column("trace_id", "Trace", lambda value: str(value)[:12], style="bold"),
    Column("run_id", "Run", width=40, whole=True, leave_out=9),
    Column("step_number", "Step", right=True, leave_out=8),
    Column("datapoint_id", "Datapoint", width=24, leave_out=10),
    Column("status", "Status", style=fmt.status_style),
    Column("score", "Score", fmt.score, right=True, style=fmt.score_style),
    Column("turns", "Turns", fmt.count, right=True, leave_out=5),
    Column("tool_calls", "Tools", fmt.some, right=True, leave_out=6),
    Column("tool_errors", "Errors", fmt.some, right=True, style="red", leave_out=4),
    Column("input_tokens", "Tokens in", fmt.some, right=True, leave_out=1),
    Column("output_tokens", "out", fmt.some, right=True, leave_out=1),
    Column("cost_usd", "Cost", fmt.cost, right=True, leave_out=3),
    Column("duration_ms", "Duration", fmt.duration, right=True, leave_out=7),
    Column("start_time", "Start", fmt.minute, leave_out=2),
)


def find_traces(store: Store, filters: Filters, limit: int) -> list[Row]:
    """The latest traces that match, newest first."""
    where, parameters = filters.where()
    return store.rows(_SQL.format(where=where), {**parameters, "limit": limit})


def print_traces(rows: list[Row], *, json: bool) -> None:
    """A listing of ``rows``."""
    print_table(_COLUMNS, rows, json=json)


@click.command()
@filter_options
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N")
@json_option
def command(filters: Filters, limit: int, as_json: bool) -> None:
    """List traces, the latest first."""
    with opened_store() as store:
        rows = find_traces(store, filters, limit)
        if not rows:
            note_empty(store)
        if not as_json:
            rows = with_interrupted(store, rows)
    print_traces(rows, json=as_json)
    if len(rows) == limit and in_terminal() and not as_json:
        note(f"The latest {limit} are shown; --limit shows more. One of them: caribou show ID")
