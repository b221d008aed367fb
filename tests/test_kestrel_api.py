"""What every part of the API has in common: refusals, the key, headers, limits, store faults."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.faultproxy import FaultProxy
from support.kestrel import api, remote_backend
from support.servers import DoorServer

from caribou._settings import Settings
from caribou.errors import StoreError
from caribou.server import bodies
from caribou.server.backend import Unavailable
from caribou.server.remote import RemoteBackend

pytestmark = pytest.mark.asyncio

KEY = "correct horse"


@pytest_asyncio.fixture
async def client(door: DoorServer) -> AsyncIterator[httpx.AsyncClient]:
    async with api(remote_backend(door), largest_body=1 << 20) as client:
        yield client


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["type"]) == (status, "about:blank")
    assert found["title"]
    assert found["detail"]
    return found


async def test_what_is_not_there_says_where_to_look(client: httpx.AsyncClient) -> None:
    found = problem(await client.get("/run"), 404)
    assert "openapi.json" in found["hint"]
    answer = await client.delete("/runs")
    assert problem(answer, 405)["allowed"] == ["GET", "HEAD", "POST", "PUT"]
    assert answer.headers["Allow"] == "GET, HEAD, POST, PUT"


@pytest.mark.parametrize(
    ("query", "field", "allowed"),
    [
        ("nam=x", "nam", "status"),
        ("limit=0", "limit", "from 1 to 1000"),
        ("limit=1001", "limit", "from 1 to 1000"),
        ("limit=ten", "limit", "whole number"),
        ("limit=99999999999999999999", "limit", "whole number"),
        ("phase=training", "phase", "train"),
        ("archived=maybe", "archived", "false"),
        ("name=a&name=b", "name", "one value"),
        ("name=a%00b", "name", "NUL"),
        (f"tag={'x' * 1025}", "tag", "1024"),
        ("cursor=garbage", "cursor", "next_cursor"),
        ("cursor=WyJzdGVwcyIsMV0", "cursor", "next_cursor"),
    ],
)
async def test_a_parameter_is_refused_by_name(
    client: httpx.AsyncClient, query: str, field: str, allowed: str
) -> None:
    found = problem(await client.get(f"/runs?{query}"), 400)
    assert found["field"] == field
    assert allowed in str(found["allowed"])


@pytest.mark.parametrize(
    ("path", "body", "field", "given", "allowed"),
    [
        ("/projects", b"{}", "name", None, "required"),
        ("/projects", b'{"name":7}', "name", 7, "str"),
        ("/projects", b'{"name":""}', "name", "", "length >= 1"),
        ("/projects", b'{"name":"a\\u0000b"}', "name", "a\0b", "matching"),
        ("/projects", b'{"name":"p","title":1}', "title", None, "name"),
        ("/projects", b'["p"]', "body", ["p"], "object"),
        ("/projects", b'{"name":7,"x":' + b"[" * 5000, "name", None, "str"),
        ("/projects", b"{", "body", None, "JSON"),
        ("/projects", b"", "body", None, "JSON"),
        ("/projects", b'{"name":"\xff"}', "body", None, "UTF-8"),
        ("/projects", b'{"name":' + b"[" * 5000, "name", None, "str"),
        ("/runs", b'{"phase":"training"}', "phase", "training", "['train', 'eval', 'prod']"),
        ("/runs", b'{"tags":["a",{}]}', "tags.1", {}, "str"),
        ("/runs", b'{"config":[]}', "config", [], "object"),
        ("/runs", b'{"config":{"deep":' + b"[" * 5000, "body", None, "JSON"),
        ("/runs", b'{"project":"a","project_id":"b"}', "project_id", None, "one of them"),
    ],
)
async def test_a_body_is_refused_by_field(
    client: httpx.AsyncClient, path: str, body: bytes, field: str, given: Any, allowed: str
) -> None:
    headers = {"Content-Type": "application/json"}
    found = problem(await client.post(path, content=body, headers=headers), 400)
    assert (found["field"], found.get("given")) == (field, given)
    assert allowed in str(found["allowed"])


async def test_an_item_of_a_batch_is_refused_by_its_number(client: httpx.AsyncClient) -> None:
    items: list[Any] = [{"step_number": 0}, {"step_number": -1}]
    found = problem(await client.put("/runs/r/steps", json={"items": items}), 400)
    assert (found["field"], found["given"]) == ("items.1.step_number", -1)
    items[1] = {"step": 1}
    found = problem(await client.put("/runs/r/steps", json={"items": items}), 400)
    assert (found["field"], found["allowed"]) == ("items.1.step", ["data", "step_number"])
    items = [{"step_number": 0}] * 10_001
    found = problem(await client.put("/runs/r/steps", json={"items": items}), 400)
    assert (found["field"], found["allowed"]) == ("items", "array of length <= 10000")


async def test_sizes_have_limits(client: httpx.AsyncClient) -> None:
    found = problem(await client.post("/projects", json={"name": "x" * (1 << 20)}), 413)
    assert str(1 << 20) in found["allowed"]
    found = problem(await client.post("/projects", json={"name": "x" * 5000}), 400)
    assert len(found["given"]) < 300
    # A line that the parser takes, and the service does not.
    found = problem(await client.get("/runs?name=" + "x" * 9000), 414)
    assert "8192" in found["allowed"]
    found = problem(await client.get("/runs?" + "&".join(["tag=x"] * 101)), 400)
    assert "100" in found["allowed"]
    answer = await client.post("/projects", content=b'{"name":"p"}')
    assert problem(answer, 415)["allowed"] == "application/json"


async def test_a_body_that_does_not_come_is_not_waited_for(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_SECONDS", 0.1)

    host, port = client.base_url.host, client.base_url.port
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            b"POST /api/v1/projects HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        status = await reader.readline()
        writer.close()
    assert b" 408 " in status


async def test_the_key_is_asked_of_every_call(
    door: DoorServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="caribou")
    async with api(remote_backend(door), api_key=KEY) as client:
        for given in (
            None, "", "Bearer", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}",
            f"Bearer {KEY}x", f"Bearer {KEY.upper()}", f"Bearer {KEY} {KEY}", "Bearer caf\xe9",
        ):  # fmt: skip
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            for path in ("/projects", "/openapi.json", "/nothing", "/projects?x=1"):
                answer = await client.get(path, headers=headers)
                assert problem(answer, 401)["field"] == "Authorization"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert KEY not in answer.text
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} {KEY}"}
            assert (await client.get("/projects", headers=headers)).status_code == 200
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "/%61pi/v1/projects", "/api%2Fv1/projects", "//api/v1/projects", "/./api/v1/projects",
        "/x/../api/v1/projects", "/API/v1/projects", "/api/v1/../v1/projects", "api/v1/projects",
        "http://elsewhere/api/v1/projects", "/api/v1/projects?Authorization=Bearer%20correct",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_path_goes_round_the_key(door: DoorServer, path: str) -> None:
    async with api(remote_backend(door), api_key=KEY) as client, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    assert answer.split()[1] in (b"400", b"401", b"404")
    assert b"items" not in answer


async def test_every_answer_is_kept_from_being_taken_for_a_page(client: httpx.AsyncClient) -> None:
    text = "<script>alert(1)</script>\"'><svg onload=alert(1)> javascript:alert(1)"
    made = await client.post("/projects", json={"name": text})
    assert made.json()["name"] == text
    refused = await client.get("/runs", params={text: text})
    assert refused.json()["field"] == text
    for answer in (made, refused, await client.get("/nothing"), await client.delete("/runs")):
        assert answer.headers["Content-Type"].startswith("application/")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "aiohttp" not in answer.headers["Server"].lower()


@pytest.mark.parametrize(
    "text",
    [
        "' OR 1 = 1 --",
        "\\' OR 1 = 1 --",
        "'); DROP TABLE runs_rows; --",
        "{name:String}",
        "x' UNION ALL SELECT * FROM system.users --",
        "\\N",
        "%27 OR %271%27=%271",
        "]\t\n'",
    ],
)
async def test_sql_in_a_filter_is_text(client: httpx.AsyncClient, text: str) -> None:
    run = await client.post("/runs", json={"project": "p", "name": "n", "tags": ["t"]})
    for name in ("project", "project_id", "name", "status", "tag"):
        answer = await client.get("/runs", params={name: text})
        assert answer.json() == {"items": [], "next_cursor": None}
    assert problem(await client.get(f"/runs/{httpx.QueryParams({'': text})}"[:-1]), 404)
    tagged = await client.put("/datapoints/d", json={"project": text, "tags": [text], "data": text})
    for name in ("project", "tag"):
        [found] = (await client.get("/datapoints", params={name: text})).json()["items"]
        assert found == tagged.json()
    assert (found["project"], found["tags"], found["data"]) == (text, [text], text)
    assert (await client.get(f"/runs/{run.json()['run_id']}")).json() == run.json()


async def test_a_store_that_is_away_is_said_and_comes_back(
    door: DoorServer, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    backend = remote_backend(door, clickhouse_url=proxy.url)
    async with api(backend) as client:
        proxy.refuse()
        for answer in (await client.get("/runs"), await client.post("/runs", json={"name": "n"})):
            assert "cannot be reached" in problem(answer, 503)["detail"]
            assert answer.headers["Retry-After"] == "2"
            assert str(proxy.port) not in answer.text
        assert "cannot be reached" in caplog.text
        proxy.accept()
        assert (await client.post("/runs", json={"name": "n"})).status_code == 201
        assert len((await client.get("/runs")).json()["items"]) == 1


async def test_a_refusal_of_the_store_stays_in_the_log(
    door: DoorServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with api(remote_backend(door)) as client:
        assert (await client.get("/runs")).status_code == 200
        door.control(deny=["SELECT"])
        found = problem(await client.get("/runs"), 500)
        assert "privileges" not in str(found)
        assert "privileges" in caplog.text


async def test_the_tables_are_made_by_whoever_comes_first(door: DoorServer, database: str) -> None:
    backends = [remote_backend(door, database) for _ in range(2)]
    sql = "SELECT count() AS n FROM runs"
    answers = await asyncio.gather(*(backend.rows(sql) for backend in backends * 3))
    assert answers == [[{"n": 0}]] * 6
    door.sql(f"DROP DATABASE {database}")
    await backends[0].insert("projects", [{"project_id": "x", "name": "n", "version": 2**64 - 1}])
    assert await backends[1].rows("SELECT name FROM projects") == [{"name": "n"}]
    for backend in backends:
        await backend.aclose()


async def test_a_user_who_may_not_make_tables_is_told_which_right(
    door: DoorServer, database: str
) -> None:
    backend = remote_backend(door, database)
    door.control(deny=["CREATE"])
    with pytest.raises(StoreError, match="caribou migrate"):
        await backend.rows("SELECT * FROM runs")
    door.control(deny=[])
    assert await backend.rows("SELECT * FROM runs") == []
    await backend.aclose()


async def test_what_is_asked_can_only_read(door: DoorServer) -> None:
    backend = remote_backend(door)
    with pytest.raises(StoreError, match="readonly"):
        await backend.rows("DROP TABLE runs_rows")
    assert await backend.rows("SELECT toDateTime64(0, 6, 'UTC') AS t, 2::UInt64 AS n") == [
        {"t": "1970-01-01T00:00:00.000000Z", "n": 2}
    ]
    await backend.aclose()


async def test_credentials_are_sent_and_not_shown(locked_door: DoorServer) -> None:
    async def ask(password: str) -> None:
        settings = Settings(
            clickhouse_url=locked_door.url, clickhouse_user="agent", clickhouse_password=password
        )
        backend = RemoteBackend(settings)
        try:
            assert password not in repr(backend) + backend.description
            assert await backend.rows("SELECT 1 AS x") == [{"x": 1}]
        finally:
            await backend.aclose()

    await ask("correct horse")
    with pytest.raises(StoreError, match="CLICKHOUSE_PASSWORD") as caught:
        await ask("sesame")
    assert "sesame" not in str(caught.value)
    assert not isinstance(caught.value, Unavailable)
