"""The journal on real files: valid NDJSON at every moment, bounded, recoverable."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from caribou.journal import segment as segment_module
from caribou.journal import stream as stream_module
from caribou.journal.cursor import Cursor, InFlight
from caribou.journal.journal import TABLES, Journal
from caribou.journal.owner import Owner, is_alive, owner_folders
from caribou.journal.reader import cut_rows, read_rows, segment_files, set_aside_torn
from caribou.journal.segment import Segment
from caribou.journal.stream import SEGMENT_BYTES, Stream


def no_successor(table: str) -> Stream:
    raise AssertionError(table)


def open_journal(root: Path | None, *, max_bytes: int = 1 << 30, **sinks: str) -> Journal:
    return Journal(
        root, sinks=sinks, max_bytes=max_bytes, rolled=lambda: None, successor=no_successor
    )


def row(number: int, size: int = 200) -> bytes:
    return json.dumps({"seq": number, "content": "x" * size}).encode()


def sequence(data: bytes) -> list[int]:
    return [json.loads(line)["seq"] for line in data.splitlines() if line]


def test_a_segment_is_valid_ndjson_while_it_is_being_written(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]
    for number in range(50):
        stream.append(row(number))
        lines = stream.segments[0].path.read_bytes().split(b"\n")
        assert [json.loads(line)["seq"] for line in lines if line] == list(range(number + 1))
    journal.close(delivered=False)


def test_readers_see_rows_in_order_over_many_segments(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]
    for number in range(8000):
        stream.append(row(number, 1000))
        if number % 500 == 0:
            journal.upkeep()
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "spans"]
    assert len([file for file in files if file.committed()]) >= 3
    found = [number for file in files for number in sequence(read_rows(file, 0))]
    assert found == list(range(8000))
    assert stream.rows == 8000
    journal.close(delivered=False)


def test_a_row_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.upkeep()
    stream = journal.streams["traces"]
    stream.append(row(0))
    stream.append(row(1, SEGMENT_BYTES + 1))
    stream.append(row(2))
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "traces"]
    found = [number for file in files for number in sequence(read_rows(file, 0))]
    # Its segment is made after the one that stood by, so its number is higher; all are there.
    assert sorted(found) == [0, 1, 2]
    journal.close(delivered=False)


def test_contents_are_private(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal")
    journal.streams["spans"].append(row(0))
    assert journal.folder is not None
    assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in journal.folder.iterdir()} == {0o600}
    journal.close(delivered=False)


def test_an_owner_that_ends_leaves_only_its_rows(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.upkeep()
    journal.streams["scores"].append(row(7))
    folder = journal.folder
    assert folder is not None
    journal.close(delivered=False)
    assert sorted(path.name for path in folder.glob("*.ndjson")) == ["scores-00000001.ndjson"]
    assert (folder / "scores-00000001.ndjson").read_bytes() == row(7) + b"\n"


def test_an_owner_whose_rows_are_delivered_leaves_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, clickhouse="there")
    journal.streams["spans"].append(row(0))
    journal.close(delivered=True)
    assert list(tmp_path.iterdir()) == []


def test_a_live_owner_cannot_be_adopted_and_a_dead_one_can(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    (folder,) = owner_folders(tmp_path)
    assert is_alive(folder)
    assert Owner.adopt(folder) is None
    journal.streams["spans"].append(row(0))
    journal.close(delivered=False)
    assert not is_alive(folder)
    owner = Owner.adopt(folder)
    assert owner is not None
    # Whoever adopted it is its owner now.
    assert Owner.adopt(folder) is None
    owner.release()


def test_a_delivered_segment_is_used_again_and_shows_no_old_row(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, clickhouse="there")
    stream = journal.streams["spans"]
    number = 0
    # Segments grow at first; only those of the full size are used again.
    while len([segment for segment in stream.segments if segment.size == SEGMENT_BYTES]) < 2:
        stream.append(row(number, 4000))
        number += 1
        journal.upkeep()
    old = next(segment for segment in stream.segments if segment.size == SEGMENT_BYTES)
    inode = os.stat(old.path).st_ino
    journal.release(old)
    assert stream.standby[-1] is old
    assert os.stat(old.path).st_ino == inode
    assert old.committed == 0
    assert old.path.read_bytes().strip(b"\n") == b""
    journal.close(delivered=True)


def test_a_reader_never_takes_rows_of_a_segment_that_is_used_again(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, clickhouse="there")
    stream = journal.streams["spans"]
    stream.append(row(0))
    assert journal.folder is not None
    (file,) = [f for f in segment_files(journal.folder) if f.table == "spans"]
    segment = stream.segments[0]
    segment.sealed = True
    segment.recycle(99)
    assert file.committed() == 0
    assert read_rows(file, 0) == b""
    journal.close(delivered=True)


def test_rows_of_many_threads_are_whole_and_complete(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]

    def write(first: int) -> None:
        for number in range(first, first + 2000):
            stream.append(row(number, number % 300))

    threads = [threading.Thread(target=write, args=(n * 2000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "spans"]
    found = [number for file in files for number in sequence(read_rows(file, 0))]
    assert sorted(found) == list(range(16_000))
    journal.close(delivered=False)


def test_logging_from_a_finaliser_inside_append_loses_nothing(tmp_path: Path) -> None:
    """A collection may run anywhere, also while a segment is being changed for the next."""
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]
    finalised: list[int] = []

    class Logs:
        def __init__(self, number: int) -> None:
            self.number = number
            self.me = self

        def __del__(self) -> None:
            finalised.append(self.number)
            stream.append(row(self.number))

    original = stream._make

    def make_and_collect(table: str, size: int) -> Segment:
        Logs(100_000 + len(finalised))
        gc.collect()
        return original(table, size)

    stream._make = make_and_collect
    for number in range(3000):
        stream.append(row(number, 1000))
    stream._make = original
    assert finalised
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "spans"]
    found = [number for file in files for number in sequence(read_rows(file, 0))]
    assert sorted(found) == [*range(3000), *finalised]
    journal.close(delivered=False)


def test_threads_under_a_tracing_debugger_lose_nothing(tmp_path: Path) -> None:
    """A debugger runs code of its own at every line, and so lets other threads in at each."""
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]

    def at_line(*_: object) -> Callable[..., object]:
        time.sleep(0)
        return at_line

    def at_call(frame: FrameType, *_: object) -> Callable[..., object] | None:
        return at_line if frame.f_code.co_filename == stream_module.__file__ else None

    def write(first: int) -> None:
        for number in range(first, first + 500):
            stream.append(row(number, 700))

    threads = [threading.Thread(target=write, args=(n * 500,)) for n in range(4)]
    threading.settrace(at_call)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "spans"]
    assert len([file for file in files if file.committed()]) > 1
    found = [number for file in files for number in sequence(read_rows(file, 0))]
    assert sorted(found) == list(range(2000))
    journal.close(delivered=False)


def test_a_collection_in_the_middle_of_an_append_loses_nothing(tmp_path: Path) -> None:
    """Python 3.11 collects where something is allocated: between taking a stream and the copy."""
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]
    finalised: list[int] = []

    class Logs:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            number = 100_000 + len(finalised)
            finalised.append(number)
            stream.append(row(number))

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(3000):
            if number % 3 == 0:
                Logs()
            stream.append(row(number))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(finalised) == 1000
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "spans"]
    found = [number for file in files for number in sequence(read_rows(file, 0))]
    assert sorted(found) == [*range(3000), *finalised]
    journal.close(delivered=False)


def test_logging_from_a_signal_handler_loses_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = journal.streams["spans"]
    handled: list[int] = []

    def handler(*_: object) -> None:
        number = 1_000_000 + len(handled)
        handled.append(number)
        stream.append(row(number))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        number = 0
        while len(handled) < 100:
            stream.append(row(number, 500))
            number += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert journal.folder is not None
    files = [file for file in segment_files(journal.folder) if file.table == "spans"]
    found = [n for file in files for n in sequence(read_rows(file, 0))]
    assert sorted(found) == [*range(number), *handled]
    journal.close(delivered=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from caribou.journal.journal import Journal
root = Path(sys.argv[1])
journal = Journal(root, sinks={}, max_bytes=1 << 30, rolled=lambda: None, successor=None)
stream = journal.streams["spans"]
stream.append(b'{"seq":1}')
# Killed in the middle of the copy: the row is in the map, its length is not published.
segment = stream.segments[0]
segment.map[10:25] = b'{"seq":2,"conte'
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_torn_row_is_set_aside_and_the_rows_before_it_are_kept(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    (folder,) = owner_folders(tmp_path)
    owner = Owner.adopt(folder)
    assert owner is not None
    (file,) = [file for file in segment_files(folder) if file.table == "spans"]
    assert read_rows(file, 0) == b'{"seq":1}\n'
    torn: list[bytes] = []
    set_aside_torn(file, torn.append)
    assert torn == [b'{"seq":2,"conte']
    assert file.path.read_bytes().strip(b"\n") == b'{"seq":1}'
    owner.release()


def test_a_full_disk_keeps_what_is_in_progress_and_refuses_new_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(tmp_path, clickhouse="there")
    stream = journal.streams["spans"]
    full = True

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(fd, data, at)

    class Os:
        def __getattr__(self, name: str) -> object:
            return pwrite if name == "pwrite" else getattr(os, name)

    monkeypatch.setattr(segment_module, "os", Os())
    for number in range(3000):
        stream.append(row(number, 500))
    journal.upkeep()
    assert not journal.accepting
    data = b"".join(bytes(s.map[: s.committed]) for s in stream.segments)
    assert sequence(data) == list(range(3000))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    full = False
    journal.upkeep()
    assert journal.accepting
    journal.close(delivered=True)


def test_at_its_bound_the_journal_accepts_no_new_rollouts_until_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(tmp_path, max_bytes=1 << 20, clickhouse="there")
    stream = journal.streams["spans"]
    journal.watch_bound()
    assert journal.accepting
    while len(stream.segments) < 3:
        stream.append(row(0, 4000))
    # What stands in the way may be let go yet.
    journal.upkeep()
    assert journal.accepting
    for _ in range(3):
        journal.watch_bound()
    assert not journal.accepting
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "max_journal_bytes" in caplog.text
    for segment in stream.segments[:-1]:
        journal.release(segment)
    journal.watch_bound()
    assert journal.accepting
    journal.close(delivered=True)


def test_far_beyond_its_bound_the_journal_does_not_wait_for_room_to_be_made(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, max_bytes=1 << 20, clickhouse="there")
    journal.count_others(65 << 20)
    journal.upkeep()
    assert journal.accepting
    journal.count_others(66 << 20)
    journal.upkeep()
    assert not journal.accepting
    journal.count_others(0)
    journal.watch_bound()
    assert journal.accepting
    journal.close(delivered=True)


def test_a_backlog_keeps_neither_maps_nor_descriptors(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, clickhouse="there")
    stream = journal.streams["spans"]
    journal.upkeep()
    before = len(os.listdir("/proc/self/fd"))
    while len(stream.segments) < 12:
        stream.append(row(0, 8000))
        journal.upkeep()
    # What is mapped takes two descriptors: the segment being written and two before it.
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    # And yet every row can be read when its turn comes.
    assert all(bytes(segment.map[:1]) == b"{" for segment in stream.segments[:-1])
    journal.close(delivered=True)


def test_upkeep_ends_though_a_caller_takes_segments_as_fast_as_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path, clickhouse="there")
    stream = journal.streams["spans"]
    make, made = Segment.__init__, 0

    def taken_at_once(self: Segment, *arguments: Any) -> None:
        nonlocal made
        made += 1
        make(self, *arguments)
        if made < 100:
            stream.standby.clear()

    monkeypatch.setattr(Segment, "__init__", taken_at_once)
    journal.upkeep()
    assert made < 100
    journal.close(delivered=True)


def test_where_no_folder_can_be_made_the_journal_is_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    journal = open_journal(tmp_path / "file" / "journal")
    assert journal.folder is None
    stream = journal.streams["spans"]
    stream.append(row(3))
    segment = stream.segments[0]
    assert sequence(bytes(segment.map[: segment.committed])) == [3]
    assert len(caplog.records) == 1
    assert "CARIBOU_JOURNAL_DIR" in caplog.text
    journal.close(delivered=True)


def test_batches_end_on_rows() -> None:
    data = b"".join(row(number, number) + b"\n" for number in range(100))
    end, rows = cut_rows(memoryview(data), 0, len(data), 7)
    assert (rows, sequence(data[:end])) == (7, list(range(7)))
    assert cut_rows(memoryview(data), 0, len(data), 1000) == (len(data), 100)


def test_a_batch_that_is_full_at_the_end_of_a_chunk_ends_on_a_row_too() -> None:
    # Rows are looked at 256 KiB at a time; the third of these rows begins in the first chunk.
    data = b"".join(row(number, 100 << 10) + b"\n" for number in range(6))
    end, rows = cut_rows(memoryview(data), 0, len(data), 2)
    assert (rows, sequence(data[:end])) == (2, [0, 1])


def test_a_cursor_survives_a_write_that_was_cut_short(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path, "sink")
    for end in (100, 200, 300):
        cursor.sending("spans", 1, InFlight(end - 100, end, 5))
        cursor.acknowledge("spans", 1, end)
    path = tmp_path / "sink.cursor"
    data = bytearray(path.read_bytes())
    assert Cursor(tmp_path, "sink").acknowledged("spans", 1) == 300
    # Tear each of the two copies in turn; the other one counts.
    for at, expected in ((0, {200, 300}), (len(data) // 2, {200, 300})):
        torn = data[:]
        torn[at + 20 : at + 24] = b"????"
        path.write_bytes(torn)
        found = Cursor(tmp_path, "sink")
        behind = found.in_flight("spans", 1)
        assert found.acknowledged("spans", 1) in expected
        assert behind is None or behind == InFlight(200, 300, 5)
    path.write_bytes(b"nonsense")
    assert Cursor(tmp_path, "sink").acknowledged("spans", 1) == 0


def test_every_table_has_a_stream(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    assert set(journal.streams) == set(TABLES)
    journal.close(delivered=True)


def test_segments_that_a_sink_has_take_no_room_in_its_cursor(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path, "sink")
    # A number that a full disk left without a segment, and one that is through before the last.
    numbers = [number for number in range(1, 10_001) if number not in (3000, 5000)]
    for number in [*numbers, 5000]:
        cursor.acknowledge("spans", number, 4 << 20)
        cursor.finish("spans", number)
    cursor.acknowledge("spans", 10_001, 300)
    cursor.acknowledge("scores", 2, 300)
    cursor.finish("scores", 2)
    cursor.acknowledge("traces", 1, 300)
    found = Cursor(tmp_path, "sink")
    for number in (1, 2999, 3001, 5000, 10_000):
        assert found.acknowledged("spans", number) >= 4 << 20
    assert found.acknowledged("spans", 3000) == 0
    assert found.acknowledged("spans", 10_001) == 300
    assert found.acknowledged("scores", 1) == found.acknowledged("scores", 3) == 0
    assert found.acknowledged("scores", 2) >= 300
