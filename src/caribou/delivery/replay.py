"""Deliver what dead processes left in a journal, on demand, and say what happened."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..journal.journal import Journal
from ..journal.stream import Stream
from ..sinks.base import Sink
from .dispatcher import Dispatcher

__all__ = ["ReplayResult", "replay"]


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did.

    Attributes:
        owners: dead processes whose folders were taken over.
        rows: rows found in them that the sink did not have yet, over all sinks.
        delivered: of these, acknowledged now.
        dead: of these, refused for their content and set aside.
        pending: of these, still in the journal.
        last_error: why the last attempt failed, if it did.
    """

    owners: int
    rows: int
    delivered: int
    dead: int
    pending: int
    last_error: str | None = None


async def replay(
    journal_dir: Path,
    sinks: Sequence[Sink],
    *,
    timeout: float,
    batch_bytes: int,
    batch_rows: int,
) -> ReplayResult:
    """Deliver the rows of every dead process below ``journal_dir``, whatever target they had.

    Folders of processes that live are left alone. Returns within ``timeout`` seconds; what was
    not delivered by then stays where it is.
    """
    # Nothing is logged here: an empty journal in memory stands in for this process's own.
    targets = {sink.name: sink.target for sink in sinks}
    journal = Journal(
        None, sinks=targets, max_bytes=sys.maxsize, rolled=lambda: None, successor=_no_successor
    )
    dispatcher = Dispatcher(
        journal,
        journal_dir,
        sinks,
        durable=targets,
        batch_bytes=batch_bytes,
        batch_rows=batch_rows,
        batch_age=60.0,
        adopt_any=True,
    )
    running = asyncio.create_task(dispatcher.run())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await dispatcher.flush(recovered=True)
    finally:
        running.cancel()
        await asyncio.wait([running])
        journal.close(delivered=True)
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error
    accounts = [ledger for ledger, _ in dispatcher.accounts().values()]
    rows = sum(ledger.recovered for ledger in accounts)
    delivered = sum(ledger.delivered for ledger in accounts)
    dead = sum(ledger.dropped.total() for ledger in accounts)
    errors = [ledger.last_error for ledger in accounts if ledger.last_error is not None]
    return ReplayResult(
        owners=dispatcher.adopted_owners,
        rows=rows,
        delivered=delivered,
        dead=dead,
        pending=rows - delivered - dead,
        last_error=errors[0] if errors else None,
    )


def _no_successor(table: str) -> Stream:
    raise AssertionError(f"a row of {table} was logged during a replay")
