"""Traces over HTTP: every filter against a reference in Python, and pages while rows arrive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from support.kestrel import api, get, remote_backend
from support.rollouts import HOSTILE, RUNS, START, Rollout, make_rollouts, store_rollouts
from support.servers import DoorServer

from caribou.server.remote import RemoteBackend

pytestmark = pytest.mark.asyncio

ROLLOUTS = make_rollouts(330)


@pytest.fixture(scope="module")
def stored(_door: DoorServer) -> str:
    """A database with the rollouts in it, for all tests here."""
    database = "test_kestrel_traces"

    async def store() -> None:
        backend = remote_backend(_door, database)
        await store_rollouts(backend, ROLLOUTS)
        await backend.insert("projects", [{"project_id": "p", "name": "shop", "version": 1}])
        await backend.insert("runs", [{"run_id": "eval-1", "project_id": "p", "version": 1}])
        await backend.aclose()

    asyncio.run(store())
    return database


@pytest.fixture(params=["http", "native"])
def backend(request: pytest.FixtureRequest, door: DoorServer, stored: str) -> RemoteBackend:
    url = door.url if request.param == "http" else door.native_url
    return remote_backend(door, stored, clickhouse_url=url)


@pytest_asyncio.fixture
async def client(backend: RemoteBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with api(backend) as client:
        yield client


async def all_pages(client: httpx.AsyncClient, path: str, **query: Any) -> list[Any]:
    found: list[Any] = []
    cursor = ""
    while True:
        if cursor:
            query["cursor"] = cursor
        page = await get(client, path, **query)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def column(name: str, value: Any) -> Callable[[Rollout], bool]:
    return lambda rollout: rollout.trace[name] == value


def number(name: str, low: float, high: float) -> Callable[[Rollout], bool]:
    def holds(rollout: Rollout) -> bool:
        value = rollout.trace[name]
        return value is not None and low <= value <= high

    return holds


def contents(pattern: str) -> Callable[[Rollout], bool]:
    found = re.compile(pattern, re.IGNORECASE | re.ASCII)
    return lambda rollout: any(found.search(content) for content in rollout.contents)


LATER = START + timedelta(hours=9)
FILTERS: list[tuple[dict[str, Any], Callable[[Rollout], bool]]] = [
    ({}, lambda rollout: True),
    *(({"run_id": run}, column("run_id", run)) for run in RUNS),
    ({"project": "shop"}, lambda rollout: rollout.trace["run_id"] in ("shop", "eval-1")),
    ({"step_number": 3}, column("step_number", 3)),
    ({"step_min": 1, "step_max": 2}, number("step_number", 1, 2)),
    ({"step_max": 0}, column("step_number", 0)),
    ({"phase": "prod"}, column("phase", "prod")),
    ({"status": "PENDING"}, column("status", "PENDING")),
    ({"status": ["ERROR", "TRUNCATED"]}, lambda r: r.trace["status"] in ("ERROR", "TRUNCATED")),
    ({"tag": "good"}, lambda rollout: "good" in rollout.trace["tags"]),
    ({"tag": ["good", HOSTILE]}, lambda rollout: {"good", HOSTILE} <= {*rollout.trace["tags"]}),
    ({"meta.trial": "2"}, lambda rollout: rollout.metadata["trial"] == "2"),
    ({"meta.note": HOSTILE}, lambda rollout: rollout.metadata["note"] == HOSTILE),
    ({"meta.trial": "1", "meta.note": "10"}, lambda r: (r.metadata["trial"], r.metadata["note"]) == ("1", "10")),  # noqa: E501
    ({"meta.difficulty.min": "0.25", "meta.difficulty.max": "0.5"}, lambda r: 0.25 <= r.numbers["difficulty"] <= 0.5),  # noqa: E501
    ({"meta.difficulty.min": "0.99"}, lambda r: r.numbers["difficulty"] >= 0.99),
    ({"meta.note": "old"}, lambda rollout: False),
    ({"score_min": 0.25, "score_max": 0.5}, number("score", 0.25, 0.5)),
    ({"score_max": 0}, number("score", 0, 0)),
    ({"grader_name": "judge"}, column("grader_name", "judge")),
    ({"model_name": "policy-a"}, column("model_name", "policy-a")),
    ({"env_name": "retail"}, column("env_name", "retail")),
    ({"datapoint_id": "task-4"}, column("datapoint_id", "task-4")),
    ({"text": "flight"}, contents("flight")),
    ({"text": "FLIGHTS"}, contents("flights")),
    ({"text": "pgrad"}, contents("pgrad")),
    ({"text": "up"}, contents("up")),
    ({"text": "seat upgrade"}, contents("seat upgrade")),
    ({"text": "get_user"}, contents("get_user")),
    ({"text": "getxuser"}, lambda rollout: False),
    ({"text": "t_us"}, contents("t_us")),
    ({"text": "%"}, lambda rollout: False),
    ({"text": "naïve"}, contents("naïve")),
    ({"text": "NAÏVE"}, contents("naïve")),
    ({"text": "ve fl"}, contents("ve fl")),
    ({"text": "退款"}, contents("退款")),
    ({"text": "退票"}, lambda rollout: False),
    ({"text": "marmalade"}, lambda rollout: False),
    ({"start_min": LATER.isoformat()}, lambda r: r.trace["start_time"] >= LATER),
    ({"start_max": LATER.isoformat()}, lambda r: r.trace["start_time"] < LATER),
    ({"run_id": "train-1", "tag": "bad", "meta.trial": "0", "text": "refund", "score_min": 0},
     lambda r: r.trace["run_id"] == "train-1" and "bad" in r.trace["tags"]
     and r.metadata["trial"] == "0" and contents("refund")(r)
     and r.trace["score"] is not None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "holds"),
    FILTERS,
    ids=["&".join(query) + f" {i}" for i, (query, _) in enumerate(FILTERS)],
)
async def test_a_filter_lets_through_what_it_says(
    client: httpx.AsyncClient, query: dict[str, Any], holds: Callable[[Rollout], bool]
) -> None:
    wanted = {rollout.trace["trace_id"] for rollout in ROLLOUTS if holds(rollout)}
    found = await all_pages(client, "/traces", limit=60, **query)
    assert len(found) == len({trace["trace_id"] for trace in found})
    assert {trace["trace_id"] for trace in found} == wanted


@pytest.mark.parametrize("name", ["start_time", "score", "duration_ms", "cost_usd"])
@pytest.mark.parametrize("sign", ["", "-"])
async def test_pages_are_in_order_to_the_end(
    client: httpx.AsyncClient, name: str, sign: str
) -> None:
    found = await all_pages(client, "/traces", limit=23, sort=sign + name)
    known = {rollout.trace["trace_id"]: rollout.trace for rollout in ROLLOUTS}
    values = [known[trace["trace_id"]][name] for trace in found]
    there = [value for value in values if value is not None]
    assert values == sorted(there, reverse=bool(sign)) + [None] * (len(values) - len(there))
    assert sorted(trace["trace_id"] for trace in found) == sorted(known)


async def test_a_trace_is_told_as_it_was_stored(client: httpx.AsyncClient) -> None:
    found = {trace["trace_id"]: trace for trace in await all_pages(client, "/traces", limit=1000)}
    for rollout in ROLLOUTS:
        trace, wanted = found[rollout.trace["trace_id"]], rollout.trace
        same = ["root_span_id", "run_id", "step_number", "status", "score", "duration_ms", "usage"]
        assert [trace[name] for name in same] == [wanted[name] for name in same]
        assert trace["interrupted"] is False
        assert (
            to_microseconds(trace["start_time"]) == f"{wanted['start_time']:%Y-%m-%dT%H:%M:%S.%f}"
        )
        if wanted["status"] != "PENDING":
            assert (trace["tags"], trace["metadata"]) == (wanted["tags"], wanted["metadata"])


def to_microseconds(time: str) -> str:
    """A time of the API without its zone, in microseconds."""
    assert time.endswith("Z")
    whole, _, fraction = time[:-1].partition(".")
    return f"{whole}.{fraction:0<6.6}"


async def test_pages_stay_as_they_are_while_rows_arrive(door: DoorServer) -> None:
    backend = remote_backend(door)
    first, rest = ROLLOUTS[:200], ROLLOUTS[200:]
    await store_rollouts(backend, first)
    wanted = {rollout.trace["trace_id"] for rollout in first}
    async with api(backend) as client:
        for sort in ("-start_time", "start_time"):
            seen: list[str] = []
            query: dict[str, Any] = {"sort": sort, "limit": 17}
            arriving = iter([*rest[::2]] if sort == "-start_time" else [*rest[1::2]])
            while True:
                page = await get(client, "/traces", **query)
                seen += [trace["trace_id"] for trace in page["items"]]
                if page["next_cursor"] is None:
                    break
                query["cursor"] = page["next_cursor"]
                # A new one at each end of the list, and a late version of one that was seen.
                more = [rollout for _, rollout in zip(range(2), arriving, strict=False)]
                await store_rollouts(backend, more) if more else None
                row = {**first[0].trace, "start_time": f"{START:%Y-%m-%d %H:%M:%S}.000000001"}
                if row["step_number"] is None:
                    del row["step_number"]
                await backend.insert("traces", [{**row, "status": "ERROR", "version": len(seen)}])
            assert len(seen) == len(set(seen))
            assert wanted <= set(seen)


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "WzFd",
        "W10",
        "bnVsbA",
        "eyJhIjoxfQ",
        "' OR 1",
        "\udcff".encode("utf-8", "replace").decode(),
    ],
)
async def test_a_cursor_of_something_else_is_refused(
    client: httpx.AsyncClient, cursor: str
) -> None:
    answer = await client.get("/traces", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["field"]) == (400, "cursor")


async def test_a_cursor_belongs_to_its_order(client: httpx.AsyncClient) -> None:
    cursor = (await get(client, "/traces", limit=1))["next_cursor"]
    answer = await client.get("/traces", params={"cursor": cursor, "sort": "score"})
    assert (answer.status_code, answer.json()["field"]) == (400, "cursor")


INJECTIONS = (
    "' OR 1=1 --",
    "') OR ('1'='1",
    "\\') OR 1=1 --",
    "{run_id:String}",
    "x' UNION ALL SELECT * FROM traces_rows --",
    "'; DROP TABLE traces_rows; --",
    "\t', 'PENDING']",
)


@pytest.mark.parametrize("text", INJECTIONS)
async def test_sql_in_a_filter_is_mere_text(client: httpx.AsyncClient, text: str) -> None:
    names = ("run_id", "project", "tag", "meta.trial", f"meta.{text}", "grader_name", "model_name",
             "env_name", "datapoint_id", "text")  # fmt: skip
    for name in names:
        assert (await get(client, "/traces", **{name: text}))["items"] == [], name
        assert (await get(client, "/aggregates/tools", **{name: text}))["items"] == [], name
    for name in ("status", "phase", "sort", "score_min", "step_number", "start_min", "limit",
                 "meta.trial.min"):  # fmt: skip
        answer = await client.get("/traces", params={name: text})
        assert (answer.status_code, answer.json()["field"]) == (400, name)
    part = quote(text, safe="")
    for path in (f"/traces/{part}", f"/traces/{part}/spans"):
        answer = await client.get(path)
        assert answer.status_code == 404, answer.text
    assert len(await all_pages(client, "/traces", limit=1000)) == len(ROLLOUTS)


async def test_one_trace_and_its_records_in_order(client: httpx.AsyncClient) -> None:
    for rollout in ROLLOUTS[:8]:
        path = f"/traces/{rollout.trace['trace_id']}"
        assert (await get(client, path))["status"] == rollout.trace["status"]
        for limit in (1, 3, 100):
            spans = await all_pages(client, f"{path}/spans", limit=limit)
            assert [span["seq"] for span in spans] == [0, 1, 2, 3]
            assert [span["content"] for span in spans] == [*rollout.contents, None]
            assert {span["step_number"] for span in spans} == {rollout.trace["step_number"]}


async def test_a_trace_is_found_by_the_id_that_was_given(door: DoorServer, stored: str) -> None:
    backend = remote_backend(door, stored)
    trace = ROLLOUTS[0].trace
    row = {"entity_type": "trace", "key": "given_trace_id", "run_id": trace["run_id"]}
    row |= {"entity_id": trace["trace_id"], "value": "my 'own' id", "version": 1}
    await backend.insert("entity_metadata", [row])
    async with api(backend) as client:
        assert (await get(client, "/traces/my 'own' id"))["trace_id"] == trace["trace_id"]


async def test_metadata_that_was_changed_is_found_by_its_last_value(door: DoorServer) -> None:
    backend = remote_backend(door)
    # Enough for several pages of traces that all had the value once.
    ids = [f"{number:032x}" for number in range(1, 400)]
    traces = [
        {
            "run_id": "r",
            "trace_id": id,
            "root_span_id": id[:16],
            "start_time": f"{1_790_000_000 + n}",
            # Those that are over know what was changed, those that go on do not.
            "status": "PENDING" if n % 3 else "COMPLETED",
            "metadata": {"kept": "7" if n % 3 or id[-1] == "0" else "many"},
        }
        for n, id in enumerate(ids)
    ]
    await backend.insert("traces", traces)
    about = {"entity_type": "trace", "key": "kept", "run_id": "r"}
    had = [{**about, "entity_id": id, "value": "7", "value_number": 7, "version": 1} for id in ids]
    await backend.insert("entity_metadata", had)
    changed = [
        {**about, "entity_id": id, "value": "many", "version": 2} for id in ids if id[-1] > "0"
    ]
    await backend.insert("entity_metadata", changed)
    left = {id for id in ids if id[-1] == "0"}
    async with api(backend) as client:
        for given, wanted in (
            ({"meta.kept": "7"}, left),
            ({"meta.kept.min": "6.5", "meta.kept.max": "7"}, left),
            ({"meta.kept": "many"}, {*ids} - left),
            ({"meta.kept": "8"}, set[str]()),
        ):
            found = await all_pages(client, "/traces", limit=10, **given)
            assert len(found) == len(wanted)
            assert {trace["trace_id"] for trace in found} == wanted
            by_step = await get(client, "/aggregates/steps", **given)
            assert sum(step["traces"] for step in by_step["items"]) == len(wanted)


async def test_large_records_make_short_pages(door: DoorServer) -> None:
    backend = remote_backend(door)
    about = {"run_id": "r", "trace_id": "cd" * 16, "start_time": "2026-01-01 00:00:00"}
    sizes = [1, 7 << 20, 7 << 20, 7 << 20, 17 << 20, 1]
    for seq, size in enumerate(sizes):
        await backend.insert(
            "spans", [{**about, "seq": seq, "span_id": f"{seq:016x}", "content": "x" * size}]
        )
    pages: list[list[int]] = []
    async with api(backend) as client:
        cursor: dict[str, str] | None = {}
        while cursor is not None:
            page = await get(client, f"/traces/{'cd' * 16}/spans", limit=1000, **cursor)
            pages.append([span["seq"] for span in page["items"]])
            assert all(len(span["content"]) == sizes[span["seq"]] for span in page["items"])
            cursor = {"cursor": page["next_cursor"]} if page["next_cursor"] else None
    assert pages == [[0, 1, 2], [3], [4], [5]]


async def test_records_without_a_summary_are_shown(door: DoorServer) -> None:
    backend = remote_backend(door)
    row = {"run_id": "r", "trace_id": "ab" * 16, "seq": 0, "span_id": "01" * 8}
    await backend.insert("spans", [{**row, "start_time": "2026-01-01 00:00:00", "content": "hi"}])
    async with api(backend) as client:
        assert [s["content"] for s in await all_pages(client, f"/traces/{'ab' * 16}/spans")] == [
            "hi"
        ]
        assert (await client.get(f"/traces/{'ab' * 16}")).status_code == 404
