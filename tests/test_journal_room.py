"""Without ClickHouse the journal is the store. At its bound it forgets the oldest of what Langfuse
or an OTLP backend has, and nothing else, so that recording goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commandline import environment
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.backend import Backend, leave_rows
from support.backend import running as delivering
from support.langfuse import Langfuse, settings, variables
from support.otlp import Receiver
from support.servers import DoorServer
from support.waiting import wait_until

import caribou.sync as caribou
from caribou import Grade, Message, _process
from caribou.journal.owner import owner_folders
from caribou.journal.reader import read_rows, segment_files

BOUND = 6 << 20
TEXT = "x" * (256 << 10)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def rollouts(first: int, count: int, *, flush: float = 20.0) -> None:
    """So many rollouts of 1 MiB each, the grade's reasoning and the metadata of 32 KiB each."""
    for number in range(first, first + count):
        with caribou.trace_run({"datapoint_id": f"d{number}", "phase": "eval", "run_id": "r"}):
            caribou.add_tags("tagged")
            caribou.add_meta({"note": TEXT[: 32 << 10]})
            for _ in range(4):
                caribou.log(Message(role="user", content=f"{number} {TEXT}"))
            caribou.log(Grade(score=0.5, grader_name="judge", reasoning=TEXT[: 32 << 10]))
        if flush:
            caribou.flush(flush)


PROGRAM = f"""
import caribou.sync as c
c.configure(max_journal_bytes={BOUND})
for number in range(COUNT):
    with c.trace_run({{"datapoint_id": f"d{{number}}", "phase": "eval", "run_id": "r"}}):
        for _ in range(4):
            c.log(c.Message(role="user", content="x" * (256 << 10)))
"""


def left_by(home: Path, count: int, ending: str, **env: str) -> Path:
    """Run a process that records so many rollouts of 1 MiB; the folder that it leaves."""
    before = set(owner_folders(home / "journal"))
    program = PROGRAM.replace("COUNT", str(count)) + ending
    subprocess.run([sys.executable, "-c", program], env=environment(home, **env), check=True)
    (folder,) = set(owner_folders(home / "journal")) - before
    return folder


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """The rows of a table in an owner's folder, oldest first."""
    return [
        json.loads(line)
        for file in segment_files(folder)
        if file.table == table
        for line in read_rows(file, 0).splitlines()
    ]


def numbers(folder: Path) -> list[int]:
    """Of which rollouts there are messages, each once."""
    kinds = [row for row in rows(folder, "spans") if row["kind"] == "message"]
    return list(dict.fromkeys(int(row["datapoint_id"][1:]) for row in kinds))


def own_folder() -> Path:
    folder = _process.current().journal.folder
    assert folder is not None
    return folder


def dropped(sink: str = "langfuse") -> dict[str, int]:
    return caribou.stats().sinks[sink].dropped


def stop_recording(first: int, most: int, *, flush: float = 20.0) -> int:
    """Record until the bound ends it; how many rollouts were recorded."""
    runtime = _process.current()
    for number in range(first, first + most):
        rollouts(number, 1, flush=flush)
        if any(account.dropped for account in caribou.stats().sinks.values()):
            return number - first
        wait_until(lambda: not runtime.accepting or not runtime.journal.full)
    raise AssertionError(f"{most} rollouts were recorded")


