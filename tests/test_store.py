"""The local store: what has been committed to a journal, and nothing else, read once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import (
    caribou,
    open_journal,
    refused,
    running,
    without_engine,
    write_rows,
)

from caribou.errors import StoreError
from caribou.store import require_read_only

pytest.importorskip("chdb", reason="the embedded engine is not installed")


def span(seq: int, **more: Any) -> dict[str, Any]:
    return {
        "run_id": "run",
        "trace_id": "ab" * 16,
        "seq": seq,
        "span_id": f"{seq:016x}",
        "start_time": f"1790000000.{seq:09d}",
        "kind": "message",
        **more,
    }


def sequence(home: Path, **env: str) -> list[int]:
    """The ``seq`` of every span in the store, in order, duplicates and all."""
    answer = caribou("sql", "SELECT seq FROM spans ORDER BY seq", "--json", home=home, **env)
    assert answer.code == 0, answer.err
    return [row["seq"] for row in answer.objects]


def test_rows_of_a_process_that_runs_are_seen_as_they_come(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1), span(2))
        assert sequence(tmp_path) == [1, 2]
        write_rows(journal, "spans", span(3))
        assert sequence(tmp_path) == [1, 2, 3]
    assert sequence(tmp_path) == [1, 2, 3]


def test_only_what_is_committed_is_read(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1))
        segment = journal.streams["spans"].segments[-1]
        end = segment.committed
        torn = b'{"run_id":"run","trace_id":"torn'
        segment.map[end : end + len(torn)] = torn
        assert sequence(tmp_path) == [1]


def test_loading_all_again_changes_nothing(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", *(span(i) for i in range(50)))
    assert sequence(tmp_path) == list(range(50))
    (tmp_path / "store" / "loaded.json").unlink()
    assert sequence(tmp_path) == list(range(50))


def test_segments_are_loaded_once(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1))
    assert sequence(tmp_path) == [1]
    counted = caribou("sql", "SELECT count() AS n FROM spans_rows", "--json", home=tmp_path)
    assert counted.objects == [{"n": 1}]


@pytest.mark.parametrize("when", ["before it is opened", "before its turn"])
def test_a_segment_may_be_deleted_while_it_is_loaded(tmp_path: Path, when: str) -> None:
    """The journal makes room like that. What is behind it is loaded."""
    program = """
import sys
from pathlib import Path
from caribou.store import LocalStore
home, when = Path(sys.argv[1]), sys.argv[2]
(segment,) = (home / "journal").glob("*/spans-00000001.ndjson")

def delete(*of: object) -> None:
    segment.with_suffix(".commit").unlink(missing_ok=True)
    segment.unlink(missing_ok=True)

def opened(event: str, of: tuple) -> None:
    if event == "open" and str(of[0]) == str(segment):
        delete()

if when == "before it is opened":
    sys.addaudithook(opened)
progress = delete if when == "before its turn" else None
with LocalStore(home / "store", home / "journal", "caribou", progress) as store:
    counts = store.query(
        "SELECT (SELECT count() FROM scores), (SELECT count() FROM trace_tags)", format="CSV"
    )
    print(store.loaded.set_aside, counts.decode())
"""
    with open_journal(tmp_path) as journal:
        write_rows(journal, "scores", {"run_id": "r", "trace_id": "t", "span_id": "s"})
        write_rows(journal, "spans", *(span(i) for i in range(50)))
        write_rows(journal, "trace_tags", {"tag": "a", "run_id": "r", "trace_id": "t"})
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), when],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0 1,1"
    assert len(list((tmp_path / "journal").glob("*/spans-*"))) == 0


def test_a_refused_row_is_set_aside_and_its_neighbours_stay(tmp_path: Path) -> None:
    good = [span(i) for i in range(40)]
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", *good[:17], b'{"seq":"not a number"}', *good[17:])
    answer = caribou("sql", "SELECT count() AS n FROM spans", "--json", home=tmp_path)
    assert answer.objects == [{"n": 40}]
    assert "1 rows could not be loaded" in answer.err
    letters = list((tmp_path / "journal" / "dead").iterdir())
    assert len(letters) == 1
    assert b'"seq":"not a number"' in letters[0].read_bytes()
    doctor = caribou("doctor", home=tmp_path)
    assert doctor.code == 1
    assert str(letters[0].parent) in doctor.out
    # It was dealt with: the next command says nothing of it.
    assert caribou("runs", home=tmp_path).err.count("set aside") == 0


def test_many_short_lived_processes_make_few_parts(tmp_path: Path) -> None:
    for seq in range(40):
        with open_journal(tmp_path) as journal:
            # One in the midst of them is refused.
            row = b'{"seq":"no number"}' if seq == 20 else span(seq)
            write_rows(journal, "spans", row)
            write_rows(journal, "trace_tags", {"tag": str(seq), "run_id": "r", "trace_id": "t"})
    assert sequence(tmp_path) == [seq for seq in range(40) if seq != 20]
    sql = "SELECT count() AS tags, uniqExact(batch_id) AS inserts FROM trace_tags_rows"
    assert caribou("sql", sql, "--json", home=tmp_path).objects == [{"tags": 40, "inserts": 1}]


def test_rows_that_wait_for_a_server_are_not_taken_for_the_local_store(tmp_path: Path) -> None:
    for seq in (1, 2):
        with open_journal(tmp_path, {"clickhouse": "http://localhost:1/caribou"}) as journal:
            write_rows(journal, "spans", span(seq))
    with open_journal(tmp_path, {"clickhouse": "http://localhost:2/delivered"}):
        pass
    assert sequence(tmp_path) == []
    # Whoever looks for them here learns where they are meant to go.
    notes = caribou("sql", "SELECT 1", home=tmp_path).err
    assert notes.count("\n") == 1
    assert "rows of 2 processes wait in the journal for http://localhost:1/caribou" in notes
    assert "CLICKHOUSE_URL" in notes


@pytest.mark.parametrize("name", ["with space", "brace{1,2}star*[x]", "quote'and\\slash"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    with open_journal(home) as journal:
        write_rows(journal, "spans", span(7))
    assert sequence(home) == [7]


def test_a_path_the_engine_would_misread_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "what?"
    home.mkdir()
    assert "CARIBOU_HOME" in refused(caribou("runs", home=home))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["what?"]


def test_nobody_else_can_read_the_store(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1))
    assert sequence(tmp_path) == [1]
    assert os.stat(tmp_path / "store").st_mode & 0o077 == 0


def test_a_query_can_be_interrupted(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1))
    assert sequence(tmp_path) == [1]
    pipe = tmp_path / "pipe.tsv"
    os.mkfifo(pipe)
    sql = f"SELECT * FROM file('{pipe}', 'TSV', 'a String')"
    # The pipe opens once the engine reads from its other end, and is read until it is closed.
    with running("sql", sql, home=tmp_path) as query, pipe.open("w"):
        query.send_signal(signal.SIGINT)
        out, err = query.communicate(timeout=20)
    assert (query.returncode, out, err) == (130, "", "")
    # The next one finds the store as it was.
    assert sequence(tmp_path) == [1]


# The signal is taken by another thread than the one that waits, as if it had come just before the
# wait: nothing but Python's own note of it is left.
_TAKEN_ELSEWHERE = """
import os
import signal
import sys
import threading
from pathlib import Path
from caribou.store import LocalStore
home, pipe = Path(sys.argv[1]), Path(sys.argv[2])

