"""What rollouts do as they do it, for any number of readers at the cost of one.

One task asks the store for what came in since it last asked, as long as anybody follows. A
position is a moment on the store's clock, in milliseconds: everything that came in up to it has
been told. It means the same to another instance of the service and after a restart.

A rollout that starts and finishes between two questions is told of as finished only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ..errors import StoreError
from ..kestrel.models import LiveSpan, LiveTrace
from .backend import Backend, Row

__all__ = ["Batch", "Filter", "Follower", "Full", "Live"]

_log = logging.getLogger("caribou.server")

_EVERY = 0.5  # seconds between two questions
_PAGE = 1000  # rows of a table read at once
_WAITING = 16  # batches that a slow follower may be behind
_BACK: Final = 3_600_000  # milliseconds: what came in before is not told again

_NOW: Final = "SELECT toUnixTimestamp64Milli(now64(3)) - 1 AS position"
_RANGE: Final = """
WHERE ingested_at > fromUnixTimestamp64Milli({after:Int64})
    AND ingested_at <= fromUnixTimestamp64Milli({upto:Int64})
ORDER BY ingested_at
LIMIT {page:UInt64} WITH TIES
"""
_POSITION: Final = "toUnixTimestamp64Milli(ingested_at) AS position"
# What is not the column of that name.
_SAID: Final = {
    "step_number": "nullIf(step_number, -1) AS step_number",
    # Enough to show how a rollout grows; what it says in full is one request away.
    "content_start": "substringUTF8(ifNull(content, ''), 1, 500) AS content_start",
}


def _columns(kind: type[msgspec.Struct], *others: str) -> str:
    """What the fields of ``kind`` are filled with, save ``others``."""
    names = (name for name in kind.__struct_fields__ if name not in others)
    return ", ".join(_SAID.get(name, name) for name in names)


_TRACE: Final = _columns(LiveTrace, "change", "interrupted")
_SPAN: Final = _columns(LiveSpan)
_TRACES: Final = f"SELECT {_POSITION}, {_TRACE} FROM traces_rows {_RANGE}"
_SPANS: Final = f"SELECT {_POSITION}, {_SPAN} FROM spans_rows {_RANGE}"
_ENDED: Final = f"""
SELECT {_TRACE} FROM traces_rows
WHERE status = 'PENDING' AND root_span_id IN {{roots:Array(String)}}
LIMIT 1000
"""


class Full(Exception):
    """As many follow as can."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What one reader follows; None is everything."""

    run_id: str | None = None
    trace_id: str | None = None
    phase: str | None = None
    spans: bool = True

    def takes(self, event: str, row: Row) -> bool:
        """Whether an event about ``row`` is asked for."""
        return (
            (self.spans or event != "span")
            and self.run_id in (None, row["run_id"])
            and self.trace_id in (None, row["trace_id"])
            and self.phase in (None, row["phase"])
        )


class Batch:
    """Events in the order they came in, and the position after the last."""

    def __init__(self, position: int, events: Iterable[tuple[str, Row]]) -> None:
        self.position = position
        self._events = [(event, row, _encoded(event, row)) for event, row in events]
        self._selected: dict[Filter, bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def select(self, wanted: Filter) -> bytes:
        """The events as the stream has them, the last one with the position; empty for none.

        Those before it have none: whoever is cut off among them is told the whole batch again.
        """
        data = self._selected.get(wanted)
        if data is None:
            parts = [text for event, row, text in self._events if wanted.takes(event, row)]
            if parts:
                parts.insert(-1, mark(self.position)[:-1])
            data = self._selected[wanted] = b"".join(parts)
        return data


def mark(position: int) -> bytes:
    """A block that has the reader remember ``position`` and tells it nothing."""
    return b"id: %d\n\n" % position


def _encoded(event: str, row: Row) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(row))


