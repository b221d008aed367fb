"""ClickHouse by HTTP and by its native protocol, side by side.

    python benchmarks/native.py [--batches N] [--rounds N]

The same batches of journal lines (4 MiB, as couriers send them) go through each sink, in processes
of their own, in turn: to Debian's ``clickhouse-server`` of 2018 with the part of the schema that it
holds, where HTTP goes uncompressed, as it must with a server that old; and to the current engine
behind the tests' door with the whole schema, where only the client's own figures mean anything, as
the door is slow Python. Medians of the rounds, the worst of the worst.

CPU is the whole process's. The I/O loop's lag is that of a task beside the sink, and includes what
else the machine does, which its longest turn does not; the caller's lag is that of a loop in
another thread, which waits for the interpreter lock like a program's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from harness import quantile, table, texts, watch_lag

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.servers import DoorServer, OldServer, Server

BATCH_BYTES = 4 << 20
IDLE = 0.3


def journal_lines(count: int) -> list[bytes]:
    """What rollouts with tool calls write to ``spans``."""
    import caribou.sync as caribou
    from caribou.testing import capture

    contents = texts(4096, 400)
    function = {"name": "search", "arguments": '{"query": "flights"}'}
    calls = [{"id": "call-1", "type": "function", "function": function}]
    spent: dict[str, Any] = {"input_tokens": 812, "output_tokens": 97, "cost_usd": 0.0123}
    with capture() as captured:
        for trace in range(count // 100):
            meta: Any = {"datapoint_id": f"dp-{trace}", "run_id": "bench", "phase": "train"}
            with caribou.trace_run(meta):
                for number in range(25):
                    text = contents[(25 * trace + number) % 4096]
                    caribou.log(caribou.Message(role="user", content=text))
                    caribou.log(
                        caribou.Message(
                            role="assistant",
                            content=text,
                            model="elk-1",
                            provider="deer",
                            tool_calls=calls,
                            duration_ms=1.5,
                            **spent,
                        )
                    )
                    caribou.log(
                        caribou.ToolExecution(
                            name="search", call_id="call-1", arguments={"q": "x"}, result=text
                        )
                    )
                    caribou.log(caribou.Event(name="step", data={"number": number}))
        return list(captured._lines["spans"].lines)


def make_batches(lines: list[bytes], count: int) -> list[Any]:
    """``count`` batches of as many lines as couriers would put in one."""
    from caribou.sinks.base import Batch

    size = BATCH_BYTES // (sum(map(len, lines)) // len(lines) + 1)
    batches: list[Any] = []
    for number in range(count):
        start = number * size % len(lines)
        chosen = (lines[start:] + lines)[:size]
        data = b"".join(line + b"\n" for line in chosen)
        batches.append(Batch("spans", f"bench:{number}:{os.getpid()}", size, memoryview(data)))
    return batches


def make_sink(url: str, database: str) -> Any:
    """The sink that the URL asks for."""
    if url.startswith("http"):
        from caribou.sinks.clickhouse_http import ClickHouseHTTP

        return ClickHouseHTTP(url, database=database)
    from caribou.sinks.clickhouse_native import ClickHouseNative

    return ClickHouseNative(url, database=database)


@contextlib.contextmanager
def caller() -> Iterator[list[array[float]]]:
    """A loop in another thread, as a program's own is beside the I/O thread; its lags."""
    lags: list[array[float]] = []
    stop = threading.Event()

    async def watch() -> None:
        async with watch_lag() as seen:
            lags.append(seen)
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(watch()))
    thread.start()
    try:
        yield lags
    finally:
        stop.set()
        thread.join()


@contextlib.asynccontextmanager
async def watch_turns() -> AsyncGenerator[array[float]]:
    """Collect the CPU time of the loop's thread, in seconds, for each turn of the loop: what it
    would be late on a machine that has nothing else to do."""
    turns: array[float] = array("d")

    async def watch() -> None:
        while True:
            start = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - start)

    task = asyncio.create_task(watch())
    try:
        yield turns
    finally:
        task.cancel()
        await asyncio.wait([task])


