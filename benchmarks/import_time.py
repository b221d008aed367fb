"""What ``import caribou`` adds to the start of an interpreter.

python benchmarks/import_time.py [--repeat N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from harness import table

ALLOWED_MS = 100
STATEMENTS = {
    "bare Python": "pass",
    "asyncio": "import asyncio",
    "caribou": "import caribou",
    "opentelemetry-sdk": "import opentelemetry.sdk.trace.export",
}


def start(statement: str) -> float:
    """Milliseconds that an interpreter takes to start, run ``statement`` and end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    """Run every statement in turns and print medians."""
    parser = argparse.ArgumentParser(description="Import time.")
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    for statement in STATEMENTS.values():
        start(statement)  # writes the byte code
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(arguments.repeat):
        for name, statement in STATEMENTS.items():
            times[name].append(start(statement))
    medians = {name: statistics.median(values) for name, values in times.items()}
    bare = medians["bare Python"]
    table(
        f"Start of an interpreter, median of {arguments.repeat}",
        ["", "ms", "more than bare"],
        [[name, f"{value:.1f}", f"{value - bare:.1f}"] for name, value in medians.items()],
    )
    more = medians["caribou"] - bare
    verdict = "ok" if more <= ALLOWED_MS else "MISSED"
    print(f"\nimport caribou: required ≤ {ALLOWED_MS} ms, seen {more:.1f} ms {verdict}")


if __name__ == "__main__":
    main()
