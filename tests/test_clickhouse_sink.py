"""The ClickHouse sink against the current engine behind HTTP, and a server of 2018;
its failures are in test_clickhouse_failures."""

from __future__ import annotations

import asyncio
import gc
import traceback
from typing import Any

import pytest
from support.faultproxy import (
    BlackHole,
    CutBody,
    FaultProxy,
    SlowDrip,
)
from support.rows import make_batch, span_lines
from support.servers import DoorServer, OldServer
from support.sinks import contents, failure, off_loop, open_sink

from caribou.errors import ConfigurationError
from caribou.sinks.base import (
    Ambiguous,
    Batch,
    Misconfigured,
    Poison,
    Retry,
)
from caribou.sinks.clickhouse_http import ClickHouseHTTP

pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("error")]


# -- storing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zstd", "none"])
async def test_stores_rows_and_makes_the_schema_on_first_insert(
    door: DoorServer, database: str, compression: str
) -> None:
    batch = make_batch(span_lines(100))
    async with open_sink(door.url, database, compression=compression) as sink:
        await sink.send(batch)
        assert await sink.confirm(batch)
    assert await contents(door, database) == [f"content {number}" for number in range(100)]


async def test_every_table_takes_its_lines(door: DoorServer, database: str) -> None:
    trace = {"run_id": "r", "trace_id": "t", "root_span_id": "s", "start_time": "1790000000.5"}
    lines: dict[str, dict[str, Any]] = {
        "spans": span_lines(1, content=[{"type": "text", "text": "hé"}], late=True)[0],
        "traces": {
            **trace,
            "usage": {"gpt": {"input": 3, "cost_usd": 0.25}},
            "tags": ["a", "b"],
            "metadata": {"k": "v"},
            "score": 0.5,
        },
        "entity_metadata": {
            "entity_type": "trace",
            "entity_id": "t",
            "run_id": "r",
            "key": "k",
            "value": {"nested": [1, None]},
            "value_number": 2.5,
        },
        "trace_tags": {"tag": "a", "run_id": "r", "trace_id": "t"},
        "scores": {"run_id": "r", "trace_id": "t", "span_id": "s", "time": "1790000000.000000001"},
    }
    batches = [make_batch([line], table=table) for table, line in lines.items()]
    async with open_sink(door.url, database) as sink:
        assert sink.tables == set(lines)
        await asyncio.gather(*(sink.send(batch) for batch in batches))
        assert all([await sink.confirm(batch) for batch in batches])

    async def only(table: str) -> dict[str, Any]:
        [row] = await off_loop(door.rows, f"SELECT * FROM {database}.{table}")
        return row

    span = await only("spans")
    assert span["content"] == '[{"type": "text", "text": "h\\u00e9"}]'
    assert (span["step_number"], span["late"]) == (None, True)
    trace_row = await only("traces")
    assert trace_row["usage"] == {"gpt": {"input": 3, "cost_usd": 0.25}}
    assert (trace_row["tags"], trace_row["metadata"]) == (["a", "b"], {"k": "v"})
    assert (await only("entity_metadata"))["value"] == '{"nested": [1, null]}'
    assert (await only("scores"))["time"] == "2026-09-21 14:13:20.000000001"
    assert (await only("trace_tags"))["tag"] == "a"


async def test_a_batch_sent_twice_is_read_once(door: DoorServer, database: str) -> None:
    batch = make_batch(span_lines(10))
    async with open_sink(door.url, database) as sink:
        await sink.send(batch)
        await sink.send(batch)
        assert await sink.confirm(batch)
    assert len(await contents(door, database)) == 10


async def test_both_versions_of_a_span_count_when_read_back(
    door: DoorServer, database: str
) -> None:
    [row] = span_lines(1)
    batch = make_batch([row | {"status": "PENDING"}, row | {"status": "COMPLETED", "version": 1}])
    async with open_sink(door.url, database) as sink:
        await sink.send(batch)
        assert await sink.confirm(batch)
    rows = await off_loop(door.rows, f"SELECT status FROM {database}.spans")
    assert rows == [{"status": "COMPLETED"}]


