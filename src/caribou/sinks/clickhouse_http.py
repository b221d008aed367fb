"""Deliver journal rows to ClickHouse over HTTP.

A batch is one ``INSERT`` of one block, so that a server stores all of it or, in each monthly
partition, nothing; every row carries the batch's id, so that it can be read back. Whatever is sent
twice has the same keys and is read once.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from typing import TYPE_CHECKING, Literal

from caribou.schema import TABLES, insert_statement, migrate, quote, quote_text, scripts
from caribou.sinks._clickhouse_endpoint import Endpoint
from caribou.sinks._clickhouse_errors import (
    MISSING_SCHEMA,
    NoAnswer,
    ServerError,
    missing_right,
    sink_error,
)
from caribou.sinks.base import Batch, Misconfigured, Retry, SinkError

if TYPE_CHECKING:
    from caribou.sinks._clickhouse_http import Client

__all__ = ["ClickHouseHTTP"]

# Every setting that the outcome hangs on is said, since a server's profile may hold another.
_INSERT_SETTINGS = {
    "async_insert": "0",
    "wait_end_of_query": "1",
    # One block: parsed whole before anything of it is written.
    "input_format_parallel_parsing": "0",
    "max_insert_block_size": "1000000000",
    "min_insert_block_size_rows": "1000000000",
    "min_insert_block_size_bytes": "0",
    "max_insert_threads": "1",
    # Rows of old rollouts may lie in any number of months.
    "max_partitions_per_insert_block": "0",
    # Both versions of a row are kept until parts merge, so that reading back finds them.
    "optimize_on_insert": "0",
    "insert_deduplicate": "0",
    # Lines hold nested JSON where columns hold its text, and leave defaults out.
    "input_format_skip_unknown_fields": "1",
    "input_format_null_as_default": "1",
    "input_format_json_read_objects_as_strings": "1",
    "input_format_json_read_arrays_as_strings": "1",
    "input_format_json_read_numbers_as_strings": "1",
    "input_format_json_read_bools_as_strings": "1",
}

# Servers before 20.1 know neither input() nor zstd bodies nor most of the above.
_OLDEST_WITH_INPUT = (20, 1)
_LEGACY_SETTINGS = {
    "wait_end_of_query": "1",
    "max_insert_block_size": "1000000000",
    "input_format_skip_unknown_fields": "1",
}

_BATCH_ID = re.compile(r"[A-Za-z0-9._:-]+")
_ZSTD_LEVEL = 1
_CONNECTIONS = 2
_STILL_RUNNING = 1.0  # seconds until asking again whether an insert has ended


class ClickHouseHTTP:
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
        self._endpoint = Endpoint.parse(url, database=database, user=user, password=password)
        self._compression = compression
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._client: Client | None = None
        self._legacy: bool | None = None
        self._schema_lock = asyncio.Lock()
        self._schemas_made = 0
        self._schema_checked = False

    def __repr__(self) -> str:
        return f"ClickHouseHTTP({self.target!r})"

    @property
    def name(self) -> str:
        """``clickhouse``: names the sink's cursor files and its row in ``stats()``."""
        return "clickhouse"

    @property
    def target(self) -> str:
        """Server and database, without credentials."""
        return self._endpoint.target

    @property
    def tables(self) -> frozenset[str]:
        """Every journal table."""
        return frozenset(TABLES)

    def load(self) -> None:
        """Import the HTTP client and the compressor; see ``Sink``."""
        for name in ("aiohttp", "zstandard"):
            importlib.import_module(name)

    async def send(self, batch: Batch) -> None:
        """Insert the batch; return when the server has stored it.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        legacy = await self._is_legacy()
        if not legacy and not self._schema_checked:
            await self._finish_schema()
        schemas_made = self._schemas_made
        try:
            await self._insert(batch, legacy=legacy)
        except ServerError as error:
            if legacy or error.code not in MISSING_SCHEMA:
                raise sink_error(error) from None
            await self._make_schema(schemas_made)
            try:
                await self._insert(batch, legacy=False)
            except (ServerError, NoAnswer) as second:
                raise sink_error(second) from None
        except NoAnswer as error:
            raise sink_error(error) from None

    async def confirm(self, batch: Batch) -> bool:
        """Read back whether every row of the batch is stored and no insert of it still runs.

        Rows that a merge has meanwhile replaced by newer versions count as absent: sending those
        again is harmless. A server too old to mark rows always answers False, for the same reason.

        Raises:
            SinkError: the question could not be asked.
        """
        if await self._is_legacy():
            return False
        if await self._is_running(batch):
            raise Retry("the insert is still running", retry_after=_STILL_RUNNING)
        table = TABLES[batch.table]
        sql = (
            f"SELECT uniqExact({', '.join(table.identity)}) "
            f"FROM {quote(self._endpoint.database)}.{table.rows_table} "
            f"WHERE batch_id = {quote_text(batch.batch_id)} FORMAT TSV"
        )
        try:
            return int(await self._ask(sql)) >= batch.rows
        except Misconfigured as error:
            if error.code in MISSING_SCHEMA:
                return False
            raise

    async def aclose(self) -> None:
        """Close the connections; the next ``send`` opens new ones."""
        client, self._client = self._client, None
        self._schema_lock = asyncio.Lock()  # the next loop may be another one
        if client is not None:
            await client.aclose()

    async def _insert(self, batch: Batch, *, legacy: bool) -> None:
        if _BATCH_ID.fullmatch(batch.batch_id) is None:
            raise ValueError(f"not a batch id: {batch.batch_id!r}")
        database = self._endpoint.database
        query_id = f"{_query_id_prefix(batch)}{os.urandom(4).hex()}"
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

    async def _finish_schema(self) -> None:
        """Make what is missing of a schema whose making was cut short, or is of an older version.

        Inserts do well with the tables alone, and would never notice that the views are missing.
        """
        database = quote(self._endpoint.database)
        sql = f"SELECT max(version) FROM {database}.schema_migrations FORMAT TSV"
        try:
            if int(await self._ask(sql)) < max(number for number, _, _ in scripts()):
                await self._make_schema(self._schemas_made)
        except Misconfigured:
            # There is nothing yet, which the insert finds out; or this user may not look or make
            # anything, and the insert is what counts.
            pass
        self._schema_checked = True

    async def _make_schema(self, schemas_made: int) -> None:
        """Create or update the tables, unless another insert did so since ``schemas_made``."""
        async with self._schema_lock:
            if self._schemas_made > schemas_made:
                return
            database = self._endpoint.database

            async def execute(sql: str) -> bytes:
                return await self._open().request(sql, settings={"wait_end_of_query": "1"})

            try:
                await migrate(execute, database=database)
            except ServerError as error:
                failure = sink_error(error)
                if not isinstance(failure, Misconfigured):
                    raise Retry(failure.reason, code=failure.code) from None
                right = missing_right(error.message) or f" (CREATE TABLE ON {database}.*)"
                raise Misconfigured(
                    f"the tables are missing in database {database} and this user may not make "
                    f"them: grant it the right{right}, or have someone who has it run "
                    f"`caribou migrate`: {error.message}",
                    code=error.code,
                ) from None
            except NoAnswer as error:
                raise _as_question(sink_error(error)) from None
            self._schemas_made += 1

    async def _is_legacy(self) -> bool:
        if self._legacy is None:
            answer = (await self._ask("SELECT version() FORMAT TSV")).decode(errors="replace")
            numbers = re.match(r"(\d+)\.(\d+)", answer)
            if numbers is None:
                raise Misconfigured("no ClickHouse answers at CLICKHOUSE_URL")
            self._legacy = (int(numbers[1]), int(numbers[2])) < _OLDEST_WITH_INPUT
        return self._legacy

    async def _is_running(self, batch: Batch) -> bool:
        prefix = quote_text(_query_id_prefix(batch))
        sql = (
            f"SELECT count() FROM system.processes WHERE startsWith(query_id, {prefix}) FORMAT TSV"
        )
        try:
            return int(await self._ask(sql)) > 0
        except Misconfigured:
            # The user may not look there. Then the rows alone decide.
            return False

    async def _ask(self, sql: str) -> bytes:
        """Run a statement that stores nothing, so that its failure is never ambiguous."""
        try:
            return await self._open().request(sql, settings={"wait_end_of_query": "1"})
        except (ServerError, NoAnswer) as error:
            raise _as_question(sink_error(error)) from None

    def _open(self) -> Client:
        if self._client is None:
            from caribou.sinks._clickhouse_http import Client

            self._client = Client(
                self._endpoint,
                timeout=self._timeout,
                connect_timeout=self._connect_timeout,
                connections=_CONNECTIONS,
            )
        return self._client


def _query_id_prefix(batch: Batch) -> str:
    return f"caribou-{batch.batch_id}-{batch.table}-"


def _as_question(failure: SinkError) -> SinkError:
    """Failures of a question leave two classes: ask again, or have somebody change something."""
    if isinstance(failure, Misconfigured | Retry):
        return failure
    return Retry(failure.reason, code=failure.code, retry_after=failure.retry_after)
