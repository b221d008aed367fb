"""Following rollouts: server-sent events, read as the HTML standard says, and taken up again."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from ..errors import InvalidType, InvalidValue, KestrelError
from ._problems import NOT_KESTREL
from ._transport import Transport
from .models import LiveEvent, LiveGap, LiveSpan, LiveTrace

if TYPE_CHECKING:
    import anyio

__all__ = ["LiveStream"]

_MEDIA_TYPE: Final = "text/event-stream"
_KINDS: Final[Mapping[str, Any]] = {"trace": LiveTrace, "span": LiveSpan, "gap": LiveGap}
_SILENCE: Final = 45.0  # seconds; the service gives a sign of life every 15
_PAUSES: Final = (0.1, 30.0)  # seconds before it is read again: what the service may ask for
_LONGEST: Final = 16 << 20  # bytes of one event


class LiveStream:
    """What rollouts do as they do it: ``async for event in stream``, until it is closed.

    A connection that breaks is made again, as long as a call may take, and what happened meanwhile
    is told then; the events just before may be told once more. With ``async with`` around it, it
    begins at the entry and is closed at the exit; without, it begins when the first event is asked
    for. One task at a time reads it, all of them in one event loop.

    Attributes:
        last_event_id: where to go on after the last event that was taken, also from another
            process; None before it is known.
    """

    def __init__(
        self,
        transport: Transport,
        query: Mapping[str, str | Sequence[str]],
        last_event_id: str | None,
    ) -> None:
        if last_event_id is not None:
            _check(last_event_id)
        self.last_event_id = last_event_id
        self._transport = transport
        self._query = query
        # As far as it was read, which is further than it was taken.
        self._read_id = last_event_id
        self._ready: deque[_Block] = deque()
        self._chunks: AsyncIterator[bytes] | None = None
        self._parser = _Parser()
        self._begun = False
        self._waiting: anyio.CancelScope | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        if self._chunks is None:
            await self._connect()
        while self._read_id is None:
            await self._read()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LiveEvent:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self) -> LiveEvent | None:
        """The next event; None once it is closed. May be cancelled: no event is lost.

        Raises:
            KestrelError: it was refused, or could not be taken up again in time.
        """
        import anyio

        event: LiveEvent | None = None
        if not self._closed:
            try:
                with anyio.CancelScope() as self._waiting:
                    event = await self._next()
            finally:
                self._waiting = None
        if self._closed:
            await self._disconnect()
        return event

    async def aclose(self) -> None:
        """End it, also for a task that waits for its next event."""
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()
        else:
            await self._disconnect()

    async def _next(self) -> LiveEvent:
        while True:
            while not self._ready:
                await self._read()
            block = self._ready.popleft()
            self.last_event_id = block.id or self.last_event_id
            kind = _KINDS.get(block.event)
            # A later version may tell of more.
            if kind is not None:
                return _decoded(block.data, kind)

    async def _read(self) -> None:
        import anyio
        import httpx

        if self._chunks is None:
            await self._connect()
        assert self._chunks is not None
        try:
            chunk = await anext(self._chunks)
        except (httpx.RequestError, httpx.StreamError, StopAsyncIteration):
            self._chunks = None
            await anyio.sleep(self._parser.pause)
            return
        except BaseException:
            # Cancelled, and the connection went with it.
            self._chunks = None
            raise
        try:
            for block in self._parser.feed(chunk):
                self._read_id = block.id or self._read_id
                if block.data:
                    self._ready.append(block)
                elif not self._ready:
                    self.last_event_id = self._read_id
        except KestrelError:
            await self._disconnect()
            raise

    async def _connect(self) -> None:
        headers = {"Accept": _MEDIA_TYPE, "Accept-Encoding": "identity"}
        if self._read_id is not None:
            headers["Last-Event-ID"] = self._read_id
        response = await self._transport.stream(
            "/live", query=self._query, headers=headers, silence=_SILENCE, again=self._begun
        )
        kind = response.headers.get("Content-Type", "")
        if kind.partition(";")[0].strip() != _MEDIA_TYPE:
            await response.aclose()
            raise KestrelError(f"GET /live was not answered with {_MEDIA_TYPE}; {NOT_KESTREL}")
        self._begun = True
        self._chunks = response.aiter_bytes()
        self._parser = _Parser()

    async def _disconnect(self) -> None:
        import anyio
        import httpx

        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            # A read that is cancelled closes the connection, and ends the generators on the way to
            # it, of which trio wants none left to the garbage collector.
            with anyio.CancelScope() as scope:
                scope.cancel()
                with contextlib.suppress(StopAsyncIteration, httpx.RequestError, httpx.StreamError):
                    while True:
                        await anext(chunks)


class _Block(NamedTuple):
    """One event as it was sent; without data it only says where the reader is."""

    id: str
    event: str
    data: bytes


class _Parser:
    """Blocks from the bytes of one connection.

    Attributes:
        pause: seconds to wait before the next connection, as the service asks for.
    """

    def __init__(self) -> None:
        self.pause = 2.0
        self._rest = b""
        self._clear()

    def _clear(self) -> None:
        self._id, self._event, self._data = "", "message", b""

    def feed(self, chunk: bytes) -> Iterator[_Block]:
        """The blocks that ``chunk`` ends.

        Raises:
            KestrelError: an event is too long to be one of Kestrel's.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line in (b"", b"\r"):
                yield _Block(self._id, self._event, self._data)
                self._clear()
            else:
                self._take(line.removesuffix(b"\r"))
        if len(self._rest) + len(self._data) > _LONGEST:
            raise KestrelError(f"GET /live: an event has more than {_LONGEST:,} bytes")

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data += value
        elif name == b"event":
            self._event = value.decode("ascii", "replace")
        elif name == b"id" and value.isalnum():
            self._id = value.decode()
        elif name == b"retry" and value.isdigit():
            low, high = _PAUSES
            self.pause = min(max(int(value) / 1000, low), high)


def _check(last_event_id: str) -> None:
    if not isinstance(last_event_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(last_event_id).__name__
        raise InvalidType(f"live(): last_event_id must be a str, not {kind}")
    if not (last_event_id.isascii() and last_event_id.isalnum()):
        raise InvalidValue("live(): last_event_id must be one that a stream had")


def _decoded(data: bytes, kind: Any) -> LiveEvent:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise KestrelError(f"an event of GET /live is none of Kestrel's ({problem})") from None
