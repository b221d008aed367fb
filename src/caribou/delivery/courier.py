"""A courier carries the rows of one table to one sink.

It makes one pass after another over the segments. A pass takes what was committed when it began,
in batches of bounded bytes and rows, and ends when all of it is acknowledged or set aside. What
arrives meanwhile waits for the next pass, so a busy sink gets few large batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..journal.cursor import InFlight
from ..journal.reader import cut_rows
from ..sinks.base import (
    Ambiguous,
    Batch,
    Misconfigured,
    Poison,
    Sink,
    SinkError,
    TooLarge,
)
from .accounting import Ledger, Notices
from .dead_letters import DeadLetters
from .gate import Gate, backoff
from .source import Readable, Source

__all__ = ["Courier", "Link"]

_logger = logging.getLogger("caribou")

LONGEST_CONFIGURATION_DELAY = 30.0


@dataclass(slots=True)
class Link:
    """What the couriers of one sink share."""

    sink: Sink
    dead_letters: DeadLetters
    ledger: Ledger
    batch_bytes: int
    batch_rows: int
    gate: Gate = field(default_factory=Gate)
    gate_apart: Gate = field(default_factory=Gate)
    notices: Notices = field(default_factory=Notices)

    def goes_apart(self, table: str) -> bool:
        """Whether the sink sends a table elsewhere than the others: trouble there is no trouble
        here, and a success here does not end it."""
        return table in getattr(self.sink, "apart", frozenset[str]())

    @property
    def failures(self) -> int:
        """Attempts in a row that failed, anywhere."""
        return self.gate.failures + self.gate_apart.failures


class Courier:
    """The rows of ``table``, from each source in turn, to the sink of ``link``."""

    def __init__(self, table: str, link: Link, sources: Callable[[], Sequence[Source]]) -> None:
        """``sources()`` gives what to deliver at the time: this process's own first."""
        self.table = table
        self._link = link
        apart = link.goes_apart(table)
        self._gate, self._other_gate = link.gate, link.gate_apart
        if apart:
            self._gate, self._other_gate = self._other_gate, self._gate
        self._trouble = f"{link.sink.name} ({table})" if apart else link.sink.name
        self._sources = sources
        self._due = asyncio.Event()
        self._all_due = False
        self._nudged = asyncio.Event()
        self._asked = 0
        self._finished = 0
        self._pass_ended = asyncio.Event()

    def call(self, *, full_only: bool = False) -> None:
        """Make a pass soon. ``full_only`` leaves the segment being written until a later one, so
        that a busy stream goes in full batches."""
        if not full_only:
            self._all_due = True
        self._due.set()

    async def everything(self) -> None:
        """Return once all that was committed before the call is settled, own rows first."""
        self._asked += 1
        ticket = self._asked
        self._nudged.set()
        self._gate.nudge()
        self.call()
        while self._finished < ticket:
            await self._pass_ended.wait()

    async def run(self) -> None:
        """Make passes for ever."""
        while True:
            await self._due.wait()
            self._due.clear()
            ticket = self._asked
            full_only, self._all_due = not self._all_due, False
            own, *adopted = self._sources()
            try:
                await self._pass(own, full_only=full_only)
                self._finished = ticket
                self._pass_ended.set()
                self._pass_ended = asyncio.Event()
                for source in adopted:
                    await self._pass(source, interruptible=True)
            except Exception as error:
                # A defect, or a journal that somebody deletes: say so, and go on with the rest.
                self._link.notices.warn(
                    f"{self.table}:defect",
                    "Rows of %s are held up by an error (%s: %s) and tried again.",
                    self.table,
                    type(error).__name__,
                    error,
                )
                self._link.ledger.last_error = f"{type(error).__name__}: {error}"
                await self._pause(backoff(3))
                self.call()

    async def _pass(
        self, source: Source, *, full_only: bool = False, interruptible: bool = False
    ) -> None:
        """Deliver what ``source`` holds now. What dead processes left is given way by new rows:
        an interruptible pass ends after a batch when one of this process's own is due."""
        if source.closed or self._link.sink.name not in source.cursors:
            return
        source.users += 1
        try:
            await self._segments(source, full_only=full_only, interruptible=interruptible)
        finally:
            source.users -= 1

    async def _segments(self, source: Source, *, full_only: bool, interruptible: bool) -> None:
        lost: OSError | None = None
        for segment in source.segments(self.table):
            if full_only and not segment.sealed:
                continue
            try:
                if not await self._deliver(source, segment, interruptible=interruptible):
                    return
            except FileNotFoundError as error:
                # Somebody deleted the journal: what is behind this segment is delivered even so.
                lost = error
            else:
                source.settle(segment)
        if lost is not None:
            raise lost

    async def _deliver(self, source: Source, segment: Readable, *, interruptible: bool) -> bool:
        """Deliver what one segment holds; False when it was left for rows that are due."""
        cursor = source.cursors[self._link.sink.name]
        upto = segment.committed
        start = cursor.acknowledged(self.table, segment.number)
        while start < upto:
            if interruptible and self._due.is_set():
                return False
            in_doubt = cursor.in_flight(self.table, segment.number)
            if in_doubt is not None and in_doubt.start == start:
                # The process that sent these bytes did not live to hear the answer.
                await self._settle(source, segment, in_doubt, in_doubt=True)
                start = in_doubt.end
            else:
                batch = self._next_batch(segment, start, upto)
                await self._settle(source, segment, batch)
                start = batch.end
        return True

    def _next_batch(self, segment: Readable, start: int, upto: int) -> InFlight:
        link = self._link
        rows = segment.rows if segment.sealed and start == 0 else None
        if rows is not None and rows <= link.batch_rows and segment.committed <= link.batch_bytes:
            # All of it, with nothing to count: going through 4 MiB would keep the GIL for long.
            return InFlight(0, segment.committed, rows)
        end = min(upto, start + self._link.batch_bytes)
        if end < upto:
            # Whole rows only; a row larger than a batch goes alone.
            end = segment.map.rfind(b"\n", start, end) + 1
            if end == 0:
                end = segment.map.find(b"\n", start, upto) + 1
        end, rows = cut_rows(segment.map, start, end, self._link.batch_rows)
        return InFlight(start, end, rows)

    async def _settle(
        self, source: Source, segment: Readable, what: InFlight, *, in_doubt: bool = False
    ) -> None:
        """Get these bytes acknowledged, splitting them as often as the backend asks for it."""
        link = self._link
        cursor = source.cursors[link.sink.name]
        waiting = [what]
        while waiting:
            part = waiting.pop()
            cursor.sending(self.table, segment.number, part)
            outcome = await self._attempts(source, segment, part, in_doubt=in_doubt)
            in_doubt = False
            if isinstance(outcome, SinkError) and part.rows > 1:
                first, second = self._halves(segment, part)
                waiting += [second, first]
                continue
            if isinstance(outcome, SinkError):
                await self._set_aside(source, segment, part, outcome)
                link.ledger.dropped["dead_letter"] += part.rows
            else:
                link.ledger.delivered += part.rows
            cursor.acknowledge(self.table, segment.number, part.end)

    def _halves(self, segment: Readable, part: InFlight) -> tuple[InFlight, InFlight]:
        middle, rows = cut_rows(segment.map, part.start, part.end, part.rows // 2)
        return (
            InFlight(part.start, middle, rows),
            InFlight(middle, part.end, part.rows - rows),
        )

    async def _attempts(
        self, source: Source, segment: Readable, part: InFlight, *, in_doubt: bool
    ) -> Literal["acknowledged"] | Poison | TooLarge:
        """Try until the backend has the bytes or refuses them for what or how much they are."""
        link = self._link
        trouble = self._trouble
        misconfigured = 0
        shortages = 0
        while True:
            await self._gate.wait()
            try:
                # Only now: a segment that waits for its turn is unmapped meanwhile.
                rows = segment.map
            except OSError:
                self._gate.abandoned()
                raise
            try:
                with memoryview(rows)[part.start : part.end] as data:
                    batch = Batch(
                        table=self.table,
                        batch_id=f"{source.name}:{self.table}:{segment.number}:{part.start}-{part.end}",
                        rows=part.rows,
                        data=data,
                    )
                    if not (in_doubt and await link.sink.confirm(batch)):
                        in_doubt = False
                        await link.sink.send(batch)
            except asyncio.CancelledError:
                self._gate.abandoned()
                raise
            except (Poison, TooLarge) as refusal:
                self._gate.passed()
                if refusal.retry_after is None:
                    self._gate.failing.discard(self.table)
                    return refusal
                # The backend is short of something now: ask for less, and not at once.
                link.ledger.last_error = refusal.reason
                shortages += 1
                await self._pause(max(refusal.retry_after, backoff(shortages)))
                if part.rows > 1:
                    return refusal
            except Misconfigured as error:
                # One table's trouble with a right or a setting leaves the other tables alone.
                self._gate.passed()
                link.ledger.last_error = error.reason
                link.notices.warn(
                    f"{link.sink.name}:{error.reason}",
                    "%s does not take rows: %s. They are kept and tried again.",
                    link.sink.name,
                    error.reason,
                )
                misconfigured += 1
                await self._pause(backoff(misconfigured + 2, LONGEST_CONFIGURATION_DELAY))
            except SinkError as error:
                in_doubt = in_doubt or isinstance(error, Ambiguous)
                self._failed(error.reason, error.retry_after)
            except Exception as error:
                # A defect in the sink: whether the rows were taken is as unknown as it can be.
                _logger.debug("%s failed unexpectedly", trouble, exc_info=True)
                in_doubt = True
                self._failed(f"{type(error).__name__} in the sink", None)
            else:
                self._gate.passed()
                link.ledger.last_error = None
                self._gate.failing.discard(self.table)
                if not self._gate.failing:
                    link.notices.settle(trouble, "%s takes rows again.", trouble)
                return "acknowledged"

    def _failed(self, reason: str, retry_after: float | None) -> None:
        link = self._link
        link.ledger.last_error = reason
        self._gate.failing.add(self.table)
        self._gate.failed(retry_after)
        if self._other_gate.failures:
            # Told of already.
            return
        link.notices.warn(
            self._trouble,
            "%s (%s): %s. Rows wait in the journal and are delivered later.",
            link.sink.name,
            link.sink.target,
            reason,
        )

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until somebody asks for a flush."""
        self._nudged.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._nudged.wait()
        except TimeoutError:
            pass

    async def _set_aside(
        self, source: Source, segment: Readable, part: InFlight, refusal: SinkError
    ) -> None:
        """Write a refused row down as a dead letter, however long the disk takes to allow it."""
        link = self._link
        row = bytes(segment.map[part.start : part.end])
        failures = 0
        while True:
            try:
                link.dead_letters.add(
                    source.name, self.table, link.sink.name, refusal.code, refusal.reason, row
                )
                break
            except OSError as error:
                failures += 1
                link.ledger.last_error = f"a dead letter cannot be written: {error.strerror}"
                await self._pause(backoff(failures))
        link.notices.warn(
            f"{link.sink.name}:dead letter",
            "%s refused a row of %s for its content (%s). It is set aside as a dead letter; "
            "`caribou doctor` shows where.",
            link.sink.name,
            self.table,
            refusal.reason,
        )