def interrupt():
    file = pipe.open("w")
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    forever.wait()
    file.close()

forever = threading.Event()
with LocalStore(home / "store", home / "journal", "caribou") as store:
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        store.query(f"SELECT * FROM file('{pipe}', 'TSV', 'a String')", format="CSV")
    except KeyboardInterrupt:
        os._exit(130)
"""


def test_an_interrupt_just_before_the_wait_for_an_answer_ends_it(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    pipe = tmp_path / "pipe.tsv"
    os.mkfifo(pipe)
    arguments = [sys.executable, "-c", _TAKEN_ELSEWHERE, str(tmp_path), str(pipe)]
    assert subprocess.run(arguments, timeout=20).returncode == 130


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        file.write("process 4711 (caribou)")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_the_holder_of_the_store_is_named(tmp_path: Path) -> None:
    with held(tmp_path / "store" / "lock"):
        sentence = refused(caribou("runs", home=tmp_path))
    assert "process 4711 (caribou)" in sentence
    assert "try again" in sentence


def test_without_the_engine_it_says_what_to_install(tmp_path: Path) -> None:
    sentence = refused(caribou("runs", home=tmp_path / "home", **without_engine(tmp_path)))
    assert "pip install 'caribou-trace[local]'" in sentence


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "  select 1 ; ",
        "WITH 1 AS x SELECT x",
        "(SELECT 1)",
        "-- a comment; with a semicolon\nSELECT 1 -- and another;",
        "SELECT 'INSERT INTO x; DROP TABLE y' AS \"into outfile\"",
        "SELECT $$a; insert into b$$",
        "SHOW TABLES",
        "EXPLAIN SELECT 1",
        "SELECT 'it''s; \\'; fine'",
    ],
)
def test_statements_that_read_pass(sql: str) -> None:
    assert require_read_only(sql).strip().strip(";").strip() in sql


@pytest.mark.parametrize(
    "sql",
    [
        "",
        " ; ",
        "-- nothing",
        "DROP TABLE spans_rows",
        "INSERT INTO spans_rows SELECT 1",
        "insert into function file('/tmp/x', 'CSV') select 1",
        "WITH 1 AS x INSERT INTO FUNCTION file('/tmp/x', 'CSV') SELECT x",
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "SELECT 1 /* ' */ INTO/**/OUTFILE '/tmp/x' -- '",
        "SELECT 1; DROP TABLE spans_rows",
        "SELECT ';'; SELECT 2",
        "SET readonly = 0",
        "SELECT 1 FORMAT CSV",
        "SYSTEM SHUTDOWN",
    ],
)
def test_statements_that_do_more_are_refused(sql: str) -> None:
    with pytest.raises(StoreError):
        require_read_only(sql)


def test_the_engine_itself_refuses_to_write(tmp_path: Path) -> None:
    # In a process of its own: other tests fork this one, which the engine would not survive.
    program = """
import sys
from pathlib import Path
from caribou.errors import StoreError
from caribou.store import LocalStore
home = Path(sys.argv[1])
with LocalStore(home / "store", home / "journal", "caribou") as store:
    try:
        store.query("TRUNCATE TABLE spans_rows", format="TabSeparated")
    except StoreError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "readonly" in done.stdout


def test_a_statement_that_fails_leaves_nothing_of_its_answer_to_the_next(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from caribou.errors import StoreError
from caribou.store import LocalStore
home = Path(sys.argv[1])
with LocalStore(home / "store", home / "journal", "caribou") as store:
    late = "SELECT number, throwIf(number = 150000) FROM numbers(200000)"
    try:
        store.query(f"{late} SETTINGS max_block_size = 1000, max_threads = 1", format="CSV")
    except StoreError:
        print(store.query("SELECT 1", format="CSV").decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
