"""Deliver what dead processes left in a journal, on demand, and say what happens."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ..errors import JournalError
from ..journal.journal import Journal
from ..journal.owner import FORMAT, Owner, owner_folders
from ..journal.stream import Stream
from ..sinks.base import Sink
from .dispatcher import Dispatcher
from .source import AdoptedSource, concerns

__all__ = ["ReplayResult", "replay"]


_REPORT_SECONDS = 0.2


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did, or has done so far.

    Attributes:
        owners: dead processes whose folders were found.
        rows: rows in them that the sink did not have yet, over all sinks.
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
    report: Callable[[ReplayResult], None] = lambda so_far: None,
) -> ReplayResult:
    """Deliver the rows of every dead process below ``journal_dir``, whatever target they had.

    Folders of processes that live are left alone. Returns within ``timeout`` seconds; what was
    not delivered by then, or when this is cancelled, stays where it is.

    ``report`` is called with what waits before anything is sent, every 0.2 s, and at the end,
    also when that is a cancellation.
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
    waiting = [_waiting_rows(folder, sinks) for folder in owner_folders(journal_dir)]
    found = [rows for rows in waiting if rows is not None]
    complete = False

    def so_far() -> ReplayResult:
        accounts = [ledger for ledger, _ in dispatcher.accounts().values()]
        rows = sum(ledger.recovered for ledger in accounts)
        if not complete:
            rows = max(rows, sum(found))
        delivered = sum(ledger.delivered for ledger in accounts)
        dead = sum(ledger.dropped.total() for ledger in accounts)
        errors = [ledger.last_error for ledger in accounts if ledger.last_error is not None]
        return ReplayResult(
            owners=max(len(found), dispatcher.adopted_owners),
            rows=rows,
            delivered=delivered,
            dead=dead,
            pending=rows - delivered - dead,
            last_error=errors[0] if errors else None,
        )

    async def reporting() -> None:
        while True:
            report(so_far())
            await asyncio.sleep(_REPORT_SECONDS)

    report(so_far())
    tasks = [asyncio.create_task(dispatcher.run()), asyncio.create_task(reporting())]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await dispatcher.flush(recovered=True)
                # From here on the account is exact, whoever took folders or died meanwhile.
                complete = True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        journal.close(delivered=True)
        report(so_far())
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return so_far()


def _waiting_rows(folder: Path, sinks: Sequence[Sink]) -> int | None:
    """Rows in ``folder`` that ``sinks`` have not acknowledged; None where it is not to be taken.

    The dispatcher takes folders over a few at a time and so cannot say how many wait in all.
    """
    owner = Owner.adopt(folder)
    if owner is None:
        return None
    try:
        if owner.info.format != FORMAT or not concerns(folder, owner.info, sinks):
            return None
        source = AdoptedSource(owner, {sink.name: sink.tables for sink in sinks})
        return sum(source.pending_rows(sink.name) for sink in sinks)
    except (OSError, ValueError, JournalError):
        # The dispatcher's own attempt warns of it.
        return None
    finally:
        owner.release()


def _no_successor(table: str) -> Stream:
    raise AssertionError(f"a row of {table} was logged during a replay")
