"""Deliver rollouts to any OpenTelemetry backend, as spans over OTLP/HTTP.

Spans have the names of the conventions for generative AI; ``caribou.otel.generic`` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from caribou._certificates import tls_context
from caribou._otlp_transport import Transport
from caribou.otel.generic import to_span
from caribou.sinks._otlp import Backend, SpanSink
from caribou.sinks.base import Misconfigured

if TYPE_CHECKING:
    import ssl

__all__ = ["OTLP"]


class OTLP(SpanSink):
    """The sink for an OTLP receiver; implements ``Sink``.

    Args:
        url: the address that traces are posted to, whole.
        headers: sent with each request; their values are never shown.
        resource: attributes of the program that is traced, such as ``service.name``.
        compression: of requests.
        timeout: seconds for one request, its answer included.
        connect_timeout: seconds for reaching the receiver, TLS included.
        certificate: a PEM file of the authorities to trust, instead of all others.
        client_certificate: a PEM file of the certificate to show.
        client_key: a PEM file of its key, where that is not in the same file.
        names: what their user calls these three.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        resource: Mapping[str, str] | None = None,
        compression: Literal["gzip", "none"] = "gzip",
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        certificate: Path | None = None,
        client_certificate: Path | None = None,
        client_key: Path | None = None,
        names: tuple[str, ...] = Transport().names,
    ) -> None:
        self._certificates = certificate, client_certificate, client_key
        self._names = names
        backend = Backend(
            who="OTLP receiver",
            address='OTEL_EXPORTER_OTLP_ENDPOINT or otlp["endpoint"]',
            credentials='OTEL_EXPORTER_OTLP_HEADERS or otlp["headers"]',
            authorities=f"{names[0]}, else SSL_CERT_FILE,",
            identity=names[1],
            plain_text=True,
        )
        super().__init__(
            backend,
            url,
            to_span,
            resource=resource,
            headers=dict(headers or {}),
            connections=len(self.tables),
            timeout=timeout,
            connect_timeout=connect_timeout,
            compressed=compression == "gzip",
            tls=self._trust if any(self._certificates) else None,
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

    def _trust(self) -> ssl.SSLContext:
        try:
            return tls_context(*self._certificates)
        except OSError as error:
            # They were in order when the program was configured.
            given = zip(self._names, self._certificates, strict=True)
            names = " or ".join(name for name, file in given if file)
            raise Misconfigured(
                f"a file that {names} names cannot be used any more ({error})"
            ) from None
