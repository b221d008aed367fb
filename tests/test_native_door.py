"""The native protocol and the current engine: schema, rows, queries, commands, the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.kestrel import api, get, remote_backend
from support.nativeproxy import LoseEnd, NativeProxy, RepeatEnd
from support.rows import make_batch, span_lines
from support.servers import DoorServer
from support.sinks import contents, failure, off_loop, open_sink, settled

from caribou.errors import StoreError
from caribou.schema import migrate
from caribou.sinks.base import Ambiguous, Misconfigured, Retry
from caribou.sinks.clickhouse_reader import ClickHouseReader

pytestmark = pytest.mark.asyncio


# -- rows ------------------------------------------------------------------------------------------


async def test_makes_the_schema_stores_and_reads_back(door: DoorServer, database: str) -> None:
    batch = make_batch(span_lines(100, content=[{"type": "text"}]))
    async with open_sink(door.native_url, database) as sink:
        await sink.send(batch)
        assert await sink.confirm(batch)
        assert not await sink.confirm(make_batch(span_lines(1)))
    assert await contents(door, database) == ['[{"type": "text"}]'] * 100


@pytest.mark.parametrize("piece", [1, 20, 60])
async def test_a_block_may_end_where_a_piece_does(
    door: DoorServer, database: str, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """A compressed frame of nothing behind it would be taken for the next packet."""
    monkeypatch.setattr("caribou.sinks._clickhouse_native_connection._PIECE", piece)
    batch = make_batch(span_lines(3))
    async with open_sink(door.native_url, database) as sink:
        await sink.send(batch)
        assert await sink.confirm(batch)


async def test_progress_is_no_acknowledgement(door: DoorServer, database: str) -> None:
    """The engine holds the insert after it has reported progress."""
    batch = make_batch(span_lines(5))
    async with open_sink(door.native_url, database, timeout=1.0) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(door.control, hold=True)
        assert type(await failure(sink.send(batch))) is Ambiguous
        assert type(await failure(sink.confirm(batch))) is Retry
        await off_loop(door.control, hold=False)
        assert await settled(sink, batch)


async def test_a_missing_right_is_named(door: DoorServer, database: str) -> None:
    await off_loop(door.control, deny=["CREATE"])
    async with open_sink(door.native_url, database) as sink:
        refused = await failure(sink.send(make_batch(span_lines(1))))
    assert type(refused) is Misconfigured
    assert "CREATE" in refused.reason


async def test_a_lost_end_is_resolved(door: DoorServer, database: str) -> None:
    batch = make_batch(span_lines(5))
    with NativeProxy(door.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            await sink.send(make_batch(span_lines(1)))
            proxy.fault(LoseEnd(), times=1)
            assert type(await failure(sink.send(batch))) is Ambiguous
            assert await settled(sink, batch)


async def test_what_comes_after_an_end_answers_nothing(door: DoorServer, database: str) -> None:
    batch = make_batch(span_lines(5))
    with NativeProxy(door.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            await sink.send(make_batch(span_lines(1)))
            before = proxy.connections
            proxy.fault(repeat := RepeatEnd(), times=1)
            await sink.send(make_batch(span_lines(1)))
            assert await off_loop(repeat.done.wait, 10)
            await sink.send(batch)
            assert await sink.confirm(batch)
            assert proxy.connections == before + 1


# -- queries ---------------------------------------------------------------------------------------


def reader(door: DoorServer, database: str, **options: Any) -> ClickHouseReader:
    return ClickHouseReader(door.native_url, database=database, **options)


async def test_migrates_and_queries_in_its_database(door: DoorServer, database: str) -> None:
    queries = reader(door, database)
    assert await migrate(queries.execute, database=database)
    assert await migrate(queries.execute, database=database) == []
    assert await queries.query("SELECT count() AS n FROM spans") == b'{"n":0}\n'
    await queries.aclose()


@pytest.mark.parametrize(
    "text",
    [
        "tab\there 'n' back\\slash\nü",
        "",
        "'; DROP TABLE x; --",
        "\\'",
        "\\N",
        "{text:String}",
        "\\",
        "nul \0 in it",
    ],
)
async def test_parameters_stay_values(door: DoorServer, text: str) -> None:
    queries = reader(door, "default", settings={"readonly": "2"})
    values: dict[str, Any] = {"text": text, "xs": [text, "a'b\\"], "n": 3, "number": -0.5}
    sql = (
        "SELECT {text:String} AS text, {xs:Array(String)} AS xs, {n:Int64} AS n,"
        " {number:Float64} AS number, '{text:String}' AS plain -- {text:String}"
    )
    settings = {"output_format_json_quote_64bit_integers": "0"}
    queries._settings |= settings
    answer = json.loads(await queries.query(sql, values))
    assert answer.pop("plain") == "{text:String}"
    assert answer == values
    await queries.aclose()


async def test_a_long_list_of_ids_is_one_parameter(door: DoorServer) -> None:
    ids = [f"it's {number:064x}" for number in range(5000)]
    queries = reader(door, "default", settings={"readonly": "2"})
    answer = await queries.query("SELECT length({ids:Array(String)}) AS n", {"ids": ids})
    assert json.loads(answer) == {"n": 5000}
    await queries.aclose()


async def test_answers_are_the_same_as_over_http(door: DoorServer) -> None:
    sql = (
        "SELECT number AS n, toString(number) AS s, [number, 2] AS xs, map('k', 'v') AS m,"
        " toDateTime64('2026-01-01 00:00:00.123456789', 9, 'UTC') AS t,"
        " if(number = 1, NULL, 1.5) AS f FROM numbers(3) ORDER BY n DESC"
    )
    settings = {"readonly": "2", "date_time_output_format": "iso"}
    native = reader(door, "default", settings=settings)
    http = ClickHouseReader(door.url, database="default", settings=settings)
    for form in ("JSONEachRow", "CSVWithNames"):
        assert await native.query(sql, format=form) == await http.query(sql, format=form)
    compact = json.loads(await native.query(sql, format="JSONCompact"))
    expected = json.loads(await http.query(sql, format="JSONCompact"))
    assert {name: expected[name] for name in compact} == compact
    for sql in (
        "SHOW DATABASES LIKE 'system'",
        "EXISTS DATABASE system",
        "DESCRIBE (SELECT 1 AS x)",
    ):
        found = [json.loads(line) for line in (await native.query(sql)).splitlines()]
        assert found == [json.loads(line) for line in (await http.query(sql)).splitlines()]
    with pytest.raises(StoreError, match="Parquet cannot be had over the native protocol"):
        await native.query("SELECT 1", format="Parquet")
    await native.aclose()
    await http.aclose()


async def test_rows_keep_their_order(door: DoorServer) -> None:
    """Though the query stands within another, and takes several blocks and threads."""
    queries = reader(door, "default")
    sql = "SELECT number * 7919 % 200003 AS n FROM numbers_mt(200003) ORDER BY n DESC"
    answer = await queries.query(sql, format="CSVWithNames")
    assert [int(line) for line in answer.split()[1:]] == list(range(200_002, -1, -1))
    await queries.aclose()


async def test_refusals_are_one_line_with_a_way_out(door: DoorServer, database: str) -> None:
    queries = reader(door, "default", settings={"readonly": "2"})
    with pytest.raises(StoreError, match=r"no_such_table.*caribou migrate"):
        await queries.query("SELECT * FROM no_such_table")
    with pytest.raises(StoreError, match="Syntax error"):
        await queries.query("SELECT FROM WHERE")
    with pytest.raises(StoreError, match="Code: 164"):
        await queries.query("DROP TABLE x")
    with pytest.raises(StoreError, match="caribou migrate"):
        await reader(door, database).query("SELECT 1")
    await queries.aclose()


async def test_a_wrong_password_is_not_shown(locked_door: DoorServer) -> None:
    queries = reader(locked_door, "default", user="agent", password="sesame")
    with pytest.raises(StoreError, match="CLICKHOUSE_PASSWORD") as caught:
        await queries.query("SELECT 1")
    assert "sesame" not in str(caught.value) + repr(queries)
    queries = reader(locked_door, "default", user="agent", password="correct horse")
    assert await queries.query("SELECT 1 AS x") == b'{"x":1}\n'
    await queries.aclose()


# -- commands and the service ----------------------------------------------------------------------

ROLLOUT = """
import caribou.sync as caribou
with caribou.trace_run({"datapoint_id": "dp", "run_id": "run-1", "phase": "train"}):
    caribou.log(caribou.Message(role="user", content="find 'this' word"))
    caribou.log(caribou.Grade(score=0.5))
