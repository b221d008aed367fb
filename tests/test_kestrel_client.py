"""Kestrel's client against the real service: what it registers is there, what is there it finds."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.kestrel import remote_backend, serving
from support.servers import DoorServer
from support.serving import serving as running_service
from support.waiting import wait_until

import caribou
import caribou.sync
from caribou import ConfigurationError, InvalidType, InvalidValue, KestrelError
from caribou.kestrel import BlockingKestrelClient, KestrelClient
from caribou.kestrel.models import DatapointItem
from caribou.server.app import create_app

KEY = "k-5ecret"


@pytest_asyncio.fixture
async def url(door: DoorServer) -> AsyncIterator[str]:
    """A service that wants a key, over a database of its own."""
    backend = remote_backend(door)
    async with serving(create_app(backend, api_key=KEY)) as address:
        yield address
    await backend.aclose()


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[KestrelClient]:
    async with KestrelClient(url, KEY) as client:
        yield client


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A service in a process of its own, for callers that block."""
    with running_service(tmp_path / "served", KESTREL_API_KEY=KEY) as service:
        yield service.url


@pytest.mark.asyncio
async def test_projects_are_made_once_and_found(client: KestrelClient) -> None:
    made = await asyncio.gather(*(client.get_or_create_project(name="tundra") for _ in range(8)))
    assert len({project.project_id for project in made}) == 1
    other = await client.get_or_create_project(name="taiga/..")
    assert await client.get_project(other.project_id) == other
    assert [project.name async for project in client.list_projects()] == ["taiga/..", "tundra"]
    assert [project async for project in client.list_projects(name="tundra")] == [made[0]]


@pytest.mark.asyncio
async def test_a_run_from_its_start_to_its_end(client: KestrelClient) -> None:
    run = await client.create_run(
        project="tundra", name="nightly", phase="eval", config={"lr": 0.1, "é": [1]}, tags=["a"]
    )
    assert (run.project, run.name, run.phase) == ("tundra", "nightly", "eval")
    assert (run.config, run.tags, run.finished_at) == ({"lr": 0.1, "é": [1]}, ["a"], None)
    assert run.created_at.tzinfo is not None
    assert await client.get_run(run.run_id) == run

    changed = await client.update_run(run.run_id, status="ok", tags=["b"], finished=True)
    assert (changed.status, changed.tags, changed.config) == ("ok", ["b"], run.config)
    assert changed.finished_at is not None
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert (await client.update_run(run.run_id, finished_at=at)).finished_at == at
    assert (await client.update_run(run.run_id, finished=False)).finished_at is None

    assert (await client.archive_run(run.run_id)).archived
    assert [found async for found in client.list_runs()] == []
    assert [found.run_id async for found in client.list_runs(archived=True)] == [run.run_id]
    assert not (await client.update_run(run.run_id, archived=False)).archived


@pytest.mark.asyncio
async def test_two_creations_are_two_runs_and_one_name_is_one(client: KestrelClient) -> None:
    created = {(await client.create_run(name="same")).run_id for _ in range(2)}
    assert len(created) == 2
    project = await client.get_or_create_project(name="p")
    named = await asyncio.gather(
        *(client.get_or_create_run(name="one", project="p") for _ in range(4)),
        client.get_or_create_run(name="one", project_id=project.project_id, tags=["late"]),
    )
    assert len({run.run_id for run in named}) == 1
    given = await client.register_run("a/b ../é", project="p", phase="train")
    assert (given.run_id, given.project, given.phase) == ("a/b ../é", "p", "train")
    assert await client.get_run("a/b ../é") == given


@pytest.mark.asyncio
@pytest.mark.parametrize("run_id", ["..", ".", "%2e%2e", "?x=1#y", "a\nb", "\U0001f98c"])
async def test_any_text_is_an_id(client: KestrelClient, run_id: str) -> None:
    assert (await client.register_run(run_id)).run_id == run_id
    assert (await client.get_run(run_id)).run_id == run_id
    assert (await client.upsert_datapoint(run_id, data=None)).datapoint_id == run_id


