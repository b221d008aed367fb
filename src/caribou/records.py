"""What a user logs: four immutable records, the outcomes of a rollout, and what a rollout is about.

The order of a record's fields is part of how it is checked (see ``_rows``): the values that decide
its shape first, then texts, counts, amounts and containers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Required, TypeAlias, TypedDict

import msgspec

__all__ = [
    "Event",
    "Grade",
    "Message",
    "Phase",
    "Record",
    "RolloutStatus",
    "ToolExecution",
    "TraceMeta",
]

MISSING: Final[Any] = msgspec.UNSET
"""Stands for a required field that was not given; ``log()`` refuses it by the field's name."""

Phase: TypeAlias = Literal["train", "eval", "prod"]
"""What a rollout is for."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of the conversation, or of the conversation with a grader.

    Args:
        role: ``"user"``, ``"assistant"``, ``"system"``, ``"tool"``, or any other text. Required.
        content: The text, or a list of parts as OpenAI's chat format has them.
        tool_call_id: For a tool's answer: the call that it answers.
        name: The tool, for a tool's answer.
        model: The model that wrote the message; the rollout's ``model_name`` when not given.
        provider: Who served the model, for example ``"openai"``.
        grader_name: The message belongs to this grader's conversation and not to the agent's: it
            moves no turn.
        prompt: The rendered prompt, where that is worth keeping beside the messages.
        input_tokens: Tokens read, without those counted in ``cache_read_tokens`` and
            ``cache_write_tokens``.
        output_tokens: Tokens written, without those counted in ``reasoning_tokens``.
        cache_read_tokens: Tokens read from the provider's cache.
        cache_write_tokens: Tokens written to the provider's cache.
        reasoning_tokens: Tokens of reasoning.
        cost_usd: The cost of this call in US dollars.
        duration_ms: How long the call took, in milliseconds; it ended when it was logged.
        tool_calls: The calls that the message asks for, as the model's API gave them.
        attributes: Anything else, by name.
    """

    if TYPE_CHECKING:
        role: str
    else:
        role: str = MISSING
    content: str | Sequence[object] | Mapping[str, object] | None = None
    tool_call_id: str | None = None
    name: str | None = msgspec.field(default=None, name="tool_name")
    model: str | None = None
    provider: str | None = None
    grader_name: str | None = None
    prompt: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    duration_ms: float | None = None
    tool_calls: Sequence[object] | None = None
    attributes: Mapping[str, object] | None = None


class ToolExecution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of a tool.

    Args:
        name: The tool. Required.
        call_id: The id of the call in the message that asked for it.
        error: What went wrong. Given at all, even empty, it makes the execution an error.
        requestor: Who asked: ``"agent"``, ``"user"`` or ``"system"``.
        duration_ms: How long it ran, in milliseconds; it ended when it was logged.
        arguments: What the tool was given: a dict, or text.
        result: What it answered: text, a list of parts, or any JSON value.
        attributes: Anything else, by name.
    """

    if TYPE_CHECKING:
        name: str
    else:
        name: str = msgspec.field(default=MISSING, name="tool_name")
    call_id: str | None = msgspec.field(default=None, name="tool_call_id")
    error: str | None = None
    requestor: str | None = None
    duration_ms: float | None = None
    arguments: Mapping[str, object] | str | None = None
    result: object = None
    attributes: Mapping[str, object] | None = None


class Grade(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One verdict on the rollout.

    Args:
        score: From 0.0 to 1.0; None and NaN mean "not scored", which is not 0.
        grader_name: Who graded; the rollout's ``grader_name`` when not given.
        grader_type: The kind of grader, for example ``"exact_match"`` or ``"llm"``.
        reasoning: Why.
        passed_count: How many criteria passed.
        total_count: Out of how many.
        duration_ms: How long grading took, in milliseconds; it ended when it was logged.
        criteria: The criteria one by one.
        attributes: Anything else, by name.
    """

    score: float | None = None
    grader_name: str | None = None
    grader_type: str | None = None
    reasoning: str | None = None
    passed_count: int | None = None
    total_count: int | None = None
    duration_ms: float | None = None
    criteria: Sequence[Mapping[str, object]] | None = None
    attributes: Mapping[str, object] | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Anything else that happened.

    Args:
        name: What happened. Required.
        duration_ms: How long it took, in milliseconds; it ended when it was logged.
        data: What there is to know about it.
        attributes: Anything else, by name.
    """

    if TYPE_CHECKING:
        name: str
    else:
        name: str = MISSING
    duration_ms: float | None = None
    data: Mapping[str, object] | None = None
    attributes: Mapping[str, object] | None = None


Record: TypeAlias = Message | ToolExecution | Grade | Event
"""What ``log()`` takes."""


class RolloutStatus(StrEnum):
    """How a rollout ended. ``PENDING`` is what a reader sees while it runs."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    TRUNCATED = "TRUNCATED"
    ABORTED = "ABORTED"
    ENV_SETUP_ERROR = "ENV_SETUP_ERROR"
    STEP_ERROR = "STEP_ERROR"
    GRADER_TIMEOUT = "GRADER_TIMEOUT"
    GRADER_ERROR = "GRADER_ERROR"
    TOOL_ERROR = "TOOL_ERROR"
    ERROR = "ERROR"


class TraceMeta(TypedDict, total=False):
    """What a rollout is about: the argument of ``trace_run``. An unknown key is an error.

    ``phase`` is required here or by ``configure``. ``step_number`` and ``grader_name`` are for
    train and eval. ``trace_id`` may be any text, for continuity over several requests: 32 hex
    digits are used as they are, anything else is mapped to such an id by a hash, and the text
    itself is kept as the metadata ``given_trace_id``.
    """

    datapoint_id: Required[str]
    phase: Phase | None
    run_id: str | None
    step_number: int | None
    env_name: str | None
    model_name: str | None
    grader_name: str | None
    trace_id: str | None
