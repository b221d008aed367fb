"""One entry of the API: what the server does with it, and what its description says of it.

Routes are data, so that the running server and the OpenAPI document cannot say different things::

    async def list_runs(call: Call) -> Page[Run]: ...

    routes = [
        Route(
            "GET", "/runs", list_runs, "List runs", query=(Query("name"), *PAGE), answer=Page[Run]
        ),
    ]

Handlers read ``call.query["name"]`` (checked, converted, or the default), ``call.path["run_id"]``
and ``call.body``; they return what is to be sent as JSON, or a response of their own, and raise
:class:`~caribou.server.problems.Problem` for what the caller has to put right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from .backend import Backend

__all__ = ["LARGEST_PAGE", "PAGE", "Call", "Handler", "Query", "Route"]

LARGEST_PAGE = 1000

Kind = Literal["text", "cursor", "integer", "number", "time", "flag"]


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter, or one part of a path.

    Attributes:
        name: as it stands in the URL; in ``call.query`` as well.
        kind: what it is: ``call.query`` holds a str, str, int, float, datetime in UTC, or bool.
        description: for the OpenAPI document.
        choices: the texts that are allowed, all when empty.
        minimum: of a number, included.
        maximum: of a number, included.
        default: what ``call.query`` holds when it is not given.
        many: it may be given several times; ``call.query`` holds a list, empty by default.
        prefix: it stands for every parameter that begins with ``name``; ``call.query`` holds a
            dict of the rest of each name to its text.
    """

    name: str
    kind: Kind = "text"
    description: str = ""
    choices: tuple[str, ...] = ()
    minimum: int | float | None = None
    maximum: int | float | None = None
    default: Any = None
    many: bool = False
    prefix: bool = False


PAGE = (
    Query("limit", "integer", "Items a page", minimum=1, maximum=LARGEST_PAGE, default=100),
    Query("cursor", "cursor", "`next_cursor` of the page before; left out for the first"),
)
"""The parameters of every list."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, checked and converted as its route says."""

    request: web.Request
    backend: Backend
    path: Mapping[str, Any]
    query: Mapping[str, Any]
    body: Any


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    Attributes:
        method: ``GET``, ``POST``, ``PUT`` or ``PATCH``.
        path: below ``/api/v1``, with ``{name}`` for its parts.
        handler: answers a call.
        summary: one line for the OpenAPI document.
        query: the query parameters it knows; any other is refused.
        parts: parts of the path that are not plain text.
        body: the msgspec type of the JSON body; None for none.
        answer: the msgspec type of the JSON answer; ``str`` where ``media_type`` is not JSON.
        status: of a success.
        media_type: of the answer.
        refuses: statuses of its problems beyond those any route has (400, 401, 503), such as 404.
        headers: request headers that it heeds, with what they are for.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    query: tuple[Query, ...] = ()
    parts: tuple[Query, ...] = ()
    body: Any = None
    answer: Any = None
    status: int = 200
    media_type: str = "application/json"
    refuses: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
