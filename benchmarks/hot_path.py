"""The cost of tracing on the caller's side: Caribou beside opentelemetry-sdk.

    python benchmarks/hot_path.py [--rounds N] [--repeat N] [--only SIDE...]

The workload: 64 concurrent rollouts of 32 records with contents of 400 characters and an
``await asyncio.sleep(0)`` after each, round after round. Every side runs in a process of its own,
one after the other and in turns, and delivers over HTTP to a local sink in another process. The
figures are medians over the repetitions. OpenTelemetry runs with its defaults, and with a queue so
long that nothing is dropped. ``caribou-kestrel`` is Caribou with ``KESTREL_API_URL`` set: what
opening a rollout costs then is in ``open µs``. ``caribou-langfuse`` delivers to ClickHouse and to
Langfuse, ``caribou-otlp`` to an OTLP backend alone, as the SDK does, with rows kept in the journal,
``caribou-native`` to Debian's ``clickhouse-server`` by the native protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from array import array
from collections.abc import Callable

from harness import PeakMemory, measure, quantile, table, texts, watch_lag
from sides import SERVICES, Side, make

ROLLOUTS = 64
RECORDS = 32
CONTENT_CHARACTERS = 400
ORDER = (
    *("bare", "sdk", "sdk-raised"),
    *("caribou", "caribou-kestrel", "caribou-langfuse", "caribou-otlp", "caribou-native"),
)


async def run_rollout(
    side: Side, number: int, contents: list[str], calls: array[int], opened: array[int]
) -> None:
    """One simulated agent; appends to ``calls`` how many nanoseconds each record took, and to
    ``opened`` how many it took to open the rollout."""
    clock = time.perf_counter_ns
    record = side.record
    offset = number * RECORDS
    start = clock()
    async with side.rollout(number):
        opened.append(clock() - start)
        for index in range(RECORDS):
            content = contents[(offset + index) % len(contents)]
            start = clock()
            record(index, content)
            calls.append(clock() - start)
            await asyncio.sleep(0)


async def run_round(side: Side, contents: list[str], calls: array[int], opened: array[int]) -> None:
    """All concurrent rollouts once."""
    async with asyncio.TaskGroup() as group:
        for number in range(ROLLOUTS):
            group.create_task(run_rollout(side, number, contents, calls, opened))


async def run_side(name: str, rounds: int) -> dict[str, float]:
    """Measure one side in this process."""
    contents = texts(997, CONTENT_CHARACTERS)
    calls: array[int] = array("q")
    opened: array[int] = array("q")
    side = make(name)
    # The first round brings in what is imported late and opens the connections. The collection
    # files what was imported under long-lived objects; left to itself it would happen once,
    # at a random moment of the measured part.
    await run_round(side, contents, array("q"), array("q"))
    await asyncio.sleep(1)
    gc.collect()
    memory = PeakMemory()
    cpu = time.process_time()
    start = time.perf_counter()
    async with watch_lag() as lags:
        for _ in range(rounds):
            await run_round(side, contents, calls, opened)
        logged = time.perf_counter() - start
    await side.finish()
    finished = time.perf_counter() - start
    # At once: sorting all the calls below takes 0.2 µs of each.
    cpu = time.process_time() - cpu
    return {
        "records": len(calls),
        "call_median_us": statistics.median(calls) / 1e3,
        "call_p99_us": quantile(calls, 0.99) / 1e3,
        "open_median_us": statistics.median(opened) / 1e3,
        "cpu_seconds": cpu,
        "logged_seconds": logged,
        "finished_seconds": finished,
        "lag_worst_ms": max(lags) * 1e3,
        "memory_mib": memory.growth(),
    }


def measure_side(name: str, rounds: int) -> dict[str, float]:
    """Measure one side in a fresh process; adds what its sink received."""
    figures = measure(
        *("hot_path.py", "--side", name, "--rounds", str(rounds)),
        services=SERVICES[name],
    )
    logged = ROLLOUTS * RECORDS * (rounds + 1)
    if "otlp" in SERVICES[name]:
        logged += ROLLOUTS * (rounds + 1)  # the root spans
        figures["delivered"] = figures.get("sink_otlp", 0)
    else:
        figures["delivered"] = figures.get("sink_spans", 0)
    figures["delivered_percent"] = 100 * figures["delivered"] / logged
    # The warm-up is not in the times; its share of what was delivered is taken out.
    delivered = figures["delivered"] * rounds / (rounds + 1)
    figures["cpu_us"] = figures["cpu_seconds"] * 1e6 / delivered if delivered else float("nan")
    figures["records_per_second"] = figures["records"] / figures["logged_seconds"]
    figures["delivered_per_second"] = delivered / figures["finished_seconds"]
    return figures


COLUMNS = {
    "call median µs": ("call_median_us", 2),
    "call p99 µs": ("call_p99_us", 2),
    "open µs": ("open_median_us", 2),
    "CPU µs/delivered": ("cpu_us", 1),
    "records/s": ("records_per_second", 0),
    "delivered/s": ("delivered_per_second", 0),
    "delivered %": ("delivered_percent", 2),
    "worst lag ms": ("lag_worst_ms", 2),
    "memory MiB": ("memory_mib", 1),
}


def verdicts(sides: dict[str, dict[str, float]]) -> list[tuple[str, str, str]]:
    """What is required of Caribou, what was seen, and whether that is enough."""
    ours, theirs, bare = sides["caribou"], sides["sdk-raised"], sides["bare"]
    otlp, langfuse = sides["caribou-otlp"], sides["caribou-langfuse"]
    with_langfuse = 100 * langfuse["call_median_us"] / ours["call_median_us"]

    def times_cheaper(figure: str) -> float:
        # Without what reading the clock twice costs, which is in every side's figure.
        return (theirs[figure] - bare[figure]) / (ours[figure] - bare[figure])

    every: list[tuple[str, Callable[[dict[str, float]], float], float, int]] = [
        ("delivered %", lambda side: side["delivered_percent"], 100, 1),
        ("records/s", lambda side: side["records_per_second"], 80_000, 1),
        (
            "lag above the bare loop's, ms",
            lambda side: side["lag_worst_ms"] - bare["lag_worst_ms"],
            5,
            -1,
        ),
        ("peak memory growth, MiB", lambda side: side["memory_mib"], 40, -1),
    ]
    checks = [
        ("call median, times cheaper", times_cheaper("call_median_us"), 8, 1),
        ("call p99, times cheaper", times_cheaper("call_p99_us"), 5, 1),
        ("CPU per delivered, times less", theirs["cpu_us"] / ours["cpu_us"], 8, 1),
        *(
            (f"{label}, {name.removeprefix('caribou-')}", seen(sides[name]), bound, sign)
            for label, seen, bound, sign in every
            for name in ORDER
            if name.startswith("caribou")
        ),
        ("call median with Langfuse, % of without", with_langfuse, 105, -1),
        ("CPU per span over OTLP, times less", theirs["cpu_us"] / otlp["cpu_us"], 2, 1),
    ]
    return [
        (
            what,
            f"{'≥' if sign > 0 else '≤'} {bound:,}",
            f"{seen:,.1f} {'ok' if seen * sign >= bound * sign else 'MISSED'}",
        )
        for what, seen, bound, sign in checks
    ]


def main() -> None:
    """Run all sides in turns and print the table; or, for this program's own use, one side."""
    parser = argparse.ArgumentParser(description="Cost of tracing on the caller's side.")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=ORDER, choices=ORDER, metavar="SIDE")
    arguments = parser.parse_args()
    if arguments.side:
        json.dump(asyncio.run(run_side(arguments.side, arguments.rounds)), sys.stdout)
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    for repetition in range(arguments.repeat):
        for name in arguments.only:
            print(f"{repetition + 1}/{arguments.repeat} {name}", file=sys.stderr)
            runs[name].append(measure_side(name, arguments.rounds))
    sides = {
        name: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for name, results in runs.items()
    }
    table(
        f"{ROLLOUTS} rollouts x {RECORDS} records x {arguments.rounds} rounds, "
        f"median of {arguments.repeat}",
        ["", *COLUMNS],
        [
            [name, *(f"{figures[key]:,.{digits}f}" for key, digits in COLUMNS.values())]
            for name, figures in sides.items()
        ],
    )
    if sides.keys() != set(ORDER):
        return
    table(
        "Caribou against the SDK with the raised queue", ["", "required", "seen"], verdicts(sides)
    )


if __name__ == "__main__":
    main()
