"""Agents that log while a scenario of ``support.scenarios`` is on, and what must then hold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import caribou
from support.faultproxy import FaultProxy
from support.scenarios import Scenario
from support.servers import Server

AGENTS = 20
RECORDS = 25
# Per agent: its messages, the trace's summary at entry and exit, one tag, one metadatum.
ROWS = AGENTS * (RECORDS + 2 + 1 + 1)


async def agent(number: int) -> None:
    async with caribou.trace_run({"datapoint_id": f"dp-{number}"}):
        caribou.add_tags("faulty")
        caribou.add_meta({"number": number})
        for record in range(RECORDS):
            role = "assistant" if record % 2 else "user"
            caribou.log(caribou.Message(role=role, content=f"{number}/{record} " + "x" * 200))
            await asyncio.sleep(0)


async def agents(first: int = 0) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(first, AGENTS):
            group.create_task(agent(number))


def configure(url: str, database: str, tmp_path: Path, **more: Any) -> None:
    caribou.configure(
        run_id="faults",
        phase="train",
        clickhouse_url=url,
        clickhouse_database=database,
        home=tmp_path / "home",
        batch_age=0.05,
        **more,
    )


def account(name: str = "clickhouse") -> caribou.SinkStats:
    sink = caribou.stats().sinks[name]
    assert sink.logged == sink.delivered + sink.pending + sum(sink.dropped.values())
    assert min(sink.delivered, sink.pending) >= 0
    return sink


def check_stored(server: Server, database: str) -> None:
    """Every record is read exactly once, every trace is complete."""
    spans = server.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents, uniqExact(span_id) AS ids "
        f"FROM {database}.spans"
    )
    assert [int(value) for value in spans[0].values()] == [AGENTS * RECORDS] * 3
    traces = server.rows(f"SELECT status, messages FROM {database}.traces")
    assert [(t["status"], int(t["messages"])) for t in traces] == [("COMPLETED", RECORDS)] * AGENTS
    for table in ("trace_tags", "entity_metadata"):
        (rows,) = server.rows(f"SELECT count() AS n FROM {database}.{table}")
        assert int(rows["n"]) == AGENTS


async def run_through(scenario: Scenario, proxy: FaultProxy, server: Server) -> None:
    """Log before and during the fault, end it, and have everything delivered."""
    if scenario.from_start:
        scenario.begin(proxy, server)
    await agent(0)
    if not scenario.from_start:
        assert (await caribou.flush(20)).complete
        scenario.begin(proxy, server)
    await agents(1)
    result = await caribou.flush(0.5)
    assert result.seconds < 2
    assert account().logged == ROWS
    if not scenario.delivers:
        assert not result.complete
        assert result.pending > 0
        assert account().last_error is not None or scenario.name == "black hole"
    await asyncio.to_thread(scenario.heal, proxy, server)
    result = await caribou.flush(60)
    assert result.complete
    assert (account().delivered, account().pending) == (ROWS, 0)
    assert account().last_error is None
