"""Projects, runs, run steps and datapoints over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, UnsetType, structs

from ..kestrel.models import (
    ONE_PROJECT,
    PHASES,
    Datapoint,
    DatapointBatch,
    DatapointItem,
    DatapointUpsert,
    NewProject,
    NewRun,
    Page,
    Project,
    Registered,
    Run,
    RunChanges,
    RunRegistration,
    RunStep,
    RunToGet,
    StepBatch,
    StepItem,
    StepUpsert,
)
from . import registry, registry_items
from ._registry_rows import project_id_of
from .parameters import TIMES, as_utc, read_cursor, write_cursor
from .problems import Problem, not_found
from .routing import PAGE, Call, Query, Route

__all__ = ["routes"]

T = TypeVar("T")

_KEY = "Idempotency-Key"
_LONGEST_KEY = 256


def _page(found: list[T], limit: int, kind: str, key: Callable[[T], Sequence[Any]]) -> Page[T]:
    """A page of ``limit`` of what was found, one more than that when there is another page."""
    items = found[:limit]
    more = len(found) > limit
    return Page(items=items, next_cursor=write_cursor(kind, key(items[-1])) if more else None)


def _after(call: Call, kind: str, types: Sequence[Any]) -> list[Any]:
    cursor = call.query["cursor"]
    return read_cursor(cursor, kind, types) if cursor else []


async def list_projects(call: Call) -> Page[Project]:
    """Projects by name."""
    limit = call.query["limit"]
    found = await registry.list_projects(
        call.backend,
        {"name": call.query["name"]},
        _after(call, "projects", [str]),
        limit + 1,
    )
    return _page(found, limit, "projects", lambda project: [project.name])


async def put_project(call: Call) -> Project:
    """Get or create a project by name."""
    made = await registry.ensure_projects(call.backend, [call.body.name])
    return made[project_id_of(call.body.name)]


async def get_project(call: Call) -> Project:
    """One project."""
    return await _project(call, call.path["project_id"])


async def list_runs(call: Call) -> Page[Run]:
    """Runs, the newest first."""
    limit = call.query["limit"]
    names = ("project_id", "project", "name", "phase", "status", "tag", "archived")
    found = await registry.list_runs(
        call.backend,
        {name: call.query[name] for name in names},
        _after(call, "runs", [Annotated[datetime, Meta(tz=True)], str]),
        limit + 1,
    )
    return _page(found, limit, "runs", lambda run: [run.created_at, run.run_id])


async def create_run(call: Call) -> Run:
    """Create a run; the same key and body give the same run again."""
    key = call.request.headers.get(_KEY, "")
    if len(key) > _LONGEST_KEY:
        raise Problem(
            400, "this key is too long", field=_KEY, allowed=f"at most {_LONGEST_KEY} characters"
        )
    body: NewRun = call.body
    run_id = registry.repeatable_run_id(key, await call.request.read()) if key else ""
    run = registry.new_run(
        run_id,
        await _project_of(call, body.project, body.project_id),
        name=body.name or "",
        phase=body.phase or "",
        config=body.config or {},
        tags=body.tags or [],
    )
    return await (registry.register_run if key else registry.create_run)(call.backend, run)


async def get_or_create_run(call: Call) -> Run:
    """Get or create a run by its name within a project."""
    body: RunToGet = call.body
    project = await _project_of(call, body.project, body.project_id)
    if project is None:
        raise Problem(400, "a field is missing", field="project", allowed="project or project_id")
    run = registry.new_run(
        registry.named_run_id(project.project_id, body.name),
        project,
        name=body.name,
        phase=body.phase or "",
        config=body.config or {},
        tags=body.tags or [],
    )
    return await registry.register_run(call.backend, run)


async def get_run(call: Call) -> Run:
    """One run."""
    run = await registry.find_run(call.backend, call.path["run_id"])
    return run or _no_run(call)


async def change_run(call: Call) -> Run:
    """Change a run."""
    changes: RunChanges = call.body
    if isinstance(changes.finished_at, datetime):
        changes = structs.replace(changes, finished_at=_storable(changes.finished_at))
    run = await registry.update_run(call.backend, call.path["run_id"], changes)
    return run or _no_run(call)


async def register_run(call: Call) -> Run:
    """Register a run under an id of the caller's."""
    body: RunRegistration = call.body
    run = registry.new_run(
        call.path["run_id"],
        await _project_of(call, body.project, UNSET),
        name=body.name or "",
        phase=body.phase or "",
    )
    return await registry.register_run(call.backend, run)


