"""What ``trace_run`` is given, checked before anything is recorded."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from ._ids import new_trace_id, to_trace_id
from ._sanitize import MAX_INTEGER, storable_text
from ._settings import PHASES, Settings
from .errors import InvalidType, InvalidValue

__all__ = ["GIVEN_TRACE_ID", "CheckedMeta", "check_meta"]

GIVEN_TRACE_ID: Final = "given_trace_id"
"""The metadata key that keeps a trace id of the user's own."""

_MAX_TEXT: Final = 1024
_KNOWN: Final = (
    "datapoint_id",
    "phase",
    "run_id",
    "step_number",
    "env_name",
    "model_name",
    "grader_name",
    "trace_id",
)


class CheckedMeta(msgspec.Struct, frozen=True):
    """The constants of a trace as columns, its grader, and the user's own id if it has another."""

    constants: dict[str, object]
    grader_name: str | None
    given_trace_id: str | None


def check_meta(meta: Mapping[str, object], settings: Settings) -> CheckedMeta:
    """Check the metadata of a rollout.

    Raises:
        InvalidType: it is no mapping, or a value has the wrong type.
        InvalidValue: a key is missing or unknown, or a value is outside what its key allows.
    """
    if not isinstance(meta, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"trace_run takes a dict with datapoint_id, not {type(meta).__name__}")
    for key in meta:
        if key not in _KNOWN:
            from difflib import get_close_matches

            close = get_close_matches(str(key), _KNOWN, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidValue(f"trace_run: unknown key {key!r}{hint} {_known_keys()}")
    datapoint_id = _text(meta, "datapoint_id")
    if datapoint_id is None:
        raise InvalidValue(f"trace_run: datapoint_id is missing. {_known_keys()}")
    phase = meta.get("phase")
    phase = _phase(settings.phase if phase is None else phase)
    step_number = _step(meta.get("step_number"))
    grader_name = _text(meta, "grader_name")
    if phase == "prod":
        for key, value in (("step_number", step_number), ("grader_name", grader_name)):
            if value is not None:
                raise InvalidValue(f"trace_run: {key} is for train and eval, and phase is prod")
    given = _text(meta, "trace_id")
    trace_id = new_trace_id() if given is None else to_trace_id(given)
    constants: dict[str, object] = {
        "trace_id": trace_id,
        "run_id": _text(meta, "run_id") or settings.run_id,
        "phase": phase,
        "step_number": step_number,
        "datapoint_id": datapoint_id,
        "env_name": _text(meta, "env_name"),
        "model_name": _text(meta, "model_name"),
    }
    own = given if given is not None and given.lower() != trace_id else None
    return CheckedMeta(constants, grader_name, own)


def _known_keys() -> str:
    return (
        f"Known keys: {', '.join(_KNOWN)} (datapoint_id is required; phase too, unless configured)"
    )


def _text(meta: Mapping[str, object], key: str) -> str | None:
    value = meta.get(key)
    if value is None:
        return None
    if not issubclass(type(value), str):
        raise InvalidType(f"trace_run: {key} must be a str, not {type(value).__name__}")
    text = str.__str__(cast("str", value))
    if not text:
        raise InvalidValue(f"trace_run: {key} must not be empty")
    if len(text) > _MAX_TEXT:
        # Every row of the rollout repeats it.
        raise InvalidValue(
            f"trace_run: {key} has {len(text)} characters; at most {_MAX_TEXT} are allowed"
        )
    return text if text.isascii() else storable_text(text)


def _phase(value: object) -> str:
    choice = ", ".join(PHASES)
    if value is None:
        raise InvalidValue(
            f"trace_run: phase is missing here and in configure(); choose one of {choice}"
        )
    if value not in PHASES:
        raise InvalidValue(f"trace_run: phase must be one of {choice}, not {value!r}")
    return str(value)


def _step(value: Any) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        step = int(operator.index(value))
    except TypeError:
        kind = type(value).__name__
        raise InvalidType(f"trace_run: step_number must be an int, not {kind}") from None
    if not 0 <= step <= MAX_INTEGER:
        raise InvalidValue(f"trace_run: step_number must be from 0 up, not {value!r}")
    return step
