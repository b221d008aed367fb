"""Refusals as RFC 9457 problem details: what was wrong, in which field, and what would be right."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from ..errors import StoreError
from .backend import Unavailable

__all__ = ["Problem", "ProblemDetails", "not_found", "problems_middleware", "secure"]

_log = logging.getLogger("caribou.server")
_LONGEST_GIVEN = 200  # characters of what was given that are said back

MEDIA_TYPE = "application/problem+json"

# Pages load their script, style and data from here and nothing from anywhere else.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every refusal."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    field: str | msgspec.UnsetType = msgspec.UNSET
    given: Any = msgspec.UNSET
    allowed: Any = msgspec.UNSET
    hint: str | msgspec.UnsetType = msgspec.UNSET


class Problem(Exception):
    """Raised by a handler for what the caller has to put right.

    Args:
        status: the HTTP status.
        detail: one sentence on what is wrong.
        field: the parameter or the path in the body.
        given: what was given there.
        allowed: what is allowed: a text, or a list of the choices.
        hint: what to do.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | msgspec.UnsetType = msgspec.UNSET,
        given: Any = msgspec.UNSET,
        allowed: Any = msgspec.UNSET,
        hint: str | msgspec.UnsetType = msgspec.UNSET,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.details: ProblemDetails = ProblemDetails(
            title=HTTPStatus(status).phrase,
            status=status,
            detail=detail,
            field=field,
            given=_short(given),
            allowed=allowed,
            hint=hint,
        )
        self.headers: dict[str, str] = dict(headers or {})

    def response(self) -> web.Response:
        """The answer that says it."""
        return web.Response(
            status=self.details.status,
            body=msgspec.json.encode(self.details),
            content_type=MEDIA_TYPE,
            headers=self.headers,
        )


def secure(response: web.StreamResponse) -> None:
    """Have browsers take an answer for what it is, and let no other site use it."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "kestrel"


def not_found(kind: str, field: str, given: str, hint: str) -> Problem:
    """A 404 for an id that nothing has, e.g. ``not_found("run", "run_id", given, "GET ...")``."""
    return Problem(404, f"there is no such {kind}", field=field, given=given, hint=hint)


def _short(given: Any) -> Any:
    if given is msgspec.UNSET or given is None or isinstance(given, bool | int | float):
        return given
    text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
    if len(text) > _LONGEST_GIVEN:
        return text[: _LONGEST_GIVEN - 1] + "…"
    return given


@web.middleware
async def problems_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong in a handler into a problem; what is our fault is logged."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPNotFound:
        return Problem(
            404,
            f"nothing is at {request.path[:_LONGEST_GIVEN]}",
            hint="GET /api/v1/openapi.json describes every path",
        ).response()
    except web.HTTPMethodNotAllowed as refusal:
        allowed = sorted(refusal.allowed_methods)
        return Problem(
            405,
            f"{request.method} cannot be done here",
            field="method",
            given=request.method,
            allowed=allowed,
            headers={"Allow": ", ".join(allowed)},
        ).response()
    except web.HTTPRequestEntityTooLarge:
        return Problem(
            413,
            "the body is too large",
            allowed=f"at most {request.client_max_size} bytes",
            hint="send fewer items in each request",
        ).response()
    except web.HTTPException as refusal:
        if refusal.status < 400:
            raise
        return Problem(refusal.status, refusal.reason).response()
    except Unavailable as error:
        _log.warning("the store cannot be reached: %s", error)
        return Problem(
            503,
            "the store cannot be reached",
            hint="try again in a few seconds",
            headers={"Retry-After": "2"},
        ).response()
    except StoreError as error:
        _log.error("the store refused a query: %s", error)
        return Problem(500, "the store refused the query; the service's log says why").response()
    except Exception:
        _log.exception("%s %s failed", request.method, request.path[:_LONGEST_GIVEN])
        return Problem(500, "the service failed; its log says why").response()
