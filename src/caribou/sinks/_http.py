"""What all HTTP of the sinks has in common: its sessions, and what becomes of their failures.

This module imports aiohttp: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Generator, Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from caribou.sinks._answers import NoAnswer, clean
from caribou.sinks._resolve import look_up

__all__ = ["as_no_answer", "open_session"]

# Seconds an idle connection is kept: less than the shortest time after which a server, or a gateway
# in front of it, is known to hang up, since a request that meets the hang-up is an ambiguous one.
_KEEP_ALIVE = 2.0

# What OpenSSL says when the other side does not take this side's certificate, or misses one.
_REFUSED_IDENTITY = re.compile(r"_ALERT_(\w*CERTIFICATE|UNKNOWN_CA)")


def open_session(
    url: str,
    *,
    headers: Mapping[str, str],
    connections: int,
    timeout: float,
    connect_timeout: float,
    tls: ssl.SSLContext | None = None,
) -> aiohttp.ClientSession:
    """A session for requests to ``url``, over at most so many connections; times in seconds.
    ``tls`` is for another trust than the program's."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=connections,
            keepalive_timeout=_KEEP_ALIVE,
            resolver=_DaemonResolver(),
            # Honours SSL_CERT_FILE and SSL_CERT_DIR.
            ssl=(tls or ssl.create_default_context()) if url.startswith("https:") else True,
        ),
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout),
        headers={"Accept-Encoding": "identity", "User-Agent": "caribou", **headers},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


@contextlib.contextmanager
def as_no_answer(
    who: str,
    variable: str,
    sent: Callable[[], bool],
    authorities: str = "SSL_CERT_FILE",
    identity: str = "",
) -> Generator[None]:
    """Turn the HTTP library's failures of one request into :class:`NoAnswer`.

    Args:
        who: who was asked, for people.
        variable: the environment variable that holds the address.
        sent: whether any of the body may have left.
        authorities: the variable that names a file of authorities to trust.
        identity: the one that names the certificate that is shown; empty where none can be.
    """
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise NoAnswer(
            f"the {who}'s certificate is not trusted; "
            f"{authorities} names the file of authorities to trust ({clean(str(error))})",
            sent=False,
            permanent=True,
        ) from None
    except aiohttp.InvalidURL:
        raise NoAnswer(f"{variable} is malformed", sent=False, permanent=True) from None
    except TimeoutError:
        raise NoAnswer("no answer within the time limit", sent=sent()) from None
    except (aiohttp.ClientError, OSError) as error:
        reason = clean(str(error)) or type(error).__name__
        cure = ""
        if identity and _REFUSED_IDENTITY.search(reason):
            cure = f"the {who} wants another certificate of this side; {identity} names it"
        raise NoAnswer(reason, sent=sent(), cure=cure) from None


class _DaemonResolver(AbstractResolver):
    """Look names up in a daemon thread."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in await look_up(host, port, family)
        ]

    async def close(self) -> None:
        """Nothing is held."""
