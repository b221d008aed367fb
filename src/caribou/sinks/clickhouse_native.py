"""Deliver journal rows to ClickHouse by its native protocol; needs the extra ``native``."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caribou._pace import Pace
from caribou.schema import TABLES, quote
from caribou.sinks._clickhouse_endpoint import NATIVE, Endpoint
from caribou.sinks._clickhouse_errors import NoAnswer, ServerError, as_question, sink_error
from caribou.sinks._clickhouse_native_blocks import Block, Layout, Unreadable, UnsupportedType
from caribou.sinks._clickhouse_sink import CONNECTIONS, INSERT_SETTINGS, ClickHouseSink
from caribou.sinks.base import Batch, Misconfigured, Poison

if TYPE_CHECKING:
    from caribou.sinks._clickhouse_native import Client

__all__ = ["ClickHouseNative"]

_BATCH_COLUMN = "batch_id"
# Bytes of lines, and about how many, that are encoded between two pauses: a millisecond's work.
_SLICE = 48 * 1024
_SLICE_ROWS = 200


class ClickHouseNative(ClickHouseSink["Client"]):
    """The sink for a ClickHouse server's native interface; implements ``Sink``.

    Args:
        url: ``clickhouse(s)://host:port``. Credentials in it are taken out.
        database: the database that holds the tables; made on first insert if the user may.
        user: empty for the server's default user.
        password: never shown.
        timeout: seconds for one insert or question, its answer included.
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
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        super().__init__(
            Endpoint.parse(url, database=database, user=user, password=password, schemes=NATIVE)
        )
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        # By table and what the server says of its columns, as that may change.
        self._layouts: dict[tuple[str, tuple[tuple[str, str], ...]], Layout] = {}
        # Of an old server, whose tables have only the columns that it has types for.
        self._names: dict[str, list[str]] = {}

    def load(self) -> None:
        """Import asynch; see ``Sink``."""
        importlib.import_module("caribou.sinks._clickhouse_native")

    async def _insert(self, batch: Batch, query_id: str, *, legacy: bool) -> None:
        names = await self._columns(batch.table, legacy=legacy)

        async def fill(columns: Sequence[tuple[str, str]]) -> Block:
            return await self._encode(batch, columns)

        await self._open().insert(
            self._statement(batch.table, names), INSERT_SETTINGS, query_id, fill
        )

    async def _marks_rows(self, table: str) -> bool:
        legacy = await self._is_legacy()
        try:
            return _BATCH_COLUMN in await self._columns(table, legacy=legacy)
        except (ServerError, NoAnswer) as error:
            raise as_question(sink_error(error)) from None

    async def _columns(self, table: str, *, legacy: bool) -> list[str]:
        """The columns of ``table`` that are written to."""
        names = [*(column.name for column in TABLES[table].columns), _BATCH_COLUMN]
        if not legacy:
            return names
        if table not in self._names:
            there: set[str] = set()

            async def nothing(columns: Sequence[tuple[str, str]]) -> None:
                there.update(name for name, _ in columns)

            # The server answers an insert with the columns that it expects.
            await self._open().insert(self._statement(table, []), {}, "", nothing)
            self._names[table] = [name for name in names if name in there]
        return self._names[table]

    def _statement(self, table: str, names: Sequence[str]) -> str:
        columns = f" ({', '.join(map(quote, names))})" if names else ""
        place = f"{quote(self._endpoint.database)}.{TABLES[table].rows_table}"
        return f"INSERT INTO {place}{columns} VALUES"

    async def _encode(self, batch: Batch, columns: Sequence[tuple[str, str]]) -> Block:
        """The batch as a block, made slice by slice, so that neither this loop nor a caller that
        wants the interpreter lock waits for the whole of it."""
        try:
            layout = self._layout(batch.table, tuple(columns))
        except UnsupportedType as error:
            raise Misconfigured(
                f"the tables do not fit this version: {batch.table} has a column of type {error}"
            ) from None
        block = Block(layout, {_BATCH_COLUMN: batch.batch_id})
        start, end, pace = 0, len(batch.data), Pace()
        try:
            while start < end:
                lines = _whole_lines(batch.data, start)
                block.add(lines)
                start += len(lines)
                if pace.pause():
                    await asyncio.sleep(0)
        except Unreadable as error:
            raise Poison(f"a row cannot be encoded: {error}") from None
        if block.rows != batch.rows:
            raise Poison(f"{block.rows} rows were read where there are {batch.rows}")
        return block

    def _layout(self, table: str, columns: tuple[tuple[str, str], ...]) -> Layout:
        layout = self._layouts.get((table, columns))
        if layout is None:
            fills = {
                column.name: int(column.default)
                for column in TABLES[table].columns
                if column.default
            }
            layout = self._layouts[table, columns] = Layout(columns, fills)
        return layout

    def _connect(self) -> Client:
        from caribou.sinks._clickhouse_native import Client

        return Client(
            self._endpoint,
            timeout=self._timeout,
            connect_timeout=self._connect_timeout,
            connections=CONNECTIONS,
        )


def _whole_lines(data: memoryview, start: int) -> bytes:
    """Some lines from ``start``; a line that is longer than a slice is one of its own."""
    size = _SLICE
    while True:
        lines = bytes(data[start : start + size])
        # Short lines are about as long as each other: a share of the bytes is a share of them.
        share = min(1.0, _SLICE_ROWS / (lines.count(b"\n") + 1))
        end = lines.rfind(b"\n", 0, int(len(lines) * share)) + 1 or lines.rfind(b"\n") + 1
        if end:
            return lines[:end]
        if start + size >= len(data):
            return lines
        size *= 2
