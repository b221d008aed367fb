"""One HTTP request to ClickHouse and its whole answer; what the sink and the readers share.

This module imports aiohttp: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from caribou.sinks._clickhouse_endpoint import Endpoint
from caribou.sinks._clickhouse_errors import read_error
from caribou.sinks._http import as_no_answer, open_session

__all__ = ["Client"]

# Copies of a view handed to the transport, in bytes: small enough that copying one holds the
# interpreter lock for microseconds. They are copies because the transport may keep what it was
# given, and the view must be free again when the request returns.
_CHUNK = 256 * 1024


class Client:
    """Sends requests to one endpoint over at most ``connections`` connections.

    Each has one request in flight at a time. An error or a cancellation closes the connection it
    happened on.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout: float, connect_timeout: float, connections: int
    ) -> None:
        self._endpoint = endpoint
        self._session = open_session(
            endpoint.url,
            headers={},
            connections=connections,
            timeout=timeout,
            connect_timeout=connect_timeout,
        )

    async def request(
        self,
        sql: str,
        *,
        settings: Mapping[str, str],
        body: bytes | memoryview | None = None,
        encoding: str = "",
    ) -> bytes:
        """Run one statement.

        Args:
            sql: the statement.
            settings: URL parameters: settings, ``query_id``, ``database``, ``param_...``.
            body: the data that an ``INSERT ... FORMAT`` reads; the statement itself when left out.
            encoding: how ``body`` is compressed, as HTTP names it.

        Returns:
            The body of the answer.

        Raises:
            ServerError: the server answered that it failed.
            NoAnswer: no whole answer came.
        """
        parameters = dict(settings)
        headers = self._endpoint.headers
        if body is None:
            data = sql.encode()
        else:
            parameters["query"] = sql
            data = body
        if encoding:
            headers["Content-Encoding"] = encoding
        headers["Content-Length"] = str(len(data))  # otherwise the body would go in HTTP chunks
        upload = _Upload(data)
        with as_no_answer("server", "CLICKHOUSE_URL", lambda: upload.begun):
            async with self._session.post(
                self._endpoint.url,
                params=parameters,
                headers=headers,
                data=upload.chunks(),
                allow_redirects=False,
            ) as response:
                if response.status == 200:
                    answer = await response.read()
                else:
                    answer = await response.content.read(16_384)
                    response.close()
                read_error(response.status, response.headers, answer, silent=body is not None)
                return answer

    async def aclose(self) -> None:
        """Close every connection."""
        with contextlib.suppress(Exception):
            await self._session.close()


class _Upload:
    """A request body that knows whether any of it was asked for."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self.begun = False

    async def chunks(self) -> AsyncIterator[bytes]:
        self.begun = True
        if isinstance(self._data, bytes):
            # Whole: after each system call this thread queues for the interpreter lock, for 5 ms
            # if the program is busy.
            yield self._data
            return
        for start in range(0, len(self._data), _CHUNK):
            yield bytes(self._data[start : start + _CHUNK])
