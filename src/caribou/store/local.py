"""The journal of this machine, read by the embedded ClickHouse engine."""

from __future__ import annotations

from pathlib import Path

from ..errors import StoreError
from ._engine import Engine
from ._loading import Loaded, Loader
from .base import Parameters, Progress, Store
from .living import begun_by_the_living

__all__ = ["LocalStore"]

_WAIT = 10.0


class LocalStore(Store):
    """The rows of the journal below ``journal``, kept in ClickHouse tables below ``folder``.

    Opening it creates the tables and loads what the journal has gained; ``loaded`` says what that
    was. A journal that goes on growing is seen as it was at that moment.
    """

    def __init__(
        self, folder: Path, journal: Path, database: str, progress: Progress | None = None
    ) -> None:
        """Open the store; ``progress`` is called while rows are loaded.

        Raises:
            MissingExtra: the engine is not installed.
            StoreError: another process holds the store, or it cannot be opened.
        """
        self._folder = folder
        self._journal = journal
        self._engine = Engine(folder, wait=_WAIT)
        try:
            self._engine.prepare(database)
            loader = Loader(self._engine, journal, folder / "loaded.json", database)
            self.loaded: Loaded = loader.load(progress)
            self._engine.run("SET readonly = 2")
        except OSError as error:
            self._engine.close()
            raise StoreError(
                f"rows cannot be loaded into the local store {folder}: {error.strerror}"
            ) from error
        except BaseException:
            self._engine.close()
            raise

    @property
    def description(self) -> str:
        """Where the rows are."""
        return f"local store {self._folder}"

    def query(self, sql: str, parameters: Parameters | None = None, *, format: str) -> bytes:
        """See :meth:`caribou.store.Store.query`."""
        return self._engine.run(sql, parameters, format)

    def interrupted(self) -> dict[str, str]:
        """See :meth:`caribou.store.Store.interrupted`."""
        sql = "SELECT root_span_id, run_id FROM traces WHERE status = 'PENDING'"
        pending: dict[str, str] = {row["root_span_id"]: row["run_id"] for row in self.rows(sql)}
        if pending:
            for root in begun_by_the_living(self._journal):
                pending.pop(root, None)
        return pending

    def close(self) -> None:
        """Close the engine; the next process may open the store."""
        self._engine.close()
