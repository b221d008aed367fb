"""What the benchmarks share: the sink's process, measured sub-processes, loop lag, memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# The variables of each service; an empty value stands for the sink's address.
SERVICES = {
    "clickhouse": [("CLICKHOUSE_URL", "")],
    "kestrel": [("KESTREL_API_URL", "")],
    "otlp": [("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
    "langfuse": [
        ("LANGFUSE_HOST", ""),
        ("LANGFUSE_PUBLIC_KEY", "pk-lf-bench"),
        ("LANGFUSE_SECRET_KEY", "sk-lf-bench"),
    ],
}

HERE = Path(__file__).parent
MIB = 1 << 20


@dataclass(frozen=True)
class Sink:
    """A running null sink."""

    url: str

    def counts(self) -> dict[str, int]:
        """Rows by table, and ``otlp`` spans, that have arrived since it started."""
        with urllib.request.urlopen(f"{self.url}/counts") as response:
            return json.load(response)


@contextlib.contextmanager
def null_sink() -> Iterator[Sink]:
    """A null sink in a process of its own."""
    command = [sys.executable, str(HERE / "null_sink.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Sink(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.stdin.close()
            process.wait(5)


@dataclass(frozen=True)
class Server:
    """A running server that speaks the native protocol."""

    url: str
    count: Callable[[str], int]

    def counts(self) -> dict[str, int]:
        """Records that are stored."""
        return {"spans": self.count("spans_rows")}


@contextlib.contextmanager
def native_server(folder: Path) -> Iterator[Server]:
    """Debian's ``clickhouse-server`` with the part of the schema that it holds."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from support.servers import OldServer

    if not OldServer.available():
        raise SystemExit("clickhouse-server is not installed; --only names the other sides")
    server = OldServer(folder / "server")
    server.start()
    try:
        server.create_tables("caribou")
        yield Server(
            server.native_url,
            lambda table: int(server.sql(f"SELECT count() FROM caribou.{table}")),
        )
    finally:
        server.stop()


def measure(
    program: str, *arguments: str, services: Collection[str] = ("clickhouse",)
) -> dict[str, float]:
    """Run one side of a benchmark in a fresh process with a fresh journal and a fresh sink.

    The program prints its figures as one JSON object; what the sink counted is added. The sink
    stands for each of ``services``, whose variables are set; there is none for nothing. For
    ``native`` it is Debian's ``clickhouse-server``.
    """
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="caribou-bench-"))
        own = ("CARIBOU_", "CLICKHOUSE_", "KESTREL_", "LANGFUSE_", "OTEL_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
        environment["CARIBOU_HOME"] = home
        receiver: Sink | Server | None = None
        if "native" in services:
            receiver = stack.enter_context(native_server(Path(home)))
            environment["CLICKHOUSE_URL"] = receiver.url
        elif services:
            receiver = stack.enter_context(null_sink())
            for service in services:
                environment |= {name: value or receiver.url for name, value in SERVICES[service]}
        command = [sys.executable, str(HERE / program), *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        figures: dict[str, float] = json.loads(done.stdout)
        if receiver:
            figures |= {f"sink_{name}": count for name, count in receiver.counts().items()}
        return figures


def texts(count: int, length: int) -> list[str]:
    """Different texts of ``length`` characters that compress about as prose does."""
    chance = random.Random(17)
    words = [
        "".join(chance.choices("etaoinshrdlucmfwyp", k=chance.randint(2, 9))) for _ in range(999)
    ]
    return [" ".join(chance.choices(words, k=length // 3 + 1))[:length] for _ in range(count)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0..1) of ``values`` lie; 0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@contextlib.asynccontextmanager
async def watch_lag(interval: float = 0.001) -> AsyncIterator[array[float]]:
    """Collect by how many seconds a task that sleeps ``interval`` is woken too late."""
    lags: array[float] = array("d")

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(interval)
            lags.append(time.perf_counter() - start - interval)

    task = asyncio.create_task(watch())
    try:
        yield lags
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.contextmanager
def gil_hog() -> Iterator[None]:
    """Another thread that computes without a pause, as a tokenizer in pure Python does."""
    stop = False

    def compute() -> None:
        while not stop:
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextlib.contextmanager
def kestrel(home: Path | None = None, port: int = 0) -> Iterator[str]:
    """The address of ``caribou serve`` over the store that the environment names, or the one in
    ``home``, once all that was there is in it."""
    env = {**os.environ, **({"CARIBOU_HOME": str(home)} if home else {})}
    command = [sys.executable, "-m", "caribou", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            announced = re.search(r"http://\S+", service.stdout.readline())
            if announced is None:
                raise SystemExit("caribou serve did not start")
            while not _is_ready(announced[0]):
                time.sleep(0.1)
            yield announced[0]
        finally:
            service.terminate()


def _is_ready(url: str) -> bool:
    """Whether the service has taken in what was there when it started."""
    try:
        with urllib.request.urlopen(f"{url}/readyz"):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


class PeakMemory:
    """The growth of the process's resident memory, at its peak, since this was made."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        self._start = self._read("VmRSS")

    def growth(self) -> float:
        """MiB; not a number where the system does not tell (only Linux does)."""
        return (self._read("VmHWM") - self._start) / 1024

    @staticmethod
    def _read(field: str) -> float:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return float(line.split()[1])
        return float("nan")


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table: the first column left, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]))
