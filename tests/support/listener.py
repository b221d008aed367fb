"""A server of a test's own on this machine, which can be made to fail."""

from __future__ import annotations

import asyncio
import ssl
import threading

from aiohttp import web


class Listener:
    """Serves in a thread of its own. :meth:`hang` leaves all without an answer; ``delay`` is how
    many seconds each takes, and ``tls`` what it speaks TLS with."""

    def __init__(self) -> None:
        self.port = 0
        self.called = threading.Event()
        self.waiting = 0
        self.delay = 0.0
        self.tls: ssl.SSLContext | None = None
        self._go = asyncio.Event()
        self._go.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Take connections, after the first time on the port it had."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def refuse(self) -> None:
        """Take none from now on."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result(10)

    def hang(self) -> None:
        """Answer nothing from now on."""
        self._loop.call_soon_threadsafe(self._go.clear)

    def go_on(self) -> None:
        """Answer, also what waits for it."""
        self._loop.call_soon_threadsafe(self._go.set)

    def close(self) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def note(self, request: web.Request) -> None:
        """A request has come; its answer may be held back."""

    async def answer(self, request: web.Request, body: bytes) -> web.Response:
        """The answer to one request."""
        raise NotImplementedError

    async def _listen(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _refuse(self) -> None:
        self._go.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.note(request)
        self.called.set()
        self.waiting += 1
        await self._go.wait()
        await asyncio.sleep(self.delay)
        self.waiting -= 1
        return await self.answer(request, body)
