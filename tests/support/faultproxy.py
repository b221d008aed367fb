"""A proxy between a client and a server that speaks HTTP, which misbehaves when told to.

It runs in a thread of its own, so that any test may use it, whatever loop it has::

    with FaultProxy(server.port) as proxy:
        client = connect(proxy.url)
        proxy.fault(SwallowAnswer(), times=1)

A fault meets the next requests that carry an insert (``every=True``: any request), each on its way,
and each is counted in ``faults_met``. ``refuse`` and ``accept`` take the port itself away and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import zstandard

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One HTTP request as it came: its head, and its body still compressed."""

    head: bytes
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_insert(self) -> bool:
        """Whether it carries rows: its statement is in the URL."""
        return b"query=INSERT" in self.head.split(b"\r\n", 1)[0]


@dataclass
class Link:
    """One client's connection, and the way to the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream_port: int

    async def forward(self, data: bytes, *, answered: bool = True) -> bytes:
        """Send bytes to the server on a connection of their own; return its whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            writer.write(data)
            await writer.drain()
            return await _read_answer(reader) if answered else b""
        finally:
            writer.close()


class Fault:
    """What happens to a request instead of its being passed on."""

    async def meet(self, request: Request, link: Link) -> None:
        """Act; the connection is closed when this returns."""
        raise NotImplementedError


@dataclass
class BlackHole(Fault):
    """Take the request and never answer."""

    async def meet(self, request: Request, link: Link) -> None:
        await asyncio.Event().wait()


@dataclass
class CutBody(Fault):
    """Pass on only the first ``after`` bytes of the body, or its first ``rows`` rows, then hang up.

    The row boundary is one of the plain text; what is passed on is compressed again as a whole
    frame, as if the sender had stopped there.
    """

    after: int | None = None
    rows: int | None = None

    async def meet(self, request: Request, link: Link) -> None:
        body = request.body
        if self.rows is not None:
            zstd = request.headers.get("content-encoding") == "zstd"
            plain = zstandard.ZstdDecompressor().decompress(body) if zstd else body
            kept = b"".join(plain.splitlines(keepends=True)[: self.rows])
            body = zstandard.ZstdCompressor(1).compress(kept) if zstd else kept
        else:
            body = body[: self.after]
        await link.forward(request.head + body, answered=False)


@dataclass
class SwallowAnswer(Fault):
    """Pass the request on, wait until the server has answered, and hang up."""

    async def meet(self, request: Request, link: Link) -> None:
        await link.forward(request.head + request.body)


@dataclass
class Answer(Fault):
    """Answer in the server's place."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    async def meet(self, request: Request, link: Link) -> None:
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        link.writer.write(f"HTTP/1.1 {self.status} Fault\r\n{lines}\r\n".encode() + self.body)
        await link.writer.drain()


@dataclass
class SlowDrip(Fault):
    """Pass the request on, and give the answer back ``step`` bytes every ``interval`` seconds."""

    step: int = 1
    interval: float = 0.05

    async def meet(self, request: Request, link: Link) -> None:
        answer = await link.forward(request.head + request.body)
        for start in range(0, len(answer), self.step):
            link.writer.write(answer[start : start + self.step])
            await link.writer.drain()
            await asyncio.sleep(self.interval)


class FaultProxy:
    """Listens on ``url`` and passes everything to ``upstream_port`` until told otherwise.

    With ``certificate`` (a PEM file that holds the key too) it speaks TLS to its clients.
    """

    def __init__(self, upstream_port: int, *, certificate: Path | None = None) -> None:
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self.upstream_port = upstream_port
        self.port = 0
        self.requests: list[Request] = []
        self.connections = 0
        self.faults_met = 0
        self._fault: Fault | None = None
        self._times: int | None = None
        self._every = False
        self._garble = False
        self._met = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *exc: object) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def fault(self, fault: Fault, *, times: int | None = None, every: bool = False) -> None:
        """From now on ``fault`` meets inserts (every request), at most ``times`` of them."""

        async def set_it() -> None:
            self._fault, self._times, self._every = fault, times, every

        self._call(set_it)

    def clear(self) -> None:
        """Pass everything on again; connections a fault holds are cut."""

        async def clear_it() -> None:
            self._fault, self._times, self._garble = None, None, False
            await self._cut_all()

        self._call(clear_it)

    def garble(self) -> None:
        """Answer every new connection with plain HTTP at once: nonsense to who speaks TLS."""

        async def set_it() -> None:
            self._garble = True

        self._call(set_it)

    def refuse(self) -> None:
        """Close the port and cut every connection: the next one is refused."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            await self._cut_all()

        self._call(close)

    def accept(self) -> None:
        """Listen, on the same port as before."""

        async def listen() -> None:
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self.port, limit=1 << 24, ssl=self._tls
            )
            self.port = self._server.sockets[0].getsockname()[1]

        self._call(listen)

    def wait_for_fault(self, count: int = 1, timeout: float = 20.0) -> None:
        """Block until ``count`` requests have met a fault since the proxy began."""
        with self._met:
            if not self._met.wait_for(lambda: self.faults_met >= count, timeout):
                raise TimeoutError(f"{self.faults_met} of {count} faults met")

    def _call(self, action: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(20)

    async def _cut_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            # A client that goes away, and a server that does, end the connection: no more.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(Link(reader, writer, self.upstream_port))
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, link: Link) -> None:
        if self._garble:
            await link.reader.read(1)
            link.writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            await link.writer.drain()
            return
        while True:
            request = await _read_request(link.reader)
            self.requests.append(request)
            fault = self._due(insert=request.is_insert)
            if fault is not None:
                await fault.meet(request, link)
                return
            link.writer.write(await link.forward(request.head + request.body))
            await link.writer.drain()

    def _due(self, *, insert: bool) -> Fault | None:
        if self._fault is None or self._times == 0 or not (self._every or insert):
            return None
        if self._times is not None:
            self._times -= 1
        with self._met:
            self.faults_met += 1
            self._met.notify_all()
        return self._fault


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return head, headers


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head, headers = await _read_head(reader)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head, headers, body)


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    head, headers = await _read_head(reader)
    if headers.get("transfer-encoding") != "chunked":
        return head + await reader.readexactly(int(headers.get("content-length", "0")))
    parts = [head]
    while True:
        size_line = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size_line, 16) + 2)
        parts += [size_line, chunk]
        if len(chunk) == 2:
            return b"".join(parts)
