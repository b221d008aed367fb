"""A ClickHouse server, read over HTTP or its native protocol."""

from __future__ import annotations

import asyncio

from .._settings import Settings
from ..errors import StoreError
from ..sinks.clickhouse_reader import ClickHouseReader
from .base import Parameters, Store

__all__ = ["ServerStore", "server_reader"]

# A user whose profile is read-only may not set anything, not even that it only reads.
_SETTINGS_REFUSED = 164
_SETTINGS = {
    "readonly": "2",
    "output_format_json_quote_64bit_integers": "0",
    "date_time_output_format": "iso",
    # A part of a text may begin or end in the middle of a character.
    "output_format_json_validate_utf8": "1",
}


def server_reader(
    settings: Settings, *, timeout: float = 300.0, read_only: bool = True
) -> ClickHouseReader:
    """A client of the server in ``settings.clickhouse_url``; ``timeout`` is seconds a query.

    Raises:
        ConfigurationError: a part of the address is malformed.
    """
    return ClickHouseReader(
        settings.clickhouse_url or "",
        database=settings.clickhouse_database,
        user=settings.clickhouse_user or "",
        password=settings.clickhouse_password or "",
        timeout=timeout,
        settings=_SETTINGS if read_only else None,
    )


class ServerStore(Store):
    """The server in ``CLICKHOUSE_URL``. It has a loop of its own, so it blocks like a file."""

    def __init__(self, settings: Settings, *, timeout: float = 300.0) -> None:
        """Nothing is sent before the first query; ``timeout`` is seconds for each.

        Raises:
            ConfigurationError: a part of the address is malformed.
        """
        self._settings = settings
        self._timeout = timeout
        self._reader = server_reader(settings, timeout=timeout)
        self._plain = False
        self._answers = False
        self._runner = asyncio.Runner()
        self._open = True

    @property
    def description(self) -> str:
        """Where the rows are."""
        return f"ClickHouse server {self._reader.target}"

    def version(self) -> str:
        """The server's version; needs no database to be there.

        Raises:
            StoreError: the server refused or could not be reached.
        """
        return self._runner.run(self._reader.execute("SELECT version()")).decode().strip()

    def query(self, sql: str, parameters: Parameters | None = None, *, format: str) -> bytes:
        """See :meth:`caribou.store.Store.query`."""

        try:
            return self._ask(sql, parameters, format)
        except StoreError as error:
            if self._plain or error.code != _SETTINGS_REFUSED:
                raise
        self._plain = True
        self._runner.run(self._reader.aclose())
        self._reader = server_reader(self._settings, timeout=self._timeout, read_only=False)
        return self._ask(sql, parameters, format)

    def _ask(self, sql: str, parameters: Parameters | None, format: str) -> bytes:
        async def ask() -> bytes:
            if not self._answers:
                await self._reader.ping()
                self._answers = True
            return await self._reader.query(sql, parameters, format)

        return self._runner.run(ask())

    def close(self) -> None:
        """Close the connection."""
        if self._open:
            self._open = False
            self._runner.run(self._reader.aclose())
            self._runner.close()
