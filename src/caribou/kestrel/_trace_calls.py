"""Finding rollouts: their summaries, the records of one, and what charts show of many."""

from __future__ import annotations

from typing import Literal, Unpack

from ._calls import Calls
from ._encoding import query, segment
from ._filters import TraceFilters, filters_of
from ._live import LiveStream
from ._pages import Pages
from .models import (
    ModelUse,
    Page,
    PassK,
    Phase,
    ScoreDistribution,
    Span,
    StepSummary,
    ToolUse,
    Trace,
)

__all__ = ["TraceCalls", "TraceSort"]

TraceSort = Literal[
    "start_time",
    "-start_time",
    "score",
    "-score",
    "duration_ms",
    "-duration_ms",
    "cost_usd",
    "-cost_usd",
]


class TraceCalls(Calls):
    """The calls that are about rollouts."""

    async def get_trace(self, trace_id: str) -> Trace:
        """The summary of one rollout."""
        return await self._get(f"/traces/{segment('get_trace()', 'trace_id', trace_id)}", Trace)

    def list_traces(
        self,
        *,
        sort: TraceSort = "-start_time",
        page_size: int = 100,
        **filters: Unpack[TraceFilters],
    ) -> Pages[Trace]:
        """Summaries of rollouts.

        Args:
            sort: a column to sort by, with a minus for the largest first.
            page_size: how many are asked for at once, up to 1000.
            **filters: which rollouts, as :class:`TraceFilters` tells.
        """
        wanted = filters_of("list_traces()", filters, sort=sort, limit=page_size)
        return self._pages("/traces", Trace, wanted)

    def list_spans(self, trace_id: str, *, page_size: int = 100) -> Pages[Span]:
        """The records of one rollout, in order."""
        part = segment("list_spans()", "trace_id", trace_id)
        wanted = query("list_spans()", limit=page_size)
        return self._pages(f"/traces/{part}/spans", Span, wanted)

    # Aggregates

    async def aggregate_steps(self, **filters: Unpack[TraceFilters]) -> list[StepSummary]:
        """Score, tokens, cost, duration and outcomes by step; rollouts of no step come first.

        Args:
            **filters: of which rollouts, as :class:`TraceFilters` tells.
        """
        wanted = filters_of("aggregate_steps()", filters)
        return (await self._get("/aggregates/steps", Page[StepSummary], wanted)).items

    async def aggregate_scores(
        self, *, bins: int = 20, **filters: Unpack[TraceFilters]
    ) -> ScoreDistribution:
        """How scores spread.

        Args:
            bins: into how many equal parts 0 to 1 is cut, up to 1000.
            **filters: of which rollouts, as :class:`TraceFilters` tells.
        """
        wanted = filters_of("aggregate_scores()", filters, bins=bins)
        return await self._get("/aggregates/scores", ScoreDistribution, wanted)

    async def aggregate_tools(
        self, *, limit: int = 100, **filters: Unpack[TraceFilters]
    ) -> list[ToolUse]:
        """Tools, the slowest first.

        Args:
            limit: of how many tools, up to 1000.
            **filters: in which rollouts, as :class:`TraceFilters` tells.
        """
        wanted = filters_of("aggregate_tools()", filters, limit=limit)
        return (await self._get("/aggregates/tools", Page[ToolUse], wanted)).items

    async def aggregate_models(
        self, *, limit: int = 100, **filters: Unpack[TraceFilters]
    ) -> list[ModelUse]:
        """Tokens and cost by model, the dearest first.

        Args:
            limit: of how many models, up to 1000.
            **filters: in which rollouts, as :class:`TraceFilters` tells.
        """
        wanted = filters_of("aggregate_models()", filters, limit=limit)
        return (await self._get("/aggregates/models", Page[ModelUse], wanted)).items

    async def aggregate_pass_k(self, *, k: int = 4, **filters: Unpack[TraceFilters]) -> PassK:
        """pass^1 to pass^k over the datapoints of rollouts.

        Args:
            k: the largest number of trials that are all to pass, up to 100.
            **filters: of which rollouts, as :class:`TraceFilters` tells.
        """
        wanted = filters_of("aggregate_pass_k()", filters, k=k)
        return await self._get("/aggregates/pass_k", PassK, wanted)

    # The live stream

    def live(
        self,
        *,
        run_id: str | None = None,
        trace_id: str | None = None,
        phase: Phase | None = None,
        spans: bool = True,
        last_event_id: str | None = None,
    ) -> LiveStream:
        """Rollouts as they start, grow and finish.

        Args:
            run_id: of this run only.
            trace_id: of this trace only.
            phase: of this phase only.
            spans: whether to tell of their records too.
            last_event_id: go on where another stream was, up to an hour back; now without it.
        """
        wanted = query("live()", run_id=run_id, trace_id=trace_id, phase=phase, spans=spans)
        return LiveStream(self._transport, wanted, last_event_id)