async def list_steps(call: Call) -> Page[RunStep]:
    """A run's steps in order."""
    limit = call.query["limit"]
    run_id = call.path["run_id"]
    after = _after(call, "steps", [int])
    found = await registry_items.list_steps(call.backend, run_id, after, limit + 1)
    if not found and await registry.find_run(call.backend, run_id) is None:
        _no_run(call)
    return _page(found, limit, "steps", lambda step: [step.step_number])


async def put_steps(call: Call) -> Registered:
    """Store many steps of a run."""
    body: StepBatch = call.body
    count = await registry_items.upsert_steps(call.backend, call.path["run_id"], body.items)
    return Registered(registered=count)


async def put_step(call: Call) -> RunStep:
    """Store one step of a run."""
    body: StepUpsert = call.body
    item = StepItem(step_number=call.path["step_number"], data=body.data)
    return await registry_items.upsert_step(call.backend, call.path["run_id"], item)


async def list_datapoints(call: Call) -> Page[Datapoint]:
    """Datapoints by project and id."""
    limit = call.query["limit"]
    found = await registry_items.list_datapoints(
        call.backend,
        {name: call.query[name] for name in ("project_id", "project", "tag")},
        _after(call, "datapoints", [str, str]),
        limit + 1,
    )
    return _page(found, limit, "datapoints", lambda each: [each.project_id, each.datapoint_id])


async def put_datapoints(call: Call) -> Registered:
    """Store many datapoints."""
    body: DatapointBatch = call.body
    named = {item.project for item in body.items if item.project}
    await registry.ensure_projects(call.backend, named)
    given = {item.project_id for item in body.items if item.project_id}
    known = await registry.find_projects(call.backend, given)
    items: list[tuple[str, DatapointItem]] = []
    for number, item in enumerate(body.items):
        if item.project and item.project_id:
            raise _both(f"items.{number}.project_id")
        if item.project_id and item.project_id not in known:
            raise _no_project(item.project_id, f"items.{number}.project_id")
        items.append((item.project_id or project_id_of(item.project or ""), item))
    return Registered(registered=await registry_items.upsert_datapoints(call.backend, items))


async def get_datapoint(call: Call) -> Datapoint:
    """One datapoint."""
    datapoint_id = call.path["datapoint_id"]
    name = call.query["project"]
    found = await registry_items.find_datapoint(call.backend, project_id_of(name), datapoint_id)
    if found is None:
        where = f"in the project {name!r}" if name else "outside projects"
        raise not_found(
            f"datapoint {where}",
            "datapoint_id",
            datapoint_id,
            "name its project as ?project=NAME; GET /api/v1/datapoints lists those there are",
        )
    return found


async def put_datapoint(call: Call) -> Datapoint:
    """Store one datapoint."""
    body: DatapointUpsert = call.body
    project = await _project_of(call, body.project, body.project_id)
    item = DatapointItem(datapoint_id=call.path["datapoint_id"], data=body.data, tags=body.tags)
    project_id = project.project_id if project else ""
    stored = await registry_items.upsert_datapoint(call.backend, project_id, item)
    return stored


async def _project_of(
    call: Call, name: str | UnsetType, project_id: str | UnsetType
) -> Project | None:
    if name and project_id:
        raise _both("project_id")
    if project_id:
        return await _project(call, project_id)
    if name:
        return (await registry.ensure_projects(call.backend, [name]))[project_id_of(name)]
    return None


async def _project(call: Call, project_id: str) -> Project:
    found = await registry.find_projects(call.backend, [project_id])
    if not found:
        raise _no_project(project_id, "project_id")
    return found[project_id]


def _no_project(project_id: str, field: str) -> Problem:
    hint = "POST /api/v1/projects makes one by its name; GET lists those there are"
    return not_found("project", field, project_id, hint)


