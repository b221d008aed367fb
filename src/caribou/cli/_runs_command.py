"""``caribou runs``."""

from __future__ import annotations

from collections import Counter

import click

from ..store import Store
from . import _format as fmt
from ._options import json_option
from ._output import Column, Row, print_table
from ._store import note_empty, opened_store

__all__ = ["COLUMNS", "command", "find_runs"]

_SQL = """
SELECT
    run_id,
    any(phase) AS phase,
    count() AS traces,
    uniqExact(datapoint_id) AS datapoints,
    uniqExactIf(step_number, step_number >= 0) AS steps,
    countIf(status = 'COMPLETED') AS completed,
    countIf(status = 'PENDING') AS pending,
    toUInt64(0) AS interrupted,
    countIf(status NOT IN ('COMPLETED', 'PENDING')) AS failed,
    avg(score) AS mean_score,
    avg(turns) AS mean_turns,
    avg(duration_ms) AS mean_duration_ms,
    sum(input_tokens) AS total_input_tokens,
    sum(output_tokens) AS total_output_tokens,
    sum(cost_usd) AS total_cost_usd,
    min(start_time) AS first_start,
    max(start_time) AS last_start
FROM traces
GROUP BY run_id
ORDER BY last_start DESC
LIMIT {limit:UInt64}
"""

COLUMNS = (
    Column("run_id", "Run", style="bold", width=40, whole=True),
    Column("phase", "Phase", leave_out=2),
    Column("traces", "Traces", fmt.count, right=True, leave_out=13),
    Column("datapoints", "Datapoints", fmt.count, right=True, leave_out=1),
    Column("steps", "Steps", fmt.some, right=True, leave_out=6),
    Column("completed", "Done", fmt.some, right=True, leave_out=11),
    Column("pending", "Pending", fmt.some, right=True, leave_out=9),
    Column("interrupted", "Interrupted", fmt.some, right=True, style="yellow", leave_out=10),
    Column("failed", "Failed", fmt.some, right=True, style="red", leave_out=12),
    Column("mean_score", "Score", fmt.score, right=True),
    Column("mean_turns", "Turns", fmt.mean, right=True, leave_out=5),
    Column("mean_duration_ms", "Duration", fmt.duration, right=True, leave_out=7),
    Column("total_input_tokens", "Tokens in", fmt.some, right=True, leave_out=3),
    Column("total_output_tokens", "out", fmt.some, right=True, leave_out=3),
    Column("total_cost_usd", "Cost", fmt.cost, right=True, leave_out=4),
    Column("last_start", "Last start", fmt.minute, leave_out=8),
)


def find_runs(store: Store, limit: int) -> list[Row]:
    """The latest runs. ``interrupted`` counts rollouts whose process is known to be dead, which
    ``pending`` leaves out."""
    rows = store.rows(_SQL, {"limit": limit})
    if any(row["pending"] for row in rows):
        interrupted = Counter(store.interrupted().values())
        for row in rows:
            row["interrupted"] = interrupted[row["run_id"]]
            row["pending"] -= row["interrupted"]
    return rows


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N")
@json_option
def command(limit: int, as_json: bool) -> None:
    """List runs: outcomes, scores, tokens, cost."""
    with opened_store() as store:
        rows = find_runs(store, limit)
        if not rows:
            note_empty(store)
    print_table(COLUMNS, rows, json=as_json)
