"""Run steps and datapoints in the tables of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import UNSET, structs

from ..kestrel.models import Datapoint, DatapointItem, RunStep, StepItem
from ._registry_rows import (
    only,
    read,
    read_among,
    registered,
    row_of,
    text_of,
    updated,
    where_of,
    with_project,
)
from .backend import Backend, Row

__all__ = [
    "find_datapoint",
    "list_datapoints",
    "list_steps",
    "upsert_datapoint",
    "upsert_datapoints",
    "upsert_step",
    "upsert_steps",
]

_STEPS: Final = "SELECT run_id, step_number, data, created_at, updated_at FROM run_steps"
_DATAPOINTS: Final = (
    "SELECT project_id, datapoint_id, data, tags, created_at, updated_at FROM datapoints"
)


async def list_steps(
    backend: Backend, run_id: str, after: Sequence[Any], limit: int
) -> list[RunStep]:
    """In order, of those that come after ``(step_number,)``."""
    where, parameters = where_of({"run_id": run_id})
    if after:
        where.append("step_number > {after:Int64}")
        parameters["after"] = after[0]
    return await read(backend, RunStep, _STEPS, where, parameters, "step_number", limit)


async def upsert_steps(backend: Backend, run_id: str, items: Sequence[StepItem]) -> int:
    """Store steps; those without data are registered, and keep what they have.

    Returns:
        How many different steps these were.
    """
    given: dict[int, Any] = {}
    for item in items:
        if item.data is not UNSET or item.step_number not in given:
            given[item.step_number] = item.data
    found = await _steps(backend, run_id, [n for n, data in given.items() if data is not UNSET])
    now = datetime.now(UTC)
    rows: list[Row] = []
    for number, data in given.items():
        old = found.get(number)
        if old is not None and old.data == data:
            continue
        step = RunStep(
            run_id=run_id,
            step_number=number,
            data={} if data is UNSET else data,
            created_at=old.created_at if old else now,
            updated_at=now,
        )
        text = "" if data is UNSET else text_of(data)
        rows.append(row_of(step) | {"data": text} | (registered() if data is UNSET else updated()))
    if rows:
        await backend.insert("run_steps", rows)
    return len(given)


async def upsert_step(backend: Backend, run_id: str, item: StepItem) -> RunStep:
    """Store one step, and answer what is stored then."""
    await upsert_steps(backend, run_id, [item])
    where, parameters = where_of({"run_id": run_id, "step_number": item.step_number})
    [step] = await read(backend, RunStep, _STEPS, where, parameters, "step_number", 1)
    return step


async def _steps(backend: Backend, run_id: str, numbers: Sequence[int]) -> dict[int, RunStep]:
    where = [
        "run_id = {run_id:String}",
        "step_number IN arrayMap(n -> toInt64(n), {among:Array(String)})",
    ]
    parameters = {"run_id": run_id}
    found = await read_among(
        backend, RunStep, _STEPS, where, parameters, "step_number", map(str, numbers)
    )
    return {step.step_number: step for step in found}


async def list_datapoints(
    backend: Backend, filters: Mapping[str, Any], after: Sequence[Any], limit: int
) -> list[Datapoint]:
    """By project and id, of those that come after ``(project_id, datapoint_id)``."""
    where, parameters = where_of(filters)
    if after:
        where.append("(project_id, datapoint_id) > ({after_project:String}, {after_id:String})")
        parameters |= {"after_project": after[0], "after_id": after[1]}
    order = "project_id, datapoint_id"
    found = await read(backend, Datapoint, _DATAPOINTS, where, parameters, order, limit)
    return await with_project(backend, found)


async def find_datapoint(backend: Backend, project_id: str, datapoint_id: str) -> Datapoint | None:
    """The datapoint, or None."""
    filters = {"project_id": project_id, "datapoint_id": datapoint_id}
    return only(await list_datapoints(backend, filters, (), 1))


async def upsert_datapoints(backend: Backend, items: Sequence[tuple[str, DatapointItem]]) -> int:
    """Store datapoints, each with the id of its project; what an item leaves out is kept.

    Returns:
        How many different datapoints these were.
    """
    given: dict[tuple[str, str], dict[str, Any]] = {}
    for project_id, item in items:
        fields = given.setdefault((project_id, item.datapoint_id), {})
        if item.data is not UNSET:
            fields["data"] = item.data
        if item.tags is not UNSET:
            fields["tags"] = item.tags
    found = await _datapoints(backend, [key for key, fields in given.items() if fields])
    now = datetime.now(UTC)
    rows: list[Row] = []
    for key, fields in given.items():
        new = Datapoint(
            project_id=key[0], project="", datapoint_id=key[1], data=None, tags=[],
            created_at=now, updated_at=now,
        )  # fmt: skip
        old = found.get(key)
        wanted = structs.replace(old or new, **fields)
        if wanted == old:
            continue
        row = row_of(structs.replace(wanted, updated_at=now))
        del row["project"]
        row["data"] = "" if wanted.data is None else text_of(wanted.data)
        rows.append(row | (updated() if fields else registered()))
    if rows:
        await backend.insert("datapoints", rows)
    return len(given)


async def upsert_datapoint(backend: Backend, project_id: str, item: DatapointItem) -> Datapoint:
    """Store one datapoint, and answer what is stored then."""
    await upsert_datapoints(backend, [(project_id, item)])
    filters = {"project_id": project_id, "datapoint_id": item.datapoint_id}
    [stored] = await list_datapoints(backend, filters, (), 1)
    return stored


async def _datapoints(
    backend: Backend, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Datapoint]:
    by_project: dict[str, list[str]] = {}
    for project_id, datapoint_id in keys:
        by_project.setdefault(project_id, []).append(datapoint_id)
    found: dict[tuple[str, str], Datapoint] = {}
    where = ["project_id = {project_id:String}", "datapoint_id IN {among:Array(String)}"]
    for project_id, ids in by_project.items():
        parameters = {"project_id": project_id}
        for each in await read_among(
            backend, Datapoint, _DATAPOINTS, where, parameters, "datapoint_id", ids
        ):
            found[project_id, each.datapoint_id] = each
    return found
