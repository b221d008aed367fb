"""How late the caller's event loop wakes its tasks while Caribou records: beside a bare loop.

    python benchmarks/lag.py [--seconds N] [--repeat N]

- ``steady``: 90 agents, 900 records per second of 400 characters.
- ``large``: 16 agents, 160 contents of 256 KB per second.
- ``hog``: as ``steady``, while another thread computes and holds the interpreter's lock.

Every run is a process of its own, and delivers to a local sink in another process:
``caribou-native`` to Debian's ``clickhouse-server``, the others over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import statistics
import sys
import time
from array import array
from dataclasses import dataclass

from harness import PeakMemory, gil_hog, measure, quantile, table, texts, watch_lag
from sides import SERVICES, Side, make

PAUSE = 0.1  # seconds between two records of one agent


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    agents: int
    characters: int
    hog: bool = False


SCENARIOS = {
    "steady": Scenario(agents=90, characters=400),
    "large": Scenario(agents=16, characters=256 * 1024),
    "hog": Scenario(agents=90, characters=400, hog=True),
}
SIDES = ("bare", "caribou", "caribou-langfuse", "caribou-native")


async def run_agent(side: Side, number: int, contents: list[str], end: float) -> None:
    """One simulated agent that records at a steady pace until ``end`` (``perf_counter``)."""
    async with side.rollout(number):
        index = 0
        while time.perf_counter() < end:
            side.record(index, contents[(number + index) % len(contents)])
            index += 1
            await asyncio.sleep(PAUSE)


async def run_agents(side: Side, scenario: Scenario, contents: list[str], seconds: float) -> None:
    """All agents of a scenario, started evenly over one pause."""
    end = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(scenario.agents):
            group.create_task(run_agent(side, number, contents, end))
            await asyncio.sleep(PAUSE / scenario.agents)


async def run_side(name: str, scenario: Scenario, seconds: float) -> dict[str, float]:
    """Measure one side under one load in this process."""
    contents = texts(31, scenario.characters)
    side = make(name)
    await run_agents(side, scenario, contents, 0.5)
    await asyncio.sleep(1)
    gc.collect()  # as in hot_path.py
    memory = PeakMemory()
    cpu = time.process_time()
    lags: array[float]
    with gil_hog() if scenario.hog else contextlib.nullcontext():
        async with watch_lag() as lags:
            await run_agents(side, scenario, contents, seconds)
    busy = (time.process_time() - cpu) / seconds
    await side.finish()
    return {
        "lag_median_ms": statistics.median(lags) * 1e3,
        "lag_p99_ms": quantile(lags, 0.99) * 1e3,
        "lag_worst_ms": max(lags) * 1e3,
        "cpu_percent": busy * 100,
        "memory_mib": memory.growth(),
    }


COLUMNS = {
    "lag median ms": ("lag_median_ms", 2),
    "lag p99 ms": ("lag_p99_ms", 2),
    "lag worst ms": ("lag_worst_ms", 2),
    "CPU %": ("cpu_percent", 1),
    "memory MiB": ("memory_mib", 1),
}


def main() -> None:
    """Run every scenario on every side in turns; or, for this program's own use, one of them."""
    parser = argparse.ArgumentParser(description="Lag of the caller's event loop.")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("SIDE", "SCENARIO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, scenario = arguments.run
        figures = asyncio.run(run_side(name, SCENARIOS[scenario], arguments.seconds))
        json.dump(figures, sys.stdout)
        return
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for repetition in range(arguments.repeat):
        for scenario in SCENARIOS:
            for name in SIDES:
                print(f"{repetition + 1}/{arguments.repeat} {scenario} {name}", file=sys.stderr)
                options = ("--run", name, scenario, "--seconds", str(arguments.seconds))
                figures = measure("lag.py", *options, services=SERVICES[name])
                runs.setdefault((scenario, name), []).append(figures)
    rows: list[list[str]] = []
    for (scenario, name), results in runs.items():
        cells = [
            f"{statistics.median(result[key] for result in results):,.{digits}f}"
            for key, digits in COLUMNS.values()
        ]
        rows.append([f"{scenario} {name}", *cells])
    table(f"Loop lag, median of {arguments.repeat}", ["", *COLUMNS], rows)
    print()
    for name in SIDES[1:]:
        large = statistics.median(result["lag_p99_ms"] for result in runs["large", name])
        verdict = "ok" if large < 5 else "MISSED"
        print(f"lag p99 with 256 KB contents, {name}: < 5 ms, seen {large:.2f} ms {verdict}")


if __name__ == "__main__":
    main()
