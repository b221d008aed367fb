"""Traces, their records, and what charts show of them over HTTP."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from ..kestrel.models import (
    PHASES,
    ModelUse,
    Page,
    PassK,
    ScoreDistribution,
    Span,
    StepSummary,
    ToolUse,
    Trace,
)
from ..records import RolloutStatus
from . import aggregates
from .backend import Row
from .problems import Problem, not_found
from .routing import PAGE, Call, Query, Route
from .selection import Selection
from .traces import SORTS, find_spans, find_trace, find_traces

__all__ = ["FILTERS", "routes"]

FILTERS = (
    Query("project", description="The name of a project: its runs, and it in production"),
    Query("run_id"),
    Query("step_number", "integer", minimum=0),
    Query("step_min", "integer", "The first of a range of steps", minimum=0),
    Query("step_max", "integer", "The last of a range of steps", minimum=0),
    Query("phase", choices=PHASES),
    Query(
        "status",
        description="Any of those given",
        choices=tuple(status.value for status in RolloutStatus),
        many=True,
    ),
    Query("tag", description="All of those given", many=True),
    Query(
        "meta.",
        description=(
            "`meta.KEY=VALUE`: metadata with this value;"
            " `meta.KEY.min` and `meta.KEY.max`: a number in this range"
        ),
        prefix=True,
    ),
    Query("score_min", "number"),
    Query("score_max", "number"),
    Query("grader_name"),
    Query("model_name"),
    Query("env_name"),
    Query("datapoint_id"),
    Query("text", description="Anywhere in the content of a message, in upper or lower case"),
    Query("start_min", "time"),
    Query("start_max", "time"),
)
"""The query parameters that choose traces."""

_SORT = Query(
    "sort",
    description="A minus is descending; traces without a value come last",
    choices=tuple(sign + name for name in SORTS for sign in ("", "-")),
    default="-start_time",
)
_GROUPS = Query("limit", "integer", "Groups", minimum=1, maximum=1000, default=100)


async def list_traces(call: Call) -> Page[Trace]:
    """Traces that all filters let through, those that run now as they are."""
    rows, cursor = await find_traces(
        call.backend,
        Selection.of(call.query),
        call.query["sort"],
        call.query["limit"],
        call.query["cursor"],
    )
    dead = await call.backend.interrupted()
    return Page(items=[_trace(row, dead) for row in rows], next_cursor=cursor)


async def get_trace(call: Call) -> Trace:
    """One trace, by its id or the one its creator gave it."""
    trace_id = call.path["trace_id"]
    row = await find_trace(call.backend, trace_id)
    if row is None:
        raise _unknown(trace_id)
    return _trace(row, await call.backend.interrupted())


async def list_spans(call: Call) -> Page[Span]:
    """A trace's records in the order in which they were logged."""
    trace_id, cursor = call.path["trace_id"], call.query["cursor"]
    rows, following = await find_spans(call.backend, trace_id, call.query["limit"], cursor)
    if not rows and cursor is None and await find_trace(call.backend, trace_id) is None:
        raise _unknown(trace_id)
    return Page(items=msgspec.convert(rows, list[Span]), next_cursor=following)


async def steps(call: Call) -> Page[StepSummary]:
    """Score, tokens, cost, duration and outcomes by step."""
    found = await aggregates.steps(call.backend, Selection.of(call.query))
    return Page(items=found, next_cursor=None)


async def scores(call: Call) -> ScoreDistribution:
    """How scores spread."""
    return await aggregates.scores(call.backend, Selection.of(call.query), call.query["bins"])


async def tools(call: Call) -> Page[ToolUse]:
    """Tools, the slowest first."""
    found = await aggregates.tools(call.backend, Selection.of(call.query), call.query["limit"])
    return Page(items=found, next_cursor=None)


async def models(call: Call) -> Page[ModelUse]:
    """Tokens and cost by model."""
    found = await aggregates.models(call.backend, Selection.of(call.query), call.query["limit"])
    return Page(items=found, next_cursor=None)


async def pass_k(call: Call) -> PassK:
    """pass^k by datapoint."""
    return await aggregates.pass_k(call.backend, Selection.of(call.query), call.query["k"])


def _trace(row: Row, dead: Set[str]) -> Trace:
    interrupted = row["status"] == "PENDING" and row["root_span_id"] in dead
    return msgspec.convert({**row, "interrupted": interrupted}, Trace)


def _unknown(trace_id: str) -> Problem:
    return not_found("trace", "trace_id", trace_id, "GET /api/v1/traces lists traces")


routes: list[Route] = [
    Route(
        "GET",
        "/traces",
        list_traces,
        "List traces",
        query=(*FILTERS, _SORT, *PAGE),
        answer=Page[Trace],
    ),
    Route("GET", "/traces/{trace_id}", get_trace, "Get a trace", answer=Trace, refuses=(404,)),
    Route(
        "GET",
        "/traces/{trace_id}/spans",
        list_spans,
        "List a trace's records",
        query=PAGE,
        answer=Page[Span],
        refuses=(404,),
    ),
    Route(
        "GET",
        "/aggregates/steps",
        steps,
        "Figures by step",
        query=FILTERS,
        answer=Page[StepSummary],
    ),
    Route(
        "GET",
        "/aggregates/scores",
        scores,
        "The distribution of scores",
        query=(*FILTERS, Query("bins", "integer", minimum=1, maximum=1000, default=20)),
        answer=ScoreDistribution,
    ),
    Route(
        "GET",
        "/aggregates/tools",
        tools,
        "The slowest tools",
        query=(*FILTERS, _GROUPS),
        answer=Page[ToolUse],
    ),
    Route(
        "GET",
        "/aggregates/models",
        models,
        "Tokens and cost by model",
        query=(*FILTERS, _GROUPS),
        answer=Page[ModelUse],
    ),
    Route(
        "GET",
        "/aggregates/pass_k",
        pass_k,
        "pass^k by datapoint",
        query=(*FILTERS, Query("k", "integer", minimum=1, maximum=100, default=4)),
        answer=PassK,
    ),
]
