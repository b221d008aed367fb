"""The journal of this machine, read by the embedded ClickHouse engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import JournalError, StoreError
from ..journal.owner import host_name, is_alive, network_file_system, owner_folders, read_info
from ..journal.reader import read_rows, segment_files
from ..schema import migrate_sync, quote
from ._engine import Engine
from ._loading import Loaded, Loader
from .base import Parameters, Progress, Store
from .follow import decoded

__all__ = ["LocalStore"]

_WAIT = 10.0
_SETTINGS = (
    "output_format_json_quote_64bit_integers = 0",
    "date_time_output_format = 'iso'",
    # Nested values stay JSON text, as they do on a server.
    "input_format_json_read_objects_as_strings = 1",
    "input_format_json_read_arrays_as_strings = 1",
    "input_format_json_read_numbers_as_strings = 1",
    "input_format_json_read_bools_as_strings = 1",
    "input_format_null_as_default = 1",
    "input_format_skip_unknown_fields = 1",
)


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
            migrate_sync(self._engine.run, database=database)
            self._engine.run(f"SET {', '.join(_SETTINGS)}")
            loader = Loader(self._engine, journal, folder / "loaded.json", database)
            self.loaded: Loaded = loader.load(progress)
            self._engine.run(f"USE {quote(database)}")
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
            for root in _begun_by_the_living(self._journal):
                pending.pop(root, None)
        return pending

    def close(self) -> None:
        """Close the engine; the next process may open the store."""
        self._engine.close()


def _begun_by_the_living(journal: Path) -> Iterator[str]:
    """The root span ids of all rollouts of processes that may live."""
    for folder in owner_folders(journal):
        if not _may_live(folder):
            continue
        for segment in segment_files(folder):
            if segment.table == "traces":
                for row in decoded(read_rows(segment, 0)):
                    yield row.get("root_span_id", "")


def _may_live(folder: Path) -> bool:
    if is_alive(folder) or network_file_system(folder) is None:
        return is_alive(folder)
    # The lock of another host's process may not be seen here.
    try:
        return read_info(folder).host != host_name()
    except JournalError:
        return False
