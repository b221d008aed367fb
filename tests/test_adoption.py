"""Taking over what dead processes left: whole, a few at a time, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from support.backend import Backend, leave_rows, no_successor, running

from caribou.delivery.accounting import Ledger
from caribou.delivery.adoption import _MOST_AT_ONCE, Adoption
from caribou.delivery.courier import Link
from caribou.delivery.dead_letters import DeadLetters
from caribou.delivery.dispatcher import Dispatcher
from caribou.journal import cursor
from caribou.journal.journal import Journal
from caribou.journal.owner import is_alive, owner_folders
from caribou.sinks.base import Batch, Retry

pytestmark = pytest.mark.asyncio


async def test_many_dead_processes_are_taken_over_a_few_at_a_time(tmp_path: Path) -> None:
    for number in range(3 * _MOST_AT_ONCE):
        leave_rows(tmp_path, number)
    sink = Backend()
    sink.hold = asyncio.Event()
    async with running(tmp_path, sink) as delivery:
        flush = asyncio.create_task(delivery.flush(30))
        await sink.sending.wait()
        held = [folder for folder in owner_folders(tmp_path) if is_alive(folder)]
        # Its own folder is held too.
        assert len(held) <= _MOST_AT_ONCE + 1
        sink.hold.set()
        await flush
        assert sorted(sink.rows) == list(range(3 * _MOST_AT_ONCE))
    assert list(owner_folders(tmp_path)) == []


@pytest.mark.parametrize("damage", ["empty segment", "no description", "torn description"])
async def test_a_damaged_folder_keeps_nobody_from_delivering(tmp_path: Path, damage: str) -> None:
    bad = leave_rows(tmp_path, 1)
    match damage:
        case "empty segment":
            os.truncate(bad / "spans-00000001.ndjson", 0)
        case "no description":
            (bad / "owner.json").unlink()
        case _:
            (bad / "owner.json").write_text('{"format":')
    leave_rows(tmp_path, 2)
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        delivery.log(3)
        await delivery.flush()
        assert sorted(sink.rows) == [2, 3]
    assert not is_alive(bad)


async def test_a_folder_of_another_format_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = leave_rows(tmp_path, 1)
    info = json.loads((folder / "owner.json").read_text())
    (folder / "owner.json").write_text(json.dumps(info | {"format": 2}))
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        await delivery.flush()
        assert sink.rows == []
    assert (folder / "spans-00000001.ndjson").exists()
    assert "format 2" in caplog.text


async def test_tables_of_a_later_version_are_kept(tmp_path: Path) -> None:
    folder = leave_rows(tmp_path, 1)
    (folder / "widgets-00000001.ndjson").write_bytes(b'{"a":1}\n')
    (folder / "widgets-00000001.commit").write_bytes((8).to_bytes(8, "little"))
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        await delivery.flush()
        assert sink.rows == [1]
    assert (folder / "widgets-00000001.ndjson").read_bytes() == b'{"a":1}\n'


async def test_where_a_torn_row_cannot_be_set_aside_the_folder_is_given_back(
    tmp_path: Path,
) -> None:
    folder = leave_rows(tmp_path, 1)
    with (folder / "spans-00000001.ndjson").open("ab") as segment:
        segment.write(b'{"half')
    (tmp_path / "dead").write_text("in the way")
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        await delivery.flush()
        assert not is_alive(folder)
    (tmp_path / "dead").unlink()
    async with running(tmp_path, sink) as delivery:
        await delivery.flush()
        assert sink.rows == [1]
    (torn,) = (tmp_path / "dead").glob("*.torn")
    assert b'{"half' in torn.read_bytes()


async def test_half_a_look_is_not_taken_for_a_whole(tmp_path: Path) -> None:
    """What was left for later stays so while the next look is under way."""
    count = _MOST_AT_ONCE + 2
    for number in range(count):
        leave_rows(tmp_path, number)
    sink = Backend()
    links = [Link(sink, DeadLetters(tmp_path), Ledger(), 1 << 20, 1000)]
    durable = {sink.name: sink.target}
    adoption = Adoption(
        tmp_path, lambda: None, links, durable, DeadLetters(tmp_path), adopt_any=False
    )
    try:
        await adoption.look()
        assert (len(adoption.sources), adoption.more) == (_MOST_AT_ONCE, True)
        adoption.close()
        look = asyncio.create_task(adoption.look())
        await asyncio.sleep(0)
        assert 0 < len(adoption.sources) < _MOST_AT_ONCE
        assert adoption.more
        await asyncio.gather(look, adoption.look())
        assert (len(adoption.sources), adoption.more) == (_MOST_AT_ONCE, True)
    finally:
        adoption.close()


def leave_for(root: Path, sinks: dict[str, str], number: int) -> None:
    """A row that a process left for several sinks."""
    journal = Journal(
        root, sinks=sinks, max_bytes=1 << 30, rolled=lambda: None, successor=no_successor
    )
    journal.streams["spans"].append(json.dumps({"seq": number}).encode())
    journal.close(delivered=False)


async def test_what_one_sink_has_is_not_sent_again_however_long_another_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many segments there are: they are not to fill a sink's cursor."""
    monkeypatch.setattr(cursor, "_COPY_BYTES", 512)
    there, away = Backend(), Backend()
    away.name = "langfuse"
    sinks = {sink.name: sink.target for sink in (there, away)}
    leave_for(tmp_path, sinks, 1)
    [folder] = owner_folders(tmp_path)
    for number in range(2, 80):
        for kind in ("ndjson", "commit"):
            first = folder / f"spans-00000001.{kind}"
            shutil.copyfile(first, folder / f"spans-{number:08d}.{kind}")
    links = [Link(sink, DeadLetters(tmp_path), Ledger(), 1 << 20, 1000) for sink in (there, away)]
    adoption = Adoption(
        tmp_path, lambda: None, links, sinks, DeadLetters(tmp_path), adopt_any=False
    )
    await adoption.look()
    [source] = adoption.sources
    for segment in source.segments("spans"):
        source.cursors[there.name].acknowledge("spans", segment.number, segment.committed)
        source.settle(segment)
    adoption.close()
    async with running(tmp_path, there) as delivery:
        await delivery.flush()
    assert there.rows == []
    assert len(list(folder.glob("spans-*.ndjson"))) == 79


