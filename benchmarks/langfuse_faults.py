"""What a Langfuse in trouble costs callers and ClickHouse, and whether anything is lost.

    python benchmarks/langfuse_faults.py [--seconds N] [FAULT...]

Forty agents record 4,000 messages a second, and a grade each, with ClickHouse (a null sink in
another process) and Langfuse (the tests' model, in this process) behind them. A fault lasts for the
whole of this. Then it is told how long ClickHouse took for the rest, whether a flush with a limit
of a second kept to it, and, after the fault is over, whether Langfuse got everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness import PeakMemory, null_sink, quantile, table, texts
from support.langfuse import Langfuse, langfuse, variables

AGENTS = 40
PAUSE = 0.01
# One record in so many is one that Langfuse, when it accepts half, rejects.
CULPRITS = 1500

CULPRIT = "a culprit"


async def run_agent(number: int, contents: list[str], end: float, calls: array[int]) -> None:
    """Record at a steady pace until ``end``."""
    import caribou

    meta: caribou.TraceMeta = {"datapoint_id": f"d{number}", "run_id": "bench", "phase": "eval"}
    async with caribou.trace_run(meta):
        index = number * 37
        while time.perf_counter() < end:
            content = CULPRIT if index % CULPRITS == 0 else contents[index % len(contents)]
            start = time.perf_counter_ns()
            caribou.log(caribou.Message(role=("user", "assistant")[index & 1], content=content))
            calls.append(time.perf_counter_ns() - start)
            index += 1
            await asyncio.sleep(PAUSE)
        caribou.log(caribou.Grade(score=0.5, grader_name="judge"))


async def run(seconds: float) -> None:
    """The program under measurement. It says what it saw twice: before and after the fault ends,
    which is when its standard input has another line."""
    import caribou

    contents = texts(997, 400)
    calls: array[int] = array("q")
    memory = PeakMemory()
    end = time.perf_counter() + seconds
    await asyncio.gather(*(run_agent(n, contents, end, calls) for n in range(AGENTS)))
    ended = time.perf_counter()
    flushing = asyncio.create_task(caribou.flush(1.0))
    clickhouse = await _delivered_to_clickhouse() - ended
    flushed = await flushing
    figures: dict[str, Any] = {
        "records": len(calls),
        "call_p99_us": quantile(calls, 0.99) / 1e3,
        "flush_seconds": flushed.seconds,
        "memory_mib": memory.growth(),
    }
    figures["clickhouse_seconds"] = clickhouse
    figures["waiting"] = _account(caribou.stats().sinks).get("pending", 0)
    print(json.dumps(figures), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    result = await caribou.shutdown(60)
    print(json.dumps(_account(result.sinks) | {"complete": result.complete}), flush=True)


async def _delivered_to_clickhouse() -> float:
    """Wait until ClickHouse has everything; the time at which it had."""
    import caribou

    while caribou.stats().sinks["clickhouse"].pending:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.005)
    return time.perf_counter()


def _account(sinks: Any) -> dict[str, Any]:
    sink = sinks.get("langfuse")
    if sink is None:
        return {}
    dead = sum(sink.dropped.values())
    return {
        "logged": sink.logged,
        "delivered": sink.delivered,
        "pending": sink.pending,
        "dead": dead,
    }


def _refusing(there: Langfuse) -> None:
    there.answers = lambda request: (503, '{"message":"maintenance"}', {})
    there.score_answers = lambda score: (503, '{"message":"maintenance"}', {})


def _slow(there: Langfuse) -> None:
    there.delay = 1.0


def _half(there: Langfuse) -> None:
    there.rejects = lambda span: (
        CULPRIT
        in str(span.attributes.get("langfuse.observation.input", ""))
        + str(span.attributes.get("langfuse.observation.output", ""))
    )


def _limited(there: Langfuse) -> None:
    taken = 0

    def limit(_: Any) -> Any:
        nonlocal taken
        taken += 1
        return (429, '{"message":"slow down"}', {"Retry-After": "1"}) if taken % 3 else None

    there.answers = limit
    there.score_answers = limit


def _healed(there: Langfuse) -> None:
    there.delay = 0.0
    there.answers = lambda request: None
    there.score_answers = lambda score: None
    there.go_on()
    there.listen()


FAULTS: dict[str, Callable[[Langfuse], None]] = {
    "off": lambda there: None,
    "healthy": lambda there: None,
    "refusing": _refusing,
    "slow": _slow,
    "half-accepting": _half,
    "rate limiting": _limited,
    "silent": Langfuse.hang,
    "down": Langfuse.refuse,
}
COLUMNS = {
    "call p99 µs": ("call_p99_us", 1),
    "ClickHouse done after s": ("clickhouse_seconds", 2),
    "flush(1.0) took s": ("flush_seconds", 2),
    "memory MiB": ("memory_mib", 1),
    "waiting then": ("waiting", 0),
    "delivered in the end": ("delivered", 0),
    "dead letters": ("dead", 0),
}


def measure(fault: str, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """One run under a fault; the figures, and what is wrong."""
    with (
        null_sink() as sink,
        langfuse() as there,
        tempfile.TemporaryDirectory(prefix="caribou-bench-") as home,
    ):
        given = {} if fault == "off" else variables(there)
        own = ("CARIBOU_", "CLICKHOUSE_", "KESTREL_", "LANGFUSE_", "OTEL_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(own)}
        environment = clean | given | {"CLICKHOUSE_URL": sink.url, "CARIBOU_HOME": home}
        FAULTS[fault](there)
        command = [sys.executable, __file__, "--run", "--seconds", str(seconds)]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            figures: dict[str, Any] = json.loads(process.stdout.readline())
            if fault not in ("off", "healthy", "half-accepting"):
                if fault != "down":
                    there.refuse()
                _healed(there)
            process.stdin.write("\n")
            process.stdin.flush()
            figures = figures | json.loads(process.stdout.readline())
        wrong: list[str] = []
        expected = figures["records"] + AGENTS  # and the grades
        if sink.counts().get("spans") != expected:
            wrong.append(f"ClickHouse has {sink.counts().get('spans')} of {expected} spans")
        if fault != "off":
            arrived = len(there.spans) + figures["dead"]
            if arrived != expected + AGENTS or len(there.scores) != AGENTS:
                wrong.append(f"Langfuse has {arrived} spans of {expected + AGENTS}")
            if figures["logged"] != figures["delivered"] + figures["dead"]:
                wrong.append(f"the account does not close: {figures}")
        if not figures["complete"]:
            wrong.append("the last flush was not complete")
        return figures, wrong


def main() -> int:
    """Run the faults one after the other and print the table; or the program under measurement."""
    parser = argparse.ArgumentParser(description="Langfuse in trouble, beside ClickHouse.")
    parser.add_argument("faults", nargs="*", choices=[*FAULTS, []], metavar="FAULT")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        asyncio.run(run(arguments.seconds))
        return 0
    rows: list[list[str]] = []
    wrong: list[str] = []
    for fault in arguments.faults or FAULTS:
        print(fault, file=sys.stderr)
        figures, problems = measure(fault, arguments.seconds)
        wrong += [f"{fault}: {problem}" for problem in problems]
        cells = [f"{figures.get(key, 0):,.{digits}f}" for key, digits in COLUMNS.values()]
        rows.append([fault, *cells])
    table(f"Langfuse in trouble for {arguments.seconds:g} s", ["", *COLUMNS], rows)
    for problem in wrong:
        print(problem, file=sys.stderr)
    print("something is wrong" if wrong else "nothing was lost, and every account closes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