@pytest.mark.asyncio
async def test_steps_one_by_one_and_many(client: KestrelClient) -> None:
    run = await client.create_run()
    step = await client.upsert_run_step(run.run_id, 3, data={"loss": 0.5})
    assert (step.step_number, step.data) == (3, {"loss": 0.5})
    assert await client.upsert_run_steps(run.run_id, [1, {"step_number": 2, "data": {"x": 1}}]) == 2
    assert (await client.upsert_run_step(run.run_id, 3)).data == {"loss": 0.5}
    found = [step async for step in client.list_run_steps(run.run_id, page_size=1)]
    assert [(step.step_number, step.data) for step in found] == [
        (1, {}),
        (2, {"x": 1}),
        (3, {"loss": 0.5}),
    ]


@pytest.mark.asyncio
async def test_datapoints_in_requests_of_ten_thousand(client: KestrelClient) -> None:
    taken = 0

    def ids() -> Iterator[str]:
        nonlocal taken
        for number in range(20_001):
            taken += 1
            yield f"d{number:05}"

    assert await client.upsert_datapoints(ids(), project="p") == 20_001 == taken
    found = [item.datapoint_id async for item in client.list_datapoints(project="p", page_size=999)]
    assert found == [f"d{number:05}" for number in range(20_001)]


@pytest.mark.asyncio
async def test_datapoints_in_every_form(client: KestrelClient) -> None:
    count = await client.upsert_datapoints(
        [
            "text",
            {"datapoint_id": "dict", "data": [1, {"a": None}], "tags": ["t"]},
            {"datapoint_id": "elsewhere", "project": "other"},
            DatapointItem(datapoint_id="item", data="x"),
        ],
        project="p",
    )
    assert count == 4
    assert await client.upsert_datapoints([]) == 0
    found = {item.datapoint_id: item async for item in client.list_datapoints(project="p")}
    assert {name: item.data for name, item in found.items()} == {
        "text": None,
        "dict": [1, {"a": None}],
        "item": "x",
    }
    assert (await client.get_datapoint("elsewhere", project="other")).project == "other"
    assert [item async for item in client.list_datapoints(tag="t")] == [found["dict"]]
    kept = await client.upsert_datapoint("dict", project="p", tags=["u"])
    assert (kept.data, kept.tags) == ([1, {"a": None}], ["u"])


@pytest.mark.asyncio
async def test_pages_one_at_a_time(client: KestrelClient) -> None:
    await client.upsert_datapoints(["a", "b", "c"])
    pages = client.list_datapoints(page_size=2)
    first = await pages.page()
    assert [item.datapoint_id for item in first.items] == ["a", "b"]
    last = await pages.page(first.next_cursor)
    assert [item.datapoint_id for item in last.items] == ["c"]
    assert last.next_cursor is None


