"""Projects and runs in the tables of the registry; see also ``registry_items``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import UNSET, structs

from ..kestrel.models import Project, Run, RunChanges
from ._registry_rows import (
    PROJECTS,
    find_projects,
    made_id,
    micros,
    only,
    project_id_of,
    read,
    registered,
    row_of,
    text_of,
    updated,
    where_of,
    with_project,
)
from .backend import Backend, Row

__all__ = [
    "create_run",
    "ensure_projects",
    "find_projects",
    "find_run",
    "list_projects",
    "list_runs",
    "named_run_id",
    "new_run",
    "register_run",
    "repeatable_run_id",
    "update_run",
]

_RUNS: Final = (
    "SELECT run_id, project_id, name, phase, status, config, tags, created_at, updated_at, "
    "finished_at, archived FROM runs"
)

_updating: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()


def named_run_id(project_id: str, name: str) -> str:
    """The id of the run that is got or created by this name."""
    return made_id("run", project_id, name)


def repeatable_run_id(key: str, body: bytes) -> str:
    """The id of a run whose creation may be asked for again with the same key and body."""
    return hashlib.blake2b(
        b"created\0" + len(body).to_bytes(8) + body + key.encode("utf-8", "surrogateescape"),
        digest_size=16,
    ).hexdigest()


async def list_projects(
    backend: Backend, filters: Mapping[str, Any], after: Sequence[Any], limit: int
) -> list[Project]:
    """By name, of those that come after ``(name,)``."""
    where, parameters = where_of(filters)
    if after:
        where.append("name > {after:String}")
        parameters["after"] = after[0]
    return await read(backend, Project, PROJECTS, where, parameters, "name", limit)


async def ensure_projects(backend: Backend, names: Iterable[str]) -> dict[str, Project]:
    """The projects of these names, by id, made where they are not there yet; an empty name is
    no project."""
    wanted = {project_id_of(name): name for name in names if name}
    found = await find_projects(backend, wanted)
    now = datetime.now(UTC)
    new = {
        project_id: Project(project_id=project_id, name=name, created_at=now)
        for project_id, name in wanted.items()
        if project_id not in found
    }
    if new:
        rows = [row_of(project) | registered() for project in new.values()]
        await backend.insert("projects", rows)
        # Somebody else may have been first; and a replica may not know of it yet.
        found = new | await find_projects(backend, wanted)
    return found


async def list_runs(
    backend: Backend, filters: Mapping[str, Any], after: Sequence[Any], limit: int
) -> list[Run]:
    """The newest first, of those that come after ``(created_at, run_id)``."""
    where, parameters = where_of(filters)
    if after:
        where.append(
            "(created_at, run_id) < "
            "(fromUnixTimestamp64Micro({after_time:Int64}, 'UTC'), {after_id:String})"
        )
        parameters |= {"after_time": micros(after[0]), "after_id": after[1]}
    order = "created_at DESC, run_id DESC"
    runs = await read(backend, Run, _RUNS, where, parameters, order, limit)
    return await with_project(backend, runs)


async def find_run(backend: Backend, run_id: str) -> Run | None:
    """The run, or None."""
    where, parameters = where_of({"run_id": run_id})
    runs = await read(backend, Run, _RUNS, where, parameters, "run_id", 1)
    return only(await with_project(backend, runs))


def new_run(
    run_id: str,
    project: Project | None,
    *,
    name: str = "",
    phase: str = "",
    config: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
) -> Run:
    """A run that begins now; without an id it gets one that nobody has."""
    now = datetime.now(UTC)
    return Run(
        run_id=run_id or os.urandom(16).hex(),
        project_id=project.project_id if project else "",
        project=project.name if project else "",
        name=name,
        phase=phase,
        status="running",
        config=dict(config or {}),
        tags=list(tags),
        created_at=now,
        updated_at=now,
        finished_at=None,
        archived=False,
    )


async def create_run(backend: Backend, run: Run) -> Run:
    """Store a run under an id that is new."""
    await backend.insert("runs", [_run_row(run) | registered()])
    return run


async def register_run(backend: Backend, run: Run) -> Run:
    """Store a run unless there is one of its id, and answer what is there then."""
    found = await find_run(backend, run.run_id)
    if found is None:
        await create_run(backend, run)
        found = await find_run(backend, run.run_id)
    return found or run


async def update_run(backend: Backend, run_id: str, changes: RunChanges) -> Run | None:
    """Change what is given; None when there is no such run."""
    # Two updates of different fields would each write the other's back. Of several services, each
    # has its own lock; there the last one holds.
    lock = _updating.setdefault(run_id, asyncio.Lock())
    async with lock:
        run = await find_run(backend, run_id)
        if run is None:
            return None
        given = {
            name: value
            for name, value in structs.asdict(changes).items()
            if value is not UNSET and name != "finished"
        }
        now = datetime.now(UTC)
        if changes.finished is not UNSET:
            given.setdefault("finished_at", run.finished_at or now)
            if run.status == "running":
                given.setdefault("status", "finished")
        changed = structs.replace(run, **given)
        if changed != run:
            changed = structs.replace(changed, updated_at=now)
            await backend.insert("runs", [_run_row(changed) | updated()])
        return changed


def _run_row(run: Run) -> Row:
    row = row_of(run)
    del row["project"]
    return row | {"config": text_of(run.config)}