async def test_rows_of_two_hundred_months_are_one_batch(door: DoorServer, database: str) -> None:
    rows = [
        row | {"start_time": f"{1_000_000_000 + 2_700_000 * row['seq']}.0"}
        for row in span_lines(200)
    ]
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(rows))
    assert len(await contents(door, database)) == 200


async def test_the_view_of_the_journal_is_free_when_send_returns(
    door: DoorServer, database: str
) -> None:
    journal = bytearray(bytes(make_batch(span_lines(2000, content="x" * 400)).data))
    for compression in ("zstd", "none"):
        async with open_sink(door.url, database, compression=compression) as sink:
            batch = Batch("spans", "b-1", 2000, memoryview(journal))
            await sink.send(batch)
        batch.data.release()
        gc.collect()
        journal += b"\n"  # BufferError while anything still exports the buffer
        del journal[-1:]


async def test_at_most_two_connections(proxy: FaultProxy, database: str) -> None:
    async with open_sink(proxy.url, database) as sink:
        await asyncio.gather(*(sink.send(make_batch(span_lines(5))) for _ in range(12)))
    assert proxy.connections <= 2


async def test_a_request_without_an_answer_destroys_its_connection(
    proxy: FaultProxy, database: str
) -> None:
    async with open_sink(proxy.url, database, timeout=1.0) as sink:
        await sink.send(make_batch(span_lines(1)))
        before = proxy.connections
        proxy.fault(SlowDrip(step=1, interval=0.1), times=1)
        assert type(await failure(sink.send(make_batch(span_lines(1))))) is Ambiguous
        await sink.send(make_batch(span_lines(1)))
        assert proxy.connections == before + 1


async def test_cancelled_in_mid_send_and_usable_again(proxy: FaultProxy, database: str) -> None:
    async with open_sink(proxy.url, database) as sink:
        proxy.fault(BlackHole())
        sending = asyncio.ensure_future(sink.send(make_batch(span_lines(1))))
        await off_loop(proxy.wait_for_fault)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        proxy.clear()
        await sink.send(make_batch(span_lines(1)))


# -- rights and credentials ------------------------------------------------------------------------


async def test_a_missing_right_to_create_is_named(door: DoorServer, database: str) -> None:
    await off_loop(door.control, deny=["CREATE DATABASE"])
    async with open_sink(door.url, database) as sink:
        refused = await failure(sink.send(make_batch(span_lines(1))))
        assert type(refused) is Misconfigured
        for part in ("CREATE DATABASE ON *.*", database, "caribou migrate"):
            assert part in refused.reason
        await off_loop(door.control, deny=[])
        await sink.send(make_batch(span_lines(1)))


async def test_a_missing_right_to_insert_is_named(door: DoorServer, database: str) -> None:
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(door.control, deny=["INSERT"])
        refused = await failure(sink.send(make_batch(span_lines(1))))
    assert type(refused) is Misconfigured
    assert "INSERT ON *.*" in refused.reason


async def test_a_dropped_table_is_made_again(door: DoorServer, database: str) -> None:
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(door.sql, f"DROP TABLE {database}.spans_rows")
        await sink.send(make_batch(span_lines(2)))
    assert len(await contents(door, database)) == 2


