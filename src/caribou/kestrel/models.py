"""What Kestrel's API takes and answers: shared by the service, the client and the OpenAPI document.

Times are in UTC. Fields of what is sent that are left out (``UNSET``) leave what is stored alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

from ._chart_models import (
    ModelUse,
    PassK,
    ScoreBin,
    ScoreDistribution,
    StepSummary,
    ToolUse,
)
from ._live_models import LiveEvent, LiveGap, LiveSpan, LiveTrace

__all__ = [
    "LARGEST_BATCH",
    "LONGEST_ID",
    "ONE_PROJECT",
    "PHASES",
    "Datapoint",
    "DatapointBatch",
    "DatapointItem",
    "DatapointUpsert",
    "LiveEvent",
    "LiveGap",
    "LiveSpan",
    "LiveTrace",
    "ModelUse",
    "NewProject",
    "NewRun",
    "Page",
    "PassK",
    "Phase",
    "Project",
    "Registered",
    "Run",
    "RunChanges",
    "RunRegistration",
    "RunStep",
    "RunToGet",
    "ScoreBin",
    "ScoreDistribution",
    "Span",
    "StepBatch",
    "StepItem",
    "StepSummary",
    "StepUpsert",
    "ToolUse",
    "Trace",
]

T = TypeVar("T")

LONGEST_ID = 1024
LARGEST_BATCH = 10_000
_MOST_TAGS = 100

Phase = Literal["train", "eval", "prod"]
PHASES = ("train", "eval", "prod")
_NO_NUL = "^[^\\x00]*$"
Text = Annotated[str, Meta(max_length=LONGEST_ID, pattern=_NO_NUL)]
Id = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID, pattern=_NO_NUL)]
Tags = Annotated[list[Id], Meta(max_length=_MOST_TAGS)]
Time = Annotated[datetime, Meta(examples=["2026-01-31T12:00:00Z"])]
# For the description only; the service says it with the field's name.
ONE_PROJECT = Meta(extra_json_schema={"not": {"required": ["project", "project_id"]}})
StepNumber = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Page(Struct, Generic[T], frozen=True, kw_only=True):
    """One page of a list; ``next_cursor`` asks for the next, and is None on the last."""

    items: list[T]
    next_cursor: str | None


class Project(Struct, frozen=True, kw_only=True):
    """A project; in production, what the service being traced is called."""

    project_id: str
    name: str
    created_at: datetime


class Run(Struct, frozen=True, kw_only=True):
    """A training or evaluation run. ``project_id`` and ``project`` are empty when it has none."""

    run_id: str
    project_id: str
    project: str
    name: str
    phase: str
    status: str
    config: dict[str, Any]
    tags: list[str]
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    archived: bool


class RunStep(Struct, frozen=True, kw_only=True):
    """One step of a run."""

    run_id: str
    step_number: int
    data: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class Datapoint(Struct, frozen=True, kw_only=True):
    """One input. ``data`` is any JSON value, None when none was given."""

    project_id: str
    project: str
    datapoint_id: str
    data: Any
    tags: list[str]
    created_at: datetime
    updated_at: datetime


class Trace(Struct, frozen=True, kw_only=True):
    """The summary of one rollout: the columns of the view ``traces``.

    ``interrupted``: it stays PENDING, since the process that ran it is dead. Durations are in
    milliseconds, ``usage`` is tokens and cost by model.
    """

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
    traceback: str
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
    usage: dict[str, dict[str, float]]
    score: float | None
    tags: list[str]
    metadata: dict[str, str]
    version: int
    interrupted: bool = False


class Span(Struct, frozen=True, kw_only=True):
    """One record of a rollout: the columns of the view ``spans``.

    Structured values (content parts, tool calls, arguments, results, criteria, data) are JSON text
    in the columns that ``structured`` names.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    seq: int
    run_id: str
    phase: str
    step_number: int | None
    datapoint_id: str
    env_name: str
    model_name: str
    kind: str
    name: str
    status: str
    status_message: str
    start_time: datetime
    end_time: datetime | None
    duration_ms: float | None
    turn_index: int
    intra_index: int
    role: str
    content: str | None
    tool_calls: str
    tool_call_id: str
    tool_name: str
    arguments: str
    result: str | None
    error: str
    requestor: str
    model: str
    provider: str
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: float | None
    grader_name: str
    grader_type: str
    score: float | None
    reasoning: str
    criteria: str
    passed_count: int | None
    total_count: int | None
    prompt: str
    data: str
    attributes: dict[str, str]
    structured: list[str]
    late: bool
    sanitized: str
    batch_id: str
    ingested_at: datetime


class NewProject(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Get or create the project of this name."""

    name: Id


class NewRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Create a run; the service hands out its id. ``project`` is a name, made when it is new."""

    project: Text | UnsetType = UNSET
    project_id: Text | UnsetType = UNSET
    name: Text | UnsetType = UNSET
    phase: Phase | UnsetType = UNSET
    config: dict[str, Any] | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


class RunToGet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Get or create the run of this name in a project; one that exists is answered as it is."""

    name: Id
    project: Id | UnsetType = UNSET
    project_id: Id | UnsetType = UNSET
    phase: Phase | UnsetType = UNSET
    config: dict[str, Any] | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


class RunRegistration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Register a run under an id of the caller's; one that exists keeps what it has."""

    project: Text | UnsetType = UNSET
    name: Text | UnsetType = UNSET
    phase: Phase | UnsetType = UNSET


class RunChanges(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a run. ``finished`` sets ``finished_at`` to the time of the call."""

    name: Text | UnsetType = UNSET
    status: Id | UnsetType = UNSET
    config: dict[str, Any] | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    finished_at: Time | UnsetType | None = UNSET
    finished: Literal[True] | UnsetType = UNSET
    archived: bool | UnsetType = UNSET


class StepUpsert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step; without ``data`` it is registered, and keeps what it has."""

    data: dict[str, Any] | UnsetType = UNSET


class StepItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a batch."""

    step_number: StepNumber
    data: dict[str, Any] | UnsetType = UNSET


class StepBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps of one run."""

    items: Annotated[list[StepItem], Meta(max_length=LARGEST_BATCH)]


class DatapointUpsert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One datapoint; what is left out keeps what it has. ``project`` is a name."""

    project: Text | UnsetType = UNSET
    project_id: Text | UnsetType = UNSET
    data: Any = UNSET
    tags: Tags | UnsetType = UNSET


class DatapointItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One datapoint of a batch."""

    datapoint_id: Id
    project: Text | UnsetType = UNSET
    project_id: Text | UnsetType = UNSET
    data: Any = UNSET
    tags: Tags | UnsetType = UNSET


class DatapointBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Datapoints, of any number of projects."""

    items: Annotated[list[Annotated[DatapointItem, ONE_PROJECT]], Meta(max_length=LARGEST_BATCH)]


class Registered(Struct, frozen=True, kw_only=True):
    """How many different things of a batch are registered now."""

    registered: int
