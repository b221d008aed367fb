"""Kestrel's API on a real port of this machine, over whatever backend a test gives it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiohttp import web

from caribou._settings import Settings
from caribou.server.app import API, create_app
from caribou.server.backend import Backend
from caribou.server.remote import RemoteBackend
from support.servers import Server


def remote_backend(door: Server, database: str = "", **settings: Any) -> RemoteBackend:
    """A backend over the door, in a database of its own unless told."""
    database = database or f"test_{os.urandom(6).hex()}"
    given: dict[str, Any] = {"clickhouse_url": door.url, "clickhouse_database": database}
    return RemoteBackend(Settings(**(given | settings)))


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Serve an application; gives its address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, max_line_size=16 << 10)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def api(backend: Backend, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API over this backend, which is closed in the end."""
    try:
        async with serving(create_app(backend, **options)) as url:
            limits = httpx.Limits(max_connections=100)
            async with httpx.AsyncClient(base_url=url + API, limits=limits, timeout=60.0) as client:
                yield client
    finally:
        await backend.aclose()


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    """What the API answers, which must be a success."""
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()
