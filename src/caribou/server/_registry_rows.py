"""How rows of the registry are read and written.

There are no transactions, and any number of services share the tables. So ids that must be the same
for everybody are made from what they stand for; and the version of a row decides what is read when
several were written: the first registration, or else the last update, however they arrive (see
``schema/0003_registry.sql``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec
from msgspec import structs

from ..kestrel.models import Datapoint, Project, Run
from .backend import Backend, Row

__all__ = [
    "PROJECTS",
    "find_projects",
    "made_id",
    "micros",
    "only",
    "project_id_of",
    "read",
    "read_among",
    "registered",
    "row_of",
    "text_of",
    "updated",
    "where_of",
    "with_project",
]

T = TypeVar("T")
InProject = TypeVar("InProject", Run, Datapoint)

PROJECTS: Final = "SELECT project_id, name, created_at FROM projects"

_MIDDLE: Final = 2**63
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Parameters travel in the URL, of which a server takes a mebibyte.
_PER_QUERY: Final = 5000
_CHARACTERS_PER_QUERY: Final = 250_000
_JSON_COLUMNS: Final = ("config", "data")
_CONDITIONS: Final = {
    "project_id": "project_id = {project_id:String}",
    "project": "project_id = {project:String}",
    "name": "name = {name:String}",
    "phase": "phase = {phase:String}",
    "status": "status = {status:String}",
    "archived": "archived = {archived:Bool}",
    "tag": "has(tags, {tag:String})",
    "run_id": "run_id = {run_id:String}",
    "step_number": "step_number = {step_number:Int64}",
    "datapoint_id": "datapoint_id = {datapoint_id:String}",
}


def made_id(kind: str, *parts: str) -> str:
    """32 hex digits that stand for the parts."""
    text = "\0".join((kind, *parts))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def project_id_of(name: str) -> str:
    """The id of the project of this name; empty for no project."""
    return made_id("project", name) if name else ""


def registered() -> Row:
    """The version of a row that says only that something is there: the first one is read."""
    return {"version": _MIDDLE - time.time_ns()}


def updated() -> Row:
    """The version of a row that changes what is there: the last one is read."""
    return {"version": _MIDDLE + time.time_ns()}


def row_of(thing: msgspec.Struct) -> Row:
    """The thing's fields as a row: times as decimals, which every server reads alike, with ten
    digits before the point, as ClickHouse takes fewer for a calendar date."""
    row = structs.asdict(thing)
    for name, value in row.items():
        if isinstance(value, datetime):
            whole, rest = divmod(micros(value), 1_000_000)
            row[name] = f"{whole:010}.{rest:06}"
    return row


def text_of(value: Any) -> str:
    """A JSON value as the text that its column holds."""
    return msgspec.json.encode(value).decode()


def micros(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def where_of(filters: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Conditions and their parameters for the filters that are given (not None)."""
    parameters = {name: value for name, value in filters.items() if value is not None}
    if "project" in parameters:
        parameters["project"] = project_id_of(parameters["project"])
    if "archived" in parameters:
        parameters["archived"] = int(parameters["archived"])
    return [_CONDITIONS[name] for name in parameters], parameters


async def read(
    backend: Backend,
    kind: type[T],
    select: str,
    where: Sequence[str],
    parameters: Mapping[str, Any],
    order: str,
    limit: int,
) -> list[T]:
    """At most ``limit`` things; every text but the parameters is a constant of these modules."""
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    sql = f"{select}{condition} ORDER BY {order} LIMIT {{limit:UInt32}}"
    rows = await backend.rows(sql, {**parameters, "limit": limit})
    for row in rows:
        row.setdefault("project", "")  # for with_project() to fill in
        for name in _JSON_COLUMNS:
            if name in row:
                row[name] = _value(row[name], kind)
    return msgspec.convert(rows, list[kind])


def _value(text: str, kind: type) -> Any:
    if not text:
        return None if kind is Datapoint else {}
    return msgspec.json.decode(text)


def only(found: Sequence[T]) -> T | None:
    """The one that was found, if any."""
    return found[0] if found else None


async def with_project(backend: Backend, things: Sequence[InProject]) -> list[InProject]:
    """The same with the names of their projects."""
    projects = await find_projects(backend, {thing.project_id for thing in things} - {""})
    names = {project_id: project.name for project_id, project in projects.items()}
    return [structs.replace(thing, project=names.get(thing.project_id, "")) for thing in things]


async def find_projects(backend: Backend, project_ids: Iterable[str]) -> dict[str, Project]:
    """Those of these projects that there are, by id."""
    where = ["project_id IN {among:Array(String)}"]
    found = await read_among(backend, Project, PROJECTS, where, {}, "name", project_ids)
    return {project.project_id: project for project in found}


async def read_among(
    backend: Backend,
    kind: type[T],
    select: str,
    where: Sequence[str],
    parameters: Mapping[str, Any],
    order: str,
    texts: Iterable[str],
) -> list[T]:
    """All things among these: ``{among:Array(String)}`` in a condition, in as many queries as it
    takes. Each text stands for one thing at most."""
    found: list[T] = []
    for chunk in _chunks(texts):
        among = {**parameters, "among": chunk}
        found += await read(backend, kind, select, where, among, order, len(chunk))
    return found


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """As many of them as one query can ask for."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        # Percent-encoded, with quotes and comma.
        length = 3 * len(text.encode()) + 10
        if chunk and (len(chunk) == _PER_QUERY or size + length > _CHARACTERS_PER_QUERY):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += length
    if chunk:
        yield chunk
