"""The application: every route behind the same middlewares."""

from __future__ import annotations

import hmac
import re
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler as Next
from aiohttp.typedefs import Middleware

from . import routes_live, routes_registry, routes_traces
from .backend import Backend
from .openapi import describe
from .parameters import read_call
from .problems import Problem, problems_middleware, secure
from .routing import Call, Route

__all__ = ["API", "BACKEND", "DOCUMENT", "ROUTES", "create_app"]

API: Final = "/api/v1"

BACKEND: Final = web.AppKey("backend", Backend)
"""The engine of an application."""


async def _describe(call: Call) -> dict[str, Any]:
    return DOCUMENT


ROUTES: Final[tuple[Route, ...]] = (
    *routes_registry.routes,
    *routes_traces.routes,
    *routes_live.routes,
    Route("GET", "/openapi.json", _describe, "This description", answer=dict[str, Any]),
)
"""Everything below ``/api/v1``."""

DOCUMENT: Final = describe(ROUTES, API)
"""The OpenAPI document."""

_PART: Final = re.compile(r"\{(\w+)\}")
_LONGEST_QUERY: Final = 8192  # characters


def create_app(
    backend: Backend, *, api_key: str | None = None, largest_body: int = 16 << 20
) -> web.Application:
    """The service's API as an aiohttp application; pages, health and the rest can be added to it.

    Args:
        backend: the engine; the application does not close it.
        api_key: required of every request below ``/api/v1``; None lets everybody in.
        largest_body: of a request, decompressed, in bytes.
    """
    app = web.Application(
        middlewares=[problems_middleware, _limits, _key_check(api_key)],
        client_max_size=largest_body,
    )
    app[BACKEND] = backend
    app.on_response_prepare.append(_secure)
    for route in ROUTES:
        # An id may hold braces, which aiohttp would not have in a part of a path.
        path = API + _PART.sub(r"{\1:[^/]+}", route.path)
        # As HTTP has it, what answers GET answers HEAD.
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, path, _serve(route))
    return app


def _serve(route: Route) -> Next:
    async def serve(request: web.Request) -> web.StreamResponse:
        answer = await route.handler(await read_call(request, route, request.app[BACKEND]))
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(
            status=route.status, body=msgspec.json.encode(answer), content_type=route.media_type
        )

    return serve


def _key_check(api_key: str | None) -> Middleware:
    expected = None if api_key is None else api_key.encode()

    @web.middleware
    async def check(request: web.Request, handler: Next) -> web.StreamResponse:
        if expected is not None and request.path.startswith(f"{API}/"):
            # With two of them whoever stands in front may have looked at the other.
            sent = request.headers.getall("Authorization", [""])
            scheme, _, given = sent[0].partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), expected)
            if len(sent) > 1 or scheme.lower() != "bearer" or not same:
                raise Problem(
                    401,
                    "the API key is missing or wrong",
                    field="Authorization",
                    allowed="Bearer KEY",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return await handler(request)

    return check


@web.middleware
async def _limits(request: web.Request, handler: Next) -> web.StreamResponse:
    if len(request.rel_url.raw_query_string) > _LONGEST_QUERY:
        raise Problem(
            414,
            "the query string is too long",
            allowed=f"at most {_LONGEST_QUERY} characters",
            hint="use fewer or shorter filters",
        )
    return await handler(request)


async def _secure(_: web.Request, response: web.StreamResponse) -> None:
    secure(response)
