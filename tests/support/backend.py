"""A sink that fails in every way a sink may, and delivery to it in the test's own loop."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from caribou.delivery.dispatcher import Dispatcher
from caribou.journal.journal import Journal
from caribou.journal.stream import Stream
from caribou.sinks.base import Batch, Poison, SinkError, TooLarge


class Backend:
    """A sink that stores rows and fails as told.

    ``faults`` are raised by the next calls of ``send``, one each. An ``Ambiguous`` fault may come
    with the rows stored before it (``stores_anyway``).
    """

    name = "backend"
    target = "memory://backend"
    tables = frozenset({"spans", "scores"})

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.batches: Counter[str] = Counter()
        self.faults: list[SinkError] = []
        self.stores_anyway = False
        self.down: Callable[[], SinkError] | None = None
        self.refuses: Callable[[int], bool] = lambda _: False
        self.most_rows = 1_000_000
        self.sizes: list[int] = []
        self.hold: asyncio.Event | None = None
        self.sending = asyncio.Event()

    def load(self) -> None:
        pass

    async def send(self, batch: Batch) -> None:
        self.sending.set()
        if self.hold is not None:
            await self.hold.wait()
        rows = [json.loads(line)["seq"] for line in bytes(batch.data).splitlines()]
        assert len(rows) == batch.rows
        assert bytes(batch.data).endswith(b"\n")
        if self.down is not None:
            raise self.down()
        if self.faults:
            fault = self.faults.pop(0)
            if self.stores_anyway:
                self._store(batch, rows)
            raise fault
        if len(rows) > self.most_rows:
            raise TooLarge("memory limit exceeded", code=241)
        if any(self.refuses(row) for row in rows):
            raise Poison("cannot parse", code=27)
        self._store(batch, rows)

    def _store(self, batch: Batch, rows: list[int]) -> None:
        self.rows += rows
        self.sizes.append(len(batch.data))
        self.batches[batch.batch_id] += 1

    async def confirm(self, batch: Batch) -> bool:
        return batch.batch_id in self.batches

    async def aclose(self) -> None:
        pass


def no_successor(table: str) -> Stream:
    raise AssertionError(table)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Running:
    """A journal and its delivery in the test's loop."""

    def __init__(
        self,
        root: Path | None,
        sink: Backend,
        *,
        batch_bytes: int = 1 << 20,
        max_bytes: int = 1 << 30,
    ) -> None:
        self.sink = sink
        self.journal = Journal(
            root,
            sinks={sink.name: sink.target},
            max_bytes=max_bytes,
            rolled=lambda: self.dispatcher.rolled(),
            successor=no_successor,
        )
        self.dispatcher = Dispatcher(
            self.journal,
            root,
            [sink],
            durable={sink.name: sink.target},
            batch_bytes=batch_bytes,
            batch_rows=50_000,
            batch_age=0.01,
        )

    def log(self, *numbers: int, size: int = 50) -> None:
        for number in numbers:
            line = json.dumps({"seq": number, "content": "x" * size}).encode()
            self.journal.streams["spans"].append(line)

    async def flush(self, timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            await self.dispatcher.flush(recovered=True)

    @property
    def account(self) -> tuple[int, int, int, dict[str, int]]:
        """logged, delivered, pending, dropped; pending is counted from what is in the journal."""
        ledger, _ = self.dispatcher.accounts()[self.sink.name]
        stats = ledger.stats(lambda: self.journal.streams["spans"].rows, Counter())
        return stats.logged, stats.delivered, stats.pending, stats.dropped


@asynccontextmanager
async def running(
    root: Path | None, sink: Backend, *, batch_bytes: int = 1 << 20, max_bytes: int = 1 << 30
) -> AsyncIterator[Running]:
    delivery = Running(root, sink, batch_bytes=batch_bytes, max_bytes=max_bytes)
    task = asyncio.create_task(delivery.dispatcher.run())
    try:
        yield delivery
    finally:
        task.cancel()
        await asyncio.wait([task])
        delivery.journal.close(delivered=delivery.dispatcher.delivered)


def leave_rows(root: Path, *numbers: int) -> Path:
    """Rows that a process left for ``Backend`` when it ended; its folder."""
    journal = Journal(
        root,
        sinks={Backend.name: Backend.target},
        max_bytes=1 << 30,
        rolled=lambda: None,
        successor=no_successor,
    )
    folder = journal.folder
    assert folder is not None
    for number in numbers:
        journal.streams["spans"].append(json.dumps({"seq": number}).encode())
    journal.close(delivered=False)
    return folder
