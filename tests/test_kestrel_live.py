"""The live stream: rollouts as they start, grow and finish, to many readers, resumed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.servers import DoorServer
from support.serving import Service, rollout, serving
from support.waiting import wait_until

from caribou._settings import Settings
from caribou.server.live import Batch, Filter, Follower, Full, Live
from caribou.server.remote import RemoteBackend

pytest.importorskip("chdb", reason="the embedded engine is not installed")

A, B = "a" * 32, "b" * 32
MOST = 1000


def happened(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What each event tells: a change of a rollout, or what a span says or is."""
    return [data.get("change") or data["content_start"] or data["kind"] for _, data in events]


def test_a_rollout_is_followed_from_its_start_to_its_grade(
    service: Service, service_home: Path
) -> None:
    with service.live() as events:
        events.wait_for_id()
        with rollout(service_home, A, "followed") as running:
            begun = time.monotonic()
            [started] = events.until("trace", change="started", trace_id=A)
            assert time.monotonic() - begun < 2
            assert started[1]["status"] == "PENDING"
            running.say("hello")
            assert happened(events.until("span", trace_id=A)) == ["hello"]
            running.finish()
            rest = events.until("trace", change="finished")
    assert "grade" in happened(rest)
    assert rest[-1][1]["score"] == 1.0
    assert rest[-1][1]["status"] == "COMPLETED"


def test_only_what_was_asked_for_is_told(service: Service, service_home: Path) -> None:
    with (
        service.live("?run_id=wanted") as by_run,
        service.live(f"?trace_id={B}&spans=false") as by_trace,
        rollout(service_home, "c" * 32, "other") as first,
    ):
        by_run.wait_for_id()
        by_trace.wait_for_id()
        first.say("unwanted")
        first.finish()
        with rollout(service_home, B, "wanted") as second:
            # One that starts and finishes between two looks is told of as finished only.
            begun = by_run.until("trace", change="started")
            second.say("wanted")
            second.finish()
        told = happened(begun + by_run.until("trace", change="finished"))
        assert (told[0], told[1]) == ("started", "wanted")
        assert "unwanted" not in told
        assert happened(by_trace.until("trace", change="finished")) == ["started", "finished"]


def test_a_killed_rollout_is_told_of(service: Service, service_home: Path) -> None:
    with service.live("?run_id=killed") as events:
        events.wait_for_id()
        with rollout(service_home, "d" * 32, "killed") as running:
            events.until("trace", change="started")
            running.process.kill()
            told = events.until("trace", change="interrupted")
    assert told[-1][1]["interrupted"] is True
    assert told[-1][1]["status"] == "PENDING"


def test_a_reader_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    with rollout(tmp_path, A) as running:
        with serving(tmp_path) as service, service.live() as events:
            events.wait_for_id()
            running.say("one")
            assert happened(events.until("span"))[-1] == "one"
            assert service.end()[0] == 0
        running.say("two")
        with serving(tmp_path) as service:
            with service.live(last_event_id=events.last_id) as again:
                running.finish()
                told = again.until("trace", change="finished")
            assert happened(told)[0] == "two"
            assert "one" not in happened(told)
            assert "started" not in happened(told)
            # And once more from the same place, now that all is long in the store.
            with service.live(last_event_id=events.last_id) as again:
                assert again.until("trace", change="finished") == told


@pytest.mark.parametrize("given", ["x", "-1", "1" * 19, "1.5"])
def test_an_id_that_is_none_is_refused(service: Service, given: str) -> None:
    status, body = service.request("GET", "/api/v1/live", **{"Last-Event-ID": given})
    problem = json.loads(body)
    assert (status, problem["field"], problem["given"]) == (400, "Last-Event-ID", given)


def test_who_was_away_too_long_is_told_of_the_gap(service: Service) -> None:
    with service.live(last_event_id=1) as events:
        assert next(iter(events)) == ("gap", {})


