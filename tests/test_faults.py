"""Faults on the wire: nothing lost, nothing doubled as read, deadlines kept, accounts right."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from support.faultproxy import FaultProxy
from support.faulty import (
    AGENTS,
    RECORDS,
    ROWS,
    account,
    agents,
    check_stored,
    configure,
    run_through,
)
from support.langfuse import Langfuse, settings
from support.nativeproxy import NativeProxy
from support.otlp import Receiver
from support.readback import differences
from support.scenarios import ON_THE_NATIVE_WIRE, ON_THE_WIRE, RESTARTED, Scenario
from support.servers import DoorServer, OldServer, Server
from support.waiting import wait_until

import caribou
from caribou import _process
from caribou.delivery.dead_letters import read_dead_letters

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

Transport = Callable[[Server], str]

BOTH_TRANSPORTS = pytest.mark.parametrize(
    "transport",
    [
        pytest.param(lambda server: server.url, id="http"),
        pytest.param(lambda server: server.native_url, id="native"),
    ],
)


@pytest_asyncio.fixture
async def configured(tmp_path: Path) -> AsyncIterator[None]:
    yield
    await caribou.shutdown(1)


@pytest.mark.parametrize("scenario", ON_THE_WIRE, ids=str)
async def test_no_fault_on_the_wire_loses_or_doubles_a_record(
    scenario: Scenario,
    door: DoorServer,
    proxy: FaultProxy,
    database: str,
    tmp_path: Path,
    configured: None,
) -> None:
    configure(proxy.url, database, tmp_path)
    await run_through(scenario, proxy, door)
    check_stored(door, database)


@pytest.mark.parametrize("scenario", ON_THE_NATIVE_WIRE, ids=str)
async def test_no_fault_on_the_native_wire_loses_or_doubles_a_record(
    scenario: Scenario, door: DoorServer, database: str, tmp_path: Path, configured: None
) -> None:
    with NativeProxy(door.native_port) as proxy:
        configure(proxy.url, database, tmp_path)
        await run_through(scenario, proxy, door)
        await caribou.shutdown(5)
    check_stored(door, database)


async def run_beside_langfuse(
    scenario: Scenario,
    proxy: FaultProxy,
    server: Server,
    there: Langfuse,
    collector: Receiver,
    database: str,
) -> None:
    """The same with Langfuse and an OTLP backend on, which get all of it during the fault."""
    spans = AGENTS * (RECORDS + 1)

    def heal(proxy: FaultProxy, server: Server) -> None:
        wait_until(lambda: len(there.spans) == len(collector.spans) == spans)
        scenario.heal(proxy, server)

    await run_through(replace(scenario, heal=heal), proxy, server)
    for name in ("langfuse", "otlp"):
        sink = account(name)
        # Without tags and metadata, which the summaries have.
        assert (sink.logged, sink.pending, sink.dropped) == (AGENTS * (RECORDS + 2), 0, {})
        assert sink.last_error is None
    check_stored(server, database)
    found, compared = differences(
        lambda query: server.rows(query.replace("{database}", database)), collector, there
    )
    assert found == []
    assert compared["spans"] + compared["roots"] == spans
    # Nothing of ClickHouse's trouble makes them get anything again.
    assert there.received == collector.received == spans


@pytest.mark.parametrize("scenario", ON_THE_WIRE, ids=str)
async def test_no_fault_on_the_wire_keeps_a_record_from_langfuse(
    scenario: Scenario,
    door: DoorServer,
    proxy: FaultProxy,
    there: Langfuse,
    collector: Receiver,
    database: str,
    tmp_path: Path,
    configured: None,
) -> None:
    configure(proxy.url, database, tmp_path, **settings(there), otlp=collector.url)
    await run_beside_langfuse(scenario, proxy, door, there, collector, database)


@pytest.fixture
def own_door(tmp_path: Path) -> Iterator[DoorServer]:
    door = DoorServer(tmp_path / "engine")
    door.start()
    yield door
    door.stop()


async def test_a_restart_of_the_current_engine_needs_none_of_the_program(
    own_door: DoorServer, database: str, tmp_path: Path, configured: None
) -> None:
    configure(own_door.url, database, tmp_path)
    with FaultProxy(own_door.port) as proxy:
        await run_through(RESTARTED, proxy, own_door)
    check_stored(own_door, database)


async def test_a_restart_keeps_no_record_from_langfuse(
    own_door: DoorServer,
    there: Langfuse,
    collector: Receiver,
    database: str,
    tmp_path: Path,
    configured: None,
) -> None:
    configure(own_door.url, database, tmp_path, **settings(there), otlp=collector.url)
    with FaultProxy(own_door.port) as proxy:
        await run_beside_langfuse(RESTARTED, proxy, own_door, there, collector, database)


@BOTH_TRANSPORTS
async def test_a_restart_of_a_real_server_needs_none_of_the_program(
    old_server: OldServer, database: str, tmp_path: Path, configured: None, transport: Transport
) -> None:
    old_server.create_tables(database)
    configure(transport(old_server), database, tmp_path)
    with FaultProxy(old_server.port) as proxy:
        await run_through(RESTARTED, proxy, old_server)
    (spans,) = old_server.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents FROM {database}.spans_rows FINAL"
    )
    assert [int(value) for value in spans.values()] == [AGENTS * RECORDS] * 2


@pytest.mark.parametrize("scenario", ON_THE_WIRE, ids=str)
async def test_no_fault_before_a_real_server_loses_or_doubles_a_record(
    scenario: Scenario, old_server: OldServer, database: str, tmp_path: Path, configured: None
) -> None:
    old_server.create_tables(database)
    with FaultProxy(old_server.port) as proxy:
        configure(proxy.url, database, tmp_path)
        await run_through(scenario, proxy, old_server)
        await caribou.shutdown(5)
    (spans,) = old_server.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents FROM {database}.spans_rows FINAL"
    )
    assert [int(value) for value in spans.values()] == [AGENTS * RECORDS] * 2


@pytest.mark.parametrize("scenario", ON_THE_NATIVE_WIRE, ids=str)
async def test_no_fault_before_a_real_native_port_loses_or_doubles_a_record(
    scenario: Scenario, old_server: OldServer, database: str, tmp_path: Path, configured: None
) -> None:
    old_server.create_tables(database)
    with NativeProxy(old_server.native_port) as proxy:
        configure(proxy.url, database, tmp_path)
        await run_through(scenario, proxy, old_server)
        await caribou.shutdown(5)
    (spans,) = old_server.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents FROM {database}.spans_rows FINAL"
    )
    assert [int(value) for value in spans.values()] == [AGENTS * RECORDS] * 2


async def test_a_failing_tls_handshake_keeps_the_rows(
    door: DoorServer,
    certificate: Path,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: None,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with FaultProxy(door.port, certificate=certificate) as proxy:
        configure(proxy.url, database, tmp_path)
        scenario = Scenario(
            "TLS failure", lambda proxy, _: proxy.garble(), lambda proxy, _: proxy.clear()
        )
        proxy.garble()
        await agents()
        result = await caribou.flush(0.5)
        assert not result.complete
        assert account().delivered == 0
        scenario.heal(proxy, door)
        assert (await caribou.flush(60)).complete
        await caribou.shutdown(5)
    check_stored(door, database)


@BOTH_TRANSPORTS
async def test_a_wrong_password_names_the_variable_and_keeps_the_rows(
    locked_door: DoorServer,
    transport: Transport,
    database: str,
    tmp_path: Path,
    configured: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def with_password(password: str) -> None:
        caribou.configure(
            run_id="faults",
            phase="train",
            clickhouse_url=transport(locked_door),
            clickhouse_database=database,
            clickhouse_user="agent",
            clickhouse_password=password,
            home=tmp_path / "home",
        )

    with_password("battery staple")
    await agents()
    result = await caribou.flush(1)
    assert not result.complete
    assert account().logged == account().pending == ROWS
    assert "CLICKHOUSE_PASSWORD" in caplog.text
    assert "battery staple" not in caplog.text
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    await caribou.shutdown(1)
    # The next process has the right one; it delivers what this one left.
    with_password("correct horse")
    async with caribou.trace_run({"datapoint_id": "next", "run_id": "next"}):
        pass
    assert (await caribou.shutdown(60)).complete
    locked_door.sql(f"ALTER TABLE {database}.traces_rows DELETE WHERE run_id = 'next'")
    check_stored(locked_door, database)


@BOTH_TRANSPORTS
async def test_a_missing_table_is_made_or_the_missing_right_is_named(
    door: DoorServer,
    transport: Transport,
    database: str,
    tmp_path: Path,
    configured: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    door.control(deny=["CREATE"])
    configure(transport(door), database, tmp_path)
    await agents()
    assert not (await caribou.flush(1)).complete
    assert "CREATE" in caplog.text
    assert "caribou migrate" in caplog.text
    assert account().pending == ROWS
    door.control(deny=[])
    assert (await caribou.flush(60)).complete
    check_stored(door, database)


@BOTH_TRANSPORTS
async def test_one_poison_row_among_ten_thousand_is_set_aside_alone(
    door: DoorServer, transport: Transport, database: str, tmp_path: Path, configured: None
) -> None:
    configure(transport(door), database, tmp_path)
    async with caribou.trace_run({"datapoint_id": "dp"}):
        for number in range(9_999):
            caribou.log(caribou.Message(role="user", content=f"{number}"))
            if number == 5_000:
                # What Caribou writes is never refused; this stands for a column that changed.
                line = b'{"trace_id":"t","seq":"not a number"}'
                _process.current().streams["spans"].append(line)
    result = await caribou.flush(60)
    assert result.complete
    assert account().dropped == {"dead_letter": 1}
    (spans,) = door.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents FROM {database}.spans"
    )
    assert [int(value) for value in spans.values()] == [9_999] * 2
    (letter,) = read_dead_letters(tmp_path / "home" / "journal")
    assert json.loads(bytes(letter.row))["seq"] == "not a number"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_under_the_journal_loses_nothing_of_what_is_in_progress(
    door: DoorServer,
    proxy: FaultProxy,
    database: str,
    small_disk: Path,
    configured: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(proxy.url, database, small_disk)
    proxy.refuse()
    async with caribou.trace_run({"datapoint_id": "in progress"}):
        for number in range(10_000):
            caribou.log(caribou.Message(role="user", content=f"{number} " + "x" * 3000))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.to_thread(wait_until, lambda: not _process.current().accepting)
        async with caribou.trace_run({"datapoint_id": "refused"}):
            caribou.log(caribou.Message(role="user", content="refused"))
    assert "in memory" in caplog.text
    assert account().dropped["journal_full"] > 0
    proxy.accept()
    assert (await caribou.flush(60)).complete
    account()
    (spans,) = door.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents FROM {database}.spans"
    )
    assert [int(value) for value in spans.values()] == [10_000] * 2
    traces = door.rows(f"SELECT datapoint_id, status FROM {database}.traces")
    assert traces == [{"datapoint_id": "in progress", "status": "COMPLETED"}]


ENDS_WHILE_DOWN = """
import asyncio, caribou
async def main():
    async with caribou.trace_run({"datapoint_id": "dp", "run_id": "r", "phase": "train"}):
        caribou.log(caribou.Message(role="user", content="hello"))
asyncio.run(main())
"""


async def test_a_program_that_ends_while_the_server_is_down_says_nothing_and_loses_nothing(
    door: DoorServer, proxy: FaultProxy, database: str, tmp_path: Path
) -> None:
    environ = os.environ | {
        "CLICKHOUSE_URL": proxy.url,
        "CLICKHOUSE_DATABASE": database,
        "CARIBOU_HOME": str(tmp_path / "home"),
    }

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ENDS_WHILE_DOWN]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    proxy.refuse()
    ended = await asyncio.to_thread(run)
    assert (ended.returncode, ended.stdout) == (0, "")
    # The one warning that rows wait, and nothing of a traceback.
    assert len(ended.stderr.splitlines()) <= 1
    proxy.accept()
    ended = await asyncio.to_thread(run)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    (spans,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(spans["n"]) == 2
