"""Opening the store that the environment points at, with what a person should know of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import NoReturn

from .._settings import Settings, from_environment
from ..errors import StoreError
from ..store import LocalStore, Row, Store, open_store
from ._format import counted
from ._output import note, progress
from ._owners import servers_waited_for

__all__ = ["no_traces", "note_empty", "opened_store", "with_interrupted"]


@contextmanager
def opened_store(settings: Settings | None = None) -> Generator[Store]:
    """The server in ``CLICKHOUSE_URL`` or else the local store, loaded up to now.

    Ctrl-C ends the process here when the store is the local one.

    Raises:
        CaribouError: it cannot be opened; the message says why.
    """
    settings = settings or from_environment()
    try:
        with progress("Loading the journal") as update:
            store = open_store(settings, update)
        with store:
            _tell_what_is_not_shown(store, settings)
            yield store
    except KeyboardInterrupt:
        if settings.clickhouse_url is None:
            _leave()
        raise


def _tell_what_is_not_shown(store: Store, settings: Settings) -> None:
    if not isinstance(store, LocalStore):
        return
    if store.loaded.set_aside:
        note(
            f"caribou: {store.loaded.set_aside} rows could not be loaded and were set aside;"
            " `caribou doctor` shows them"
        )
    for target, count in servers_waited_for(settings.journal_dir).items():
        note(
            f"caribou: rows of {counted(count, 'process')} wait in the journal for {target} and"
            " are not shown; with CLICKHOUSE_URL set to it `caribou replay` delivers them"
        )


def _leave() -> NoReturn:
    # A statement cannot be cancelled, and the interpreter must not be taken down around one that
    # runs on in its thread. Killing the engine loses nothing: a part of a table that was not
    # finished is dropped when it is opened again, and its rows are in the journal.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(130)


def with_interrupted(store: Store, traces: list[Row]) -> list[Row]:
    """``traces`` for a person: INTERRUPTED instead of PENDING where the process is known to be
    dead. The stored status stays, as a row of ``traces`` is only ever written by its rollout."""
    if all(trace["status"] != "PENDING" for trace in traces):
        return traces
    interrupted = store.interrupted()
    return [
        {**trace, "status": "INTERRUPTED"} if trace["root_span_id"] in interrupted else trace
        for trace in traces
    ]


def no_traces(store: Store) -> StoreError:
    """The error for a store in which nothing has been recorded yet."""
    return StoreError(
        f"no traces yet in the {store.description}; record some, or try `caribou demo`"
    )


def note_empty(store: Store) -> None:
    """Tell why an answer is empty, which is an answer all the same."""
    if store.rows("SELECT 1 FROM traces LIMIT 1"):
        note("caribou: no trace matches")
    else:
        note(f"caribou: {no_traces(store)}")
