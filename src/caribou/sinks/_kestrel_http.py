"""One request to Kestrel and what became of it.

This module imports aiohttp: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from yarl import URL

from caribou.sinks._answers import NoAnswer, clean, retry_after
from caribou.sinks._http import as_no_answer, open_session

__all__ = ["Client"]

_API = "/api/v1"


class Client:
    """Sends one request at a time over one connection."""

    def __init__(self, url: str, *, api_key: str, timeout: float, connect_timeout: float) -> None:
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._url = url
        self._session = open_session(
            url,
            headers=headers,
            connections=1,
            timeout=timeout,
            connect_timeout=connect_timeout,
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
        with as_no_answer("service", "KESTREL_API_URL", lambda: True):
            # Encoded already: an id may hold anything, and must stay one segment.
            url = URL(f"{self._url}{_API}{path}", encoded=True)
            async with self._session.put(url, data=body, allow_redirects=False) as response:
                answer = await response.read()
                status = response.status
                after = retry_after(response.headers.get("Retry-After", ""))
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