@pytest.mark.asyncio
async def test_calls_survive_others_that_are_cancelled_or_close(client: KestrelClient) -> None:
    await client.get_or_create_project(name="p")
    calls = [asyncio.create_task(client.list_runs().page()) for _ in range(100)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in calls[:50]:
        call.cancel()
    await client.aclose()
    rest = await asyncio.gather(*calls[50:])
    assert [page.items for page in rest] == [[]] * 50
    # The places of those cancelled are free again: more calls than there are places.
    async with asyncio.timeout(30):
        await asyncio.gather(*(client.list_runs().page() for _ in range(40)))


@pytest.mark.asyncio
async def test_a_refusal_says_what_is_wrong(client: KestrelClient, url: str) -> None:
    with pytest.raises(KestrelError, match="no such run") as refused:
        await client.get_run("absent")
    assert (refused.value.status, refused.value.field, refused.value.given) == (
        404,
        "run_id",
        "absent",
    )
    assert refused.value.hint is not None
    assert refused.value.hint in str(refused.value)
    with pytest.raises(KestrelError, match=r"field phase.*allowed .*train") as refused:
        await client.create_run(phase="test")  # type: ignore[arg-type]
    assert refused.value.status == 400
    async with KestrelClient(url, "wrong") as stranger:
        with pytest.raises(KestrelError, match="KESTREL_API_KEY") as refused:
            await stranger.create_run()
    assert refused.value.status == 401
    assert "wrong'" not in str(refused.value)


@pytest.mark.asyncio
async def test_what_cannot_be_sent_is_refused_here(client: KestrelClient) -> None:
    with pytest.raises(InvalidType, match=r"upsert_datapoints\(\): item 1: .*str.*datapoint_id"):
        await client.upsert_datapoints(["a", 5])  # type: ignore[list-item]
    with pytest.raises(InvalidType, match=r"item 0: .*unknown field `dta`"):
        await client.upsert_datapoints([{"datapoint_id": "a", "dta": 1}])
    with pytest.raises(InvalidType, match="object"):
        await client.create_run(config={"x": object()})
    with pytest.raises(InvalidType, match="tags must be a list"):
        await client.create_run(tags="abc")
    with pytest.raises(InvalidValue, match="run_id must not be empty"):
        await client.get_run("")
    with pytest.raises(InvalidValue, match="time zone"):
        await client.update_run("r", finished_at=datetime(2026, 1, 1))
    with pytest.raises(InvalidValue, match="not both"):
        await client.upsert_datapoints([], project="a", project_id="b")
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(InvalidValue, match="JSON"):
        await client.upsert_datapoint("d", data=cycle)


def test_the_blocking_client_does_the_same(served: str) -> None:
    with BlockingKestrelClient(KestrelClient(served, KEY)) as client:
        run = client.create_run(project="p", phase="train")
        assert client.upsert_run_steps(run.run_id, range(5)) == 5
        assert [step.step_number for step in client.list_run_steps(run.run_id)] == list(range(5))
        seen = set[str]()

        def ids() -> Iterator[str]:
            for number in range(10_001):
                seen.add(threading.current_thread().name)
                yield str(number)

        assert client.upsert_datapoints(ids(), project="p") == 10_001
        assert seen == {threading.current_thread().name}
        assert len(client.list_datapoints(page_size=10).page().items) == 10
        with pytest.raises(KestrelError, match="no such run"):
            client.get_run("absent")


def test_it_blocks_also_in_a_running_loop(served: str) -> None:
    client = BlockingKestrelClient(KestrelClient(served, KEY))

    async def main() -> str:
        return client.get_or_create_run(name="r", project="p").run_id

    assert asyncio.run(main()) == asyncio.run(main())
    client.close()


def test_loops_and_threads_share_a_client(served: str) -> None:
    client = KestrelClient(served, KEY)
    found: list[str] = []

    async def work() -> None:
        runs = (client.get_or_create_run(name="r", project="p") for _ in range(5))
        found.extend(run.run_id for run in await asyncio.gather(*runs))

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    asyncio.run(work())
    assert (len(found), len(set(found))) == (25, 1)
    # Each loop closed its own connections when it ended.
    assert client._transport._sessions == {}


@pytest.mark.anyio
async def test_any_kind_of_loop(served: str, anyio_backend: object) -> None:
    client = KestrelClient(served, KEY)
    run = await client.create_run(name=str(anyio_backend))
    assert [found async for found in client.list_runs()] == [run]


def test_rollouts_are_found(served: str, tmp_path: Path) -> None:
    caribou.configure("run", "eval", home=tmp_path / "served")
    for number in range(3):
        with caribou.sync.trace_run({"datapoint_id": f"d{number}", "step_number": number}):
            caribou.add_tags("x", f"t{number}")
            caribou.add_meta({"trial": number})
            caribou.log(caribou.Message(role="user", content=f"Elk {number}?"))
            caribou.log(caribou.Grade(score=number / 2))
    caribou.sync.flush()
    client = BlockingKestrelClient(KestrelClient(served, KEY))

    def found(**filters: Any) -> list[str]:
        return [trace.datapoint_id for trace in client.list_traces(**filters, page_size=2)]

    wait_until(lambda: found(run_id="run", status="COMPLETED", sort="score") == ["d0", "d1", "d2"])
    assert found(step_min=1, step_max=1, phase="eval") == ["d1"]
    assert found(tags=["x", "t2"]) == ["d2"]
    assert found(meta={"trial": 0}) == ["d0"]
    assert found(meta_min={"trial": 1}, meta_max={"trial": 1.5}) == ["d1"]
    assert found(score_min=0.4, sort="-score") == ["d2", "d1"]
    assert found(text="Elk 2") == ["d2"]
    assert found(start_max=datetime(2020, 1, 1, tzinfo=UTC)) == []
    [trace] = client.list_traces(datapoint_id="d1")
    assert client.get_trace(trace.trace_id) == trace
    assert (trace.score, trace.tags, trace.metadata) == (0.5, ["x", "t1"], {"trial": "1"})
    spans = list(client.list_spans(trace.trace_id, page_size=1))
    assert [(span.kind, span.content) for span in spans if span.kind != "trace"] == [
        ("message", "Elk 1?"),
        ("grade", None),
    ]
    client.close()


def test_what_is_configured_is_what_is_called(served: str) -> None:
    assert not caribou.get_kestrel_client().enabled
    caribou.configure(kestrel_api_url=served, kestrel_api_key=KEY)
    client = caribou.sync.get_kestrel_client()
    assert client.enabled
    assert client is caribou.sync.get_kestrel_client()
    assert client.asynchronous is caribou.get_kestrel_client()
    assert client.get_or_create_project(name="p").name == "p"
    client.close()


def test_without_a_service_there_is_one_clear_error() -> None:
    client = caribou.sync.get_kestrel_client()
    assert not client.enabled
    for call in (client.create_run, client.list_runs().page, lambda: client.get_run("r")):
        with pytest.raises(ConfigurationError, match="set KESTREL_API_URL"):
            call()
    client.close()


def test_both_clients_have_the_same_calls() -> None:
    names = set(vars(KestrelClient) | vars(KestrelClient.__mro__[1]))
    for name in (name for name in names if not name.startswith("_")):
        ours, theirs = getattr(KestrelClient, name), getattr(BlockingKestrelClient, name)
        assert inspect.getdoc(theirs)
        assert list(inspect.signature(theirs).parameters) == list(
            inspect.signature(ours).parameters
        )


_PROGRAM = """
import asyncio, os, sys, caribou, caribou.sync
async def main():
    run = await caribou.get_kestrel_client().get_or_create_run(name="r", project="p")
    assert caribou.sync.get_kestrel_client().get_run(run.run_id) == run
asyncio.run(main())
asyncio.run(main())
child = os.fork()
if not child:
    asyncio.run(main())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(caribou.sync.get_kestrel_client().list_runs().page().items[0].name)
"""


def test_a_program_that_closes_nothing_ends_quietly_and_forks(served: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM],
        env=os.environ | {"KESTREL_API_URL": served, "KESTREL_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("r\n", "", 0)


def test_without_the_extra_it_says_which() -> None:
    program = """
import sys
sys.modules["httpx"] = None
import caribou.sync as caribou
assert not caribou.get_kestrel_client().enabled
caribou.configure(kestrel_api_url="http://k:1")
try:
    caribou.get_kestrel_client()
except caribou.MissingExtra as missing:
    print(missing)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "calling Kestrel needs httpx: pip install 'caribou-trace[kestrel]'\n"
