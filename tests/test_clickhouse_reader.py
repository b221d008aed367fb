"""Queries over HTTP: what comes back, and what a refusal says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.faultproxy import Answer, BlackHole, FaultProxy
from support.servers import DoorServer

from caribou.errors import ConfigurationError, StoreError
from caribou.schema import migrate
from caribou.sinks.clickhouse_reader import ClickHouseReader

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def open_reader(url: str, database: str, **options: Any) -> AsyncIterator[ClickHouseReader]:
    reader = ClickHouseReader(url, database=database, **options)
    try:
        yield reader
    finally:
        await reader.aclose()


async def test_migrates_and_queries_in_its_database(door: DoorServer, database: str) -> None:
    async with open_reader(door.url, database) as reader:
        assert await migrate(reader.execute, database=database)
        assert await reader.query("SELECT count() AS n FROM spans") == b'{"n":0}\n'


async def test_parameters_and_formats(door: DoorServer) -> None:
    async with open_reader(door.url, "default") as reader:
        values: dict[str, Any] = {
            "text": "tab\there 'n' back\\slash\nü",
            "xs": ["a'b", "c"],
            "n": 3,
        }
        answer = await reader.query(
            "SELECT {text:String} AS text, {xs:Array(String)} AS xs, {n:Int64} AS n", values
        )
        assert json.loads(answer) == values
        assert await reader.query("SELECT 1, 'a'", format="CSV") == b'1,"a"\n'
        assert (await reader.query("SELECT 1 AS x", format="Parquet")).startswith(b"PAR1")
        assert await reader.query("SELECT 2 FORMAT TSV") == b"2\n"


async def test_rows_that_speak_of_exceptions_are_no_failure(door: DoorServer) -> None:
    text = "Code: 60. DB::Exception: Unknown table\r\n__exception__"
    async with open_reader(door.url, "default") as reader:
        answer = await reader.query("SELECT {text:String} AS text", {"text": text})
    assert json.loads(answer) == {"text": text}


async def test_a_failure_after_the_first_rows_is_one(proxy: FaultProxy) -> None:
    body = (
        b'{"n":1}\n__exception__\r\nabcdef\r\n'
        b"Code: 395. DB::Exception: thrown midway\n40 abcdef\r\n__exception__\r\n"
    )
    proxy.fault(Answer(200, {"X-ClickHouse-Exception-Tag": "abcdef"}, body), every=True)
    async with open_reader(proxy.url, "default") as reader:
        with pytest.raises(StoreError, match="thrown midway"):
            await reader.query("SELECT 1")


async def test_refusals_are_one_line_with_a_way_out(door: DoorServer, database: str) -> None:
    async with open_reader(door.url, "default") as reader:
        with pytest.raises(StoreError, match=r"no_such_table.*caribou migrate"):
            await reader.query("SELECT * FROM no_such_table")
        with pytest.raises(StoreError, match="Syntax error") as caught:
            await reader.query("SELEC 1")
        assert "migrate" not in str(caught.value)
        with pytest.raises(StoreError) as caught:
            await reader.query("SELECT throwIf(1, {text:String})", {"text": "\x1b[31mred\x07"})
        assert str(caught.value).isprintable()


async def test_a_wrong_password_is_not_shown(locked_door: DoorServer) -> None:
    async with open_reader(locked_door.url, "default", user="agent", password="sesame") as reader:
        with pytest.raises(StoreError, match="CLICKHOUSE_PASSWORD") as caught:
            await reader.query("SELECT 1")
    assert "sesame" not in str(caught.value) + repr(reader)


async def test_a_server_that_is_not_there_is_named(proxy: FaultProxy) -> None:
    proxy.refuse()
    async with open_reader(proxy.url, "default") as reader:
        with pytest.raises(StoreError, match=f"127.0.0.1:{proxy.port}"):
            await reader.query("SELECT 1")


async def test_a_server_that_never_answers_is_named(proxy: FaultProxy) -> None:
    proxy.fault(BlackHole(), every=True)
    async with open_reader(proxy.url, "default") as reader:
        with pytest.raises(StoreError, match=f"127.0.0.1:{proxy.port}.*no answer within 0.2 s"):
            await reader.ping(0.2)
        proxy.clear()
        await reader.ping()


async def test_a_malformed_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="CLICKHOUSE_URL"):
        ClickHouseReader("clickhouse.example:8123")
