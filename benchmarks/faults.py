"""What callers feel while the wire is at fault, and what is stored afterwards.

    python benchmarks/faults.py [--seconds N] [--down N] [--only TEXT] [--native] [--langfuse]

90 agents log 900 records per second through a proxy to the current ClickHouse engine behind HTTP
(extra ``local``), or with ``--real`` to Debian's ``clickhouse-server``; with ``--native`` by the
native protocol. Each scenario of the tests' ``support.scenarios`` lasts ``--seconds`` ("down in
mid-run": ``--down``) and is then healed. Each runs in a fresh process. For each the table shows the
deadline of ``flush(2)`` during the fault, the loop's lag before (without Caribou) and during it,
the growth of memory over it, the account, and how many records are stored and read, once and twice.

With ``--langfuse`` (extra ``otlp``) everything also goes to the tests' model of Langfuse, which is
outside the measured process and has no trouble. The account is then that of both, and a second
table shows what Langfuse has: spans that are missing (one for each record and rollout), spans that
came again, and rows that wait, during the fault and in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import PeakMemory, quantile, table, texts, watch_lag

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.faultproxy import FaultProxy
from support.langfuse import Langfuse, langfuse, variables
from support.nativeproxy import NativeProxy
from support.scenarios import ON_THE_NATIVE_WIRE, ON_THE_WIRE, RESTARTED, Scenario
from support.servers import DoorServer, OldServer, Server

AGENTS = 90
PAUSE = 0.1
BEFORE = 3.0


def say(event: str, **figures: Any) -> None:
    """Tell the other process."""
    print(json.dumps({"event": event, **figures}), flush=True)


async def idle_agents(seconds: float) -> None:
    """The same tasks, without Caribou."""

    async def one(number: int) -> None:
        await asyncio.sleep(PAUSE * number / AGENTS)
        for _ in range(int(seconds / PAUSE)):
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(one(number) for number in range(AGENTS)))


async def agents_program(seconds: float) -> None:
    """The side that logs; the other process begins and heals the fault when told."""
    import caribou

    async with watch_lag() as bare:
        await idle_agents(BEFORE)
    contents = texts(64, 400)
    stop = asyncio.Event()
    logged = 0

    async def one(number: int) -> None:
        nonlocal logged
        await asyncio.sleep(PAUSE * number / AGENTS)
        meta = {"datapoint_id": f"dp-{number}", "run_id": "faults", "phase": "train"}
        async with caribou.trace_run(meta):
            index = 0
            while not stop.is_set():
                content = f"{number}/{index} {contents[index % 64]}"
                caribou.log(caribou.Message(role="user", content=content))
                logged += 1
                index += 1
                await asyncio.sleep(PAUSE)

    async def listen(word: str) -> None:
        answer = await asyncio.to_thread(sys.stdin.readline)
        assert answer.strip() == word, answer

    say("begin")
    await listen("begun")
    tasks = [asyncio.create_task(one(number)) for number in range(AGENTS)]
    # What is loaded and allocated once is no growth.
    await asyncio.sleep(1.0)
    memory = PeakMemory()
    async with watch_lag() as during:
        await asyncio.sleep(seconds)
        flushed = await caribou.flush(2)
    growth = memory.growth()
    accounts = caribou.stats().sinks
    say("heal")
    await listen("healed")
    stop.set()
    await asyncio.gather(*tasks)
    result = await caribou.flush(90)
    final = caribou.stats().sinks
    say(
        "done",
        logged=logged,
        flush=flushed.seconds,
        pending={name: sink.pending for name, sink in accounts.items()},
        left={name: sink.pending for name, sink in final.items()},
        identity=all(
            s.logged == s.delivered + s.pending + sum(s.dropped.values()) and s.pending >= 0
            for s in (*accounts.values(), *final.values())
        ),
        complete=result.complete,
        bare_p99=quantile(bare, 0.99) * 1e3,
        bare_worst=max(bare) * 1e3,
        p99=quantile(during, 0.99) * 1e3,
        worst=max(during) * 1e3,
        growth=growth,
    )


def run(
    scenario: Scenario,
    server: Server,
    proxy: FaultProxy,
    seconds: float,
    there: Langfuse | None,
) -> tuple[list[str], list[str]]:
    """One scenario in a fresh process; a row of each table."""
    database = f"faults_{os.urandom(4).hex()}"
    view = "spans"
    if isinstance(server, OldServer):
        server.create_tables(database)
        view = "spans_rows FINAL"
    with tempfile.TemporaryDirectory(prefix="caribou-bench-") as home:
        environment = os.environ | {
            "CLICKHOUSE_URL": proxy.url,
            "CLICKHOUSE_DATABASE": database,
            "CARIBOU_HOME": home,
            **(variables(there) if there else {}),
        }
        command = [sys.executable, __file__, "--agents", str(seconds)]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            figures: dict[str, Any] = {}
            for line in process.stdout:
                figures = json.loads(line)
                if figures["event"] == "begin":
                    scenario.begin(proxy, server)
                    print("begun", file=process.stdin, flush=True)
                elif figures["event"] == "heal":
                    scenario.heal(proxy, server)
                    print("healed", file=process.stdin, flush=True)
    (stored,) = server.rows(
        f"SELECT count() AS n, uniqExact(content) AS contents FROM {database}.{view}"
    )
    read, different = int(stored["n"]), int(stored["contents"])
    row = [
        scenario.name,
        f"{figures['logged']:,}",
        f"{different - figures['logged']:,}",
        f"{read - different:,}",
        "holds" if figures["identity"] and figures["complete"] else "BROKEN",
        f"{figures['pending']['clickhouse']:,}",
        f"{figures['flush']:.2f}",
        f"{figures['bare_p99']:.1f} / {figures['bare_worst']:.1f}",
        f"{figures['p99']:.1f} / {figures['worst']:.1f}",
        f"{figures['growth']:.1f}",
    ]
    if there is None:
        return row, []
    return row, [
        scenario.name,
        f"{len(there.spans):,}",
        f"{figures['logged'] + AGENTS - len(there.spans):,}",
        f"{there.received - len(there.spans):,}",
        f"{figures['pending']['langfuse']:,}",
        f"{figures['left']['langfuse']:,}",
    ]


def main() -> None:
    """Run the scenarios and print the table; or, for this program's own use, the agents."""
    parser = argparse.ArgumentParser(description="Faults on the wire, as callers feel them.")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a fault lasts")
    parser.add_argument("--down", type=float, default=60.0, help="how long the server is down")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    parser.add_argument("--real", action="store_true", help="Debian's clickhouse-server")
    parser.add_argument("--native", action="store_true", help="by the native protocol")
    parser.add_argument("--langfuse", action="store_true", help="deliver to Langfuse as well")
    parser.add_argument("--agents", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agents is not None:
        asyncio.run(agents_program(options.agents))
        return
    rows: list[tuple[list[str], list[str]]] = []
    with tempfile.TemporaryDirectory(prefix="caribou-bench-") as folder:
        server: Server = OldServer(Path(folder)) if options.real else DoorServer(Path(folder) / "e")
        server.start()  # type: ignore[attr-defined]
        make_proxy = NativeProxy if options.native else FaultProxy
        for scenario in [*(ON_THE_NATIVE_WIRE if options.native else ON_THE_WIRE), RESTARTED]:
            if options.only in scenario.name:
                seconds = options.down if scenario.name == "down in mid-run" else options.seconds
                print(scenario.name, file=sys.stderr)
                port = server.native_port if options.native else server.port
                beside = langfuse() if options.langfuse else contextlib.nullcontext()
                with make_proxy(port) as proxy, beside as there:
                    rows.append(run(scenario, server, proxy, seconds, there))
        server.stop()
    header = [
        "fault", "logged", "lost", "twice", "account", "pending", "flush(2) s",
        "bare lag p99 / worst ms", "lag p99 / worst ms", "memory MiB",
    ]  # fmt: skip
    title = "900 records/s of 90 agents; pending, flush, lag, memory: during the fault"
    table(title, header, [row for row, _ in rows])
    if options.langfuse:
        header = ["fault", "spans", "missing", "again", "pending", "pending in the end"]
        table("Langfuse beside it; pending: during the fault", header, [row for _, row in rows])


if __name__ == "__main__":
    main()
