"""What a ClickHouse server's refusal means for the batch that caused it.

The server's own error code decides, not the HTTP status: one status stands for many codes, and it
differs between versions. Only an answer without a code, from a gateway, is judged by its status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from caribou.schema import SERVER_NEEDED
from caribou.sinks._answers import NoAnswer, clean, retry_after
from caribou.sinks.base import (
    Ambiguous,
    Misconfigured,
    Poison,
    Retry,
    SinkError,
    TooLarge,
)

__all__ = [
    "BAD_SQL",
    "MISSING_SCHEMA",
    "NO_RIGHT",
    "NoAnswer",
    "ServerError",
    "as_question",
    "clean",
    "missing_right",
    "read_error",
    "server_error",
    "sink_error",
]

MISSING_SCHEMA = frozenset({16, 60, 81})
"""No such column, table or database: the schema is not there yet, or is older than ours."""

NO_RIGHT = frozenset({164, 392, 497})
"""The user may not do this: by its profile, which only lets it read or forbids DDL, or for want of
a grant."""

BAD_SQL = frozenset({20, 36, 46, 47, 62})
"""The statement is wrong: the user's own, or ours where the schema is another than it expects."""

_TOO_LARGE = frozenset({241})  # memory limit, of all that goes on there at the moment
_SHORTAGE = 0.5  # seconds until asking for less
_AMBIGUOUS = frozenset({319})  # the server itself does not know whether the insert went through
_POISON = frozenset(
    {6, 25, 26, 27, 32, 38, 41, 53, 69, 72, 117, 128, 130, 131, 306, 321, 349, 407, 467, 469}
)
_HINTS = {
    **dict.fromkeys(
        (192, 193, 194, 516),
        "the server refused the credentials; check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
    ),
    **dict.fromkeys((195, 291), "the server does not let this user in from here"),
    **dict.fromkeys(NO_RIGHT, "the user lacks a right on the server"),
    **dict.fromkeys(
        (16, 20, 36, 46, 47, 60, 62, 81),
        "the tables are missing or do not fit this version; run `caribou migrate`",
    ),
    **dict.fromkeys(
        (48, 50, 73, 115, 452),
        f"the server is too old, or forbids a setting that Caribou needs ({SERVER_NEEDED})",
    ),
}

_CODE = re.compile(r"Code: (\d+)")
_GRANT = re.compile(r"have the grant (.+?)\.? ?(?:\(ACCESS_DENIED|\(version|$)", re.DOTALL)
_NO_DATABASE = re.compile(r"Database (\S+) (?:does not|doesn't) exist")


class ServerError(Exception):
    """The server, or a gateway before it, answered with a refusal."""

    def __init__(
        self, message: str, *, code: int = 0, status: int = 0, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.retry_after = retry_after


def read_error(status: int, headers: Mapping[str, str], body: bytes, *, silent: bool) -> None:
    """Raise what the answer says went wrong, if anything did.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up without regard to case.
        body: the answer's body, or its beginning when the status is not 200.
        silent: the statement answers nothing on success, so that any text is a complaint.

    Raises:
        ServerError: it did.
    """
    code = headers.get("X-ClickHouse-Exception-Code", "")
    tag = headers.get("X-ClickHouse-Exception-Tag", "")
    broke_off = bool(tag) and body.rstrip().endswith(f"{tag}\r\n__exception__".encode())
    if status == 200 and not code and not broke_off and not (silent and _says_error(body)):
        return
    text = body[-16_384:].decode(errors="replace")
    found = _CODE.search(text)
    number = int(code) if code.isdigit() else int(found[1]) if found else 0
    error = server_error(text if clean(text) else f"HTTP status {status}", code=number)
    error.status = status
    error.retry_after = retry_after(headers.get("Retry-After", ""))
    raise error


def server_error(text: str, *, code: int) -> ServerError:
    """The exception for what a server said, in one line that is safe to show."""
    missing = _NO_DATABASE.search(text) if code == 81 else None
    return ServerError(
        clean(f"the server has no database {missing[1]}" if missing else text), code=code
    )


def sink_error(error: ServerError | NoAnswer) -> SinkError:
    """The class of failure, as delivery knows them, with a reason fit for a person."""
    if isinstance(error, NoAnswer):
        if error.permanent:
            return Misconfigured(error.reason)
        return Ambiguous(error.reason) if error.sent else Retry(error.reason)
    if error.code == 0:
        return _by_status(error)
    code, message = error.code, error.message
    if code in _TOO_LARGE:
        return TooLarge(message, code=code, retry_after=_SHORTAGE)
    if code in _AMBIGUOUS:
        return Ambiguous(message, code=code)
    if code in _POISON:
        return Poison(message, code=code)
    hint = _HINTS.get(code)
    if hint is None:
        return Retry(message, code=code, retry_after=error.retry_after)
    return Misconfigured(f"{hint}{missing_right(message)}: {message}", code=code)


def as_question(failure: SinkError) -> SinkError:
    """Failures of a question leave two classes: ask again, or have somebody change something."""
    if isinstance(failure, Misconfigured | Retry):
        return failure
    return Retry(failure.reason, code=failure.code, retry_after=failure.retry_after)


def missing_right(message: str) -> str:
    """The right that the server says is needed, in parentheses to follow a word; or nothing."""
    found = _GRANT.search(message)
    return f" ({found[1].strip()})" if found else ""


def _by_status(error: ServerError) -> SinkError:
    status = error.status
    reason = f"HTTP status {status}: {error.message}"
    if status == 413:
        return TooLarge(reason)
    if status in (401, 403):
        return Misconfigured(
            f"access refused; check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD ({reason})"
        )
    if status in (502, 504):  # a gateway lost the server, which may have stored the batch
        return Ambiguous(reason)
    if status in (408, 425, 429) or status >= 500:
        return Retry(reason, retry_after=error.retry_after)
    return Misconfigured(f"no ClickHouse answers at CLICKHOUSE_URL ({reason})")


def _says_error(body: bytes) -> bool:
    return b"DB::Exception" in body or body.startswith(b"Code: ")
