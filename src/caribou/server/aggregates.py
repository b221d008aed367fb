"""What charts show of many traces, computed from their last versions when it is asked for."""

from __future__ import annotations

from typing import Final

from ..kestrel.models import (
    ModelUse,
    PassK,
    ScoreBin,
    ScoreDistribution,
    StepSummary,
    ToolUse,
)
from .backend import Backend
from .selection import Selection

__all__ = ["models", "pass_k", "scores", "steps", "tools"]

# A row never changes its month, so months are merged apart from each other.
_SETTINGS: Final = "SETTINGS do_not_merge_across_partitions_select_final = 1"

_STEPS: Final = """
SELECT step_number, sum(count) AS traces, sum(score_sum) AS score_sum, sum(scores) AS score_count,
    sum(input) AS input_tokens, sum(output) AS output_tokens, sum(cost) AS cost_usd,
    sum(duration_sum) AS duration_sum, sum(durations) AS durations,
    CAST((groupArray(status), groupArray(count)), 'Map(String, UInt64)') AS statuses
FROM
(
    SELECT step_number, status, count() AS count, sum(score) AS score_sum, count(score) AS scores,
        sum(input_tokens) AS input, sum(output_tokens) AS output, sum(cost_usd) AS cost,
        sum(duration_ms) AS duration_sum, count(duration_ms) AS durations
    FROM traces_rows FINAL WHERE {where} GROUP BY step_number, status
)
GROUP BY step_number ORDER BY step_number
"""

_SCORES: Final = """
SELECT
    -- Asked for apart: whether the least of a number and NULL is NULL differs between versions.
    if(score IS NULL, NULL,
        least(toInt64(floor(assumeNotNull(score) * {bins:Int64})), {bins:Int64} - 1)) AS bin,
    count() AS traces, sum(score) AS total
FROM traces_rows FINAL WHERE {where} GROUP BY bin
"""

_TOOLS: Final = """
SELECT tool_name, calls, errors, mean_duration_ms,
    if(timed = 0, NULL, quantiles[1]) AS p50_duration_ms,
    if(timed = 0, NULL, quantiles[2]) AS p95_duration_ms, max_duration_ms
FROM
(
    SELECT tool_name, count() AS calls, countIf(status = 'ERROR') AS errors,
        count(duration_ms) AS timed, avg(duration_ms) AS mean_duration_ms,
        quantiles(0.5, 0.95)(duration_ms) AS quantiles, max(duration_ms) AS max_duration_ms
    FROM spans_rows FINAL PREWHERE kind = 'tool' AND {where} GROUP BY tool_name
)
ORDER BY p95_duration_ms DESC NULLS LAST, tool_name LIMIT {limit:UInt64}
"""

_MODELS: Final = """
SELECT model, count() AS traces, sum(buckets['input_tokens']) AS input_tokens,
    sum(buckets['output_tokens']) AS output_tokens,
    sum(buckets['cache_read_tokens']) AS cache_read_tokens,
    sum(buckets['cache_write_tokens']) AS cache_write_tokens,
    sum(buckets['reasoning_tokens']) AS reasoning_tokens, sum(buckets['cost_usd']) AS cost_usd
FROM traces_rows FINAL ARRAY JOIN mapKeys(usage) AS model, mapValues(usage) AS buckets
WHERE {where} GROUP BY model ORDER BY cost_usd DESC, model LIMIT {limit:UInt64}
"""

_PASS_K: Final = """
SELECT k, sum(alike) AS datapoints,
    sum(alike * arrayProduct(arrayMap(i -> (solved - i) / (trials - i), range(k)))) / datapoints
        AS pass
FROM
(
    SELECT trials, solved, count() AS alike
    FROM
    (
        SELECT count() AS trials, countIf(score >= 1) AS solved
        FROM traces_rows FINAL WHERE {where} GROUP BY run_id, datapoint_id
    )
    GROUP BY trials, solved
)
ARRAY JOIN arrayMap(i -> i + 1, range(least({k:UInt64}, trials))) AS k
GROUP BY k ORDER BY k
"""


def _fill(sql: str, where: str) -> str:
    return f"{sql.replace('{where}', where)} {_SETTINGS}"


async def steps(backend: Backend, selection: Selection) -> list[StepSummary]:
    """Figures by step; traces of no step come first, with None."""
    rows = await backend.rows(_fill(_STEPS, selection.where()), selection.values)
    return [
        StepSummary(
            step_number=row["step_number"] if row["step_number"] >= 0 else None,
            traces=row["traces"],
            mean_score=row["score_sum"] / row["score_count"] if row["score_count"] else None,
            score_count=row["score_count"],
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cost_usd=row["cost_usd"],
            mean_duration_ms=row["duration_sum"] / row["durations"] if row["durations"] else None,
            statuses=row["statuses"],
        )
        for row in rows
    ]


async def scores(backend: Backend, selection: Selection, bins: int) -> ScoreDistribution:
    """The distribution of scores in ``bins`` equal parts of 0..1."""
    rows = await backend.rows(_fill(_SCORES, selection.where()), {**selection.values, "bins": bins})
    counts = {row["bin"]: row["traces"] for row in rows}
    unscored = counts.pop(None, 0)
    scored = sum(counts.values())
    total = sum(row["total"] for row in rows if row["bin"] is not None)
    return ScoreDistribution(
        items=[
            ScoreBin(low=i / bins, high=(i + 1) / bins, traces=counts.get(i, 0))
            for i in range(bins)
        ],
        scored=scored,
        unscored=unscored,
        mean_score=total / scored if scored else None,
    )


async def tools(backend: Backend, selection: Selection, limit: int) -> list[ToolUse]:
    """The slowest tools of the traces, by the 95th percentile."""
    where = selection.on_spans()
    rows = await backend.rows(_fill(_TOOLS, where), {**selection.values, "limit": limit})
    return [ToolUse(**row) for row in rows]


async def models(backend: Backend, selection: Selection, limit: int) -> list[ModelUse]:
    """Tokens and cost by model, the dearest first."""
    rows = await backend.rows(
        _fill(_MODELS, selection.where()), {**selection.values, "limit": limit}
    )
    return [
        ModelUse(
            model=row["model"],
            traces=row["traces"],
            cost_usd=row["cost_usd"],
            **{name: round(row[name]) for name in row if name.endswith("_tokens")},
        )
        for row in rows
    ]


async def pass_k(backend: Backend, selection: Selection, k: int) -> PassK:
    """pass^1 to pass^``k`` over the datapoints of the traces."""
    rows = await backend.rows(_fill(_PASS_K, selection.where()), {**selection.values, "k": k})
    # Each has at least one trial.
    datapoints = rows[0]["datapoints"] if rows else 0
    return PassK(datapoints=datapoints, pass_k=[row["pass"] for row in rows])
