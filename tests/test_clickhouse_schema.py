"""The schema that a ClickHouse sink makes: whatever cuts the making short, it is finished, and what
only people read is no reason to hold rows up."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable

import pytest
from support.faultproxy import Answer, Fault, FaultProxy, Link, Request
from support.rows import make_batch, span_lines
from support.servers import DoorServer
from support.sinks import contents, failure, off_loop, open_sink

from caribou.schema.tables import ALL_TABLES
from caribou.sinks.base import Misconfigured, Retry, SinkError

pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("error")]

BATCH = make_batch(span_lines(1))
VERSION = b"max(version)"
VIEW = b" VIEW "


class Cut(Fault):
    """Hang up instead of answering."""

    async def meet(self, request: Request, link: Link) -> None:
        pass


class Chosen(Fault):
    """Meets each request with the fault that ``choose`` has for it, and passes the others on."""

    def __init__(self, choose: Callable[[Request], Awaitable[Fault | None]]) -> None:
        self._choose = choose

    async def meet(self, request: Request, link: Link) -> None:
        fault = await self._choose(request)
        if fault is not None:
            await fault.meet(request, link)
            return
        answer = await link.forward(request.head + request.body)
        # What meets a request hangs up after it, in any case.
        link.writer.write(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        await link.writer.drain()


class CutAtView:
    """Cuts the first view that is made."""

    def __init__(self) -> None:
        self.met = asyncio.Event()

    async def __call__(self, request: Request) -> Fault | None:
        if VIEW not in request.body or self.met.is_set():
            return None
        self.met.set()
        return Cut()


def refusal(code: int, message: str) -> Answer:
    """What the server says of a statement that failed."""
    headers = {"X-ClickHouse-Exception-Code": str(code), "Connection": "close"}
    return Answer(500, headers, f"Code: {code}. DB::Exception: {message}".encode())


class Refuse:
    """Refuses the statements that have ``part`` in them."""

    def __init__(self, part: bytes, code: int, message: str) -> None:
        self.attempts = 0
        self._part = part
        self._answer = refusal(code, message)

    async def __call__(self, request: Request) -> Fault | None:
        if self._part not in request.body:
            return None
        self.attempts += 1
        return self._answer


async def missing(door: DoorServer, database: str) -> set[str]:
    """Tables and views that are not there."""
    sql = f"SELECT name FROM system.tables WHERE database = '{database}'"
    return set(ALL_TABLES) - {row["name"] for row in await off_loop(door.rows, sql)}


async def test_a_schema_that_another_process_left_unfinished_is_finished(
    door: DoorServer, database: str
) -> None:
    """A process was killed between the tables and the views: inserts do well, and people would
    find no views."""
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
    await off_loop(door.sql, f"DROP VIEW {database}.spans")
    await off_loop(door.sql, f"TRUNCATE TABLE {database}.schema_migrations")
    await off_loop(
        door.sql, f"INSERT INTO {database}.schema_migrations (version, name) VALUES (1, 'x')"
    )
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
    assert await contents(door, database) == ["content 0", "content 0"]


async def test_a_making_that_was_cut_short_is_finished_by_the_same_process(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    cut = CutAtView()
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(cut), every=True)
        assert isinstance(await failure(sink.send(BATCH)), Retry)
        assert cut.met.is_set()
        assert await missing(door, database)
        await sink.send(BATCH)
    assert not await missing(door, database)
    assert await contents(door, database) == ["content 0"]


async def test_so_is_one_after_somebody_dropped_the_tables(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    """All versions count as applied then."""
    async with open_sink(door.url, database) as sink:
        await sink.send(BATCH)
    sql = f"SELECT name, engine FROM system.tables WHERE database = '{database}'"
    for row in await off_loop(door.rows, sql):
        if row["name"] != "schema_migrations":
            kind = "VIEW" if row["engine"] == "View" else "TABLE"
            await off_loop(door.sql, f"DROP {kind} {database}.{row['name']}")
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(CutAtView()), every=True)
        assert isinstance(await failure(sink.send(BATCH)), Retry)
        assert await missing(door, database)
        await sink.send(BATCH)
    assert not await missing(door, database)


@pytest.mark.parametrize("status", [403, 404])
async def test_so_is_one_after_which_a_gateway_refused(
    proxy: FaultProxy, door: DoorServer, database: str, status: int
) -> None:
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(CutAtView()), every=True)
        assert isinstance(await failure(sink.send(BATCH)), Retry)

        async def refuse(request: Request) -> Fault | None:
            return Answer(status, {"Connection": "close"})

        await off_loop(proxy.fault, Chosen(refuse), every=True)
        assert isinstance(await failure(sink.send(BATCH)), Misconfigured)
        await off_loop(proxy.clear)
        await sink.send(BATCH)
    assert not await missing(door, database)


async def test_so_is_one_that_was_cut_while_another_insert_asked(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    """Its question was put when there was nothing, and is answered when the tables are there."""
    cut, asked = CutAtView(), asyncio.Event()
    asks = 0

    async def choose(request: Request) -> Fault | None:
        nonlocal asks
        if VERSION in request.body:
            asks += 1
            if asks == 1:
                await asked.wait()
            elif asks == 2:
                asked.set()
                await cut.met.wait()
                return refusal(60, "No such table")
        return await cut(request)

    async with open_sink(proxy.url, database) as sink:
        assert not await sink.confirm(BATCH)  # Asks for the server's version.
        await off_loop(proxy.fault, Chosen(choose), every=True)
        sent = await asyncio.gather(sink.send(BATCH), sink.send(BATCH), return_exceptions=True)
        assert any(isinstance(error, SinkError) for error in sent)
        assert asks == 2
        await sink.send(BATCH)
    assert not await missing(door, database)


async def test_views_that_cannot_be_made_hold_no_rows_up(
    proxy: FaultProxy, door: DoorServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refuse(VIEW, 344, "No views here")
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(refusing), every=True)
        assert isinstance(await failure(sink.send(BATCH)), Retry)
        with caplog.at_level(logging.WARNING, "caribou"):
            for _ in range(5):
                await sink.send(BATCH)
        [told] = [record.getMessage() for record in caplog.records]
        assert "could be made" in told
        assert "No views here" in told
        assert refusing.attempts < 6
        await off_loop(proxy.clear)
        # A few seconds at most: the pause is longer from attempt to attempt.
        while await missing(door, database):
            await sink.send(BATCH)


@pytest.mark.parametrize("code", [392, 497])
async def test_who_may_make_no_views_is_not_asked_again(
    proxy: FaultProxy, door: DoorServer, database: str, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    refusing = Refuse(VIEW, code, "Not enough privileges")
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(refusing), every=True)
        refused = await failure(sink.send(BATCH))
        assert isinstance(refused, Misconfigured)
        assert "caribou migrate" in refused.reason
        for _ in range(2):
            await sink.send(BATCH)
    assert refusing.attempts == 1
    assert not caplog.records


async def test_tables_that_cannot_be_made_are_tried_once_an_insert(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    refusing = Refuse(b"system.databases", 344, "No tables here")
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(refusing), every=True)
        for _ in range(3):
            assert "No tables here" in (await failure(sink.send(BATCH))).reason
    assert refusing.attempts == 3


async def test_a_version_that_is_not_told_holds_no_rows_up(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    refusing = Refuse(VERSION, 201, "Quota exceeded")
    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(refusing), every=True)
        await sink.send(BATCH)
    assert refusing.attempts == 1
    assert await contents(door, database) == ["content 0"]


async def test_a_making_that_hangs_holds_one_insert_up(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def hang(request: Request) -> Fault | None:
        if VIEW in request.body:
            begun.set()
            await asyncio.to_thread(ended.wait, 10)
        return None

    async with open_sink(proxy.url, database) as sink:
        await off_loop(proxy.fault, Chosen(CutAtView()), every=True)
        assert isinstance(await failure(sink.send(BATCH)), Retry)
        await off_loop(proxy.fault, Chosen(hang), every=True)
        async with asyncio.TaskGroup() as tasks:
            held = tasks.create_task(sink.send(BATCH))
            assert await off_loop(begun.wait, 20)
            await sink.send(BATCH)
            assert not held.done()
            ended.set()
    assert not await missing(door, database)
