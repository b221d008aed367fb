"""Statements to a ClickHouse server, whichever of its interfaces the address names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from caribou.sinks._clickhouse_endpoint import Endpoint

__all__ = ["Client", "open_client"]

_CONNECT_TIMEOUT = 5.0  # seconds


class Client(Protocol):
    """Sends statements to one endpoint over a few connections, one at a time on each."""

    async def request(
        self, sql: str, *, settings: Mapping[str, str], body: bytes | None = None
    ) -> bytes:
        """Run one statement; its whole answer.

        Args:
            sql: the statement.
            settings: URL parameters of ClickHouse's HTTP interface: settings, ``database``,
                ``default_format``, ``param_...``.
            body: the rows that an ``INSERT ... FORMAT JSONEachRow`` reads.

        Raises:
            ServerError: the server answered that it failed.
            NoAnswer: no whole answer came.
            StoreError: the interface does not have ``default_format``.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def open_client(endpoint: Endpoint, *, timeout: float, connections: int) -> Client:
    """A client for one event loop; ``timeout`` is seconds for each request. It imports the network
    library that it needs: call it late, in the thread that does the I/O."""
    if endpoint.is_native:
        from caribou.sinks._clickhouse_native import Client as NativeClient

        return NativeClient(
            endpoint, timeout=timeout, connect_timeout=_CONNECT_TIMEOUT, connections=connections
        )
    from caribou.sinks._clickhouse_http import Client as HTTPClient

    return HTTPClient(
        endpoint, timeout=timeout, connect_timeout=_CONNECT_TIMEOUT, connections=connections
    )
