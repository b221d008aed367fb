"""Deliver journal rows to ClickHouse over HTTP."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from caribou.schema import TABLES, insert_statement, quote
from caribou.sinks._clickhouse_endpoint import HTTP, Endpoint
from caribou.sinks._clickhouse_sink import CONNECTIONS, INSERT_SETTINGS, ClickHouseSink
from caribou.sinks.base import Batch

if TYPE_CHECKING:
    from caribou.sinks._clickhouse_http import Client

__all__ = ["ClickHouseHTTP"]

_INSERT_SETTINGS = INSERT_SETTINGS | {
    "wait_end_of_query": "1",
    # One block: parsed whole before anything of it is written.
    "input_format_parallel_parsing": "0",
    # Lines hold nested JSON where columns hold its text, and leave defaults out.
    "input_format_skip_unknown_fields": "1",
    "input_format_null_as_default": "1",
    "input_format_json_read_objects_as_strings": "1",
    "input_format_json_read_arrays_as_strings": "1",
    "input_format_json_read_numbers_as_strings": "1",
    "input_format_json_read_bools_as_strings": "1",
}

# For servers that know neither input() nor zstd bodies, nor most of the above.
_LEGACY_SETTINGS = {
    "wait_end_of_query": "1",
    "max_insert_block_size": "1000000000",
    "input_format_skip_unknown_fields": "1",
}

_ZSTD_LEVEL = 1


class ClickHouseHTTP(ClickHouseSink["Client"]):
    """The sink for a ClickHouse server's HTTP interface; implements ``Sink``.

    Args:
        url: ``http(s)://host:port``. Credentials in it are taken out.
        database: the database that holds the tables; made on first insert if the user may.
        user: empty for the server's default user.
        password: sent as a header; never shown.
        compression: of request bodies.
        timeout: seconds for one request, its answer included.
        connect_timeout: seconds for reaching the server, TLS included.

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
        compression: Literal["zstd", "none"] = "zstd",
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        super().__init__(
            Endpoint.parse(url, database=database, user=user, password=password, schemes=HTTP)
        )
        self._compression = compression
        self._timeout = timeout
        self._connect_timeout = connect_timeout

    def load(self) -> None:
        """Import the HTTP client and the compressor; see ``Sink``."""
        for name in ("aiohttp", "zstandard"):
            importlib.import_module(name)

    async def _insert(self, batch: Batch, query_id: str, *, legacy: bool) -> None:
        database = self._endpoint.database
        if legacy:
            rows_table = TABLES[batch.table].rows_table
            sql = f"INSERT INTO {quote(database)}.{rows_table} FORMAT JSONEachRow"
            settings = _LEGACY_SETTINGS | {"query_id": query_id}
        else:
            sql = insert_statement(database, batch.table, batch.batch_id)
            settings = _INSERT_SETTINGS | {"query_id": query_id}
        if legacy or self._compression == "none":
            await self._open().request(sql, settings=settings, body=batch.data)
            return
        import zstandard

        # Straight from the view of the journal, with the interpreter lock released.
        body = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(batch.data)
        await self._open().request(sql, settings=settings, body=body, encoding="zstd")

    def _connect(self) -> Client:
        from caribou.sinks._clickhouse_http import Client

        return Client(
            self._endpoint,
            timeout=self._timeout,
            connect_timeout=self._connect_timeout,
            connections=CONNECTIONS,
        )
