"""Deliver rollouts to any OpenTelemetry backend, as spans over OTLP/HTTP.

Spans have the names of the conventions for generative AI; ``caribou.otel.generic`` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from caribou.otel.generic import to_span
from caribou.sinks._otlp import Backend, SpanSink

__all__ = ["OTLP"]

_BACKEND = Backend(
    who="OTLP receiver",
    address="OTEL_EXPORTER_OTLP_ENDPOINT",
    credentials="OTEL_EXPORTER_OTLP_HEADERS",
)


class OTLP(SpanSink):
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
        super().__init__(
            _BACKEND,
            url,
            to_span,
            resource=resource,
            headers=dict(headers or {}),
            connections=len(self.tables),
            timeout=timeout,
            connect_timeout=connect_timeout,
        )

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
