"""Reading a JSON body as its type says, and saying of one that does not fit what does not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from .problems import Problem

__all__ = ["read_body", "undecodable"]

_SECONDS: Final = 30.0  # for a body to arrive
_CODINGS: Final = ("gzip", "deflate")
_PLACE: Final = re.compile(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_NAMED: Final = re.compile(r"(required|unknown) field `(.*)`", re.DOTALL)
_EXPECTED: Final = re.compile(r"Expected (.*?)(?:, got .*)?", re.DOTALL)


async def read_body(request: web.Request, expected: Any) -> Any:
    """The body as the msgspec type ``expected``.

    Raises:
        Problem: it is not JSON, does not fit, is too large, or did not come in time.
    """
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if coding not in (*_CODINGS, "identity"):
        raise undecodable(coding)
    if request.content_type != "application/json":
        raise Problem(
            415,
            "the body is not said to be JSON",
            field="Content-Type",
            given=request.headers.get("Content-Type", ""),
            allowed="application/json",
        )
    if (request.content_length or 0) > request.client_max_size:
        # Said before it is sent. What is longer than was said is found out while it is read.
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, request.content_length or 0)
    try:
        async with asyncio.timeout(_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise Problem(
            408, "the body did not arrive in time", allowed=f"within {_SECONDS:g} seconds"
        ) from None
    except web.RequestPayloadError:
        if coding != "identity":
            raise undecodable(coding) from None
        raise Problem(400, "the body is not sent as HTTP/1.1 has it") from None
    try:
        return msgspec.json.decode(raw, type=expected)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), raw, expected) from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(str(error)) from None


def undecodable(given: str | UnsetType = UNSET) -> Problem:
    """The refusal of a body whose coding is not known here, or is not what its header says."""
    return Problem(
        415,
        "the body cannot be decoded",
        field="Content-Encoding",
        given=given,
        allowed=list(_CODINGS),
        headers={"Accept-Encoding": ", ".join(_CODINGS)},
    )


def _not_json(reason: str) -> Problem:
    return Problem(
        400, f"the body cannot be read: {reason}", field="body", allowed="one JSON object in UTF-8"
    )


def _refusal(message: str, raw: bytes, expected: Any) -> Problem:
    """Say what msgspec says, with the field, what was there and what could be."""
    found = _PLACE.fullmatch(message)
    reason, place = (found[1], found[2] or "") if found else (message, "")
    steps = [step or index for step, index in _STEP.findall(place)]
    at = _type_at(expected, steps)
    named = _NAMED.search(reason)
    if named is not None:
        missing = named[1] == "required"
        return Problem(
            400,
            "a field is missing" if missing else "a field is not known here",
            field=".".join([*steps, named[2]]),
            allowed="required" if missing else sorted(getattr(at, "__struct_fields__", ())),
        )
    wanted = _EXPECTED.fullmatch(reason)
    return Problem(
        400,
        "this value cannot be used",
        field=".".join(steps) or "body",
        given=_value_at(raw, steps),
        allowed=_choices(at) or (wanted[1].replace("`", "") if wanted else reason),
    )


def _type_at(expected: Any, steps: Sequence[str]) -> Any:
    """What is expected at ``steps``; None where anything may be."""
    for step in steps:
        kind = _first(expected)
        if get_origin(kind) is list:
            expected = get_args(kind)[0]
        else:
            fields = get_type_hints(kind, include_extras=True) if _is_struct(kind) else {}
            expected = fields.get(step)
    kind = _first(expected)
    return kind if _is_struct(kind) else expected


def _first(kind: Any) -> Any:
    """The struct or list itself, out of ``Annotated`` and a union with ``UNSET``."""
    while not _is_struct(kind) and get_origin(kind) is not list and get_args(kind):
        kind = get_args(kind)[0]
    return kind


def _is_struct(kind: Any) -> bool:
    return hasattr(kind, "__struct_fields__")


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in _choices(part)]


def _value_at(raw: bytes, steps: Sequence[str]) -> Any:
    try:
        value: Any = msgspec.json.decode(raw)
        for step in steps:
            value = value[int(step) if isinstance(value, list) else step]
    except (msgspec.DecodeError, ValueError, LookupError, TypeError, RecursionError):
        # What comes after the fault may be no JSON; and keys may hold what separates steps.
        return UNSET
    return value  # pyright: ignore[reportUnknownVariableType]
