"""Projects, runs, steps and datapoints: registered once however often and by however many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.kestrel import api, remote_backend
from support.servers import DoorServer

from caribou.server.backend import Backend
from caribou.server.embedded import EmbeddedBackend

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(params=["server", "native", "embedded"])
async def client(
    request: pytest.FixtureRequest, door: DoorServer, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """A service over a server by HTTP and by its native protocol, and one over the engine in its
    own process."""
    if request.param == "server":
        backend: Backend = remote_backend(door)
    elif request.param == "native":
        backend = remote_backend(door, clickhouse_url=door.native_url)
    else:
        backend = await EmbeddedBackend.open(tmp_path / "store", tmp_path / "journal", "caribou")
    async with api(backend) as client:
        yield client


async def ok(client: httpx.AsyncClient, method: str, path: str, **body: Any) -> Any:
    answer = await client.request(method, path, json=None if method == "GET" else body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def pages(client: httpx.AsyncClient, path: str, **query: Any) -> list[list[Any]]:
    """Every page of a list."""
    found: list[list[Any]] = []
    cursor = ""
    while True:
        answer = await client.get(path, params={**query, "cursor": cursor})
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["items"])
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


async def test_a_project_is_made_once_by_its_name(client: httpx.AsyncClient) -> None:
    made = await asyncio.gather(*(ok(client, "POST", "/projects", name="alpha") for _ in range(8)))
    again = await ok(client, "POST", "/projects", name="alpha")
    assert {project["project_id"] for project in made} == {again["project_id"]}
    assert await ok(client, "GET", f"/projects/{again['project_id']}") == again
    await ok(client, "POST", "/projects", name="Ünïcode 🦌 'quoted' \\ back\ttab")
    [names] = [[p["name"] for p in page] for page in await pages(client, "/projects")]
    assert names == ["alpha", "Ünïcode 🦌 'quoted' \\ back\ttab"]
    [[found]] = await pages(client, "/projects", name="alpha")
    assert found == again


async def test_a_created_run_is_found_changed_and_archived(client: httpx.AsyncClient) -> None:
    config = {"lr": 1e-5, "deep": {"list": [1, None, "x"]}}
    run = await ok(
        client, "POST", "/runs", project="p", name="first", phase="eval", config=config, tags=["a"]
    )
    assert (run["project"], run["status"], run["config"]) == ("p", "running", config)
    path = f"/runs/{run['run_id']}"
    assert await ok(client, "GET", path) == run
    changed = await ok(client, "PATCH", path, tags=["a", "b"], config={}, name="renamed")
    assert (changed["tags"], changed["config"], changed["name"]) == (["a", "b"], {}, "renamed")
    assert changed["created_at"] == run["created_at"] < changed["updated_at"]
    done = await ok(client, "PATCH", path, finished=True)
    assert (done["status"], done["finished_at"] is None) == ("finished", False)
    assert await ok(client, "PATCH", path, finished=True) == done
    assert [len(page) for page in await pages(client, "/runs")] == [1]
    await ok(client, "PATCH", path, archived=True)
    assert await pages(client, "/runs") == [[]]
    [[archived]] = await pages(client, "/runs", archived="true")
    assert archived["run_id"] == run["run_id"]


async def test_a_time_of_finishing_can_be_set_and_taken_back(client: httpx.AsyncClient) -> None:
    run = await ok(client, "POST", "/runs", name="r")
    path = f"/runs/{run['run_id']}"
    for at in (
        "1970-01-01T00:00:00Z",
        "1999-12-31T23:59:59.500000Z",
        "2026-01-31T12:00:00.123456Z",
        "2261-12-31T23:59:59.999999Z",
    ):
        assert (await ok(client, "PATCH", path, finished_at=at))["finished_at"] == at
        assert (await ok(client, "GET", path))["finished_at"] == at
    assert (await ok(client, "PATCH", path, finished_at=None))["finished_at"] is None
    answer = await client.patch(path, json={"finished_at": "0001-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["field"]) == (400, "finished_at")


async def test_runs_are_got_or_created_by_name_within_a_project(client: httpx.AsyncClient) -> None:
    runs = await asyncio.gather(
        *(ok(client, "PUT", "/runs", project="p", name="n", config={"k": k}) for k in range(8))
    )
    assert len({run["run_id"] for run in runs}) == 1
    stored = await ok(client, "GET", f"/runs/{runs[0]['run_id']}")
    assert await ok(client, "PUT", "/runs", project="p", name="n", config={"k": 99}) == stored
    assert stored["config"] in [{"k": k} for k in range(8)]
    by_id = await ok(client, "PUT", "/runs", project_id=stored["project_id"], name="n")
    assert by_id == stored
    other = await ok(client, "PUT", "/runs", project="q", name="n")
    assert other["run_id"] != stored["run_id"]


async def test_a_creation_that_is_repeated_with_its_key_gives_the_same_run(
    client: httpx.AsyncClient,
) -> None:
    async def create(key: str, name: str) -> str:
        answer = await client.post("/runs", json={"name": name}, headers={"Idempotency-Key": key})
        assert answer.status_code == 201, answer.text
        return answer.json()["run_id"]

    ids = await asyncio.gather(*(create("k1", "n") for _ in range(8)))
    assert len(set(ids)) == 1
    await ok(client, "PATCH", f"/runs/{ids[0]}", status="stopped")
    assert await create("k1", "n") == ids[0]
    assert (await ok(client, "GET", f"/runs/{ids[0]}"))["status"] == "stopped"
    others = [await create("k2", "n"), await create("k1", "another body")]
    assert len({*ids, *others}) == 3


async def test_changes_of_different_fields_at_once_are_all_kept(client: httpx.AsyncClient) -> None:
    run = await ok(client, "POST", "/runs", name="r")
    path = f"/runs/{run['run_id']}"
    changes: list[dict[str, Any]] = [
        {"name": "n"}, {"status": "s"}, {"config": {"c": 1}}, {"tags": ["t"]}, {"archived": True},
    ]  # fmt: skip
    await asyncio.gather(*(ok(client, "PATCH", path, **change) for change in changes))
    stored = await ok(client, "GET", path)
    for change in changes:
        assert change.items() <= stored.items()


async def test_a_registration_never_undoes_an_update(client: httpx.AsyncClient) -> None:
    registered = await ok(client, "PUT", "/runs/train 7%2Fa", phase="train", project="p")
    assert (registered["run_id"], registered["phase"]) == ("train 7/a", "train")
    await ok(client, "PATCH", "/runs/train 7%2Fa", name="named")
    again = await ok(client, "PUT", "/runs/train 7%2Fa", phase="eval", name="other")
    assert (again["name"], again["phase"], again["project"]) == ("named", "train", "p")
    await ok(client, "PUT", "/runs/r/steps/3", data={"loss": 0.5})
    await ok(client, "PUT", "/runs/r/steps", items=[{"step_number": 3}, {"step_number": 4}])
    assert (await ok(client, "PUT", "/runs/r/steps/3"))["data"] == {"loss": 0.5}
    await ok(client, "PUT", "/datapoints/d", data=[1, "two"], tags=["t"])
    await ok(client, "PUT", "/datapoints", items=[{"datapoint_id": "d"}])
    kept = await ok(client, "PUT", "/datapoints/d", tags=["u"])
    assert (kept["data"], kept["tags"]) == ([1, "two"], ["u"])


async def test_runs_are_filtered(client: httpx.AsyncClient) -> None:
    for number in range(6):
        run = await ok(
            client, "POST", "/runs", project=f"p{number % 2}", name=f"n{number}",
            phase="train" if number < 3 else "eval", tags=["even"] if number % 2 == 0 else [],
        )  # fmt: skip
        if number == 5:
            await ok(client, "PATCH", f"/runs/{run['run_id']}", status="failed")

    async def names(**query: Any) -> list[str]:
        return [run["name"] for page in await pages(client, "/runs", **query) for run in page]

    assert await names() == ["n5", "n4", "n3", "n2", "n1", "n0"]
    assert await names(project="p1") == ["n5", "n3", "n1"]
    assert await names(project_id=run["project_id"], phase="eval") == ["n5", "n3"]
    assert await names(status="failed") == ["n5"]
    assert await names(tag="even", phase="train") == ["n2", "n0"]
    assert await names(name="n4") == ["n4"]
    assert await names(name="n4' OR 1 = 1 --") == []


async def test_pages_stay_as_they_were_while_runs_arrive(client: httpx.AsyncClient) -> None:
    ids = [(await ok(client, "POST", "/runs", name=str(n)))["run_id"] for n in range(7)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = (await client.get("/runs", params={"limit": 2, "cursor": cursor})).json()
        assert len(answer["items"]) <= 2
        seen += [run["run_id"] for run in answer["items"]]
        cursor = answer["next_cursor"]
        await ok(client, "POST", "/runs", name="late")
    assert seen == ids[::-1]


async def test_steps_are_listed_in_order(client: httpx.AsyncClient) -> None:
    await ok(client, "PUT", "/runs/r", phase="train")
    assert await pages(client, "/runs/r/steps") == [[]]
    items = [{"step_number": n, "data": {"n": n}} for n in (10, 2, 2**62, 0)]
    answer = await ok(client, "PUT", "/runs/r/steps", items=[*items, items[0]])
    assert answer == {"registered": 4}
    await ok(client, "PUT", "/runs/other/steps/5", data={"n": 5})
    found = await pages(client, "/runs/r/steps", limit=3)
    assert [[step["step_number"] for step in page] for page in found] == [[0, 2, 10], [2**62]]
    assert found[0][1]["data"] == {"n": 2}
    await ok(client, "PUT", "/runs/r/steps/2", data={"n": 3})
    [step] = [s for s in (await pages(client, "/runs/r/steps"))[0] if s["step_number"] == 2]
    assert step["data"] == {"n": 3}
    assert step["created_at"] == found[0][1]["created_at"] < step["updated_at"]


async def test_datapoints_of_many_projects_in_one_call(client: httpx.AsyncClient) -> None:
    project = await ok(client, "POST", "/projects", name="b")
    items = [
        {"datapoint_id": "one", "project": "a", "data": {"q": "?"}, "tags": ["x"]},
        {"datapoint_id": "one", "project_id": project["project_id"], "data": "text"},
        {"datapoint_id": "one"},
        {"datapoint_id": "gsm8k/12"},
        {"datapoint_id": "gsm8k/12", "data": 0},
    ]
    assert await ok(client, "PUT", "/datapoints", items=items) == {"registered": 4}
    of_a = await ok(client, "GET", "/datapoints/one?project=a")
    assert (of_a["data"], of_a["tags"], of_a["project"]) == ({"q": "?"}, ["x"], "a")
    assert (await ok(client, "GET", "/datapoints/one?project=b"))["data"] == "text"
    assert (await ok(client, "GET", "/datapoints/one"))["data"] is None
    assert (await ok(client, "GET", "/datapoints/gsm8k%2F12"))["data"] == 0
    assert [len(page) for page in await pages(client, "/datapoints", limit=3)] == [3, 1]
    for query in ({"project": "a"}, {"tag": "x"}):
        assert await pages(client, "/datapoints", **query) == [[of_a]]
    assert len((await pages(client, "/datapoints", project=""))[0]) == 2


async def test_sixty_four_clients_register_the_same_thousand_datapoints(
    client: httpx.AsyncClient,
) -> None:
    items = [{"datapoint_id": f"d{n}", "project": "p", "tags": ["t"]} for n in range(1000)]
    answers = await asyncio.gather(
        *(client.put("/datapoints", json={"items": items}) for _ in range(64))
    )
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (200, '{"registered":1000}')
    }
    found = [each["datapoint_id"] for page in await pages(client, "/datapoints") for each in page]
    assert len(found) == 1000
    assert set(found) == {f"d{n}" for n in range(1000)}
    assert len((await pages(client, "/projects"))[0]) == 1


async def test_two_services_over_one_database_agree(door: DoorServer, database: str) -> None:
    async with (
        api(remote_backend(door, database)) as one,
        api(remote_backend(door, database)) as two,
    ):
        runs = await asyncio.gather(
            *(ok(c, "PUT", "/runs", project="p", name="n") for c in (one, two) * 4)
        )
        assert len({run["run_id"] for run in runs}) == 1
        await ok(one, "PATCH", f"/runs/{runs[0]['run_id']}", status="s")
        assert (await ok(two, "GET", f"/runs/{runs[0]['run_id']}"))["status"] == "s"


async def test_unknown_ids_say_where_to_look(client: httpx.AsyncClient) -> None:
    for method, path, field in [
        ("GET", "/runs/none", "run_id"),
        ("PATCH", "/runs/none", "run_id"),
        ("GET", "/runs/none/steps", "run_id"),
        ("GET", "/projects/none", "project_id"),
        ("GET", "/datapoints/none", "datapoint_id"),
    ]:
        answer = await client.request(method, path, json={} if method == "PATCH" else None)
        problem = answer.json()
        assert (answer.status_code, problem["field"], problem["given"]) == (404, field, "none")
        assert "/api/v1/" in problem["hint"]
    answer = await client.post("/runs", json={"project_id": "none"})
    assert (answer.status_code, answer.json()["field"]) == (404, "project_id")
    items = [{"datapoint_id": "d"}, {"datapoint_id": "d", "project_id": "none"}]
    answer = await client.put("/datapoints", json={"items": items})
    assert (answer.status_code, answer.json()["field"]) == (404, "items.1.project_id")
