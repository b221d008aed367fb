"""Deliver rollouts to any OpenTelemetry backend, as spans over OTLP/HTTP.

Spans have the names of the conventions for generative AI; ``caribou.otel.generic`` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from caribou.otel.generic import to_span
from caribou.sinks._otlp import Backend, SpanSender, load, open_client
from caribou.sinks.base import Batch

if TYPE_CHECKING:
    from caribou.sinks._otlp_http import Client

__all__ = ["OTLP"]

_BACKEND = Backend(
    who="OTLP receiver",
    address="OTEL_EXPORTER_OTLP_ENDPOINT",
    credentials="OTEL_EXPORTER_OTLP_HEADERS",
)


class OTLP:
    """The sink for an OTLP receiver; implements ``Sink``.

    Args:
        url: the address that traces are posted to, whole.
        headers: sent with each request; their values are never shown.
        resource: attributes of the program that is traced, such as ``service.name``.
        timeout: seconds for one request, its answer included.
        connect_timeout: seconds for reaching the receiver, TLS included.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        resource: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        self._url = url
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._sender = SpanSender(_BACKEND, url, to_span, resource or {})
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"OTLP({self.target!r})"

    @property
    def name(self) -> str:
        """``otlp``: names the sink's cursor files and its row in ``stats()``."""
        return "otlp"

    @property
    def target(self) -> str:
        """The receiver's address."""
        return self._url

    @property
    def tables(self) -> frozenset[str]:
        """Records and summaries. What the other tables hold is in them."""
        return frozenset({"spans", "traces"})

    def load(self) -> None:
        """Import the HTTP client and the encoder; see ``Sink``."""
        load()

    async def send(self, batch: Batch) -> None:
        """Send the batch's rows as spans; return when the receiver has taken them.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        await self._sender.send(batch, self._open())

    async def confirm(self, batch: Batch) -> bool:
        """Always False: nobody can be asked, and a span that is sent again has the same id."""
        return False

    async def check(self) -> None:
        """Ask whether spans would be taken, by a request without any, and close.

        Raises:
            SinkError: they would not.
        """
        try:
            await self._sender.ask(self._open())
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the next ``send`` opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _open(self) -> Client:
        if self._client is None:
            self._client = open_client(
                _BACKEND,
                self._url,
                headers=self._headers,
                connections=len(self.tables),
                timeout=self._timeout,
                connect_timeout=self._connect_timeout,
            )
        return self._client