"""


async def test_commands_work_over_it(door: DoorServer, database: str, tmp_path: Path) -> None:
    environ = os.environ | {
        "CLICKHOUSE_URL": door.native_url,
        "CLICKHOUSE_DATABASE": database,
        "CARIBOU_HOME": str(tmp_path),
    }

    async def run(*command: str) -> str:
        done = await off_loop(
            subprocess.run, [sys.executable, *command],
            env=environ, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    assert "0001_tables" in await run("-m", "caribou", "migrate")
    assert (await run("-c", ROLLOUT)) == ""
    assert json.loads(await run("-m", "caribou", "runs", "--json"))[0]["run_id"] == "run-1"
    [trace] = json.loads(await run("-m", "caribou", "traces", "--json", "--run", "run-1"))
    assert trace["status"] == "COMPLETED"
    assert "find 'this' word" in await run("-m", "caribou", "show", trace["trace_id"])
    counted = await run("-m", "caribou", "sql", "SELECT count() AS n FROM spans", "--format", "csv")
    assert counted == '"n"\n2\n'
    assert "find 'this' word" in await run("-m", "caribou", "export")
    assert "clickhouse://127.0.0.1" in await run("-m", "caribou", "doctor")
    await run("-m", "caribou", "replay")


async def test_the_service_works_over_it(door: DoorServer, database: str) -> None:
    hostile = 'it\'s \\ a\ttab\n"quoted" {x:String} ü'
    backend = remote_backend(door, database, clickhouse_url=door.native_url)
    async with api(backend) as client:
        made = await client.post("/runs", json={"project": hostile, "name": "n", "tags": [hostile]})
        assert made.status_code == 201, made.text
        found = await get(client, "/runs", tag=hostile)
        assert found["items"] == [made.json()]
        put = await client.put("/datapoints/d", json={"project": hostile, "data": {"a": hostile}})
        assert put.status_code in (200, 201), put.text
        [datapoint] = (await get(client, "/datapoints", project=hostile))["items"]
        assert datapoint["data"] == {"a": hostile}
        assert (await get(client, "/traces"))["items"] == []