@pytest.mark.asyncio
async def test_more_readers_than_can_be_served_are_refused(service: Service) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MOST + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MOST + 200), hard))
    request = b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def open_stream() -> tuple[bytes, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(request)
        return await reader.readline(), writer

    streams: list[tuple[bytes, asyncio.StreamWriter]] = []
    for _ in range(0, MOST, 100):
        streams += await asyncio.gather(*(open_stream() for _ in range(100)))
    more = await asyncio.gather(*(open_stream() for _ in range(5)))
    assert {status for status, _ in streams} == {b"HTTP/1.1 200 OK\r\n"}
    assert {status for status, _ in more} == {b"HTTP/1.1 503 Service Unavailable\r\n"}
    assert await asyncio.to_thread(service.metric, "kestrel_live_clients") == MOST
    # The service does its other work meanwhile, and takes new readers when others have left.
    for _, writer in [*streams, *more]:
        writer.close()
    await asyncio.to_thread(wait_until, lambda: service.metric("kestrel_live_clients") < MOST)
    status, writer = await open_stream()
    assert status == b"HTTP/1.1 200 OK\r\n"
    writer.close()


def batch(position: int, *names: str) -> Batch:
    rows = [{"run_id": "r", "trace_id": name, "phase": "eval"} for name in names]
    return Batch(position, (("span", row) for row in rows))


def test_the_last_event_told_of_a_batch_carries_its_position() -> None:
    told = batch(7, "a", "b", "c")
    assert told.select(Filter()).count(b"event: span\n") == 3
    assert told.select(Filter()).endswith(
        b'id: 7\nevent: span\ndata: {"run_id":"r","trace_id":"c","phase":"eval"}\n\n'
    )
    assert told.select(Filter()).count(b"id: 7\n") == 1
    assert told.select(Filter(trace_id="a")).startswith(b"id: 7\nevent: span\n")
    assert told.select(Filter(trace_id="x")) == b""


@pytest.mark.asyncio
async def test_a_reader_that_is_too_slow_is_let_go() -> None:
    follower = Follower(Filter())
    taken = 0
    while follower.offer(batch(taken, "a")):
        taken += 1
    assert 10 < taken < 100
    assert await follower.next() is None


@pytest_asyncio.fixture
async def backend(door: DoorServer, database: str) -> AsyncIterator[RemoteBackend]:
    settings = Settings(clickhouse_url=door.url, clickhouse_database=database)
    backend = RemoteBackend(settings)
    yield backend
    await backend.aclose()


def span(seq: int, ago: float = 0.0) -> dict[str, Any]:
    """A span that was marked with a moment before now."""
    marked = {"ingested_at": f"{time.time() - ago:.3f}"} if ago else {}
    start = f"1790000000.{seq:09d}"
    about = {"run_id": "r", "trace_id": A, "seq": seq, "span_id": f"{seq:016x}", "kind": "event"}
    return {**about, "start_time": start, "content": str(seq), **marked}


def told_by(text: bytes) -> list[int]:
    lines = [line for line in text.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line[6:])["seq"] for line in lines]


@pytest.mark.timeout(60)
@pytest.mark.asyncio
async def test_rows_that_a_server_shows_late_are_told_once(backend: RemoteBackend) -> None:
    live = Live(backend, overlap=3.0, most=2)
    with live.follower(Filter()) as follower:
        start = await live.begin()
        await backend.insert("spans", [span(1), span(2, ago=-0.2)])
        first = await follower.next()
        assert first is not None
        seen = told_by(first.select(Filter()))
        await backend.insert("spans", [span(3, ago=1.5)])
        # A later one shows that the others were not told again before it.
        await backend.insert("spans", [span(4)])
        while 4 not in seen:
            after = await follower.next()
            assert after is not None
            seen += told_by(after.select(Filter()))
        assert sorted(seen) == [1, 2, 3, 4]
        # Whoever comes back is told what came meanwhile, and may be told the last seconds again.
        again = [
            told_by(each.select(Filter())) async for each in live.between(start, start + 10_000)
        ]
        assert {1, 2, 4} <= {seq for page in again for seq in page}


@pytest.mark.asyncio
async def test_no_more_than_the_most_follow(backend: RemoteBackend) -> None:
    live = Live(backend, most=1)
    with live.follower(Filter()):
        with pytest.raises(Full), live.follower(Filter()):
            pass
        assert live.followers == 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(live.follower(Filter()))