def _storable(time: datetime) -> datetime:
    stored = as_utc(time)
    if stored is None:
        raise Problem(
            400, "this value cannot be used", field="finished_at", given=time, allowed=TIMES
        )
    return stored


def _both(field: str) -> Problem:
    return Problem(400, "project and project_id are both given", field=field, allowed="one of them")


def _no_run(call: Call) -> Any:
    hint = "GET /api/v1/runs lists those there are; archived ones with ?archived=true"
    raise not_found("run", "run_id", call.path["run_id"], hint)


_ONE = Meta(extra_json_schema={"oneOf": [{"required": ["project"]}, {"required": ["project_id"]}]})
_PROJECT = Query("project", description="The project's name; empty for no project")
_PROJECT_ID = Query("project_id", description="The project's id; empty for no project")
_TAG = Query("tag", description="A tag that it has")
_STEP = Query("step_number", "integer", minimum=0)
_REPEATED = {_KEY: "Any text of the caller's: with the same body it gives the same run again"}

routes: list[Route] = [
    Route(
        "GET", "/projects", list_projects, "Projects by name",
        query=(Query("name", description="The whole name"), *PAGE), answer=Page[Project],
    ),
    Route(
        "POST", "/projects", put_project, "Get or create a project by its name",
        body=NewProject, answer=Project,
    ),
    Route(
        "GET", "/projects/{project_id}", get_project, "One project", answer=Project, refuses=(404,)
    ),
    Route(
        "GET", "/runs", list_runs, "Runs, the newest first",
        query=(
            _PROJECT_ID,
            _PROJECT,
            Query("name", description="The whole name"),
            Query("phase", choices=PHASES),
            Query("status", description="As it was last set; `running` at first"),
            _TAG,
            Query("archived", "flag", "Archived runs, or the others", default=False),
            *PAGE,
        ),
        answer=Page[Run],
    ),
    Route(
        "POST", "/runs", create_run, "Create a run; the service hands out its id", status=201,
        body=Annotated[NewRun, ONE_PROJECT], answer=Run, refuses=(404,), headers=_REPEATED,
    ),
    Route(
        "PUT", "/runs", get_or_create_run, "Get or create a run by its name within a project",
        body=Annotated[RunToGet, _ONE], answer=Run, refuses=(404,),
    ),
    Route("GET", "/runs/{run_id}", get_run, "One run", answer=Run, refuses=(404,)),
    Route(
        "PATCH", "/runs/{run_id}", change_run, "Change a run, finish it, archive it",
        body=RunChanges, answer=Run, refuses=(404,),
    ),
    Route(
        "PUT", "/runs/{run_id}", register_run,
        "Register a run under an id of the caller's; one that exists keeps what it has",
        body=RunRegistration, answer=Run,
    ),
    Route(
        "GET", "/runs/{run_id}/steps", list_steps, "A run's steps in order",
        query=PAGE, answer=Page[RunStep], refuses=(404,),
    ),
    Route(
        "PUT", "/runs/{run_id}/steps", put_steps, "Store many steps of a run",
        body=StepBatch, answer=Registered,
    ),
    Route(
        "PUT", "/runs/{run_id}/steps/{step_number}", put_step, "Store one step of a run",
        parts=(_STEP,), body=StepUpsert, answer=RunStep,
    ),
    Route(
        "GET", "/datapoints", list_datapoints, "Datapoints by project and id",
        query=(_PROJECT_ID, _PROJECT, _TAG, *PAGE), answer=Page[Datapoint],
    ),
    Route(
        "PUT", "/datapoints", put_datapoints, "Store many datapoints",
        body=DatapointBatch, answer=Registered, refuses=(404,),
    ),
    Route(
        "GET", "/datapoints/{datapoint_id}", get_datapoint, "One datapoint",
        query=(Query("project", description="Its project's name", default=""),),
        answer=Datapoint, refuses=(404,),
    ),
    Route(
        "PUT", "/datapoints/{datapoint_id}", put_datapoint, "Store one datapoint",
        body=Annotated[DatapointUpsert, ONE_PROJECT], answer=Datapoint, refuses=(404,),
    ),
]  # fmt: skip
