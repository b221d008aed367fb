"""What every call of the client stands on: one request, one typed answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from ..errors import KestrelError
from ._encoding import encode
from ._pages import Pages
from ._problems import NOT_KESTREL
from ._transport import Bearer, Transport
from .models import Page, Registered

__all__ = ["Calls"]

T = TypeVar("T")


class Calls:
    """A service, the credentials, and requests to it."""

    def __init__(
        self, url: str | None, key: str | None = None, *, timeout: float = 30.0, retries: int = 5
    ) -> None:
        """Most programs take the client that :func:`caribou.get_kestrel_client` gives.

        Args:
            url: ``http(s)://host:port`` of the service; None for a client that is not enabled.
            key: the API key, if the service wants one.
            timeout: seconds for a call, all its attempts included.
            retries: attempts after the first one.

        Raises:
            MissingExtra: httpx is not installed.
            InvalidValue: ``key``, ``timeout`` or ``retries`` cannot work.
        """
        self._url = url
        credentials = Bearer(key)
        # Not in this frame any more when a traceback shows what its variables hold.
        del key
        credentials.check()
        self._transport = Transport(url, credentials, timeout=timeout, retries=retries)

    @property
    def enabled(self) -> bool:
        """Whether there is a URL to call."""
        return self._url is not None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running event loop. The client may be used again."""
        await self._transport.aclose()

    async def _get(
        self, path: str, kind: type[T], wanted: Mapping[str, str | Sequence[str]] | None = None
    ) -> T:
        answer = await self._transport.call("GET", path, query=wanted)
        return self._read(answer, kind, f"GET {path}")

    async def _send(self, method: str, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        sent = encode(f"{method} {path}", body)
        answer = await self._transport.call(method, path, body=sent)
        return self._read(answer, kind, f"{method} {path}")

    async def _send_batches(self, path: str, bodies: Iterable[bytes]) -> int:
        registered = 0
        for body in bodies:
            answer = await self._transport.call("PUT", path, body=body)
            registered += self._read(answer, Registered, f"PUT {path}").registered
        return registered

    def _pages(
        self, path: str, kind: type[T], wanted: Mapping[str, str | Sequence[str]]
    ) -> Pages[T]:
        async def fetch(cursor: str | None) -> Page[T]:
            more = {} if cursor is None else {"cursor": cursor}
            return await self._get(path, Page[kind], {**wanted, **more})

        return Pages(fetch)

    def _read(self, answer: bytes, kind: type[T], asked: str) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            raise KestrelError(
                f"{asked} was not answered as Kestrel does ({problem}); {NOT_KESTREL}"
            ) from None