async def deliver(url: str, database: str, batches: list[Any]) -> dict[str, float]:
    """Send the batches one after another: to see what it takes, and then to see who waits."""
    sink = make_sink(url, database)
    sink.load()
    try:
        await sink.send(batches[0])  # connections, schema, whatever is made once
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches[1:]:
            await sink.send(batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        with caller() as lags:
            async with watch_lag() as bare:
                await asyncio.sleep(IDLE)
            lags[0][:] = array("d")
            async with watch_lag() as own:
                for batch in batches[1:]:
                    await sink.send(batch)
            others = list(lags[0])
        async with watch_turns() as turns:
            for batch in batches[1:]:
                await sink.send(batch)
    finally:
        await sink.aclose()
    rows = sum(batch.rows for batch in batches[1:])
    return {
        "rows": rows,
        "rate": rows / wall,
        "cpu": cpu / rows * 1e6,
        "idle_lag": max(bare) * 1e3,
        "lag_p99": quantile(own, 0.99) * 1e3,
        "lag": max(own) * 1e3,
        "turn": max(turns) * 1e3,
        "caller_p99": quantile(others, 0.99) * 1e3,
        "caller_lag": max(others) * 1e3,
    }


async def count_bytes(url: str, database: str, batch: Any) -> float:
    """Bytes per row that leave for the server, through a proxy that counts."""
    scheme, _, port = url.replace("//", "").split(":")
    sent = 0
    served: list[Any] = []

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, up: bool) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                sent += len(chunk) if up else 0
                target.write(chunk)
                await target.drain()
        target.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        back, forth = await asyncio.open_connection("127.0.0.1", int(port))
        await asyncio.gather(pump(reader, forth, True), pump(back, writer, False))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        sink = make_sink(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", database)
        sink.load()
        await sink.send(batch)
        sent = 0
        await sink.send(batch)
        await sink.aclose()
        await asyncio.gather(*served)
    return sent / batch.rows


def side(url: str, database: str, batches: int) -> None:
    """One side, in a process of its own; prints its figures."""
    made = make_batches(journal_lines(20_000), batches)
    figures = asyncio.run(deliver(url, database, made))
    figures["bytes"] = asyncio.run(count_bytes(url, database, made[0]))
    figures["plain"] = len(made[0].data) / made[0].rows
    print(json.dumps(figures))


def measure(url: str, database: str, batches: int) -> dict[str, float]:
    """The figures of one side, in a fresh process."""
    command = [sys.executable, __file__, "--side", url, database, "--batches", str(batches)]
    home = tempfile.mkdtemp(prefix="caribou-bench-")
    environment = os.environ | {"CARIBOU_HOME": home}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def compare(title: str, server: Server, batches: int, rounds: int, *, old: bool) -> None:
    """Measure both sides in turn and print them."""
    figures: dict[str, list[dict[str, float]]] = {"HTTP": [], "native": []}
    for number in range(rounds):
        for name, url in (("HTTP", server.url), ("native", server.native_url)):
            database = f"bench_{name.lower()}_{number}"
            if old:
                assert isinstance(server, OldServer)
                server.create_tables(database)
            figures[name].append(measure(url, database, batches))
            server.sql(f"DROP DATABASE {database}")

    def row(label: str, key: str, form: str = "{:.1f}", pick: Any = statistics.median) -> list[str]:
        return [label, *(form.format(pick([f[key] for f in side])) for side in figures.values())]

    plain = figures["HTTP"][0]["plain"]
    table(
        f"{title}: {figures['HTTP'][0]['rows']:.0f} records of {plain:.0f} bytes a round",
        ["", *figures],
        [
            row("CPU per record, µs", "cpu"),
            row("records/s", "rate", "{:,.0f}"),
            row("I/O loop's lag p99, ms", "lag_p99"),
            row("I/O loop's worst lag, ms", "lag", pick=max),
            row("  before anything is sent, ms", "idle_lag", pick=max),
            row("I/O loop's longest turn, ms of CPU", "turn", pick=max),
            row("caller's lag p99, ms", "caller_p99"),
            row("caller's worst lag, ms", "caller_lag", pick=max),
            row("bytes on the wire per record", "bytes", "{:.0f}"),
        ],
    )


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batches", type=int, default=12, help="of 4 MiB, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, metavar=("URL", "DATABASE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        side(*given.side, given.batches)
        return
    with tempfile.TemporaryDirectory(prefix="caribou-bench-") as folder:
        if OldServer.available():
            old = OldServer(Path(folder) / "server")
            old.start()
            try:
                title = "clickhouse-server 18.16, reduced schema"
                compare(title, old, given.batches, given.rounds, old=True)
            finally:
                old.stop()
        door = DoorServer(Path(folder) / "engine")
        door.start()
        try:
            title = "current engine behind the door, whole schema"
            compare(title, door, max(2, given.batches // 3), given.rounds, old=False)
        finally:
            door.stop()


if __name__ == "__main__":
    main()
