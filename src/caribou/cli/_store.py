"""Opening the store that the environment points at, with what a person should know of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from .._settings import Settings, from_environment
from ..errors import StoreError
from ..store import LocalStore, Store, open_store
from ._output import note, progress
from ._owners import processes, servers_waited_for

__all__ = ["no_traces", "opened_store"]


@contextmanager
def opened_store(settings: Settings | None = None) -> Generator[Store]:
    """The server in ``CLICKHOUSE_URL`` or else the local store, loaded up to now.

    Raises:
        CaribouError: it cannot be opened; the message says why.
    """
    settings = settings or from_environment()
    with progress("Loading the journal") as update:
        store = open_store(settings, update)
    with store:
        if isinstance(store, LocalStore) and store.loaded.set_aside:
            note(
                f"caribou: {store.loaded.set_aside} rows could not be loaded and were set aside;"
                " `caribou doctor` shows them"
            )
        if settings.clickhouse_url is None:
            for target, count in servers_waited_for(settings.journal_dir).items():
                note(
                    f"caribou: rows of {processes(count)} wait in the journal for {target} and are not"
                    " shown; with CLICKHOUSE_URL set to that server `caribou replay` delivers them"
                )
        yield store


def no_traces(store: Store) -> StoreError:
    """The error for a store in which nothing has been recorded yet."""
    return StoreError(
        f"no traces yet in the {store.description}; record some, or try `caribou demo`"
    )
