"""Connections that are held open for nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

__all__ = ["Connections"]


class Connections:
    """Drops connections on which nothing is asked, whose request does not arrive, or whose answer
    is not taken. A request that is being worked on has time limits of its own."""

    def __init__(self, idle: float) -> None:
        """``idle`` is how many seconds are too long."""
        self._idle = idle
        self._busy: set[Any] = set()
        self._idle_since: dict[Any, float] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Knows of each request while it is worked on."""
        connection = request.protocol
        self._busy.add(connection)
        try:
            return await handler(request)
        finally:
            self._busy.discard(connection)
            self._idle_since[connection] = time.monotonic()

    async def watch(self, runner: web.AppRunner) -> None:
        """Look every few seconds, for ever."""
        while True:
            await asyncio.sleep(self._idle / 6)
            now = time.monotonic()
            idle: dict[Any, float] = {}
            for connection in runner.server.connections if runner.server is not None else ():
                if connection in self._busy:
                    continue
                since = idle[connection] = self._idle_since.get(connection, now)
                if now - since > self._idle and connection.transport is not None:
                    connection.transport.abort()
            self._idle_since = idle
