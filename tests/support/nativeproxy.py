"""A proxy before a server's native port, which misbehaves when told to; see ``FaultProxy``.

It follows a conversation as far as it must: a statement, the columns that the server expects, rows,
and the end of the stream. A fault meets inserts when their rows begin to flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field

from support.faultproxy import BlackHole, Fault, FaultProxy, Link

_CHUNK = 1 << 16
_END_OF_STREAM = b"\x05"


@dataclass
class CutRows(Fault):
    """Pass on only the first ``after`` bytes of the rows, then hang up on both."""

    after: int


@dataclass
class LoseEnd(Fault):
    """Pass the rows on, wait until the server has said that they are stored, and hang up."""


@dataclass
class DripEnd(Fault):
    """Pass the rows on; what the server then says comes a byte at a time."""

    interval: float = 0.02


@dataclass
class RepeatEnd(Fault):
    """Pass the rows on, and say twice that they are stored; ``done`` is set after the second."""

    done: threading.Event = field(default_factory=threading.Event)


class NativeProxy(FaultProxy):
    """Listens on ``url`` and passes everything to ``upstream_port`` until told otherwise.

    ``bytes_up`` counts what clients sent.
    """

    bytes_up = 0

    @property
    def url(self) -> str:
        return f"{'clickhouses' if self._tls else 'clickhouse'}://127.0.0.1:{self.port}"

    async def _serve(self, link: Link) -> None:
        if self._garble:
            await super()._serve(link)
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            conversation = _Conversation(self, link, reader, writer)
            up = asyncio.create_task(conversation.up())
            down = asyncio.create_task(conversation.down())
            try:
                # Whoever hangs up first ends it for both.
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        finally:
            writer.close()


class _Conversation:
    """One client's connection and the way to the server."""

    def __init__(
        self,
        proxy: NativeProxy,
        link: Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._link = link
        self._reader, self._writer = reader, writer
        self._inserting = False
        self._rows = False
        self._fault: Fault | None = None

    async def up(self) -> None:
        """From the client to the server, until a fault or an end."""
        with contextlib.suppress(OSError):
            while chunk := await self._link.reader.read(_CHUNK):
                self._proxy.bytes_up += len(chunk)
                starts = b"INSERT INTO" in chunk and not self._rows
                if starts:
                    self._inserting, self._fault = True, None
                elif self._inserting and self._rows and self._fault is None:
                    self._fault = self._proxy._due(insert=True)
                fault = self._fault or (
                    self._proxy._due(insert=False) if self._proxy._every else None
                )
                if isinstance(fault, BlackHole):
                    await asyncio.Event().wait()
                if isinstance(fault, CutRows):
                    chunk = chunk[: fault.after]
                self._writer.write(chunk)
                await self._writer.drain()
                if isinstance(fault, CutRows):
                    return

    async def down(self) -> None:
        """From the server to the client, until a fault or an end."""
        with contextlib.suppress(OSError):
            while chunk := await self._reader.read(_CHUNK):
                ended = chunk.endswith(_END_OF_STREAM)
                if self._rows and isinstance(self._fault, LoseEnd):
                    if ended:
                        return
                    continue
                if self._rows and isinstance(self._fault, DripEnd):
                    for byte in chunk:
                        self._link.writer.write(bytes([byte]))
                        await self._link.writer.drain()
                        await asyncio.sleep(self._fault.interval)
                else:
                    self._link.writer.write(chunk)
                    await self._link.writer.drain()
                if self._rows and ended and isinstance(self._fault, RepeatEnd):
                    self._link.writer.write(_END_OF_STREAM)
                    await self._link.writer.drain()
                    self._fault.done.set()
                if self._inserting and not self._rows:
                    self._rows = True  # those were the columns that the server expects
                elif self._rows and ended:
                    self._inserting = self._rows = False
                    self._fault = None
