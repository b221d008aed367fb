"""What charts show of many rollouts."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ModelUse", "PassK", "ScoreBin", "ScoreDistribution", "StepSummary", "ToolUse"]


class StepSummary(Struct, frozen=True, kw_only=True):
    """The traces of one step; means are None where there is nothing to average."""

    step_number: int | None
    traces: int
    mean_score: float | None
    score_count: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    mean_duration_ms: float | None
    statuses: dict[str, int]


class ScoreBin(Struct, frozen=True, kw_only=True):
    """Traces with a score from ``low`` up to, and without, ``high``; the last has it with."""

    low: float
    high: float
    traces: int


class ScoreDistribution(Struct, frozen=True, kw_only=True):
    """How scores spread from 0 to 1."""

    items: list[ScoreBin]
    scored: int
    unscored: int
    mean_score: float | None


class ToolUse(Struct, frozen=True, kw_only=True):
    """Executions of one tool; durations are None where none was logged."""

    tool_name: str
    calls: int
    errors: int
    mean_duration_ms: float | None
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    max_duration_ms: float | None


class ModelUse(Struct, frozen=True, kw_only=True):
    """Tokens and cost of one model, over all traces that used it."""

    model: str
    traces: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float


class PassK(Struct, frozen=True, kw_only=True):
    """The chance that k of k trials of a datapoint all pass: ``pass_k[k - 1]``.

    Averaged over the datapoints of at least k trials; the list ends where no datapoint has more.
    A trial passes with a score of 1. ``datapoints`` counts all, the same one in two runs twice.
    """

    datapoints: int
    pass_k: list[float]