class Follower:
    """One reader. It is dropped when it is too far behind; its last position takes it on."""

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self._waiting: asyncio.Queue[Batch | None] = asyncio.Queue(_WAITING)

    def offer(self, batch: Batch) -> bool:
        """Have ``batch`` wait for the reader; False when it is dropped instead."""
        try:
            self._waiting.put_nowait(batch)
        except asyncio.QueueFull:
            self.end()
            return False
        return True

    def end(self) -> None:
        """Let the reader go."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    async def next(self) -> Batch | None:
        """The next batch; None at the end."""
        return await self._waiting.get()


class Live:
    """Tells followers what comes in.

    Attributes:
        dropped: followers that were too slow, so far.
    """

    def __init__(self, backend: Backend, *, overlap: float = 0.0, most: int = 1000) -> None:
        """Nothing is asked before somebody follows.

        Args:
            backend: the store.
            overlap: seconds by which rows may come to be seen after the moment they are marked
                with: the time inserts take and the clocks of servers differ.
            most: followers at a time.
        """
        self._backend = backend
        self._overlap = int(overlap * 1000)
        self._most = most
        self._followers: set[Follower] = set()
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._position = 0
        self._seen: dict[tuple[Any, ...], int] = {}
        self._interrupted: frozenset[str] = frozenset()
        self.dropped: int = 0

    @property
    def followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    @contextmanager
    def follower(self, wanted: Filter) -> Generator[Follower]:
        """Take part. :meth:`begin` says where it starts.

        Raises:
            Full: as many follow as can.
        """
        if len(self._followers) >= self._most:
            raise Full
        follower = Follower(wanted)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            if not self._followers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def begin(self) -> int:
        """The position from which on followers are told everything.

        Raises:
            StoreError: the store cannot be asked.
        """
        async with self._starting:
            if self._task is None:
                self._position = await self._now()
                self._seen.clear()
                self._interrupted = frozenset(await self._backend.interrupted())
                self._task = asyncio.create_task(self._run(), name="caribou-live")
        return self._position

    async def between(self, after: int, upto: int) -> AsyncGenerator[Batch]:
        """What came in after the position ``after``, up to ``upto``, oldest first; None of what
        is older than an hour. The first batch may hold what was told before ``after``.

        Raises:
            StoreError: the store cannot be asked.
        """
        at = max(after - self._overlap, upto - _BACK)
        while at < upto:
            batch = await self._read(at, upto)
            at = batch.position
            yield batch

    def reaches_back_to(self, position: int) -> bool:
        """Whether :meth:`between` can begin at ``position``."""
        return position >= self._position - _BACK

    def close(self) -> None:
        """Let everybody go."""
        for follower in self._followers:
            follower.end()

    async def _run(self) -> None:
        failed = False
        while True:
            try:
                await self._look()
                failed = False
            except StoreError as error:
                if not failed:
                    _log.warning("the live stream waits for the store: %s", error)
                failed = True
            await asyncio.sleep(_EVERY)

    async def _look(self) -> None:
        upto = await self._now()
        at = self._position - self._overlap
        while at < upto:
            batch = await self._read(at, upto, self._seen)
            at = batch.position
            self._position = max(self._position, at)
            self._tell(batch)
        oldest = self._position - self._overlap
        self._seen = {key: moment for key, moment in self._seen.items() if moment > oldest}
        await self._tell_interrupted()

    async def _tell_interrupted(self) -> None:
        now = frozenset(await self._backend.interrupted())
        new = now - self._interrupted
        self._interrupted = now
        if new:
            rows = await self._backend.rows(_ENDED, {"roots": sorted(new)})
            events = [("trace", _trace(row, interrupted=True)) for row in rows]
            self._tell(Batch(self._position, events))

    def _tell(self, batch: Batch) -> None:
        if batch:
            slow = [each for each in self._followers if not each.offer(batch)]
            self.dropped += len(slow)
            self._followers.difference_update(slow)

    async def _read(
        self, after: int, upto: int, seen: dict[tuple[Any, ...], int] | None = None
    ) -> Batch:
        """The first rows after ``after``, without those in ``seen``, to which they are added."""
        spans = await self._backend.rows(_SPANS, {"after": after, "upto": upto, "page": _PAGE})
        if len(spans) >= _PAGE:
            # There may be more; nothing after these is told before them.
            upto = int(spans[-1]["position"])
        traces = await self._backend.rows(_TRACES, {"after": after, "upto": upto, "page": _PAGE})
        if len(traces) >= _PAGE:
            upto = int(traces[-1]["position"])
        told: list[tuple[tuple[Any, ...], str, Row]] = []
        for row, is_span in [*((row, True) for row in spans), *((row, False) for row in traces)]:
            moment = int(row.pop("position"))
            key = (row["trace_id"], row.get("span_id"), row.get("root_span_id"), row["version"])
            if moment > upto or (seen is not None and key in seen):
                continue
            if seen is not None and self._overlap:
                seen[key] = moment
            # Of what came in at once: rollouts start, then grow, then finish.
            rank = 1 if is_span else 0 if row["status"] == "PENDING" else 2
            order = (moment, rank, row["trace_id"], row.get("seq", 0))
            told.append((order, "span", row) if is_span else (order, "trace", _trace(row)))
        told.sort(key=lambda item: item[0])
        return Batch(upto, ((event, row) for _, event, row in told))

    async def _now(self) -> int:
        [row] = await self._backend.rows(_NOW)
        return int(row["position"])


def _trace(row: Row, *, interrupted: bool = False) -> Row:
    change = "started" if row["status"] == "PENDING" else "finished"
    return {
        "change": "interrupted" if interrupted else change,
        **row,
        "interrupted": interrupted,
    }
