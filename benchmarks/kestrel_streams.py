"""How many readers of the live stream one service has room for, and what they cost the others.

    python benchmarks/kestrel_streams.py --streams 10000

Starts ``caribou serve`` over an empty store and a process that records rollouts, opens streams in
steps from one asyncio client, and prints at each step how many were let in and how many refused,
the service's memory, the share of a core that it takes, and the 50th and 95th percentiles of
``GET /api/v1/traces`` in milliseconds. Then all streams are closed, and the time is taken until a
new one is let in. Each stream takes a file in either process: see ``ulimit -n``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
from harness import quantile, table

AT_ONCE = 200  # connections under way
REQUESTS = 100
SETTLE = 5.0  # seconds in which what is measured goes on

ROLLOUTS = """
import time
import caribou.sync as caribou
for number in range(1_000_000):
    with caribou.trace_run({"datapoint_id": f"d{number}", "phase": "eval", "run_id": "r"}):
        for turn in range(10):
            caribou.log(caribou.Message(role="user", content="What is next?"))
            time.sleep(0.1)
"""


class Stream(asyncio.Protocol):
    """One reader, which counts what it is told."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        """The answer's first line, then events."""
        if not self.status.done():
            self.status.set_result(int(data[9:12]))
        self.events += data.count(b"event: ")

    def connection_lost(self, exc: Exception | None) -> None:
        """Not let in, and not refused either."""
        if not self.status.done():
            self.status.set_result(0)


async def open_streams(port: int, count: int) -> list[Stream]:
    """So many more, each let in or refused."""
    loop = asyncio.get_running_loop()
    opened: list[Stream] = []
    for start in range(0, count, AT_ONCE):
        made = await asyncio.gather(
            *(
                loop.create_connection(Stream, "127.0.0.1", port)
                for _ in range(min(AT_ONCE, count - start))
            )
        )
        streams = [stream for _, stream in made]
        await asyncio.gather(*(stream.status for stream in streams))
        opened += streams
    return opened


@contextlib.contextmanager
def running(home: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that works in ``home``."""
    own = ("CARIBOU_", "CLICKHOUSE_", "KESTREL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    env["CARIBOU_HOME"] = str(home)
    with subprocess.Popen(
        [sys.executable, *command], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(client: httpx.AsyncClient, pid: int, streams: list[Stream]) -> list[str]:
    """One line of the table."""
    begun, cpu, told = time.perf_counter(), cpu_seconds(pid), sum(s.events for s in streams)
    took: list[float] = []
    for _ in range(REQUESTS):
        asked = time.perf_counter()
        (await client.get("/api/v1/traces?limit=20")).raise_for_status()
        took.append(time.perf_counter() - asked)
        await asyncio.sleep(SETTLE / REQUESTS)
    elapsed = time.perf_counter() - begun
    found = re.search(r"^process_resident\w+ (\d+)", (await client.get("/metrics")).text, re.M)
    assert found is not None
    statuses = Counter(stream.status.result() for stream in streams)
    return [
        f"{len(streams):,}",
        ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items())) or "-",
        f"{int(found[1]) / (1 << 20):.0f}",
        f"{(cpu_seconds(pid) - cpu) / elapsed:.0%}",
        f"{(sum(s.events for s in streams) - told) / elapsed:,.0f}",
        f"{quantile(took, 0.5) * 1000:.1f}",
        f"{quantile(took, 0.95) * 1000:.1f}",
    ]


async def run(most: int, step: int, home: Path) -> None:
    """Open them all, measuring on the way, and close them."""
    with running(home, "-m", "caribou", "serve", "--port", "0") as service:
        assert service.stdout is not None
        found = re.search(r"(http://\S+):(\d+)", service.stdout.readline())
        assert found is not None
        url, port = found[0], int(found[2])
        with running(home, "-c", ROLLOUTS):
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                streams: list[Stream] = []
                rows = [await measure(client, service.pid, streams)]
                while len(streams) < most:
                    streams += await open_streams(port, min(step, most - len(streams)))
                    rows.append(await measure(client, service.pid, streams))
                table(
                    "streams", ["asked", "answered", "MiB", "CPU", "events/s", "p50", "p95"], rows
                )
                for stream in streams:
                    stream.transport.abort()
                begun, status = time.perf_counter(), 0
                while status != 200:
                    [stream] = await open_streams(port, 1)
                    status = stream.status.result()
                print(f"a place was free again after {time.perf_counter() - begun:.2f} s")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=2_500)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(arguments.streams, arguments.step, Path(folder)))


if __name__ == "__main__":
    main()
