"""``GET /live``: rollouts as they start, grow and finish, as server-sent events."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from aiohttp import web

from ..errors import StoreError
from .live import Batch, Filter, Follower, Full, Live, mark
from .problems import Problem
from .routing import Call, Query, Route

__all__ = ["LIVE", "add_live", "routes"]

_log = logging.getLogger("caribou.server")

LIVE: Final = web.AppKey("live", Live)
"""What tells an application's followers."""

_SILENCE: Final = 15.0  # seconds, then something is sent to see whether anybody is there
_SLOWEST: Final = 10.0  # seconds in which a reader must have taken what it was sent
_POSITION: Final = re.compile(r"[0-9]{1,18}")


def add_live(app: web.Application, live: Live) -> None:
    """Serve the stream from ``live``, until the application shuts down."""

    async def end(_: web.Application) -> None:
        live.close()

    app[LIVE] = live
    app.on_shutdown.append(end)


async def follow_rollouts(call: Call) -> web.StreamResponse:
    """Answers as long as the reader stays, keeps up and the service runs."""
    position = _last_event_id(call.request)
    live = call.request.app.get(LIVE)
    if live is None:
        raise Problem(503, "this instance has no live stream")
    if call.request.method == "HEAD":
        return _stream_response()
    names = ("run_id", "trace_id", "phase", "spans")
    wanted = Filter(**{name: call.query[name] for name in names})
    try:
        with live.follower(wanted) as follower:
            start = await live.begin()
            return await _stream(call.request, live, follower, start, position)
    except Full:
        raise Problem(
            503,
            "as many follow the live stream as can",
            hint="try again later, or ask for the lists",
            headers={"Retry-After": "10"},
        ) from None


async def _stream(
    request: web.Request, live: Live, follower: Follower, start: int, position: int | None
) -> web.StreamResponse:
    response = _stream_response()
    await response.prepare(request)
    parts = [b"retry: 2000\n\n"]
    if position is None:
        parts.append(mark(start))
    elif not live.reaches_back_to(position):
        parts.append(b"event: gap\ndata: {}\n\n")
    events = _events(live, follower, start, start if position is None else position)
    try:
        async with aclosing(events):
            while True:
                async with asyncio.timeout(_SLOWEST):
                    await response.write(b"".join(parts))
                parts = [await anext(events)]
    except TimeoutError:
        # Nothing more can be sent to it, not even the end.
        if request.transport is not None:
            request.transport.abort()
    except StoreError as error:
        _log.warning("a reader of the live stream is let go: %s", error)
    except (StopAsyncIteration, ConnectionError):
        pass
    # However it ended, the last position that was read takes the reader on.
    return response


def _stream_response() -> web.StreamResponse:
    # The second keeps proxies from collecting events before they pass them on.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    response.content_type = "text/event-stream"
    return response


async def _events(
    live: Live, follower: Follower, start: int, position: int
) -> AsyncGenerator[bytes]:
    """What the reader missed since ``position``, then what comes, with signs of life between."""

    async for batch in live.between(position, start):
        if data := batch.select(follower.wanted):
            yield data
    while True:
        batch: Batch | None = None
        try:
            async with asyncio.timeout(_SILENCE):
                batch = await follower.next()
        except TimeoutError:
            yield b":\n\n"
            continue
        if batch is None:
            return
        # What came before was read above.
        if batch.position > start and (data := batch.select(follower.wanted)):
            yield data


def _last_event_id(request: web.Request) -> int | None:
    given = request.headers.get("Last-Event-ID", "")
    if not given:
        return None
    if not _POSITION.fullmatch(given):
        raise Problem(
            400,
            "this is no id of the live stream",
            field="Last-Event-ID",
            given=given,
            allowed="the last id that was received",
            hint="leave it out to begin now",
        )
    return int(given)


routes: list[Route] = [
    Route(
        "GET",
        "/live",
        follow_rollouts,
        "Follow rollouts as they start, grow and finish (server-sent events `trace` and `span`)",
        query=(
            Query("run_id", description="Of this run"),
            Query("trace_id", description="Of this trace"),
            Query("phase", choices=("train", "eval", "prod"), description="Of this phase"),
            Query("spans", "flag", "Whether to tell of spans too", default=True),
        ),
        answer=str,
        media_type="text/event-stream",
        headers={"Last-Event-ID": "Go on after this event; up to an hour back"},
    )
]
