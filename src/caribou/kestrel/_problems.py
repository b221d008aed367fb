"""What Kestrel answers to a call that it refuses, as an exception that can be read."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec

from ..errors import KestrelError

__all__ = ["NOT_KESTREL", "refusal"]

NOT_KESTREL: Final = "is KESTREL_API_URL that of a Kestrel service?"
_LONGEST: Final = 500  # characters of a text of the other side's


class _Details(msgspec.Struct, frozen=True):
    """RFC 9457 problem details; whatever answers may send anything, so nothing is required."""

    detail: str = ""
    field: str | None = None
    given: Any = None
    allowed: Any = None
    hint: str | None = None


def refusal(asked: str, status: int, body: bytes, location: str | None = None) -> KestrelError:
    """The exception for an answer that is not a success.

    Args:
        asked: the method and the URL, for the message.
        status: the HTTP status.
        body: the answer's body; problem details if it is Kestrel that answers.
        location: where a redirect leads.
    """
    start = f"{asked} was refused with {_phrase(status)}"
    if 300 <= status < 400:
        leads = f", which leads to {_shown(location)}" if location else ""
        message = f"{asked} was answered with {_phrase(status)}{leads}; {NOT_KESTREL}"
        return KestrelError(message, status=status)
    try:
        problem = msgspec.json.decode(body, type=_Details)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return KestrelError(f"{start}; {NOT_KESTREL}", status=status)
    about: list[str] = []
    if problem.field is not None:
        about.append(f"field {_shown(problem.field)}")
    if problem.given is not None:
        about.append(f"given {_quoted(problem.given)}")
    if problem.allowed is not None:
        about.append(f"allowed {_choices(problem.allowed)}")
    message = f"{start}: {_shown(problem.detail)}" if problem.detail else start
    message += f" ({'; '.join(about)})" if about else ""
    message += f"; {_shown(problem.hint)}" if problem.hint else ""
    if status == 401:
        message += "; the key goes into KESTREL_API_KEY"
    return KestrelError(
        message,
        status=status,
        detail=problem.detail,
        field=problem.field,
        given=problem.given,
        allowed=problem.allowed,
        hint=problem.hint,
    )


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _shown(text: str) -> str:
    """What can be printed without a terminal taking it for a command."""
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _quoted(value: Any) -> str:
    return _shown(repr(value) if isinstance(value, str) else msgspec.json.encode(value).decode())


def _choices(allowed: Any) -> str:
    if isinstance(allowed, list):
        return _shown(", ".join(str(choice) for choice in allowed))  # pyright: ignore
    return _shown(str(allowed))
