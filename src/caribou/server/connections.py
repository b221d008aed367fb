"""Connections: what is said of requests that cannot be read, and which are held for nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong
from aiohttp.typedefs import Handler

from .bodies import undecodable
from .problems import Problem, secure

__all__ = ["Connection", "Connections"]


class Connection(web.RequestHandler):
    """Refuses what is no request in the words of all other refusals.

    What such a request holds is neither said back nor logged: it may be a key.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp; called for requests that no application gets to see, too."""
        if not isinstance(exc, HttpProcessingError):
            # Logs it, and ends the connection where a part of an answer was sent.
            super().handle_error(request, status, exc, message)
            problem = Problem(status, "the service failed; its log says why")
        elif isinstance(exc, LineTooLong):
            problem = Problem(
                431,
                "the first line or a header of the request is too long",
                allowed=f"{self.max_line_size} bytes in the first line,"
                f" {self.max_field_size} in a header",
            )
        elif isinstance(exc, ContentEncodingError):
            problem = undecodable()
        else:
            problem = Problem(
                400, "this is no request as HTTP/1.1 has it", hint="speak HTTP, without TLS"
            )
        response = problem.response()
        # No application prepares it.
        secure(response)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """See aiohttp; what the other side did is nothing for the log."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)


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
