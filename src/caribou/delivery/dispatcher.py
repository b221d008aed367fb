"""What runs in the I/O thread: couriers, the journal's upkeep, and the rows of dead processes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from ..errors import JournalError
from ..journal.journal import Journal
from ..journal.owner import Owner, owner_folders, read_info
from ..journal.reader import segment_files, set_aside_torn
from ..sinks.base import Sink
from .accounting import Ledger
from .courier import Courier, Link
from .dead_letters import DeadLetters
from .source import AdoptedSource, OwnSource, Source

__all__ = ["Dispatcher"]

_logger = logging.getLogger("caribou")

ADOPTION_INTERVAL = 30.0


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
        self._root = root
        self._sinks = sinks
        self._importing = importing or nullcontext()
        self._durable = durable
        self._batch_age = batch_age
        self._adopt_any = adopt_any
        tables = {sink.name: sink.tables for sink in sinks}
        dead_letters = DeadLetters(root)
        self._own = OwnSource(journal, tables, durable)
        self._links = [
            Link(sink, dead_letters, Ledger(), batch_bytes, batch_rows) for sink in sinks
        ]
        self._couriers = [
            Courier(table, link, self._sources)
            for link in self._links
            for table in sorted(link.sink.tables)
        ]
        self._dead_letters = dead_letters
        self._adopted: list[AdoptedSource] = []
        self._rolled = asyncio.Event()
        self._first_look = asyncio.Event()
        self.adopted_owners: int = 0

    def accounts(self) -> dict[str, tuple[Ledger, frozenset[str]]]:
        """Each sink's ledger and the tables it takes."""
        return {link.sink.name: (link.ledger, link.sink.tables) for link in self._links}

    def rolled(self) -> None:
        """A segment was sealed: a standby is to be made, and a full batch waits."""
        self._rolled.set()

    @property
    def delivered(self) -> bool:
        """Whether the sinks have everything this process wrote."""
        return self._own.delivered

    async def run(self) -> None:
        """Run until cancelled; then leave everything in a state the next process can go on from."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._ticking())
                tasks.create_task(self._upkeep())
                tasks.create_task(self._adopting())
                if self._sinks:
                    await self._load_sinks()
                for courier in self._couriers:
                    tasks.create_task(courier.run())
        finally:
            for source in self._adopted:
                source.close()
            for sink in self._sinks:
                await sink.aclose()

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

        threading.Thread(target=load, name="caribou-load", daemon=True).start()
        await loaded.wait()

    async def flush(self, *, recovered: bool = False) -> None:
        """Return when everything logged before the call is settled with every sink; with
        ``recovered``, what dead processes left as well."""
        await asyncio.gather(*(courier.everything() for courier in self._couriers))
        if recovered and self._couriers:
            await self._first_look.wait()
            while self._adopted:
                # A pass gives way to own rows, so it may take several.
                await asyncio.gather(*(courier.everything() for courier in self._couriers))
                await asyncio.sleep(0.02)
                self._close_finished()

    def _sources(self) -> Sequence[Source]:
        return [self._own, *self._adopted]

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(self._batch_age)
            for courier in self._couriers:
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
            self._journal.upkeep()
            for stream in self._journal.streams.values():
                for segment in tuple(stream.segments):
                    self._own.settle(segment)

    async def _adopting(self) -> None:
        while True:
            try:
                await self._look_for_dead()
            except OSError as error:
                _logger.warning("What dead processes left cannot be read: %s", error)
            self._first_look.set()
            await asyncio.sleep(ADOPTION_INTERVAL)
            self._close_finished()

    async def _look_for_dead(self) -> None:
        """Adopt the folders of dead processes whose rows were meant for where ours go."""
        if self._root is None:
            return
        others = 0
        for folder in owner_folders(self._root):
            if folder == self._journal.folder:
                continue
            if any(source.owner.folder == folder for source in self._adopted):
                continue
            if not self._is_ours(folder) or (owner := Owner.adopt(folder)) is None:
                others += sum(file.path.stat().st_size for file in segment_files(folder))
                continue
            await self._adopt(owner)
            # One after another, so that the loop stays free.
            await asyncio.sleep(0)
        self._journal.count_others(others)

    def _is_ours(self, folder: Path) -> bool:
        if self._adopt_any:
            return bool(self._durable)
        try:
            sinks = read_info(folder).sinks
        except JournalError:
            return False
        return any(self._durable.get(name) == target for name, target in sinks.items())

    async def _adopt(self, owner: Owner) -> None:
        tables = {
            link.sink.name: link.sink.tables
            for link in self._links
            if link.sink.name in self._durable
            and (self._adopt_any or owner.info.sinks.get(link.sink.name) == link.sink.target)
        }
        for file in segment_files(owner.folder):
            torn = set_aside_torn(file)
            if torn:
                self._dead_letters.add_torn(owner.name, file.table, file.number, torn)
        source = AdoptedSource(owner, tables)
        for link in self._links:
            if link.sink.name in tables:
                link.ledger.recovered += source.pending_rows(link.sink.name)
        for segment in source.all_segments():
            source.settle(segment)
        self.adopted_owners += 1
        self._adopted.append(source)
        for courier in self._couriers:
            courier.call()

    def _close_finished(self) -> None:
        for source in [source for source in self._adopted if source.finished]:
            self._adopted.remove(source)
            source.close()