def received(there: Receiver, spans: int) -> bool:
    return len(there.spans) == spans


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_with_langfuse_up_recording_never_ends(
    there: Langfuse, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caribou.configure(**settings(there), max_journal_bytes=BOUND)
    for number in range(24):
        rollouts(number, 1)
        # Beside what is counted: the segments being written, which are no more than 4 MiB each.
        assert caribou.stats().journal_bytes < BOUND + (4 << 20)
    assert dropped() == {}
    # Root, four messages and a grade of each.
    assert len(there.spans) == there.received == 24 * 6
    assert len(there.scores) == 24
    found = numbers(own_folder())
    # The latest are there, and of what is gone nothing is newer than what is there.
    assert found == list(range(24))[-len(found) :]
    assert 1 < len(found) < 16
    (warning,) = warnings(caplog)
    assert "max_journal_bytes" in warning
    assert "CLICKHOUSE_URL" in warning
    assert "Langfuse" in warning


def test_with_langfuse_down_nothing_goes_and_recording_ends_until_it_is_up(
    there: Langfuse, caplog: pytest.LogCaptureFixture
) -> None:
    there.refuse()
    caribou.configure(**settings(there), max_journal_bytes=BOUND)
    recorded = stop_recording(0, 24, flush=0.05)
    rollouts(100, 2, flush=0)
    assert set(dropped()) == {"journal_full"}
    assert numbers(own_folder()) == list(range(recorded))
    assert len(rows(own_folder(), "traces")) == 2 * recorded
    # Nor what no sink takes.
    assert len(rows(own_folder(), "entity_metadata")) == recorded
    assert "new rollouts are not traced" in caplog.text
    there.listen()
    assert caribou.flush(30).complete
    wait_until(lambda: _process.current().accepting)
    refused = dropped()
    rollouts(200, 12)
    assert dropped() == refused
    assert len(there.spans) == (recorded + 12) * 6
    assert len(there.scores) == recorded + 12


def test_what_one_of_two_sinks_has_not_got_stays(there: Langfuse, collector: Receiver) -> None:
    collector.refuse()
    caribou.configure(**settings(there), otlp=collector.url, max_journal_bytes=BOUND)
    recorded = stop_recording(0, 24, flush=0.3)
    assert numbers(own_folder()) == list(range(recorded))
    collector.listen()
    assert caribou.flush(30).complete
    wait_until(lambda: _process.current().accepting)
    assert len(collector.spans) == len(there.spans) == recorded * 6


def test_scores_that_langfuse_does_not_take_stay_and_end_nothing(there: Langfuse) -> None:
    there.score_answers = lambda score: (429, "{}", {"Retry-After": "60"})
    caribou.configure(**settings(there), max_journal_bytes=BOUND)
    for number in range(16):
        rollouts(number, 1, flush=0.05)
        wait_until(partial(received, there, 6 * (number + 1)))
    assert dropped() == {}
    assert len(rows(own_folder(), "scores")) == 16
    assert len(numbers(own_folder())) < 16


def test_what_no_sink_takes_goes_with_the_summaries(collector: Receiver, home: Path) -> None:
    """An OTLP backend takes no scores, and nobody takes metadata and tags."""
    caribou.configure(otlp=collector.url, max_journal_bytes=1 << 20)
    for number in range(128):
        wait_until(lambda: _process.current().accepting)
        with caribou.trace_run({"datapoint_id": f"d{number}", "phase": "eval", "run_id": "r"}):
            caribou.add_meta({"note": TEXT[: 32 << 10]})
            caribou.log(Grade(score=0.5, grader_name="judge", reasoning=TEXT[: 32 << 10]))
        caribou.flush(20)
    assert dropped("otlp") == {}
    assert len(collector.spans) == 256
    for table in ("entity_metadata", "scores"):
        assert 0 < len(rows(own_folder(), table)) < 128
    # No summary is there without what belongs to it.
    noted = {row["entity_id"] for row in rows(own_folder(), "entity_metadata")}
    ends = [row["trace_id"] for row in rows(own_folder(), "traces") if row.get("version")]
    assert len(ends) < 128
    assert noted >= set(ends[-8:])


def test_scores_alone_do_not_end_recording_for_good(collector: Receiver) -> None:
    """They outgrow the bound before the first segment of summaries is full."""
    caribou.configure(otlp=collector.url, max_journal_bytes=1 << 20, run_id="r", phase="eval")
    with caribou.trace_run({"datapoint_id": "d"}):
        for _ in range(64):
            caribou.log(Grade(score=0.5, grader_name="judge", reasoning=TEXT[: 64 << 10]))
    assert caribou.flush(20).complete
    wait_until(lambda: caribou.stats().journal_bytes < 1 << 20)
    wait_until(lambda: _process.current().accepting)


def test_what_processes_left_goes_first(
    there: Langfuse, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ending = "assert c.shutdown(60).complete"
    first = left_by(home, 3, ending, **variables(there))
    second = left_by(home, 2, ending, **variables(there))
    there.received = 0
    caribou.configure(**settings(there), max_journal_bytes=8 << 20)
    rollouts(0, 1)
    assert (len(numbers(first)), len(numbers(second))) == (3, 2)
    rollouts(1, 4)
    assert dropped() == {}
    wait_until(lambda: not (first / "spans-00000001.ndjson").exists())
    assert len(numbers(second)) == 2
    assert numbers(own_folder()) == list(range(5))
    rollouts(5, 10)
    assert dropped() == {}
    wait_until(lambda: not rows(first, "spans") and not rows(second, "spans"))
    # What is small stays as long as records make room enough.
    assert [len(rows(folder, "traces")) for folder in (first, second)] == [6, 4]
    assert there.received == 15 * 6
    assert len([text for text in warnings(caplog) if "max_journal_bytes" in text]) == 1


def test_what_was_known_of_a_killed_rollout_stays(there: Langfuse, home: Path) -> None:
    """No backend was told of it: what it began with is told by its last summary."""
    ending = """
run = c.trace_run({"datapoint_id": "killed", "phase": "eval"})
run.__enter__()
c.add_meta({"note": "n"})
assert c.flush(60).complete
import os
os._exit(0)
"""
    left = left_by(home, 3, ending, **variables(there))
    caribou.configure(**settings(there), max_journal_bytes=8 << 20)
    rollouts(0, 15)
    assert dropped() == {}
    wait_until(lambda: not rows(left, "spans"))
    assert [row["value"] for row in rows(left, "entity_metadata")] == ["n"]
    assert rows(left, "traces")[-1]["datapoint_id"] == "killed"


@pytest.mark.parametrize("state", ["not delivered", "local", "alive"])
def test_what_others_need_is_left_alone(
    there: Langfuse, collector: Receiver, home: Path, state: str
) -> None:
    living: subprocess.Popen[str] | None = None
    match state:
        case "not delivered":
            there.refuse()
            other = left_by(home, 5, "c.shutdown(0.1)", **variables(there))
        case "local":
            other = left_by(home, 5, "c.shutdown(60)")
        case _:
            program = (
                PROGRAM.replace("COUNT", "5") + "c.flush(60); print('done', flush=True); input()"
            )
            living = subprocess.Popen(
                [sys.executable, "-c", program],
                env=environment(home, **variables(there)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert living.stdout is not None
            assert living.stdout.readline() == "done\n"
            (other,) = owner_folders(home / "journal")
    try:
        before = {path.name: path.stat().st_size for path in other.glob("*.ndjson")}
        held = sum(before.values())
        caribou.configure(otlp=collector.url, max_journal_bytes=held + BOUND)
        rollouts(0, 16)
        assert dropped("otlp") == {}
        assert len(numbers(own_folder())) < 16
        assert {path.name: path.stat().st_size for path in other.glob("*.ndjson")} == before
        assert len(collector.spans) == 16 * 6
    finally:
        if living is not None:
            living.communicate("\n")


def test_what_others_had_a_while_ago_costs_nothing(there: Langfuse, home: Path) -> None:
    """Nothing can go for now, and then there is room: another folder is gone."""
    other = left_by(home, 5, "c.shutdown(60)")
    held = sum(path.stat().st_size for path in other.glob("*.ndjson"))
    there.refuse()
    caribou.configure(**settings(there), max_journal_bytes=held + BOUND)
    recorded = stop_recording(0, 24, flush=0.05)
    shutil.rmtree(other)
    there.listen()
    assert caribou.flush(30).complete
    wait_until(lambda: _process.current().accepting)
    assert numbers(own_folder()) == list(range(recorded))


def test_where_nobody_has_the_rows_recording_ends_as_it_did(
    there: Langfuse, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = left_by(home, 2, "assert c.shutdown(60).complete", **variables(there))
    caribou.configure(max_journal_bytes=BOUND)
    recorded = stop_recording(0, 24)
    rollouts(100, 2)
    assert set(dropped("local")) == {"journal_full"}
    assert numbers(own_folder()) == list(range(recorded))
    assert len(numbers(other)) == 2
    (warning,) = warnings(caplog)
    assert "new rollouts are not traced" in warning


def test_an_exporter_is_no_place_where_rows_are(home: Path) -> None:
    """It may only print them: the journal stays the only store."""
    caribou.configure(exporters=[InMemorySpanExporter()], max_journal_bytes=BOUND)
    recorded = stop_recording(0, 24)
    assert caribou.flush(20).complete
    assert numbers(own_folder()) == list(range(recorded))


def test_with_clickhouse_what_langfuse_has_not_got_stays(
    there: Langfuse, door: DoorServer, database: str
) -> None:
    there.refuse()
    clickhouse = {"clickhouse_url": door.url, "clickhouse_database": database}
    caribou.configure(**settings(there), **clickhouse, max_journal_bytes=BOUND)
    recorded = stop_recording(0, 24, flush=0.05)
    assert numbers(own_folder()) == list(range(recorded))
    there.listen()
    assert caribou.flush(60).complete
    wait_until(lambda: _process.current().accepting)
    assert len(there.spans) == recorded * 6


def test_what_langfuse_has_does_not_keep_clickhouse_from_recording(
    there: Langfuse, door: DoorServer, database: str, home: Path
) -> None:
    """The variables were set one after the other."""
    other = left_by(home, 6, "assert c.shutdown(60).complete", **variables(there))
    clickhouse = {"clickhouse_url": door.url, "clickhouse_database": database}
    caribou.configure(**clickhouse, max_journal_bytes=BOUND)
    rollouts(0, 1)
    wait_until(lambda: not (other / "spans-00000001.ndjson").exists())
    rollouts(1, 2)
    assert dropped("clickhouse") == {}


@pytest.mark.asyncio
async def test_looking_for_room_keeps_no_caller_without_a_segment(tmp_path: Path) -> None:
    """However many folders are looked through; and nothing is refused before they are."""
    left = leave_rows(tmp_path, 1)
    for number in range(200):
        shutil.copytree(left, tmp_path / f"{left.name}-{number}")
    sink = Backend()
    sink.name = "langfuse"
    async with delivering(tmp_path, sink, max_bytes=1 << 20) as delivery:
        await delivery.flush()
        journal = delivery.journal
        stream = journal.streams["scores"]
        journal.upkeep()
        for number in range(12):
            while len(stream.standby) > 0:
                stream.append(json.dumps({"seq": number, "content": TEXT[: 64 << 10]}).encode())
            # Fewer turns of the loop than there are folders.
            for _ in range(20):
                await asyncio.sleep(0)
                assert journal.accepting
            assert stream.standby, f"none after segment {number}"
            await delivery.dispatcher.flush()
        async with asyncio.timeout(20):
            while journal.full:
                await asyncio.sleep(0)
                assert journal.accepting
