"""A process logs as fast as it can and is killed: what calls returned for is delivered, once."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.langfuse import langfuse, variables
from support.servers import DoorServer

from caribou.journal.owner import owner_folders
from caribou.journal.reader import read_rows, segment_files

# Tells standard output, after each call has returned, which record it was.
LOGS_UNTIL_KILLED = """
import asyncio, os, struct
import caribou

async def agent(number):
    meta = {"datapoint_id": f"dp-{number}", "run_id": "killed", "phase": "train"}
    async with caribou.trace_run(meta):
        record = number
        while True:
            content = f"record {record} " + "x" * (record % 977)
            kind = record % 4
            if kind == 0:
                caribou.log(caribou.Message(role="assistant", content=content))
            elif kind == 1:
                caribou.log(caribou.ToolExecution(name="search", result=content))
            elif kind == 2:
                caribou.log(caribou.Event(name="tick", data={"content": content}))
            else:
                caribou.log(caribou.Grade(score=0.5, reasoning=content))
            os.write(1, struct.pack("<Q", record))
            record += 4 * 4 + 1
            await asyncio.sleep(0)

async def main():
    await asyncio.gather(*(agent(number) for number in range(17)))

asyncio.run(main())
"""

# Any process that traces something takes over what a dead one left.
NEXT = """
import asyncio, sys
import caribou

async def main():
    async with caribou.trace_run({"datapoint_id": "next", "run_id": "next", "phase": "train"}):
        pass
    result = await caribou.shutdown(60)
    sys.exit(0 if result.complete else str(result))

asyncio.run(main())
"""

SPANS = """
SELECT trace_id, span_id, toUInt64(extract(
    concat(ifNull(content, ''), ifNull(result, ''), data, reasoning), 'record (\\\\d+) '
)) AS record
FROM {database}.spans WHERE run_id = 'killed'
"""
SCORES = """
SELECT trace_id, span_id, toUInt64(extract(reasoning, 'record (\\\\d+) ')) AS record
FROM {database}.scores WHERE run_id = 'killed'
"""


def environment(url: str, database: str, home: Path) -> dict[str, str]:
    return os.environ | {
        "CLICKHOUSE_URL": url,
        "CLICKHOUSE_DATABASE": database,
        "CARIBOU_HOME": str(home),
    }


def run_and_kill(environ: dict[str, str], seconds: float) -> list[int]:
    """Start the process, kill it so long after its first record, return what it told."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOGS_UNTIL_KILLED], stdout=subprocess.PIPE, env=environ
    )
    assert process.stdout is not None
    told = process.stdout.read(8)
    killer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
    killer.start()
    told += process.stdout.read()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    killer.join()
    return [number for (number,) in struct.iter_unpack("<Q", told[: len(told) // 8 * 8])]


Records = dict[tuple[str, str], int]
"""Which record has which ids, of trace and span."""


def kill_and_deliver(
    door: DoorServer, environ: dict[str, str], by: str, seconds: float
) -> tuple[Records, Records]:
    """Kill the process, have ``by`` deliver the rest and check it; the spans and the scores."""
    told = run_and_kill(environ, seconds)
    assert told
    after = [sys.executable, "-c", NEXT]
    if by == "caribou replay":
        after = [sys.executable, "-m", "caribou", "replay", "--json"]
    done = subprocess.run(after, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spans, scores = (
        check_stored(door, query.replace("{database}", environ["CLICKHOUSE_DATABASE"]), wanted)
        for query, wanted in ((SPANS, told), (SCORES, [n for n in told if n % 4 == 3]))
    )
    # The journal is empty again: nothing would be sent a second time.
    assert list(Path(environ["CARIBOU_HOME"], "journal").glob("*/*.ndjson")) == []
    return spans, scores


def check_stored(door: DoorServer, query: str, told: list[int]) -> Records:
    rows = door.rows(query)
    stored = [int(row["record"]) for row in rows]
    assert len(stored) == len(set(stored)), "a record is read twice"
    assert set(told) <= set(stored), "a record is lost"
    # Beyond what it told there is at most the record whose telling the kill came before.
    assert len(set(stored) - set(told)) <= 1
    return {(row["trace_id"], row["span_id"]): int(row["record"]) for row in rows}


BY = pytest.mark.parametrize("by", ["next process", "caribou replay"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@BY
@pytest.mark.parametrize("transport", ["http", "native"])
def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    door: DoorServer, database: str, tmp_path: Path, by: str, transport: str
) -> None:
    url = door.url if transport == "http" else door.native_url
    moments = random.SystemRandom()
    for kill in range(10):
        name = f"{database}_{kill}"
        environ = environment(url, name, tmp_path / str(kill))
        kill_and_deliver(door, environ, by, moments.uniform(0.0, 1.2))
        door.sql(f"DROP DATABASE {name}")


def sent(texts: dict[tuple[str, str], str]) -> Records:
    """The records that texts tell of; the root of the next process tells of none."""
    found = {ids: re.search(r"record (\d+) ", text) for ids, text in texts.items()}
    return {ids: int(match[1]) for ids, match in found.items() if match is not None}


@pytest.mark.slow
@pytest.mark.timeout(300)
@BY
def test_killed_at_any_moment_langfuse_has_what_clickhouse_has(
    door: DoorServer, database: str, tmp_path: Path, by: str
) -> None:
    moments = random.SystemRandom()
    for kill in range(3):
        name = f"{database}_{kill}"
        with langfuse() as there:
            environ = environment(door.url, name, tmp_path / str(kill)) | variables(there)
            spans, scores = kill_and_deliver(door, environ, by, moments.uniform(0.0, 0.9))
            # What was sent again has replaced itself, by its ids.
            assert spans == sent(
                {ids: json.dumps(span.attributes) for ids, span in there.spans.items()}
            )
            assert len(there.scores) == len(scores)
            assert scores == sent(
                {
                    (score["traceId"], score["metadata"]["span_id"]): score["comment"]
                    for score in there.scores.values()
                }
            )
        door.sql(f"DROP DATABASE {name}")


def test_killed_in_local_mode_the_journal_itself_holds_every_record(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "CLICKHOUSE_URL"}
    told = run_and_kill(environ | {"CARIBOU_HOME": str(tmp_path)}, 0.2)
    stored: list[int] = []
    for segment in (s for f in owner_folders(tmp_path / "journal") for s in segment_files(f)):
        rows = [json.loads(line) for line in read_rows(segment, 0).splitlines()]
        if segment.table != "spans":
            continue
        stored += [int(number) for number in re.findall(r"record (\d+) ", json.dumps(rows))]
    assert len(stored) == len(set(stored))
    assert set(told) <= set(stored)
    assert len(stored) <= len(told) + 1
