"""What runs in the I/O thread: couriers, the journal's upkeep, and the rows of dead processes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from ..journal.journal import Journal
from ..sinks.base import Sink
from .accounting import Ledger
from .adoption import Adoption
from .courier import Courier, Link
from .dead_letters import DeadLetters
from .room import Room
from .source import OwnSource, Source

__all__ = ["Dispatcher"]

_logger = logging.getLogger("caribou")

ADOPTION_INTERVAL = 30.0
# What only looks on is there for a person, who is not to wait for a batch to fill.
_WATCHING_AGE = 0.1


class Dispatcher:
    """Carries what the journal holds to the sinks until it is cancelled.

    Made in any thread; all methods but ``accounts`` belong to the I/O thread's loop.
    """

    def __init__(
        self,
        journal: Journal,
        root: Path | None,
        sinks: Sequence[Sink],
        *,
        durable: dict[str, str],
        batch_bytes: int,
        batch_rows: int,
        batch_age: float,
        adopt_any: bool = False,
        importing: AbstractContextManager[object] | None = None,
    ) -> None:
        """``durable`` maps the sinks that must acknowledge every row to their targets.

        ``batch_age`` is the longest time, in seconds, that a row waits for company.
        ``adopt_any`` takes dead owners' rows whatever target they were meant for.
        ``importing`` is held while the sinks import their libraries.
        """
        self._journal = journal
        self._sinks = sinks
        self._importing = importing or nullcontext()
        self._batch_age = batch_age
        self._durable = frozenset(durable)
        tables = {sink.name: sink.tables for sink in sinks}
        dead_letters = DeadLetters(root)
        self._own = OwnSource(journal, tables, durable)
        self._links = [
            Link(sink, dead_letters, Ledger(), batch_bytes, batch_rows) for sink in sinks
        ]
        self._carriers = self._couriers_of(lambda sink: sink.name in durable)
        self._watchers = self._couriers_of(lambda sink: sink.name not in durable)
        self._couriers = [*self._carriers, *self._watchers]
        self._adoption = Adoption(
            root, lambda: journal.folder, self._links, durable, dead_letters, adopt_any=adopt_any
        )
        self._room = Room(journal, self._own, self._adoption, durable)
        self._rolled = asyncio.Event()
        self._kept_up = asyncio.Event()
        self._first_look = asyncio.Event()

    def _couriers_of(self, chosen: Callable[[Sink], bool]) -> list[Courier]:
        return [
            Courier(table, link, self._sources)
            for link in self._links
            if chosen(link.sink)
            for table in sorted(link.sink.tables)
        ]

    def accounts(self) -> dict[str, tuple[Ledger, frozenset[str]]]:
        """The ledger of each sink that must acknowledge what it takes, and the tables that are."""
        return {
            link.sink.name: (link.ledger, link.sink.tables)
            for link in self._links
            if link.sink.name in self._durable
        }

    def rolled(self) -> None:
        """A segment was sealed: a standby is to be made, and a full batch waits."""
        self._rolled.set()

    @property
    def adopted_owners(self) -> int:
        """How many folders of dead processes were taken over."""
        return self._adoption.owners

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._adoption.abandon()

    @property
    def delivered(self) -> bool:
        """Whether the sinks have everything this process wrote."""
        return self._own.delivered

    async def run(self) -> None:
        """Run until cancelled; then leave everything in a state the next process can go on from."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._ticking(self._carriers, self._batch_age))
                tasks.create_task(self._ticking(self._watchers, _WATCHING_AGE))
                tasks.create_task(self._upkeep())
                tasks.create_task(self._making_room())
                tasks.create_task(self._adopting())
                if self._sinks:
                    await self._load_sinks()
                for courier in self._couriers:
                    tasks.create_task(courier.run())
        finally:
            self._adoption.close()
            # At once: one that takes long is not to take the time of another.
            await asyncio.gather(*(sink.aclose() for sink in self._sinks))

    async def _load_sinks(self) -> None:
        """Let the sinks import their libraries, in a thread: it takes a while, and the journal
        wants upkeep meanwhile. Not in an executor, whose thread would have to be waited for."""
        loop = asyncio.get_running_loop()
        loaded = asyncio.Event()

        def load() -> None:
            try:
                with self._importing:
                    for sink in self._sinks:
                        sink.load()
            finally:
                # The loop may have been closed since; then nobody waits.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(loaded.set)

        try:
            threading.Thread(target=load, name="caribou-load", daemon=True).start()
        except RuntimeError:
            # Python 3.12 starts no thread once the program has ended.
            load()
        await loaded.wait()

    async def flush(self, *, recovered: bool = False) -> None:
        """Return when everything logged before the call is settled with every sink; with
        ``recovered``, what dead processes left as well."""
        await asyncio.gather(*(courier.everything() for courier in self._couriers))
        if recovered and self._couriers:
            await self._first_look.wait()
            adoption = self._adoption
            while adoption.sources or adoption.more:
                # A pass gives way to own rows, so it may take several.
                await asyncio.gather(*(courier.everything() for courier in self._couriers))
                await asyncio.sleep(0.02)
                adoption.close_finished()
                if adoption.more:
                    await adoption.look()

    def _sources(self) -> Sequence[Source]:
        return [self._own, *self._adoption.sources]

    async def _ticking(self, couriers: Sequence[Courier], interval: float) -> None:
        while couriers:
            await asyncio.sleep(interval)
            for courier in couriers:
                courier.call()

    async def _upkeep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._rolled.wait()
            except TimeoutError:
                pass
            else:
                self._rolled.clear()
                for courier in self._couriers:
                    courier.call(full_only=True)
            # Soon: as long as a folder is locked, its rollouts look as if their process lived.
            self._adoption.close_finished()
            try:
                self._journal.upkeep()
                self._own.settle_all()
            except OSError as error:
                # Callers make their segments themselves until this works again.
                _logger.debug("The upkeep of the journal failed: %s", error)
            self._kept_up.set()

    async def _making_room(self) -> None:
        """A task of its own: callers are not to be without segments while it looks for room. Only
        when it has looked it is known whether a new rollout has to be refused."""
        while True:
            await self._kept_up.wait()
            self._kept_up.clear()
            try:
                if self._journal.full:
                    await self._room.make()
            except OSError as error:
                _logger.debug("No room could be made in the journal: %s", error)
            self._journal.watch_bound()

    async def _adopting(self) -> None:
        while True:
            await self._adoption.look()
            self._journal.count_others(self._adoption.other_bytes)
            self._first_look.set()
            for courier in self._couriers:
                courier.call()
            await asyncio.sleep(ADOPTION_INTERVAL if not self._adoption.more else 1.0)