class Store(Backend):
    """Tells when it has so many rows."""

    name = "clickhouse"

    def __init__(self, count: int) -> None:
        super().__init__()
        self.full = asyncio.Event()
        self._count = count

    async def send(self, batch: Batch) -> None:
        await super().send(batch)
        if len(self.rows) == self._count:
            self.full.set()


async def test_what_was_given_back_is_left_for_later(tmp_path: Path) -> None:
    store, copies = Store(0), Backend()
    copies.name = "langfuse"
    durable = {sink.name: sink.target for sink in (store, copies)}
    for number in range(_MOST_AT_ONCE + 1):
        leave_for(tmp_path, durable, number)
    there, away = (
        Link(sink, DeadLetters(tmp_path), Ledger(), 1 << 20, 1000) for sink in (store, copies)
    )
    adoption = Adoption(
        tmp_path, lambda: None, [there, away], durable, DeadLetters(tmp_path), adopt_any=False
    )
    try:
        await adoption.look()
        for source in adoption.sources:
            [segment] = source.segments("spans")
            source.cursors[store.name].acknowledge("spans", segment.number, segment.committed)
        away.gate.failed(None)
        # For the last folder the others make room, and wait for the sink in trouble.
        await adoption.look()
        assert (len(adoption.sources), adoption.more) == (1, True)
    finally:
        adoption.close()


async def test_a_sink_in_trouble_keeps_no_other_from_what_the_dead_left(tmp_path: Path) -> None:
    """However many folders wait for it."""
    count = 3 * _MOST_AT_ONCE
    store, copies = Store(count), Backend()
    copies.name = "langfuse"
    copies.down = lambda: Retry("connection refused")
    sinks = {sink.name: sink.target for sink in (store, copies)}
    for number in range(count):
        leave_for(tmp_path, sinks, number)
    journal = Journal(
        tmp_path,
        sinks=sinks,
        max_bytes=1 << 30,
        rolled=lambda: None,
        successor=no_successor,
    )
    dispatcher = Dispatcher(
        journal,
        tmp_path,
        [store, copies],
        durable=sinks,
        batch_bytes=1 << 20,
        batch_rows=1000,
        batch_age=0.01,
    )
    running = asyncio.create_task(dispatcher.run())
    try:
        async with asyncio.timeout(20):
            await store.full.wait()
        assert sorted(store.rows) == list(range(count))
        held = [folder for folder in owner_folders(tmp_path) if is_alive(folder)]
        assert len(held) <= _MOST_AT_ONCE + 1
        copies.down = None
        async with asyncio.timeout(30):
            await dispatcher.flush(recovered=True)
        assert sorted(set(copies.rows)) == list(range(count))
        assert len(store.rows) == len(copies.rows) == count
        for ledger, _ in dispatcher.accounts().values():
            assert ledger.recovered == ledger.delivered == count
    finally:
        running.cancel()
        await asyncio.wait([running])
        journal.close(delivered=dispatcher.delivered)
    assert list(owner_folders(tmp_path)) == []
