"""A small server that stands for Kestrel's registry where it is to fail; the real one cannot be
made to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from aiohttp import web

Answer = tuple[int, str, dict[str, str]]


class Registry:
    """What was registered, and how often. ``answers`` may refuse a request instead, given its path
    and its body; :meth:`hang` leaves all without an answer."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.phases: dict[str, str] = {}
        self.steps: Counter[tuple[str, int]] = Counter()
        self.datapoints: Counter[tuple[str | None, str]] = Counter()
        self.calls: list[str] = []
        self.keys: set[str] = set()
        self.answers: Callable[[str, Any], Answer | None] = lambda path, body: None
        self._go = asyncio.Event()
        self._go.set()
        self.port = 0
        self.called = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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

    async def _listen(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _refuse(self) -> None:
        self._go.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        path = request.raw_path
        self.calls.append(f"{request.method} {path}")
        self.keys.add(request.headers.get("Authorization", ""))
        self.called.set()
        await self._go.wait()
        refusal = self.answers(path, body)
        if refusal is not None:
            status, text, headers = refusal
            return web.Response(status=status, text=text, headers=headers)
        self._register(path.removeprefix("/api/v1"), body)
        return web.json_response({})

    def _register(self, path: str, body: Any) -> None:
        match path.split("/")[1:]:
            case ["runs", run_id]:
                self.runs[unquote(run_id)] += 1
                self.phases[unquote(run_id)] = body["phase"]
            case ["runs", run_id, "steps"]:
                numbers = [item["step_number"] for item in body["items"]]
                self.steps.update((unquote(run_id), number) for number in numbers)
            case ["datapoints"]:
                assert len(body["items"]) <= 10_000
                self.datapoints.update(
                    (item.get("project"), item["datapoint_id"]) for item in body["items"]
                )
            case _:
                raise AssertionError(path)


def problem(status: int, detail: str, field: str = "", **headers: str) -> Answer:
    """An answer as Kestrel refuses."""
    details = {"title": "Refused", "status": status, "detail": detail, "field": field}
    return status, json.dumps(details), headers


@contextmanager
def registry() -> Iterator[Registry]:
    """A registry that listens."""
    there = Registry()
    try:
        there.listen()
        yield there
    finally:
        there.close()
