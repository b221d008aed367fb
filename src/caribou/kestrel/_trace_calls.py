"""Finding rollouts: their summaries, and the records of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from ._calls import Calls
from ._encoding import query, segment, tag_list
from ._pages import Pages
from .models import Phase, Span, Trace

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
        project: str | None = None,
        run_id: str | None = None,
        step_number: int | None = None,
        step_min: int | None = None,
        step_max: int | None = None,
        phase: Phase | None = None,
        status: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, str | float] | None = None,
        meta_min: Mapping[str, float] | None = None,
        meta_max: Mapping[str, float] | None = None,
        score_min: float | None = None,
        score_max: float | None = None,
        grader_name: str | None = None,
        model_name: str | None = None,
        env_name: str | None = None,
        datapoint_id: str | None = None,
        text: str | None = None,
        start_min: datetime | None = None,
        start_max: datetime | None = None,
        sort: TraceSort = "-start_time",
        page_size: int = 100,
    ) -> Pages[Trace]:
        """Summaries of the rollouts to which all that is given applies.

        Args:
            project: its run belongs to the project of this name.
            run_id: it belongs to this run.
            step_number: it belongs to this step.
            step_min: to this step or a later one.
            step_max: to this step or an earlier one.
            phase: ``"train"``, ``"eval"`` or ``"prod"``.
            status: the name of a :class:`caribou.RolloutStatus`.
            tags: it has all of them.
            meta: its metadata have these values.
            meta_min: its metadata are numbers, at least these.
            meta_max: its metadata are numbers, at most these.
            score_min: it was scored, at least so.
            score_max: it was scored, at most so.
            grader_name: its grader.
            model_name: its model.
            env_name: its environment.
            datapoint_id: its input.
            text: the content of a record of it holds this.
            start_min: it began then or later; a time with its zone.
            start_max: it began then or earlier; a time with its zone.
            sort: a column to sort by, with a minus for the largest first.
            page_size: how many are asked for at once, up to 1000.
        """
        call = "list_traces()"
        wanted = query(
            call,
            project=project,
            run_id=run_id,
            step_number=step_number,
            step_min=step_min,
            step_max=step_max,
            phase=phase,
            status=status,
            score_min=score_min,
            score_max=score_max,
            grader_name=grader_name,
            model_name=model_name,
            env_name=env_name,
            datapoint_id=datapoint_id,
            text=text,
            start_min=start_min,
            start_max=start_max,
            sort=sort,
            limit=page_size,
            **{f"meta.{key}": value for key, value in (meta or {}).items()},
            **{f"meta.{key}.min": value for key, value in (meta_min or {}).items()},
            **{f"meta.{key}.max": value for key, value in (meta_max or {}).items()},
        )
        found = tag_list(call, tags)
        if found:
            wanted["tag"] = found
        return self._pages("/traces", Trace, wanted)

    def list_spans(self, trace_id: str, *, page_size: int = 100) -> Pages[Span]:
        """The records of one rollout, in order."""
        part = segment("list_spans()", "trace_id", trace_id)
        wanted = query("list_spans()", limit=page_size)
        return self._pages(f"/traces/{part}/spans", Span, wanted)
