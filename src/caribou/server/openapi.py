"""The API's description as an OpenAPI 3.1 document, from the same routes that serve it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from .._version import __version__
from .parameters import LARGEST_INTEGER, LONGEST_TEXT
from .problems import MEDIA_TYPE, ProblemDetails
from .routing import Query, Route

__all__ = ["describe"]

_PART: Final = re.compile(r"\{(\w+)\}")
_REFERENCE: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (400, 401, 414, 503)
_WITH_BODY: Final = (408, 413, 415)
_MEANINGS: Final = {
    400: "A parameter or the body is not what is taken here",
    401: "The API key is missing or wrong",
    404: "There is no such thing",
    408: "The body did not arrive in time",
    409: "It is in the way of what is there",
    413: "The body is too large",
    414: "The query string is too long",
    415: "The body is not said to be JSON",
    429: "Too many at once",
    503: "The store cannot be reached; try again later",
}
_KINDS: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string", "maxLength": LONGEST_TEXT, "pattern": "^[^\\x00]*$"},
    "cursor": {"type": "string", "format": "cursor"},
    "integer": {"type": "integer", "minimum": -LARGEST_INTEGER, "maximum": LARGEST_INTEGER},
    "number": {"type": "number"},
    "time": {"type": "string", "format": "date-time"},
    "flag": {"type": "boolean"},
}


def describe(routes: Sequence[Route], prefix: str) -> dict[str, Any]:
    """The document; ``prefix`` is the path that all routes are below."""
    types: list[Any] = [ProblemDetails]
    for route in routes:
        types += [each for each in (route.body, route.answer) if each is not None]
    written, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schemas = iter(written)
    problem = next(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        body = None if route.body is None else next(schemas)
        answer = None if route.answer is None else next(schemas)
        operation = _operation(route, body, answer, problem)
        paths.setdefault(prefix + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kestrel",
            "version": __version__,
            "description": "Rollouts that Caribou traced, and the projects, runs, steps and "
            "datapoints they belong to. Times are in UTC, durations in milliseconds.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, body: Any, answer: Any, problem: Any) -> dict[str, Any]:
    parts = {part.name: part for part in route.parts}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _schema(parts.get(name), True)}
        for name in _PART.findall(route.path)
    ]
    parameters += [_parameter(query) for query in route.query]
    parameters += [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in route.headers.items()
    ]
    success: dict[str, Any] = {"description": route.summary}
    if answer is not None:
        success["content"] = {route.media_type: {"schema": answer}}
    responses: dict[str, Any] = {str(route.status): success}
    refusals = {*_ALWAYS, *route.refuses, *(_WITH_BODY if body is not None else ())}
    for status in sorted(refusals):
        responses[str(status)] = {
            "description": _MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": problem}},
        }
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,  # type: ignore[attr-defined]
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "parameters": parameters,
        "responses": responses,
    }
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return operation


def _parameter(query: Query) -> dict[str, Any]:
    schema = _schema(query, False)
    if query.prefix:
        # Every name that begins like this is a parameter of its own.
        names = f"^{re.escape(query.name)}.+$"
        schema = {
            "type": "object",
            "patternProperties": {names: schema},
            "additionalProperties": False,
        }
    elif query.many:
        schema = {"type": "array", "items": schema}
    if query.default is not None:
        schema["default"] = query.default
    described: dict[str, Any] = {"name": query.name, "in": "query", "schema": schema}
    if query.prefix or query.many:
        described |= {"style": "form", "explode": True}
    if query.description:
        described["description"] = query.description
    return described


def _schema(query: Query | None, required: bool) -> dict[str, Any]:
    query = query or Query("")
    schema: dict[str, Any] = dict(_KINDS[query.kind])
    if required and query.kind == "text":
        schema["minLength"] = 1
    if query.choices:
        schema = {"type": "string", "enum": list(query.choices)}
    if query.minimum is not None:
        schema["minimum"] = query.minimum
    if query.maximum is not None:
        schema["maximum"] = query.maximum
    return schema
