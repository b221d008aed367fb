"""The native sink against a real server over TCP: what it stores, and every way it can fail."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from support.faultproxy import BlackHole
from support.nativeproxy import CutRows, DripEnd, LoseEnd, NativeProxy
from support.rows import make_batch, span_lines
from support.servers import DoorServer, OldServer
from support.sinks import failure, off_loop, open_sink, settled

from caribou.sinks._clickhouse_sink import ClickHouseSink
from caribou.sinks.base import (
    Ambiguous,
    Batch,
    Misconfigured,
    Poison,
    Retry,
    TooLarge,
)
from caribou.sinks.clickhouse_reader import ClickHouseReader

pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("error")]


@pytest.fixture
def native_server(old_server: OldServer, database: str) -> OldServer:
    """A real server with the part of the schema that it can hold."""
    old_server.create_tables(database)
    return old_server


async def count(server: OldServer, database: str, table: str = "spans") -> tuple[int, int]:
    """Rows that are stored, and rows that are read."""
    [row] = await off_loop(
        server.rows,
        f"SELECT (SELECT count() FROM {database}.{table}_rows) AS stored,"
        f" (SELECT count() FROM {database}.{table}_rows FINAL) AS seen",
    )
    return int(row["stored"]), int(row["seen"])


# -- storing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
async def test_stores_what_the_server_has_columns_for(
    native_server: OldServer, database: str, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compressed:
        monkeypatch.setattr("caribou.sinks._clickhouse_native.can_compress", lambda: False)
    rows = span_lines(50, content=None) + span_lines(2000, content="ünï\n\0 " * 300)
    batch = make_batch(rows)
    other = make_batch([{"run_id": "r"}, {"run_id": "s", "step_number": 4}], table="traces")
    async with open_sink(native_server.native_url, database) as sink:
        assert not await sink.confirm(batch)
        await asyncio.gather(sink.send(batch), sink.send(other))
        assert await sink.confirm(batch)
        assert await sink.confirm(other)
    stored = await off_loop(
        native_server.rows,
        f"SELECT trace_id, seq, content FROM {database}.spans_rows ORDER BY content IS NULL, seq",
    )
    assert [(row["trace_id"], int(row["seq"]), row["content"]) for row in stored] == [
        (row["trace_id"], row["seq"], row["content"]) for row in rows[50:] + rows[:50]
    ]
    steps = await off_loop(
        native_server.rows, f"SELECT step_number FROM {database}.traces_rows ORDER BY run_id"
    )
    assert [int(row["step_number"]) for row in steps] == [-1, 4]


async def test_a_large_batch_leaves_the_loop_free(native_server: OldServer, database: str) -> None:
    """One block of 12 MB, while the loop turns."""
    batch = make_batch(span_lines(30_000, content="some text " * 30))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with open_sink(native_server.native_url, database) as sink:
        task = asyncio.create_task(turn())
        await sink.send(batch)
        task.cancel()
    assert turns > 200
    assert await count(native_server, database) == (30_000, 30_000)


async def test_nothing_that_was_sent_or_answered_stays_in_memory(
    native_server: OldServer, database: str
) -> None:
    noise = random.Random(7)
    batches = [make_batch(span_lines(20, content=noise.randbytes(12_000).hex())) for _ in range(20)]
    reader = ClickHouseReader(native_server.native_url, database=database)
    held: list[int] = []
    tracemalloc.start()
    try:
        async with open_sink(native_server.native_url, database) as sink:
            for batch in batches:
                await sink.send(batch)
                answer = await reader.query("SELECT content FROM spans_rows LIMIT 20")
                assert answer.count(b"content") == 20
                del answer
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        await reader.aclose()
    # Each is 0.24 MB there and 0.24 MB back, and noise hardly compresses.
    assert held[-1] - held[1] < 500_000


async def test_one_connection_serves_one_insert_after_another(
    native_server: OldServer, database: str
) -> None:
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            for _ in range(5):
                await sink.send(make_batch(span_lines(3)))
            assert proxy.connections == 1
            await asyncio.gather(*(sink.send(make_batch(span_lines(3))) for _ in range(6)))
            assert proxy.connections <= 2
    assert await count(native_server, database) == (33, 33)


async def test_out_of_memory_asks_for_smaller_batches(door: DoorServer, database: str) -> None:
    async with open_sink(door.native_url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(door.control, settings={"max_memory_usage": "5000000"})
        refused = await failure(sink.send(make_batch(span_lines(5000, content="x" * 2000))))
        assert (type(refused), refused.code) == (TooLarge, 241)


# -- what the server says --------------------------------------------------------------------------


async def test_refusals_are_what_they_are_over_http(old_server: OldServer, database: str) -> None:
    good, bad = make_batch(span_lines(1)), make_batch([*span_lines(3), b'{"seq":"x"}'])
    url = old_server.native_url
    async with open_sink(url, database) as sink:
        missing = await failure(sink.send(good))
        assert type(missing) is Misconfigured
        assert missing.code in (60, 81)
        assert type(await failure(sink.confirm(good))) is Misconfigured
        await off_loop(old_server.create_tables, database)
        assert type(await failure(sink.send(bad))) is Poison
        await sink.send(good)
    for user, password, code in (("default", "wrong", 193), ("nobody", "", 192)):
        async with open_sink(url, database, user=user, password=password) as sink:
            refused = await failure(sink.send(good))
            assert (type(refused), refused.code) == (Misconfigured, code)
            assert "CLICKHOUSE_PASSWORD" in refused.reason
            assert "wrong" not in refused.reason
    async with open_sink(url, database, user="reader", password="r") as sink:
        refused = await failure(sink.send(good))
        assert (type(refused), refused.code) == (Misconfigured, 164)
    assert await count(old_server, database) == (1, 1)


async def test_a_connection_that_saw_a_refusal_is_not_used_again(
    native_server: OldServer, database: str
) -> None:
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            await sink.send(make_batch(span_lines(1)))
            assert proxy.connections == 1
            await failure(sink.send(make_batch([b'{"seq":"x"}'])))
            await sink.send(make_batch(span_lines(1)))
            assert proxy.connections == 2
            await off_loop(native_server.sql, f"DROP TABLE {database}.spans_rows")
            await failure(sink.send(make_batch(span_lines(1))))
            assert proxy.connections == 2
            await failure(sink.send(make_batch(span_lines(1))))
            assert proxy.connections == 3


async def test_a_refusal_after_the_rows_were_taken_is_told(
    native_server: OldServer, database: str
) -> None:
    """The server accepts the block and then has no memory for it: no acknowledgement."""
    await off_loop(
        native_server.sql,
        f"CREATE MATERIALIZED VIEW {database}.v ENGINE = Memory AS "
        f"SELECT throwIf(seq = 7) AS x FROM {database}.spans_rows",
    )
    async with open_sink(native_server.native_url, database) as sink:
        await sink.send(make_batch(span_lines(5)))
        refused = await failure(sink.send(make_batch(span_lines(10))))
        assert refused.code > 0
        assert not isinstance(refused, TooLarge)


# -- answers that do not come ----------------------------------------------------------------------


async def test_a_lost_end_is_ambiguous_and_reading_back_finds_the_rows(
    native_server: OldServer, database: str
) -> None:
    batch = make_batch(span_lines(20))
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            await sink.send(make_batch(span_lines(1)))
            proxy.fault(LoseEnd(), times=1)
            assert type(await failure(sink.send(batch))) is Ambiguous
            assert await settled(sink, batch)
            proxy.fault(DripEnd(), times=1)
            await sink.send(make_batch(span_lines(2)))
    assert await count(native_server, database) == (23, 23)


@pytest.mark.parametrize("after", [0, 1, 100, 40_000])
async def test_a_cut_in_the_rows_is_ambiguous_and_nothing_is_stored(
    native_server: OldServer, database: str, after: int
) -> None:
    batch = make_batch(
        [
            row | {"content": random.Random(n).randbytes(300).hex()}
            for n, row in enumerate(span_lines(500))
        ]
    )
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            await sink.send(make_batch(span_lines(1)))
            proxy.fault(CutRows(after), times=1)
            assert type(await failure(sink.send(batch))) is Ambiguous
            assert not await settled(sink, batch)
            assert await count(native_server, database) == (1, 1)
            await sink.send(batch)
            assert await sink.confirm(batch)
    assert await count(native_server, database) == (501, 501)


async def test_a_black_hole_ends_with_the_time_limit(
    native_server: OldServer, database: str
) -> None:
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database, timeout=0.4, connect_timeout=0.3) as sink:
            started = time.monotonic()
            proxy.fault(BlackHole(), every=True)
            assert type(await failure(sink.send(make_batch(span_lines(1))))) is Retry
            proxy.clear()
            await sink.send(make_batch(span_lines(1)))
            proxy.fault(BlackHole())
            assert type(await failure(sink.send(make_batch(span_lines(1))))) is Ambiguous
            assert time.monotonic() - started < 10
            proxy.clear()
            await sink.send(make_batch(span_lines(1)))


async def test_refused_and_unknown_hosts_are_retry(native_server: OldServer, database: str) -> None:
    batch = make_batch(span_lines(3))
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            proxy.refuse()
            assert type(await failure(sink.send(batch))) is Retry
            proxy.accept()
            await sink.send(batch)
            await off_loop(proxy.refuse)
            assert type(await failure(sink.send(batch))) is Retry
            proxy.accept()
            assert await sink.confirm(batch)
    for host in ("host.invalid", "bad..name"):
        async with open_sink(f"clickhouse://{host}:9000", database) as sink:
            assert type(await failure(sink.send(batch))) is Retry


async def test_what_is_no_native_port_is_named(old_server: OldServer, database: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_sink(f"clickhouse://127.0.0.1:{port}", database) as sink:
        refused = await failure(sink.send(make_batch(span_lines(1))))
        assert (type(refused), "9000" in refused.reason) == (Misconfigured, True)
    url = f"clickhouse://127.0.0.1:{old_server.port}"  # HTTP: it waits for the end of a line
    async with open_sink(url, database, connect_timeout=0.3) as sink:
        assert "9000" in (await failure(sink.send(make_batch(span_lines(1))))).reason


# -- stops and kills -------------------------------------------------------------------------------


async def test_a_restart_needs_nothing_of_the_sink(native_server: OldServer, database: str) -> None:
    batch = make_batch(span_lines(50))
    async with open_sink(native_server.native_url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(native_server.stop)
        assert type(await failure(sink.send(batch))) is Retry
        await off_loop(native_server.start)
        await sink.send(batch)
        assert await sink.confirm(batch)
    assert await count(native_server, database) == (51, 51)


@pytest.mark.timeout(180)
async def test_killed_in_mid_insert_each_row_is_read_once(
    native_server: OldServer, database: str
) -> None:
    batches = [make_batch(span_lines(400, content="x" * 200)) for _ in range(60)]
    kills = {5, 20, 40}
    async with open_sink(native_server.native_url, database, timeout=10.0) as sink:
        for number, batch in enumerate(batches):
            sending = asyncio.create_task(deliver(sink, batch))
            if number in kills:
                await asyncio.sleep(random.random() * 0.02)
                await off_loop(native_server.kill)
                await off_loop(native_server.start)
            await sending
        assert all([await sink.confirm(batch) for batch in batches])
    stored, seen = await count(native_server, database)
    assert seen == 60 * 400
    assert stored >= seen


async def deliver(sink: ClickHouseSink[Any], batch: Batch) -> int:
    """As a courier does it; how often it was sent."""
    sent = 0
    in_doubt = False
    while True:
        try:
            if in_doubt and await sink.confirm(batch):
                return sent
            in_doubt = False
            sent += 1
            await sink.send(batch)
            return sent
        except Ambiguous:
            in_doubt = True
        except Retry:
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_after_a_thousand_cancelled_inserts_each_row_is_read_once(
    native_server: OldServer, database: str
) -> None:
    chance = random.Random()
    cancelled = 0
    batches = [make_batch(span_lines(20)) for _ in range(40)]
    with NativeProxy(native_server.native_port) as proxy:
        async with open_sink(proxy.url, database) as sink:
            await sink.send(batches[0])  # the columns are known
            for number in range(1000):
                sending = asyncio.create_task(sink.send(batches[number % 40]))
                for _ in range(chance.randrange(60)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    await asyncio.sleep(chance.random() * 0.004)
                cancelled += sending.cancel()
                await asyncio.wait([sending])
            await asyncio.gather(*(_finish(sink, batch) for batch in batches))
            # Only what ended well is kept; all else was closed.
            assert len(sink._client._idle) <= 2
            await off_loop(_until_closed, proxy)
    stored, seen = await count(native_server, database)
    assert cancelled > 300
    assert seen == 40 * 20
    assert stored >= seen


def _until_closed(proxy: NativeProxy) -> None:
    deadline = time.monotonic() + 10
    while len(proxy._tasks) > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(proxy._tasks) <= 2


async def _finish(sink: ClickHouseSink[Any], batch: Batch) -> None:
    if not await settled(sink, batch):
        await deliver(sink, batch)
        assert await sink.confirm(batch)


# -- TLS -------------------------------------------------------------------------------------------


async def test_a_certificate_is_checked(
    native_server: OldServer,
    certificate: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_batch(span_lines(30))
    with NativeProxy(native_server.native_port, certificate=certificate) as proxy:
        async with open_sink(proxy.url, database) as sink:
            refused = await failure(sink.send(batch))
        assert type(refused) is Misconfigured
        assert "SSL_CERT_FILE" in refused.reason
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with open_sink(proxy.url, database) as sink:
            await sink.send(batch)
            assert await sink.confirm(batch)
        async with open_sink(proxy.url.replace("127.0.0.1", "localhost"), database) as sink:
            refused = await failure(sink.send(batch))  # it is 127.0.0.1's
        assert type(refused) is Misconfigured
    with NativeProxy(native_server.native_port) as proxy:
        proxy.garble()
        url = proxy.url.replace("clickhouse:", "clickhouses:")
        async with open_sink(url, database) as sink:
            refused = await failure(sink.send(batch))
        assert (type(refused), "9440" in refused.reason) == (Retry, True)
    assert await count(native_server, database) == (30, 30)


async def test_plain_text_to_a_port_of_tls_is_no_success(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        options = {"timeout": 0.3, "connect_timeout": 0.3}
        async with open_sink(f"clickhouses://127.0.0.1:{port}", database, **options) as sink:
            assert type(await failure(sink.send(make_batch(span_lines(1))))) is Retry
