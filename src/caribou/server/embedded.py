"""The service's rows in the embedded engine, and the intake of this machine's journals.

One process holds the store. Statements run one after another in the engine's own thread; the
intake loads what every process on the machine has written since it last looked, in a thread too.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from ..errors import CaribouError
from ..schema import insert_statement, quote, quote_text
from ..store._engine import Engine
from ..store._loading import Loader
from ..store.living import OpenRollouts
from .backend import Parameters, Row

__all__ = ["EmbeddedBackend", "Intake"]

_log = logging.getLogger("caribou.server")

_WAIT = 1.0  # seconds for another process to finish with the store
_EVERY = 0.5  # seconds between two looks at the journals
_AFTER_FAILURE = 5.0
_LONGEST_QUERY = 30  # seconds: nobody else is answered meanwhile
_LAST_STATEMENT = 5.0  # seconds that closing waits for what runs

# By batch id: rows that came through the door are of processes elsewhere.
_PENDING: Final = (
    "SELECT root_span_id FROM traces_rows FINAL"
    " WHERE status = 'PENDING' AND startsWith(batch_id, 'local:')"
)


class _Stopped(Exception):
    """The intake was told to end in the middle of a load."""


class Intake:
    """Takes in the journals of all processes on this machine, as they grow.

    Attributes:
        rows: taken in so far.
        set_aside: rows that the engine refused, kept as dead letters.
        interrupted: root span ids of rollouts that the dead left open.
        caught_up: whether everything there was at the start has been taken in.
        failure: why the last look failed, None when it did not.
    """

    def __init__(self, engine: Engine, journal: Path, state: Path, database: str) -> None:
        self._engine = engine
        self._journal = journal
        self._loader = Loader(engine, journal, state, database)
        self._rollouts: OpenRollouts | None = None
        self._stop = threading.Event()
        self._seen = time.monotonic()
        self.interrupted: Set[str] = frozenset()
        self.rows: int = 0
        self.set_aside: int = 0
        self.caught_up: bool = False
        self.failure: str | None = None

    @property
    def lag(self) -> float:
        """Seconds: what was written this long ago has been taken in."""
        return time.monotonic() - self._seen

    def run(self) -> None:
        """Look again and again until :meth:`stop`; blocks, so give it a thread."""
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self._look()
            except _Stopped:
                return
            except (CaribouError, OSError) as error:
                if self.failure is None:
                    _log.error("the journals cannot be taken in, trying again: %s", error)
                self.failure = str(error)
                self._stop.wait(_AFTER_FAILURE)
                continue
            if self.failure is not None:
                _log.warning("the journals are taken in again")
            self.failure, self._seen, self.caught_up = None, begun, True
            self._stop.wait(_EVERY)

    def stop(self) -> None:
        """Let :meth:`run` return after the insert under way."""
        self._stop.set()

    def _look(self) -> None:
        if self._rollouts is None:
            rollouts = OpenRollouts(self._journal)
            self._load()
            rollouts.begin(self._engine.run(_PENDING).decode().split())
            self._rollouts = rollouts
        else:
            self._rollouts.look()
            self._load()
        # Once their rows can be read.
        self.interrupted = self._rollouts.interrupted

    def _load(self) -> None:
        loaded = self._loader.load(self._progress)
        self.rows += loaded.rows
        self.set_aside += loaded.set_aside
        if loaded.set_aside:
            _log.warning(
                "%d rows could not be taken in and were set aside; `caribou doctor` shows them",
                loaded.set_aside,
            )

    def _progress(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped


class EmbeddedBackend:
    """See :class:`~caribou.server.backend.Backend`. Open one with :meth:`open`."""

    def __init__(self, folder: Path, journal: Path, database: str) -> None:
        """Open the store in ``folder``; blocks for a second or two.

        Raises:
            MissingExtra: the engine is not installed.
            StoreError: another process holds the store, or it cannot be opened.
        """
        self._folder = folder
        self._database = database
        self._engine = Engine(folder, wait=_WAIT)
        try:
            self._engine.prepare(database)
            self.intake: Intake = Intake(self._engine, journal, folder / "loaded.json", database)
        except BaseException:
            self._engine.close()
            raise
        self._intake_thread = threading.Thread(
            target=self.intake.run, name="caribou-intake", daemon=True
        )
        self._intake_thread.start()

    @classmethod
    async def open(cls, folder: Path, journal: Path, database: str) -> EmbeddedBackend:
        """The same without blocking the loop."""
        return await asyncio.to_thread(cls, folder, journal, database)

    @property
    def description(self) -> str:
        """Where the rows are."""
        return f"local store {self._folder}"

    async def rows(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """See :meth:`Backend.rows`."""
        future = self._engine.submit(sql, parameters, "JSONEachRow", seconds=_LONGEST_QUERY)
        answer = await asyncio.wrap_future(future)
        return [msgspec.json.decode(line) for line in answer.splitlines()]

    @property
    def database(self) -> str:
        """The database that holds the tables."""
        return self._database

    async def insert(self, table: str, rows: Sequence[Row]) -> None:
        """See :meth:`Backend.insert`."""
        if rows:
            staged = await asyncio.to_thread(_staged, msgspec.json.Encoder().encode_lines(rows))
            # Names come from the code; what the rows hold is in the file.
            sql = (
                f"INSERT INTO {quote(self._database)}.{quote(f'{table}_rows')}"
                f" FROM INFILE {quote_text(staged.name)} FORMAT JSONEachRow"
            )
            await self._insert(sql, staged)

    async def insert_batch(self, table: str, lines: bytes, batch_id: str) -> None:
        """Store journal lines of ``table`` that another machine's tracer sent.

        Raises:
            EngineError: the engine refused them.
        """
        staged = await asyncio.to_thread(_staged, lines)
        sql = insert_statement(self._database, table, batch_id, path=staged.name)
        await self._insert(sql, staged)

    async def _insert(self, sql: str, staged: IO[bytes]) -> None:
        insert = self._engine.submit(sql)
        # Not when this call ends: it may be called off while the engine reads.
        insert.add_done_callback(lambda _: staged.close())
        await asyncio.wrap_future(insert)

    async def interrupted(self) -> Set[str]:
        """See :meth:`Backend.interrupted`."""
        return self.intake.interrupted

    async def aclose(self) -> None:
        """End the intake, and close the engine once what runs has ended, within seconds."""
        self.intake.stop()
        await asyncio.to_thread(self._intake_thread.join, _LAST_STATEMENT)
        with suppress(TimeoutError, CaribouError):
            async with asyncio.timeout(_LAST_STATEMENT):
                await asyncio.wrap_future(self._engine.submit("SELECT 1"))
        await asyncio.to_thread(self._engine.close)


def _staged(lines: bytes) -> IO[bytes]:
    """A file with ``lines`` in it, deleted when it is closed."""
    staged = tempfile.NamedTemporaryFile(prefix="caribou-", suffix=".ndjson")  # noqa: SIM115
    staged.write(lines)
    staged.flush()
    return staged
