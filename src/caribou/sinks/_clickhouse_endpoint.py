"""Where a ClickHouse server is and who asks: checked once, shown without the password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from caribou.errors import ConfigurationError

__all__ = ["HTTP", "NATIVE", "Endpoint"]

HTTP = {"http": 8123, "https": 8443}
"""Schemes of ClickHouse's HTTP interface, with the ports that servers use for them."""

NATIVE = {"clickhouse": 9000, "clickhouses": 9440}
"""Schemes of its native protocol, with and without TLS, as asynch names them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's interface, a database there and the credentials.

    Build one with :meth:`parse`. ``url`` never holds credentials; the password is in no ``repr``.
    """

    url: str
    database: str
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        database: str = "caribou",
        user: str = "",
        password: str = "",
        schemes: Mapping[str, int] = HTTP | NATIVE,
    ) -> Endpoint:
        """Check the parts and take credentials out of the URL, should they be there.

        Args:
            url: ``http(s)://host:port``, with a path when a gateway needs one, or
                ``clickhouse(s)://host:port``. Credentials in it are used where ``user`` and
                ``password`` are empty.
            database: the database that holds the tables.
            user: empty for the server's default user.
            password: empty for none.
            schemes: those that will do, each with its usual port.

        Raises:
            ConfigurationError: a part cannot be what it should be; the message names the variable
                and never shows a credential.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = parts = None
        if parts is None or parts.scheme not in schemes or not host:
            known = " or ".join(f"{scheme}://host:{usual}" for scheme, usual in schemes.items())
            raise ConfigurationError(f"CLICKHOUSE_URL must look like {known}")
        if parts.scheme in NATIVE and parts.path.strip("/"):
            raise ConfigurationError(
                f"CLICKHOUSE_URL takes no path with {parts.scheme}://; "
                "the database goes into CLICKHOUSE_DATABASE"
            )
        if parts.query or parts.fragment:
            raise ConfigurationError(
                "CLICKHOUSE_URL takes no query or fragment; "
                "the database goes into CLICKHOUSE_DATABASE"
            )
        user = user or unquote(parts.username or "")
        password = password or unquote(parts.password or "")
        # They travel as HTTP headers, where a line break would start another header.
        for name, value in (("CLICKHOUSE_USER", user), ("CLICKHOUSE_PASSWORD", password)):
            if any(ord(char) < 32 or ord(char) == 127 for char in value):
                raise ConfigurationError(f"{name} must not hold control characters")
        if not database or any(ord(char) < 32 for char in database):
            raise ConfigurationError("CLICKHOUSE_DATABASE must be a name")
        shown_host = f"[{host}]" if ":" in host else host
        shown_port = f":{port}" if port is not None else ""
        return cls(
            url=f"{parts.scheme}://{shown_host}{shown_port}{parts.path.rstrip('/')}/",
            database=database,
            user=user,
            password=password,
        )

    @property
    def target(self) -> str:
        """Server and database on one line, without credentials."""
        return f"{self.url}{self.database}"

    @property
    def is_native(self) -> bool:
        """Whether the native protocol is spoken there, and not HTTP."""
        return urlsplit(self.url).scheme in NATIVE

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme in ("https", "clickhouses")

    @property
    def host(self) -> str:
        """The host's name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, the scheme's usual one if the URL names none."""
        parts = urlsplit(self.url)
        return parts.port or (HTTP | NATIVE)[parts.scheme]

    @property
    def headers(self) -> dict[str, str]:
        """The credentials as request headers."""
        headers: dict[str, str] = {}
        if self.user:
            headers["X-ClickHouse-User"] = self.user
        if self.password:
            headers["X-ClickHouse-Key"] = self.password
        return headers
