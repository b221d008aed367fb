"""Queries against a ClickHouse server, for whoever reads the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from caribou.errors import StoreError
from caribou.schema import parameter
from caribou.sinks._clickhouse_client import Client, open_client
from caribou.sinks._clickhouse_endpoint import Endpoint
from caribou.sinks._clickhouse_errors import (
    BAD_SQL,
    MISSING_SCHEMA,
    NoAnswer,
    ServerError,
    sink_error,
)
from caribou.sinks.base import Misconfigured

__all__ = ["ClickHouseReader"]


class ClickHouseReader:
    """Runs statements in one database; use it in one event loop and close it there.

    Args:
        url: ``http(s)://host:port`` or ``clickhouse(s)://host:port``. Credentials in it are taken
            out.
        database: where unqualified table names are looked up.
        user: empty for the server's default user.
        password: never shown.
        timeout: seconds for one query, its answer included.
        settings: ClickHouse settings for each query, e.g. ``{"readonly": "2"}``.

    Raises:
        ConfigurationError: a part of the address is malformed.
    """

    def __init__(
        self,
        url: str,
        *,
        database: str = "caribou",
        user: str = "",
        password: str = "",
        timeout: float = 300.0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(url, database=database, user=user, password=password)
        self._timeout = timeout
        self._settings = dict(settings or {})
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"ClickHouseReader({self.target!r})"

    @property
    def target(self) -> str:
        """Server and database, without credentials."""
        return self._endpoint.target

    async def query(
        self,
        sql: str,
        parameters: Mapping[str, str | int | float | Sequence[str] | None] | None = None,
        format: str = "JSONEachRow",
    ) -> bytes:
        """Run one query in the reader's database.

        Args:
            sql: the query; ``{name:Type}`` stands for a parameter.
            parameters: their values.
            format: the ClickHouse format of the answer, unless the query names one itself.

        Raises:
            StoreError: the server refused or could not be reached; says why.
        """
        settings = self._settings | {
            "database": self._endpoint.database,
            "default_format": format,
        }
        for name, value in (parameters or {}).items():
            settings[f"param_{name}"] = parameter(value)
        return await self._request(sql, settings)

    async def execute(self, sql: str) -> bytes:
        """Run one statement that names its database itself, as migrations do.

        Raises:
            StoreError: the server refused or could not be reached; says why.
        """
        return await self._request(sql, {})

    async def ping(self, seconds: float = 10.0) -> None:
        """Wait for any answer at all, which takes no server long: a query may.

        Raises:
            StoreError: none came within ``seconds``, or the server could not be reached.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.execute("SELECT 1")
        except TimeoutError:
            port = "native" if self._endpoint.is_native else "HTTP"
            raise StoreError(
                f"{self.target}: connected, but no answer within {seconds:g} s; is it ClickHouse's"
                f" {port} port?"
            ) from None

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _request(self, sql: str, settings: Mapping[str, str]) -> bytes:
        if self._client is None:
            self._client = open_client(self._endpoint, timeout=self._timeout, connections=4)
        try:
            # The answer is held back until the query has ended, so that a failure half way is one.
            return await self._client.request(sql, settings={"wait_end_of_query": "1", **settings})
        except ServerError as error:
            raise StoreError(_reason(error), code=error.code) from None
        except NoAnswer as error:
            raise StoreError(f"{self.target}: {error.reason}") from None


def _reason(error: ServerError) -> str:
    if error.code in MISSING_SCHEMA:
        return f"{error.message} (`caribou migrate` makes Caribou's own tables)"
    if error.code in BAD_SQL:
        return error.message
    failure = sink_error(error)
    return failure.reason if isinstance(failure, Misconfigured) else error.message
