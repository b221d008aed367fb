"""Reading recorded rollouts: one interface over the local store and a ClickHouse server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._engine import require_engine
from .base import Parameters, Progress, Row, Store
from .local import LocalStore
from .readonly import require_read_only

if TYPE_CHECKING:
    from .._settings import Settings

__all__ = [
    "LocalStore",
    "Parameters",
    "Progress",
    "Row",
    "Store",
    "open_store",
    "require_engine",
    "require_read_only",
]


def open_store(settings: Settings, progress: Progress | None = None) -> Store:
    """The server in ``settings.clickhouse_url``, or without one the store of this machine.

    ``progress`` is called while the local store loads what the journal has gained.

    Raises:
        MissingExtra: the local store needs the engine, which is not installed.
        StoreError: the store is in use elsewhere or cannot be opened.
    """
    if settings.clickhouse_url is not None:
        # Late: the local store needs no network library.
        from .server import ServerStore

        return ServerStore(settings)
    return LocalStore(
        settings.home / "store", settings.journal_dir, settings.clickhouse_database, progress
    )
