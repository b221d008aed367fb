"""Whether everything is registered with Kestrel once, and how long it takes.

    python benchmarks/kestrel_registration.py

Clients that all register the same datapoints at once; then rollouts traced while Kestrel is down,
which it is told of once it is up. Exit code 1 when Kestrel has anything more or less than that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

from harness import kestrel

import caribou
from caribou.kestrel import KestrelClient

RUNS = 10
STEPS = 10
AT_ONCE = 100


async def register_at_once(url: str, clients: int, count: int) -> bool:
    """Every client registers all of the datapoints in one call."""
    items = [{"datapoint_id": f"task-{number}"} for number in range(count)]

    async def register() -> None:
        async with KestrelClient(url, timeout=300) as client:
            await client.upsert_datapoints(items, project="same")

    start = time.perf_counter()
    await asyncio.gather(*(register() for _ in range(clients)))
    seconds = time.perf_counter() - start
    async with KestrelClient(url) as client:
        found = [item.datapoint_id async for item in client.list_datapoints(page_size=1000)]
    print(f"{clients} clients x {count:,} datapoints: {len(found):,} there, in {seconds:.1f} s")
    return sorted(found) == sorted(item["datapoint_id"] for item in items)


async def trace(count: int) -> None:
    """Rollouts of some runs and steps, each with a datapoint of its own."""
    places = asyncio.Semaphore(AT_ONCE)

    async def rollout(number: int) -> None:
        async with (
            places,
            caribou.trace_run(
                {
                    "phase": "train",
                    "run_id": f"run-{number % RUNS}",
                    "step_number": number // RUNS % STEPS,
                    "datapoint_id": f"point-{number}",
                }
            ),
        ):
            caribou.log(caribou.Message(role="user", content="What is next?"))
            await asyncio.sleep(0)

    await asyncio.gather(*(rollout(number) for number in range(count)))


async def register_after_an_outage(home: Path, count: int) -> bool:
    """Trace with nobody at Kestrel's address, then start it there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    caribou.configure(
        home=home / "program", kestrel_api_url=f"http://127.0.0.1:{port}", clickhouse_url=""
    )
    start = time.perf_counter()
    await trace(count)
    print(f"{count:,} rollouts with Kestrel down: {time.perf_counter() - start:.1f} s", end="; ")
    print(await caribou.flush(1))
    with kestrel(home / "service", port) as url:
        start = time.perf_counter()
        flushed = await caribou.flush(120)
        print(f"up: told of all after {time.perf_counter() - start:.1f} s; {flushed}")
        async with KestrelClient(url) as client:
            runs = [run.run_id async for run in client.list_runs()]
            steps = [
                (run, step.step_number) for run in runs async for step in client.list_run_steps(run)
            ]
            points = [item.datapoint_id async for item in client.list_datapoints(page_size=1000)]
    print(f"{len(runs)} runs, {len(steps)} steps, {len(points):,} datapoints")
    wanted = {f"point-{number}" for number in range(count)}
    await caribou.shutdown(10)
    return (
        flushed.complete
        and sorted(runs) == sorted(f"run-{number}" for number in range(RUNS))
        and len(steps) == len({*steps}) == RUNS * STEPS
        and len(points) == count
        and {*points} == wanted
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--datapoints", type=int, default=10_000)
    parser.add_argument("--rollouts", type=int, default=10_000)
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("CLICKHOUSE_", "KESTREL_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="caribou-bench-") as folder:
        with kestrel(Path(folder) / "first") as url:
            once = asyncio.run(register_at_once(url, arguments.clients, arguments.datapoints))
        after = asyncio.run(register_after_an_outage(Path(folder), arguments.rollouts))
    print("everything is there once" if once and after else "NOT everything is there once")
    return 0 if once and after else 1


if __name__ == "__main__":
    raise SystemExit(main())
