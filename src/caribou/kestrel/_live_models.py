"""What the live stream tells of rollouts."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

__all__ = ["LiveEvent", "LiveGap", "LiveSpan", "LiveTrace"]


class LiveTrace(Struct, frozen=True, kw_only=True):
    """A rollout started, finished, or was interrupted: the process that ran it is dead.

    One that starts and finishes within a moment is told of as finished only, and one that finished
    may finish again with a later ``version``, when something was logged to it late.
    """

    change: Literal["started", "finished", "interrupted"]
    trace_id: str
    root_span_id: str
    run_id: str
    phase: str
    step_number: int | None
    datapoint_id: str
    env_name: str
    model_name: str
    grader_name: str
    status: str
    error_type: str
    error_message: str
    start_time: datetime
    end_time: datetime | None
    duration_ms: float | None
    turns: int
    messages: int
    tool_calls: int
    tool_errors: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    score: float | None
    tags: list[str]
    version: int
    interrupted: bool


class LiveSpan(Struct, frozen=True, kw_only=True):
    """A record of a rollout; ``content_start`` is the first 500 characters of its content.

    A scope is told of when it begins and, with ``version`` 1, when it ends.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    seq: int
    run_id: str
    phase: str
    step_number: int | None
    datapoint_id: str
    kind: str
    name: str
    status: str
    start_time: datetime
    end_time: datetime | None
    duration_ms: float | None
    turn_index: int
    intra_index: int
    role: str
    content_start: str
    tool_name: str
    grader_name: str
    score: float | None
    late: bool
    version: int


class LiveGap(Struct, frozen=True, kw_only=True):
    """What happened since the place to go on from is not told: it is longer ago than an hour."""


LiveEvent = LiveTrace | LiveSpan | LiveGap
