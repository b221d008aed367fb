"""``caribou serve``: one process that runs Kestrel until it is told to end."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from .._settings import Settings
from ..errors import ConfigurationError, StoreError
from .app import create_app
from .backend import Backend
from .connections import Connection, Connections
from .door import create_door
from .embedded import EmbeddedBackend, Intake
from .live import Live
from .metrics import MEDIA_TYPE, Metric, Metrics
from .problems import Problem
from .remote import RemoteBackend
from .routes_live import add_live
from .routes_pages import add_pages

__all__ = ["run"]

_log = logging.getLogger("caribou.server")

_IDLE: Final = 30.0  # seconds that a connection may ask for nothing, or not take its answer
_SHUTDOWN: Final = 5.0  # seconds that requests under way are given at the end
_READY: Final = 5.0  # seconds for the store to answer whether it is there
_LONGEST_LINE: Final = 64 << 10  # bytes of a request's first line; an insert at the door is in it
_FILES: Final = 65_536
_BACKLOG: Final = 1024
# Servers' clocks differ, and an insert is seen some time after it marked its rows.
_SERVER_OVERLAP: Final = 5.0


def run(
    settings: Settings,
    host: str,
    port: int,
    announce: Callable[[str], None],
    *,
    clickhouse_port: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: where the rows are, and the key.
        host: the address to listen on; any but this machine's own needs a key.
        port: 0 for one that is free.
        announce: is told the URL and where the rows are once it listens.
        clickhouse_port: where other machines' tracers deliver as to a ClickHouse server; None for
            no such door.

    Raises:
        ConfigurationError: it would listen to others without a key.
        MissingExtra: the embedded engine is needed and not installed.
        StoreError: the store is taken or cannot be opened.
        OSError: the address cannot be listened on.
    """
    if not _is_loopback(host) and settings.kestrel_api_key is None:
        raise ConfigurationError(
            f"--host {host} lets other machines in: set KESTREL_API_KEY to the key they must have"
        )
    if clickhouse_port is not None and settings.clickhouse_url is not None:
        raise ConfigurationError(
            "--clickhouse-port is for the store of this machine: tracers can deliver to the server"
            " in CLICKHOUSE_URL themselves"
        )
    _allow_many_connections()
    # Before the store is opened: that takes longer, and may be for nothing.
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(_listen(host, each))
            for each in (port, clickhouse_port)
            if each is not None
        ]
        asyncio.run(_serve(settings, listeners, announce))


async def _serve(
    settings: Settings, listeners: Sequence[socket.socket], announce: Callable[[str], None]
) -> None:
    stop = _stopped_by_signals()
    backend = await _open(settings)
    try:
        async with AsyncExitStack() as stack:
            listener, *doors = listeners
            await _start(stack, _application(settings, backend), listener)
            announce(f"Kestrel listens on {_url(listener)} ({backend.description})")
            for door in doors:
                assert isinstance(backend, EmbeddedBackend)
                app = create_door(backend, api_key=settings.kestrel_api_key)
                if settings.kestrel_api_key is None:
                    app.middlewares.append(_own_names)
                await _start(stack, app, door, auto_decompress=False)
                announce(f"Tracers deliver to CLICKHOUSE_URL={_url(door)}")
            await stop.wait()
    finally:
        await backend.aclose()


async def _start(
    stack: AsyncExitStack,
    app: web.Application,
    listener: socket.socket,
    *,
    auto_decompress: bool = True,
) -> None:
    """Answer on ``listener`` until ``stack`` ends."""
    connections = Connections(_IDLE)
    app.middlewares.insert(0, connections.middleware)
    # Whoever has gone needs no answer: a place in the stream, or in the engine's queue, is free
    # again.
    runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN, handler_cancellation=True)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    connect = functools.partial(
        Connection,
        runner.server,
        loop=loop,
        keepalive_timeout=_IDLE,
        max_line_size=_LONGEST_LINE,
        auto_decompress=auto_decompress,
    )
    server = await loop.create_server(connect, sock=listener, backlog=_BACKLOG)
    stack.callback(server.close)
    watch = asyncio.create_task(connections.watch(runner))
    stack.callback(watch.cancel)


async def _open(settings: Settings) -> Backend:
    if settings.clickhouse_url is not None:
        return RemoteBackend(settings)
    return await EmbeddedBackend.open(
        settings.home / "store", settings.journal_dir, settings.clickhouse_database
    )


def _application(settings: Settings, backend: Backend) -> web.Application:
    app = create_app(backend, api_key=settings.kestrel_api_key)
    intake = backend.intake if isinstance(backend, EmbeddedBackend) else None
    live = Live(backend, overlap=0.0 if intake is not None else _SERVER_OVERLAP)
    metrics = Metrics()
    app.middlewares.insert(0, metrics.middleware)
    if settings.kestrel_api_key is None:
        app.middlewares.append(_own_names)

    async def healthy(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        reason = await _unready(backend, intake)
        if reason is not None:
            return web.json_response({"status": "unavailable", "reason": reason}, status=503)
        return web.json_response({"status": "ready"})

    async def show_metrics(_: web.Request) -> web.Response:
        text = metrics.text(_gauges(live, intake))
        return web.Response(body=text.encode(), headers={"Content-Type": MEDIA_TYPE})

    app.router.add_get("/healthz", healthy)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/metrics", show_metrics)
    add_live(app, live)
    add_pages(app)
    return app


async def _unready(backend: Backend, intake: Intake | None) -> str | None:
    """Why the service cannot do its work now."""
    if intake is not None and intake.failure is not None:
        return "the journals cannot be taken in; the service's log says why"
    if intake is not None and not intake.caught_up:
        return "the journals that were there at the start are being taken in"
    try:
        async with asyncio.timeout(_READY):
            await backend.rows("SELECT 1 AS one")
    except (StoreError, TimeoutError):
        return "the store does not answer"
    return None


def _gauges(live: Live, intake: Intake | None) -> Iterator[Metric]:
    yield "kestrel_live_clients", "gauge", "Readers of the live stream.", live.followers
    yield "kestrel_live_dropped_total", "counter", "Readers that were too slow.", live.dropped
    if intake is not None:
        yield "kestrel_intake_lag_seconds", "gauge", "Age of what is taken in.", intake.lag
        yield "kestrel_intake_rows_total", "counter", "Journal rows taken in.", intake.rows
        yield (
            "kestrel_intake_set_aside_total",
            "counter",
            "Journal rows that the engine refused.",
            intake.set_aside,
        )
    yield "process_resident_memory_bytes", "gauge", "Memory in use.", _resident()


def _resident() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        # The most it ever was, where the system does not tell how much it is.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@web.middleware
async def _own_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Without a key only this machine's names are answered to: a page of another site may have its
    name point here and ask in the reader's browser."""
    host = request.host
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not _is_loopback(name):
        raise Problem(
            421,
            "without an API key only this machine's own names are answered to",
            field="Host",
            given=host,
            allowed=["localhost", "127.0.0.1", "[::1]"],
            hint="set KESTREL_API_KEY for the service to be reached by other names",
        )
    return await handler(request)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stopped_by_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process as if nobody listened."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, end)
    return stop


def _allow_many_connections() -> None:
    """Each is a file, of which processes are often allowed but 1024 unless they ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
