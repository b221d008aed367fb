"""One request to Kestrel and what became of it.

This module imports aiohttp: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from caribou.sinks._answers import NoAnswer, clean, retry_after
from caribou.sinks._resolver import DaemonResolver

__all__ = ["Client"]

_API = "/api/v1"
# Seconds an idle connection is kept: less than gateways are known to keep it.
_KEEP_ALIVE = 2.0


class Client:
    """Sends one request at a time over one connection."""

    def __init__(self, url: str, *, api_key: str, timeout: float, connect_timeout: float) -> None:
        headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "caribou",
        }
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=1,
                keepalive_timeout=_KEEP_ALIVE,
                resolver=DaemonResolver(),
                # Honours SSL_CERT_FILE and SSL_CERT_DIR.
                ssl=ssl.create_default_context() if url.startswith("https:") else True,
            ),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def put(self, path: str, body: bytes) -> tuple[int, str, float | None]:
        """Send one request.

        Args:
            path: below the API's root, encoded.
            body: JSON.

        Returns:
            The status, what a refusal says, and the seconds after which to try again, if it says.

        Raises:
            NoAnswer: no whole answer came, or it was none of Kestrel's.
        """
        try:
            # Encoded already: an id may hold anything, and must stay one segment.
            url = URL(f"{self._url}{_API}{path}", encoded=True)
            async with self._session.put(url, data=body, allow_redirects=False) as response:
                answer = await response.read()
                status = response.status
                after = retry_after(response.headers.get("Retry-After", ""))
        except aiohttp.ClientConnectorCertificateError as error:
            raise NoAnswer(
                "the service's certificate is not trusted; "
                f"SSL_CERT_FILE names the file of authorities to trust ({clean(str(error))})",
                sent=False,
                permanent=True,
            ) from None
        except aiohttp.InvalidURL:
            raise NoAnswer("KESTREL_API_URL is malformed", sent=False, permanent=True) from None
        except TimeoutError:
            raise NoAnswer("no answer within the time limit", sent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(clean(str(error)) or type(error).__name__, sent=True) from None
        said = _object(answer)
        if status == 200 and said is None:
            raise NoAnswer("no Kestrel answers at KESTREL_API_URL", sent=True, permanent=True)
        return status, _reason(said or {}), after

    async def aclose(self) -> None:
        """Close the connection."""
        with contextlib.suppress(Exception):
            await self._session.close()


def _object(answer: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(answer, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _reason(problem: dict[str, Any]) -> str:
    """What a problem document says, on one line."""
    detail, field = problem.get("detail"), problem.get("field")
    text = f"{detail} ({field})" if detail and field else str(detail or problem.get("title") or "")
    return clean(text)
