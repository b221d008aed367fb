"""Any ClickHouse server or cluster as the service's store, over HTTP or its native protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from typing import Final

import msgspec

from .._settings import Settings
from ..errors import StoreError
from ..schema import migrate, parameter, quote, scripts
from ..sinks._clickhouse_client import Client, open_client
from ..sinks._clickhouse_endpoint import Endpoint
from ..sinks._clickhouse_errors import MISSING_SCHEMA, NoAnswer, ServerError, sink_error
from ..sinks.base import Misconfigured
from .backend import Parameters, Row, Unavailable

__all__ = ["RemoteBackend"]

_log = logging.getLogger("caribou.server")

_READ: Final = {
    "readonly": "2",
    "output_format_json_quote_64bit_integers": "0",
    "date_time_output_format": "iso",
}
_INSERT: Final = {
    "async_insert": "0",
    # One block, stored as a whole or not.
    "input_format_parallel_parsing": "0",
    "max_insert_block_size": "1000000000",
    "insert_deduplicate": "0",
}
_READ_ONLY: Final = 164
_CONNECTIONS: Final = 16
_TIMEOUT: Final = 60.0
_QUERY_TIMEOUT: Final = 30.0


class RemoteBackend:
    """A server's tables; see :class:`~caribou.server.backend.Backend`.

    The tables are made on first use if the user may.
    """

    def __init__(self, settings: Settings) -> None:
        """Nothing is sent before the first query.

        Raises:
            ConfigurationError: a part of the address is malformed.
        """
        self._endpoint = Endpoint.parse(
            settings.clickhouse_url or "",
            database=settings.clickhouse_database,
            user=settings.clickhouse_user or "",
            password=settings.clickhouse_password or "",
        )
        self._client: Client | None = None
        self._schema = asyncio.Lock()
        self._schema_known = False

    def __repr__(self) -> str:
        return f"RemoteBackend({self._endpoint.target!r})"

    @property
    def description(self) -> str:
        """Where the rows are."""
        return f"ClickHouse server {self._endpoint.target}"

    async def rows(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """See :meth:`Backend.rows`."""
        settings = _READ | {
            "default_format": "JSONEachRow",
            "max_execution_time": f"{_QUERY_TIMEOUT:g}",
        }
        for name, value in (parameters or {}).items():
            settings[f"param_{name}"] = parameter(value)
        answer = await self._run(sql, settings)
        return [msgspec.json.decode(line, type=Row) for line in answer.splitlines()]

    async def insert(self, table: str, rows: Sequence[Row]) -> None:
        """See :meth:`Backend.insert`."""
        if rows:
            body = b"\n".join(msgspec.json.encode(row) for row in rows)
            sql = f"INSERT INTO {quote(f'{table}_rows')} FORMAT JSONEachRow"
            await self._run(sql, _INSERT, body)

    async def interrupted(self) -> Set[str]:
        """Nothing is known of the processes that write to a server."""
        return frozenset()

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _run(self, sql: str, settings: Mapping[str, str], body: bytes | None = None) -> bytes:
        settings = {"wait_end_of_query": "1", "database": self._endpoint.database, **settings}
        try:
            await self._know_schema()
            return await self._request(sql, settings, body)
        except ServerError as error:
            if error.code not in MISSING_SCHEMA:
                raise _store_error(error) from None
            self._schema_known = False
        try:
            await self._know_schema()
            return await self._request(sql, settings, body)
        except ServerError as error:
            raise _store_error(error) from None

    async def _know_schema(self) -> None:
        """Make what is missing of the schema, once, by the first who asks."""
        async with self._schema:
            if self._schema_known:
                return
            database = self._endpoint.database
            newest = max(number for number, _, _ in scripts())
            sql = f"SELECT max(version) FROM {quote(database)}.schema_migrations FORMAT TSV"
            try:
                found = int(await self._request(sql, {}))
            except ServerError as error:
                if error.code not in MISSING_SCHEMA:
                    raise
                found = 0
            if found < newest:
                try:
                    await migrate(self._plain, database=database)
                except ServerError as error:
                    if not isinstance(sink_error(error), Misconfigured):
                        raise
                    _log.warning("the tables are missing and cannot be made: %s", error.message)
            self._schema_known = True

    async def _plain(self, sql: str) -> bytes:
        return await self._request(sql, {"wait_end_of_query": "1"})

    async def _request(
        self, sql: str, settings: Mapping[str, str], body: bytes | None = None
    ) -> bytes:
        if self._client is None:
            self._client = open_client(self._endpoint, timeout=_TIMEOUT, connections=_CONNECTIONS)
        try:
            return await self._client.request(sql, settings=settings, body=body)
        except NoAnswer as error:
            raise Unavailable(f"{self._endpoint.target}: {error.reason}") from None


def _store_error(error: ServerError) -> StoreError:
    if error.code == _READ_ONLY:
        return StoreError(
            "the profile of this user (CLICKHOUSE_USER) forbids settings, which every query has:"
            " with readonly = 2 Kestrel can show what is stored, with 0 it can register:"
            f" {error.message}"
        )
    return StoreError(sink_error(error).reason)