async def test_a_wrong_password_is_misconfigured_and_shown_nowhere(
    locked_door: DoorServer, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "s3cret-unguessable"
    batch = make_batch(span_lines(1))
    async with open_sink(locked_door.url, database, user="agent", password=secret) as sink:
        refused = await failure(sink.send(batch))
        assert type(refused) is Misconfigured
        assert "CLICKHOUSE_PASSWORD" in refused.reason
        shown = "".join(traceback.format_exception(refused))
        shown += repr(sink) + sink.target + repr(refused) + str(vars(sink))
        assert secret not in shown
    good = "correct horse"
    async with open_sink(locked_door.url, database, user="agent", password=good) as sink:
        await sink.send(batch)
        assert await sink.confirm(batch)
    host = locked_door.url.removeprefix("http://")
    async with open_sink(f"http://agent:correct%20horse@{host}", database) as sink:
        assert "horse" not in sink.target + repr(sink)
        assert await sink.confirm(batch)
    assert secret not in "".join(capfd.readouterr())


async def test_the_password_is_never_in_the_url(proxy: FaultProxy, database: str) -> None:
    async with open_sink(proxy.url, database, user="u", password="hidden-pw") as sink:
        await sink.send(make_batch(span_lines(1)))
    assert proxy.requests
    for request in proxy.requests:
        line, _, rest = request.head.partition(b"\r\n")
        assert b"hidden-pw" not in line
        assert b"hidden-pw" in rest


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("localhost:8123", "CLICKHOUSE_URL"),
        ("ftp://host", "CLICKHOUSE_URL"),
        ("http://", "CLICKHOUSE_URL"),
        ("http://host:port", "CLICKHOUSE_URL"),
        ("http://u:topsecret@host:99999", "CLICKHOUSE_URL"),
        ("http://host:8123/?database=x", "CLICKHOUSE_DATABASE"),
        ("http://user:top%0Asecret@host", "CLICKHOUSE_PASSWORD"),
    ],
)
async def test_a_malformed_address_names_its_variable(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        ClickHouseHTTP(url)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


# -- a real server, of 2018 ------------------------------------------------------------------------


async def test_the_old_server_takes_rows_and_survives_a_restart(
    old_server: OldServer, database: str
) -> None:
    await off_loop(old_server.create_tables, database)
    batch = make_batch(span_lines(50, session_id="s", tags=["a", "b"]))  # no columns
    async with open_sink(old_server.url, database) as sink:
        await sink.send(batch)
        assert not await sink.confirm(batch)  # it cannot mark rows, so it cannot be asked
        await off_loop(old_server.stop)
        assert type(await failure(sink.send(batch))) is Retry
        await off_loop(old_server.start)
        await sink.send(batch)
    [row] = await off_loop(old_server.rows, f"SELECT count() AS n FROM {database}.spans_rows FINAL")
    assert int(row["n"]) == 50


async def test_the_old_server_refuses_in_its_own_words(
    old_server: OldServer, database: str
) -> None:
    url = old_server.url
    good, bad = make_batch(span_lines(1)), make_batch([*span_lines(3), b'{"seq":"x"}'])
    async with open_sink(url, database) as sink:
        missing = await failure(sink.send(good))
        assert type(missing) is Misconfigured
        assert missing.code in (60, 81)
        assert "too old" in missing.reason
        assert "24.8 or newer" in missing.reason
        await off_loop(old_server.create_tables, database)
        poison = await failure(sink.send(bad))
        assert type(poison) is Poison
        assert poison.code in (26, 27)
    async with open_sink(url, database, user="default", password="wrong") as sink:
        assert (await failure(sink.send(good))).code == 193
    async with open_sink(url, database, user="nobody") as sink:
        assert (await failure(sink.send(good))).code == 192
    async with open_sink(url, database, user="reader", password="r") as sink:
        refused = await failure(sink.send(good))
        assert type(refused) is Misconfigured
        assert refused.code == 164


async def test_a_cut_body_on_the_old_server(old_server: OldServer, database: str) -> None:
    await off_loop(old_server.create_tables, database)
    batch = make_batch(span_lines(20))
    with FaultProxy(old_server.port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            for cut in (CutBody(rows=7), CutBody(after=150)):
                proxy.fault(cut, times=1)
                assert type(await failure(sink.send(batch))) is Ambiguous
            proxy.clear()
            await sink.send(batch)
    [row] = await off_loop(old_server.rows, f"SELECT count() AS n FROM {database}.spans_rows FINAL")
    assert int(row["n"]) == 20
