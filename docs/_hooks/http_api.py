"""Writes the page on Kestrel's HTTP API from the OpenAPI document that the service serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caribou.server.app import API, ROUTES
from caribou.server.openapi import describe

_MARK = "<!-- operations -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called for each page by the site's builder."""
    if _MARK not in markdown:
        return markdown
    return markdown.replace(_MARK, "\n".join(_lines(describe(ROUTES, API))))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(f"{method.upper()} {path}", operation)
    yield "## Objects\n"
    for name, schema in document["components"]["schemas"].items():
        yield f"### {name}\n"
        yield schema.get("description", "").replace("``", "`") + "\n"
        if properties := schema.get("properties"):
            required = schema.get("required", [])
            yield "| field | type | required |\n|---|---|---|"
            for field, kind in properties.items():
                yield f"| `{field}` | {_type(kind)} | {'yes' if field in required else ''} |"
            yield ""


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"## `{title}`\n"
    yield operation["summary"] + ".\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for each in parameters:
            about = _cell(each.get("description", ""))
            yield f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {about} |"
        yield ""
    if body := operation.get("requestBody"):
        yield f"Body: {_contents(body)}.\n"
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            yield f"Answer {status}: {_contents(answer)}.\n"
    refusals = [status for status in operation["responses"] if not status.startswith("2")]
    yield f"Refusals: {', '.join(refusals)}.\n"


def _contents(part: dict[str, Any]) -> str:
    contents = part.get("content", {})
    return ", ".join(f"{_type(each['schema'])} as `{kind}`" for kind, each in contents.items())


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return _cell(", ".join(f"`{value}`" for value in schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(each) for each in schema[key])
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if isinstance(kind, list):
        return " or ".join(kind)
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("maximum", "≤"))
        if abs(schema.get(key, 1 << 60)) < 1 << 52
    ]
    return ", ".join([schema.get("format", kind), *bounds])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
