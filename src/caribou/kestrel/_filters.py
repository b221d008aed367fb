"""What rollouts are chosen by, the same for their list and for what charts show of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

from ..errors import InvalidType
from ._encoding import query, tag_list
from .models import Phase

__all__ = ["TraceFilters", "filters_of"]


class TraceFilters(TypedDict, total=False):
    """Keywords that choose rollouts: those to which all that is given applies. None is as good as
    not given.

    Attributes:
        project: its run belongs to the project of this name.
        run_id: it belongs to this run.
        step_number: it belongs to this step.
        step_min: to this step or a later one.
        step_max: to this step or an earlier one.
        phase: ``"train"``, ``"eval"`` or ``"prod"``.
        status: the name of a :class:`caribou.RolloutStatus`, or several, of which it has one.
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
    """

    project: str | None
    run_id: str | None
    step_number: int | None
    step_min: int | None
    step_max: int | None
    phase: Phase | None
    status: str | Sequence[str] | None
    tags: Sequence[str] | None
    meta: Mapping[str, str | float] | None
    meta_min: Mapping[str, float] | None
    meta_max: Mapping[str, float] | None
    score_min: float | None
    score_max: float | None
    grader_name: str | None
    model_name: str | None
    env_name: str | None
    datapoint_id: str | None
    text: str | None
    start_min: datetime | None
    start_max: datetime | None


def filters_of(call: str, filters: TraceFilters, **more: Any) -> dict[str, str | Sequence[str]]:
    """Query parameters from filters and what else there is to ask for.

    Raises:
        InvalidType: a filter is not known, or cannot be what it is.
        InvalidValue: a time has no time zone.
    """
    given: dict[str, Any] = {**filters}
    for name in given:
        if name not in TraceFilters.__annotations__:
            known = ", ".join(TraceFilters.__annotations__)
            raise InvalidType(f"{call}: unknown filter {name!r}; known are {known}")
    status = given.pop("status", None)
    several = {
        "tag": tag_list(call, given.pop("tags", None) or ()),
        "status": [status] if isinstance(status, str) else list(status or ()),
    }
    metadata: dict[str, Any] = {}
    for name, end in (("meta", ""), ("meta_min", ".min"), ("meta_max", ".max")):
        values: Mapping[str, Any] = given.pop(name, None) or {}
        metadata |= {f"meta.{key}{end}": value for key, value in values.items()}
    found = query(call, **given, **more, **metadata)
    return found | {name: texts for name, texts in several.items() if texts}
