"""What the sinks for ClickHouse have in common, whichever interface they deliver by.

A batch is one ``INSERT`` of one block, so that a server stores all of it or, in each monthly
partition, nothing; every row carries the batch's id, so that it can be read back. Whatever is sent
twice has the same keys and is read once.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from caribou.schema import SERVER_NEEDED, TABLES, quote, quote_text, release_of
from caribou.sinks._clickhouse_client import Client
from caribou.sinks._clickhouse_endpoint import Endpoint
from caribou.sinks._clickhouse_errors import (
    MISSING_SCHEMA,
    NoAnswer,
    ServerError,
    as_question,
    sink_error,
)
from caribou.sinks._clickhouse_schema import Schema
from caribou.sinks.base import Batch, Misconfigured, Retry

__all__ = ["CONNECTIONS", "INSERT_SETTINGS", "ClickHouseSink"]

# Servers before 20.1 know neither input() nor zstd bodies, nor most of the settings.
_OLDEST_WITH_INPUT = (20, 1)

_BATCH_ID = re.compile(r"[A-Za-z0-9._:-]+")
CONNECTIONS = 2
# Every setting that the outcome hangs on is said, since a server's profile may hold another. Never
# send_logs_level: over the native protocol, log packets would come between the rows and their
# acknowledgement.
INSERT_SETTINGS = {
    "async_insert": "0",
    # One block, and it stays one.
    "max_insert_block_size": "1000000000",
    "min_insert_block_size_rows": "1000000000",
    "min_insert_block_size_bytes": "0",
    "max_insert_threads": "1",
    # Rows of old rollouts may lie in any number of months.
    "max_partitions_per_insert_block": "0",
    # Both versions of a row are kept until parts merge, so that reading back finds them.
    "optimize_on_insert": "0",
    "insert_deduplicate": "0",
}
_STILL_RUNNING = 1.0  # seconds until asking again whether an insert has ended


AnyClient = TypeVar("AnyClient", bound=Client)


class ClickHouseSink(ABC, Generic[AnyClient]):
    """A ``Sink`` but for how it connects and how rows get into a request."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client: AnyClient | None = None
        self._legacy: bool | None = None
        self._schema = Schema(endpoint.database, self._execute)

    @abstractmethod
    def load(self) -> None:
        """Import what the sink needs; see ``Sink``."""

    @abstractmethod
    def _connect(self) -> AnyClient:
        """Make the client; nothing is sent yet."""

    @abstractmethod
    async def _insert(self, batch: Batch, query_id: str, *, legacy: bool) -> None:
        """Store the batch as one block.

        Raises:
            ServerError: the server answered that it failed.
            NoAnswer: no whole answer came.
            SinkError: the batch was refused before it was sent.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

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

    async def send(self, batch: Batch) -> None:
        """Insert the batch; return when the server has stored it.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        legacy = await self._is_legacy()
        unfinished = None if legacy else await self._schema.finish()
        made = self._schema.made
        try:
            try:
                await self._insert(batch, _query_id(batch), legacy=legacy)
            except ServerError as error:
                if error.code not in MISSING_SCHEMA:
                    raise
                if legacy:
                    # One that holds them was given them by hand, as tests do.
                    raise Misconfigured(
                        "the tables are missing, and the server is too old for them; "
                        + SERVER_NEEDED,
                        code=error.code,
                    ) from None
                if unfinished is not None:
                    raise unfinished from None
                await self._schema.make(made)
                await self._insert(batch, _query_id(batch), legacy=False)
        except (ServerError, NoAnswer) as error:
            raise sink_error(error) from None
        if unfinished is not None:
            self._schema.put_off(unfinished)

    async def confirm(self, batch: Batch) -> bool:
        """Read back whether every row of the batch is stored and no insert of it still runs.

        Rows that a merge has meanwhile replaced by newer versions count as absent: sending those
        again is harmless. Where rows could not be marked the answer is False, for the same reason.

        Raises:
            SinkError: the question could not be asked.
        """
        if not await self._marks_rows(batch.table):
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
        self._schema.leave_loop()
        if client is not None:
            await client.aclose()

    async def _marks_rows(self, table: str) -> bool:
        """Whether rows of ``table`` carry the id of their batch."""
        return not await self._is_legacy()

    async def _is_legacy(self) -> bool:
        if self._legacy is None:
            answer = (await self._ask("SELECT version() FORMAT TSV")).decode(errors="replace")
            release = release_of(answer)
            if not release:
                raise Misconfigured("no ClickHouse answers at CLICKHOUSE_URL")
            self._legacy = release < _OLDEST_WITH_INPUT
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
            return await self._execute(sql)
        except (ServerError, NoAnswer) as error:
            raise as_question(sink_error(error)) from None

    async def _execute(self, sql: str) -> bytes:
        return await self._open().request(sql, settings={"wait_end_of_query": "1"})

    def _open(self) -> AnyClient:
        if self._client is None:
            self._client = self._connect()
        return self._client


def _query_id(batch: Batch) -> str:
    if _BATCH_ID.fullmatch(batch.batch_id) is None:
        raise ValueError(f"not a batch id: {batch.batch_id!r}")
    return f"{_query_id_prefix(batch)}{os.urandom(4).hex()}"


def _query_id_prefix(batch: Batch) -> str:
    return f"caribou-{batch.batch_id}-{batch.table}-"
