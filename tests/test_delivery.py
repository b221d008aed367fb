"""Delivery between a real journal and a sink that fails in every way a sink may."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from support.backend import Backend, files, no_successor, running

from caribou.delivery.dead_letters import read_dead_letters
from caribou.delivery.replay import replay
from caribou.delivery.source import OwnSource
from caribou.journal import cursor
from caribou.journal.cursor import Cursor, InFlight
from caribou.journal.journal import Journal
from caribou.journal.owner import owner_folders
from caribou.journal.stream import SEGMENT_BYTES
from caribou.sinks.base import (
    Ambiguous,
    Misconfigured,
    Retry,
    SinkError,
    TooLarge,
)

pytestmark = pytest.mark.asyncio


async def test_everything_logged_is_delivered_in_order_and_once(tmp_path: Path) -> None:
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(20_000))
        await delivery.flush()
        assert sink.rows == list(range(20_000))
        assert delivery.account == (20_000, 20_000, 0, {})
    assert files(tmp_path) == []


async def test_batches_are_bounded_in_bytes_and_end_on_rows(tmp_path: Path) -> None:
    sink = Backend()
    async with running(tmp_path, sink, batch_bytes=4096) as delivery:
        delivery.log(*range(1000))
        delivery.log(1000, size=10_000)
        delivery.log(1001)
        await delivery.flush()
        assert sink.rows == list(range(1002))
        assert sorted(sink.sizes)[-2] <= 4096 < max(sink.sizes)


async def test_rows_go_on_their_own_once_they_are_old_enough(tmp_path: Path) -> None:
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        delivery.log(1)
        async with asyncio.timeout(5):
            await sink.sending.wait()
        await delivery.flush()
        assert sink.rows == [1]


@pytest.mark.parametrize("fault", [Retry, Ambiguous])
async def test_a_passing_fault_loses_and_doubles_nothing(
    tmp_path: Path, fault: type[SinkError]
) -> None:
    sink = Backend()
    sink.faults = [fault("connection reset"), fault("connection reset")]
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(100))
        await delivery.flush()
        assert sink.rows == list(range(100))
        assert delivery.account == (100, 100, 0, {})


async def test_a_backend_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    sink = Backend()
    sink.faults = [Retry("too many requests", retry_after=60)]
    async with running(tmp_path, sink) as delivery:
        delivery.log(1)
        for _ in range(3):
            # A flush makes other attempts sooner, but not this one.
            with pytest.raises(TimeoutError):
                await delivery.flush(0.3)
        assert sink.rows == []
        assert delivery.account == (1, 0, 1, {})


async def test_a_batch_that_was_stored_without_an_answer_is_not_sent_again(tmp_path: Path) -> None:
    sink = Backend()
    sink.stores_anyway = True
    sink.faults = [Ambiguous("the connection died after the body")]
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(100))
        await delivery.flush()
        assert sink.rows == list(range(100))
        assert delivery.account == (100, 100, 0, {})


async def test_a_batch_that_is_too_large_is_halved(tmp_path: Path) -> None:
    sink = Backend()
    sink.most_rows = 10
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(333))
        await delivery.flush()
        assert sink.rows == list(range(333))


async def test_a_shortage_of_memory_sets_no_row_aside(tmp_path: Path) -> None:
    """The server is short of memory for a while, whatever the size of a batch."""
    sink = Backend()
    sink.faults = [TooLarge("memory limit", code=241, retry_after=0.01) for _ in range(6)]
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(10))
        await delivery.flush(30)
        assert sorted(sink.rows) == list(range(10))
        assert delivery.account == (10, 10, 0, {})


async def test_a_row_that_is_too_large_for_good_is_set_aside_alone(tmp_path: Path) -> None:
    sink = Backend()
    sink.most_rows = 0
    async with running(tmp_path, sink) as delivery:
        delivery.log(1)
        await delivery.flush()
        assert delivery.account == (1, 0, 0, {"dead_letter": 1})


async def test_a_poison_row_takes_none_of_its_neighbours_along(tmp_path: Path) -> None:
    sink = Backend()
    sink.refuses = lambda row: row == 4321
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(9999))
        await delivery.flush()
        assert sink.rows == [row for row in range(9999) if row != 4321]
        assert delivery.account == (9999, 9998, 0, {"dead_letter": 1})
    (letter,) = read_dead_letters(tmp_path)
    assert json.loads(bytes(letter.row))["seq"] == 4321
    assert (letter.table, letter.sink, letter.code) == ("spans", "backend", 27)


async def test_a_backend_that_is_down_holds_the_rows_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Backend()
    sink.down = lambda: Retry("connection refused")
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(10))
        with pytest.raises(TimeoutError):
            await delivery.flush(0.3)
        assert delivery.account == (10, 0, 10, {})
        delivery.log(*range(10, 20))
        with pytest.raises(TimeoutError):
            await delivery.flush(0.8)
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert "connection refused" in warnings[0].getMessage()
        sink.down = None
        await delivery.flush()
        assert sink.rows == list(range(20))
        assert delivery.account == (20, 20, 0, {})


async def test_a_setting_at_fault_keeps_the_rows_and_names_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Backend()
    sink.faults = [Misconfigured("CLICKHOUSE_PASSWORD is wrong", code=516)]
    async with running(tmp_path, sink) as delivery:
        delivery.log(1)
        await delivery.flush()
        assert sink.rows == [1]
    assert "CLICKHOUSE_PASSWORD is wrong" in caplog.text


async def test_a_defect_in_a_sink_is_no_end_of_delivery(tmp_path: Path) -> None:
    sink = Backend()
    sink.faults = [KeyError("a bug")]  # type: ignore[list-item]
    async with running(tmp_path, sink) as delivery:
        delivery.log(1)
        await delivery.flush()
        assert sink.rows == [1]


async def test_what_a_process_leaves_is_delivered_by_the_next(tmp_path: Path) -> None:
    first = Backend()
    first.down = lambda: Retry("connection refused")
    async with running(tmp_path, first) as delivery:
        delivery.log(*range(1000))
    assert len(list(owner_folders(tmp_path))) == 1
    second = Backend()
    async with running(tmp_path, second) as delivery:
        delivery.log(5000)
        await delivery.flush()
        assert sorted(second.rows) == [*range(1000), 5000]
        assert delivery.account == (1001, 1001, 0, {})
    assert list(owner_folders(tmp_path)) == []


async def test_a_send_cut_short_by_the_end_of_its_process_is_asked_about(tmp_path: Path) -> None:
    """The first process stored a batch and ended before it heard of it; the next does not send
    it again."""
    sink = Backend()
    sink.hold = asyncio.Event()
    async with running(tmp_path, sink) as delivery:
        delivery.log(*range(100))
        await sink.sending.wait()
    (folder,) = owner_folders(tmp_path)
    sent = Cursor(folder, sink.name).in_flight("spans", 1)
    assert isinstance(sent, InFlight)
    after = Backend()
    after.batches[f"{folder.name}:spans:1:{sent.start}-{sent.end}"] = 1
    async with running(tmp_path, after) as delivery:
        await delivery.flush()
        assert delivery.account == (100, 100, 0, {})
    assert after.rows == list(range(sent.rows, 100))


async def test_rows_meant_for_another_server_are_left_alone(tmp_path: Path) -> None:
    first = Backend()
    first.down = lambda: Retry("connection refused")
    async with running(tmp_path, first) as delivery:
        delivery.log(1)
    other = Backend()
    other.target = "memory://other"
    async with running(tmp_path, other) as delivery:
        await delivery.flush()
    assert other.rows == []
    assert len(list(owner_folders(tmp_path))) == 1


async def test_replay_delivers_whatever_was_left_and_says_how_much(tmp_path: Path) -> None:
    first = Backend()
    first.down = lambda: Retry("connection refused")
    async with running(tmp_path, first) as delivery:
        delivery.log(*range(500))
    other = Backend()
    other.target = "memory://other"
    other.refuses = lambda row: row == 7
    result = await replay(tmp_path, [other], timeout=10, batch_bytes=1 << 20, batch_rows=100)
    assert (result.owners, result.rows, result.delivered) == (1, 500, 499)
    assert (result.dead, result.pending) == (1, 0)
    assert sorted(other.rows) == [row for row in range(500) if row != 7]


async def test_replay_of_nothing_is_quick_and_says_so(tmp_path: Path) -> None:
    result = await replay(tmp_path, [Backend()], timeout=10, batch_bytes=1 << 20, batch_rows=100)
    assert (result.owners, result.rows) == (0, 0)


async def test_replay_ends_by_its_deadline_and_keeps_the_rows(tmp_path: Path) -> None:
    first = Backend()
    first.down = lambda: Retry("connection refused")
    async with running(tmp_path, first) as delivery:
        delivery.log(*range(5))
    result = await replay(tmp_path, [first], timeout=0.2, batch_bytes=1 << 20, batch_rows=100)
    assert (result.rows, result.pending, result.last_error) == (5, 5, "connection refused")
    assert len(list(owner_folders(tmp_path))) == 1


async def test_delivered_segments_are_used_again(tmp_path: Path) -> None:
    sink = Backend()
    async with running(tmp_path, sink) as delivery:
        for number in range(0, 30_000, 100):
            delivery.log(*range(number, number + 100), size=1500)
            if number % 1000 == 0:
                await delivery.flush()
        await delivery.flush()
        assert len(sink.rows) == 30_000
        folder = delivery.journal.folder
        assert folder is not None
        # 45 MB went through; what stays is the segment being written and up to four standing by.
        spans = sum(path.stat().st_size for path in folder.glob("spans-*.ndjson"))
        assert spans <= 5 * SEGMENT_BYTES


async def test_in_memory_everything_is_delivered_too() -> None:
    sink = Backend()
    async with running(None, sink) as delivery:
        delivery.log(*range(20_000))
        await delivery.flush()
        assert sink.rows == list(range(20_000))


async def test_segments_that_another_sink_waits_for_do_not_fill_a_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "_COPY_BYTES", 256)
    sinks = {"clickhouse": "there", "langfuse": "away"}
    journal = Journal(
        tmp_path, sinks=sinks, max_bytes=1 << 30, rolled=lambda: None, successor=no_successor
    )
    own = OwnSource(journal, dict.fromkeys(sinks, frozenset({"spans"})), sinks)
    stream = journal.streams["spans"]
    while len(stream.segments) < 24:
        stream.append(b"x" * (512 << 10))
    for segment in stream.segments[:-1]:
        own.cursors["clickhouse"].acknowledge("spans", segment.number, segment.committed)
        own.settle(segment)
    assert journal.folder is not None
    found = Cursor(journal.folder, "clickhouse")
    for segment in stream.segments[:-1]:
        assert found.acknowledged("spans", segment.number) >= segment.committed
    assert len(stream.segments) == 24
    journal.close(delivered=True)
