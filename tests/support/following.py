"""What a client that follows rollouts was told, and when it waits to be told more."""

from __future__ import annotations

from anyio.lowlevel import checkpoint

from caribou.kestrel import LiveStream
from caribou.kestrel.models import LiveEvent, LiveGap, LiveSpan, LiveTrace


def happened(events: list[LiveEvent]) -> list[str]:
    """What each event tells: a change of a rollout, or what a record says or is."""
    told: list[str] = []
    for event in events:
        match event:
            case LiveTrace():
                told.append(event.change)
            case LiveSpan():
                told.append(event.content_start or event.kind)
            case LiveGap():
                told.append("gap")
    return told


async def begun(stream: LiveStream) -> None:
    """Return once somebody waits for its next event."""
    while stream._waiting is None:
        await checkpoint()
