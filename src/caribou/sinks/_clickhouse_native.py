"""Statements over ClickHouse's native protocol, in the form that ``_clickhouse_http`` gives them.

This module imports asynch: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

import msgspec

from caribou.schema import quote, quote_text
from caribou.sinks._answers import NoAnswer
from caribou.sinks._clickhouse_endpoint import Endpoint
from caribou.sinks._clickhouse_errors import ServerError
from caribou.sinks._clickhouse_native_answers import formatted, plain
from caribou.sinks._clickhouse_native_blocks import Block, Layout, Unreadable, UnsupportedType
from caribou.sinks._clickhouse_native_connection import (
    IS_IT_THE_PORT,
    Connection,
    can_compress,
)

__all__ = ["Client"]

# Seconds an idle connection is kept. No rows leave on one before the server has answered on it, so
# a request that meets the hang-up of something in between is never an ambiguous one.
_KEEP_ALIVE = 10.0
# Bytes; by default a server takes 256 KiB. Lists of ids are longer once they are quoted.
_LARGE_STATEMENT = 200_000
_LARGE = {"max_query_size": "16777216"}
_PARAMETER = re.compile(r"param_\w+")
_JSON_ROWS = " FORMAT JSONEachRow"
# What only HTTP knows.
_NOT_SETTINGS = frozenset({"wait_end_of_query", "database", "default_format"})


class Client:
    """Runs statements at one endpoint over at most ``connections`` connections, one at a time on
    each. Whatever goes wrong on a connection, a cancellation included, closes it."""

    def __init__(
        self, endpoint: Endpoint, *, timeout: float, connect_timeout: float, connections: int
    ) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._compress = can_compress()
        # Honours SSL_CERT_FILE and SSL_CERT_DIR.
        self._tls = ssl.create_default_context() if endpoint.is_tls else None
        self._room = asyncio.Semaphore(connections)
        self._idle: list[tuple[float, str, Connection]] = []

    async def request(
        self,
        sql: str,
        *,
        settings: Mapping[str, str],
        body: bytes | None = None,
    ) -> bytes:
        """Run one statement.

        Args:
            sql: the statement.
            settings: what HTTP takes as URL parameters: settings, ``database``,
                ``default_format``, ``param_...``.
            body: the rows that an ``INSERT ... FORMAT JSONEachRow`` reads.

        Returns:
            The answer in ``default_format``, or without one as tab-separated text.

        Raises:
            ServerError: the server answered that it failed.
            NoAnswer: no whole answer came.
            StoreError: the answer cannot be had in ``default_format``.
        """
        own = {
            name: value
            for name, value in settings.items()
            if name not in _NOT_SETTINGS and not name.startswith("param_")
        }
        async with self._connection(settings.get("database", "")) as connection:
            if body is not None:
                if not sql.endswith(_JSON_ROWS):
                    raise ValueError("rows must come as JSONEachRow")
                await _insert_json(connection, sql, own, body)
                return b""
            for name, value in settings.items():
                if _PARAMETER.fullmatch(name):
                    # The session keeps it for the next statement, as a query's own parameters
                    # need a newer revision of the protocol than asynch speaks.
                    statement = f"SET {name} = {quote_text(value)}"
                    # Not always: who may only read may set nothing.
                    large = len(statement.encode()) > _LARGE_STATEMENT
                    await connection.ask(statement, _LARGE if large else {})
            form = settings.get("default_format", "")
            if form:
                return await formatted(connection, sql, own, form)
            return plain(await connection.ask(sql, own), "TabSeparated")

    async def insert(
        self,
        sql: str,
        settings: Mapping[str, str],
        query_id: str,
        fill: Callable[[Sequence[tuple[str, str]]], Awaitable[Block | None]],
    ) -> None:
        """Store one block of rows; see :meth:`Connection.insert`.

        Raises:
            ServerError: the server answered that it failed.
            NoAnswer: the end of the stream did not come.
            Exception: whatever ``fill`` raises.
        """
        async with self._connection("") as connection:
            await connection.insert(sql, settings, query_id, fill)

    async def aclose(self) -> None:
        """Close every connection."""
        for _, _, connection in self._idle:
            connection.abort()
        self._idle.clear()

    @contextlib.asynccontextmanager
    async def _connection(self, database: str) -> AsyncGenerator[Connection]:
        """A connection of one's own, for at most the time limit of one request."""
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._timeout), self._room:
                connection = self._take(database)
                if connection is None:
                    connection = Connection(
                        self._endpoint,
                        database=database,
                        compress=self._compress,
                        tls=self._tls,
                    )
                    try:
                        async with asyncio.timeout(self._connect_timeout):
                            await connection.open()
                    except TimeoutError:
                        # As the HTTP port does, which waits for the end of a line.
                        reason = f"no answer within the time limit; {IS_IT_THE_PORT}"
                        raise NoAnswer(reason, sent=False) from None
                yield connection
        except BaseException as error:
            if connection is not None:
                connection.abort()
            if isinstance(error, TimeoutError):
                sent = connection is not None and connection.sent
                raise NoAnswer("no answer within the time limit", sent=sent) from None
            raise
        self._idle.append((asyncio.get_running_loop().time(), database, connection))

    def _take(self, database: str) -> Connection | None:
        """The connection that was used last, if one is still good; the others are closed."""
        oldest = asyncio.get_running_loop().time() - _KEEP_ALIVE
        good = [item for item in self._idle if item[0] >= oldest and item[2].is_idle]
        for item in self._idle:
            if item not in good:
                item[2].abort()
        self._idle = good
        for item in reversed(good):
            if item[1] == database:
                good.remove(item)
                return item[2]
        return None


async def _insert_json(
    connection: Connection, sql: str, settings: Mapping[str, str], body: bytes
) -> None:
    rows = [msgspec.json.decode(line, type=dict[str, msgspec.Raw]) for line in body.splitlines()]
    names = ", ".join(quote(name) for name in dict.fromkeys(name for row in rows for name in row))

    async def fill(columns: Sequence[tuple[str, str]]) -> Block:
        block = Block(Layout(columns))
        block.add(body)
        return block

    sql = f"{sql.removesuffix(_JSON_ROWS)} ({names}) VALUES"
    try:
        await connection.insert(sql, settings, "", fill)
    except Unreadable as error:
        raise ServerError(f"the rows do not fit the table: {error}", code=117) from None
    except UnsupportedType as error:
        raise ServerError(f"the table has a column of type {error}", code=53) from None
