"""A ClickHouse sink in a test's own loop, and what there is to ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from caribou.sinks._clickhouse_sink import ClickHouseSink
from caribou.sinks.base import Batch, Retry, SinkError
from caribou.sinks.clickhouse_http import ClickHouseHTTP
from caribou.sinks.clickhouse_native import ClickHouseNative
from support.servers import DoorServer


@asynccontextmanager
async def open_sink(url: str, database: str, **options: Any) -> AsyncIterator[ClickHouseSink[Any]]:
    """The sink that the URL asks for."""
    make: Any = ClickHouseNative if url.startswith("clickhouse") else ClickHouseHTTP
    sink: ClickHouseSink[Any] = make(url, database=database, **options)
    sink.load()
    try:
        yield sink
    finally:
        await sink.aclose()


async def failure(sent: Awaitable[object]) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sent
    return caught.value


async def off_loop(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Blocking helpers would stop the sink that this loop runs."""
    return await asyncio.to_thread(function, *arguments, **named)


async def settled(sink: ClickHouseSink[Any], batch: Batch) -> bool:
    """The answer of ``confirm`` once no insert of the batch runs any more."""
    while True:
        try:
            return await sink.confirm(batch)
        except Retry as later:
            if later.retry_after is None:
                raise


async def contents(door: DoorServer, database: str) -> list[str]:
    """What a person reads, in order."""
    rows = await off_loop(door.rows, f"SELECT content FROM {database}.spans ORDER BY trace_id, seq")
    return [row["content"] for row in rows]
