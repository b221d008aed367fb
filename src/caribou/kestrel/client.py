"""Kestrel's client: projects, runs, steps and datapoints are registered, rollouts are found.

::

    client = caribou.get_kestrel_client()
    run = await client.create_run(project="tundra", name="nightly", phase="eval")
    async for trace in client.list_traces(run_id=run.run_id, score_max=0.5):
        print(trace.trace_id, trace.score)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from msgspec import UNSET

from ..errors import InvalidType, InvalidValue
from ._encoding import (
    batches,
    encode,
    given,
    item_of,
    moment,
    object_of,
    query,
    segment,
    tag_list,
)
from ._pages import Pages
from ._trace_calls import TraceCalls
from .models import (
    Datapoint,
    DatapointItem,
    DatapointUpsert,
    NewProject,
    NewRun,
    Phase,
    Project,
    Run,
    RunChanges,
    RunRegistration,
    RunStep,
    RunToGet,
    StepItem,
    StepUpsert,
)

__all__ = ["KestrelClient", "shared_client"]


class KestrelClient(TraceCalls):
    """Calls Kestrel. May be used from any number of tasks, event loops and threads at once; each
    event loop has connections of its own, which are closed with the loop.

    All calls may be repeated without harm, and are: after failures to connect, lost connections and
    answers that ask to come back, with growing pauses. Every call raises :class:`KestrelError` when
    it is refused or there is no answer in time, :class:`InvalidType` and :class:`InvalidValue` for
    arguments that cannot be sent, and :class:`ConfigurationError` when the client has no URL.
    """

    # Projects

    async def get_or_create_project(self, *, name: str) -> Project:
        """The project of this name, made when there is none."""
        return await self._send("POST", "/projects", NewProject(name=name), Project)

    async def get_project(self, project_id: str) -> Project:
        """The project with this id."""
        part = segment("get_project()", "project_id", project_id)
        return await self._get(f"/projects/{part}", Project)

    def list_projects(self, *, name: str | None = None, page_size: int = 100) -> Pages[Project]:
        """Projects, by name."""
        wanted = query("list_projects()", name=name, limit=page_size)
        return self._pages("/projects", Project, wanted)

    # Runs

    async def create_run(
        self,
        *,
        project: str | None = None,
        project_id: str | None = None,
        name: str | None = None,
        phase: Phase | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
    ) -> Run:
        """Make a run; Kestrel hands out its id.

        Args:
            project: the name of the run's project, which is made when it is new.
            project_id: its id, instead.
            name: what people call the run.
            phase: ``"train"``, ``"eval"`` or ``"prod"``.
            config: anything that JSON can hold, by name.
            tags: texts to find it by.
        """
        call = "create_run()"
        body = NewRun(
            project=given(project),
            project_id=given(project_id),
            name=given(name),
            phase=given(phase),
            config=object_of(call, config),
            tags=tag_list(call, tags),
        )
        return await self._send("POST", "/runs", body, Run)

    async def get_or_create_run(
        self,
        *,
        name: str,
        project: str | None = None,
        project_id: str | None = None,
        phase: Phase | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
    ) -> Run:
        """The run of this name in a project, made with the rest when there is none; one that exists
        is given as it is. For workers that start at once and belong to one run.

        Args:
            name: the run's name.
            project: the name of its project, which is made when it is new.
            project_id: its id, instead.
            phase: ``"train"``, ``"eval"`` or ``"prod"``.
            config: anything that JSON can hold, by name.
            tags: texts to find it by.
        """
        call = "get_or_create_run()"
        body = RunToGet(
            name=name,
            project=given(project),
            project_id=given(project_id),
            phase=given(phase),
            config=object_of(call, config),
            tags=tag_list(call, tags),
        )
        return await self._send("PUT", "/runs", body, Run)

    async def register_run(
        self,
        run_id: str,
        *,
        project: str | None = None,
        name: str | None = None,
        phase: Phase | None = None,
    ) -> Run:
        """Register a run whose id was handed out elsewhere; one that exists keeps what it has.

        Args:
            run_id: its id.
            project: the name of its project, which is made when it is new.
            name: what people call it.
            phase: ``"train"``, ``"eval"`` or ``"prod"``.
        """
        part = segment("register_run()", "run_id", run_id)
        body = RunRegistration(project=given(project), name=given(name), phase=given(phase))
        return await self._send("PUT", f"/runs/{part}", body, Run)

    async def update_run(
        self,
        run_id: str,
        *,
        name: str | None = None,
        status: str | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        finished: bool | None = None,
        finished_at: datetime | None = None,
        archived: bool | None = None,
    ) -> Run:
        """Change a run; what is None stays as it is.

        Args:
            run_id: its id.
            name: what people call it.
            status: any text.
            config: replaces what is there.
            tags: replace those that are there.
            finished: True for finished now, False for not finished.
            finished_at: finished at this time, with its zone.
            archived: whether lists leave it out.
        """
        call = "update_run()"
        part = segment(call, "run_id", run_id)
        if finished is not None and finished_at is not None:
            raise InvalidValue(f"{call} takes finished or finished_at, not both")
        ended: Any = UNSET if finished_at is None else moment(call, "finished_at", finished_at)
        body = RunChanges(
            name=given(name),
            status=given(status),
            config=object_of(call, config),
            tags=tag_list(call, tags),
            finished=True if finished else UNSET,
            finished_at=None if finished is False else ended,
            archived=given(archived),
        )
        return await self._send("PATCH", f"/runs/{part}", body, Run)

    async def archive_run(self, run_id: str) -> Run:
        """Leave a run out of lists; ``update_run(run_id, archived=False)`` takes it back."""
        part = segment("archive_run()", "run_id", run_id)
        return await self._send("PATCH", f"/runs/{part}", RunChanges(archived=True), Run)

    async def get_run(self, run_id: str) -> Run:
        """The run with this id, archived or not."""
        return await self._get(f"/runs/{segment('get_run()', 'run_id', run_id)}", Run)

    def list_runs(
        self,
        *,
        project: str | None = None,
        project_id: str | None = None,
        name: str | None = None,
        phase: Phase | None = None,
        status: str | None = None,
        tag: str | None = None,
        archived: bool = False,
        page_size: int = 100,
    ) -> Pages[Run]:
        """Runs, the newest first; archived ones only when asked for, and then only those."""
        wanted = query(
            "list_runs()",
            project=project,
            project_id=project_id,
            name=name,
            phase=phase,
            status=status,
            tag=tag,
            archived=archived,
            limit=page_size,
        )
        return self._pages("/runs", Run, wanted)

    # Run steps

    async def upsert_run_step(
        self, run_id: str, step_number: int, *, data: Mapping[str, Any] | None = None
    ) -> RunStep:
        """Register a step of a run, with what there is to say of it; without ``data`` a step that
        exists keeps what it has."""
        call = "upsert_run_step()"
        part = segment(call, "run_id", run_id)
        number = _step_number(call, step_number)
        body = StepUpsert(data=object_of(call, data, "data"))
        return await self._send("PUT", f"/runs/{part}/steps/{number}", body, RunStep)

    async def upsert_run_steps(
        self, run_id: str, steps: Iterable[int | Mapping[str, Any] | StepItem]
    ) -> int:
        """Register any number of steps of a run, at most 10,000 a request.

        Args:
            run_id: the run's id.
            steps: their numbers, or dicts with ``step_number`` and ``data``.

        Returns:
            How many were registered.
        """
        call = "upsert_run_steps()"
        path = f"/runs/{segment(call, 'run_id', run_id)}/steps"

        def encoded(number: int, step: Any) -> bytes:
            return encode(call, item_of(call, StepItem, "step_number", number, step, {}))

        return await self._send_batches(path, batches(steps, encoded))

    def list_run_steps(self, run_id: str, *, page_size: int = 100) -> Pages[RunStep]:
        """A run's steps, in order."""
        part = segment("list_run_steps()", "run_id", run_id)
        wanted = query("list_run_steps()", limit=page_size)
        return self._pages(f"/runs/{part}/steps", RunStep, wanted)

    # Datapoints

    async def upsert_datapoint(
        self,
        datapoint_id: str,
        *,
        project: str | None = None,
        project_id: str | None = None,
        data: Any = UNSET,
        tags: Sequence[str] | None = None,
    ) -> Datapoint:
        """Register one datapoint; what is left out of one that exists stays as it is.

        Args:
            datapoint_id: its id.
            project: the name of its project, which is made when it is new.
            project_id: its id, instead.
            data: anything that JSON can hold.
            tags: texts to find it by.
        """
        call = "upsert_datapoint()"
        part = segment(call, "datapoint_id", datapoint_id)
        body = DatapointUpsert(
            project=given(project),
            project_id=given(project_id),
            data=data,
            tags=tag_list(call, tags),
        )
        return await self._send("PUT", f"/datapoints/{part}", body, Datapoint)

    async def upsert_datapoints(
        self,
        items: Iterable[str | Mapping[str, Any] | DatapointItem],
        *,
        project: str | None = None,
        project_id: str | None = None,
    ) -> int:
        """Register any number of datapoints, at most 10,000 a request.

        Args:
            items: their ids, or dicts with ``datapoint_id``, ``data``, ``tags`` and, where it is
                another, ``project`` or ``project_id``. They are read as they are sent, so a
                generator will do.
            project: the name of the project of all that name none.
            project_id: its id, instead.

        Returns:
            How many were registered; one that two requests hold counts twice.
        """
        call = "upsert_datapoints()"
        if project is not None and project_id is not None:
            raise InvalidValue(f"{call} takes project or project_id, not both")
        named = {"project": project, "project_id": project_id}
        defaults = {name: text for name, text in named.items() if text is not None}

        def encoded(number: int, item: Any) -> bytes:
            found = item_of(call, DatapointItem, "datapoint_id", number, item, defaults)
            return encode(call, found)

        return await self._send_batches("/datapoints", batches(items, encoded))

    async def get_datapoint(self, datapoint_id: str, *, project: str | None = None) -> Datapoint:
        """The datapoint with this id in the project of this name; without it, in none."""
        part = segment("get_datapoint()", "datapoint_id", datapoint_id)
        wanted = query("get_datapoint()", project=project)
        return await self._get(f"/datapoints/{part}", Datapoint, wanted)

    def list_datapoints(
        self,
        *,
        project: str | None = None,
        project_id: str | None = None,
        tag: str | None = None,
        page_size: int = 100,
    ) -> Pages[Datapoint]:
        """Datapoints, by project and id."""
        wanted = query(
            "list_datapoints()", project=project, project_id=project_id, tag=tag, limit=page_size
        )
        return self._pages("/datapoints", Datapoint, wanted)


def _step_number(call: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):  # pyright: ignore
        raise InvalidType(f"{call}: step_number must be an int, not {type(number).__name__}")
    if number < 0:
        raise InvalidValue(f"{call}: step_number must be 0 or more, not {number}")
    return number


@lru_cache(maxsize=8)
def shared_client(url: str | None, key: str | None) -> KestrelClient:
    """The one client of this process for a service and a key, so that its connections are used
    again wherever it is asked for."""
    return KestrelClient(url, key)
