"""``caribou tail``: what is recorded, as it is recorded, until Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from commandline import environment, open_journal, running, without_engine, write_rows
from support.servers import DoorServer


def span(seq: int, **more: Any) -> dict[str, Any]:
    return {
        "run_id": "r",
        "trace_id": "ab" * 16,
        "seq": seq,
        "span_id": f"{seq:016x}",
        "start_time": f"1790000000.{seq:09d}",
        "kind": "message",
        "name": "message.user",
        "content": f"number {seq}",
        **more,
    }


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and the standard error after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def read(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_it_follows_a_running_process_without_the_engine(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", *(span(i) for i in range(20)))
        with running("tail", "--json", home=tmp_path, **without_engine(tmp_path)) as tail:
            # The last of what was there, then what comes.
            assert [row["seq"] for row in read(tail, 10)] == list(range(10, 20))
            write_rows(journal, "spans", span(20), span(21))
            assert [row["content"] for row in read(tail, 2)] == ["number 20", "number 21"]
            summary = {"run_id": "r", "trace_id": "ab" * 16, "status": "COMPLETED", "version": 1}
            write_rows(journal, "traces", summary | {"start_time": "1790000000.5"})
            [row] = read(tail, 1)
            assert (row["table"], row["status"]) == ("traces", "COMPLETED")
            assert row["start_time"] == "2026-09-21T14:13:20.500000000Z"
            assert interrupted(tail) == (0, "")


def test_processes_that_start_later_are_followed(tmp_path: Path) -> None:
    with running("tail", "--json", home=tmp_path) as tail:
        with open_journal(tmp_path) as first:
            write_rows(first, "spans", span(1))
            assert read(tail, 1)[0]["seq"] == 1
        with open_journal(tmp_path) as second:
            write_rows(second, "spans", span(2))
            assert read(tail, 1)[0]["seq"] == 2


def test_one_run_can_be_picked(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1), span(2, run_id="other"), span(3))
        with running("tail", "--run", "other", "--json", home=tmp_path) as tail:
            assert read(tail, 1)[0]["seq"] == 2
            write_rows(journal, "spans", span(4), span(5, run_id="other"))
            assert read(tail, 1)[0]["seq"] == 5


def test_lines_for_a_person_are_harmless(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(1, content="\x1b[2J\u202eover\nhere"))
        with running("tail", home=tmp_path) as tail:
            assert tail.stdout is not None
            line = tail.stdout.readline()
    assert r"\x1b[2J\u202eover here" in line
    assert ("ab" * 16) in line


def test_it_polls_a_server(door: DoorServer, database: str, tmp_path: Path) -> None:
    env = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    program = """
import sys
import caribou.sync as caribou
with caribou.trace_run({"datapoint_id": "d", "phase": "eval", "run_id": sys.argv[1]}):
    caribou.log(caribou.Message(role="user", content="hello from " + sys.argv[1]))
assert caribou.shutdown(30).complete
"""

    def record_run(name: str) -> None:
        subprocess.run(
            [sys.executable, "-c", program, name],
            env=environment(tmp_path, **env),
            check=True,
        )

    record_run("before")
    with running("tail", "--json", home=tmp_path / "elsewhere", **env) as tail:
        # What was stored a moment before shows that it is looking.
        seen = {row.get("content") for row in read(tail, 2)}
        assert seen == {None, "hello from before"}
        record_run("after")
        rows = read(tail, 2)
        assert {row["run_id"] for row in rows} == {"after"}
        assert [row["content"] for row in rows if row["table"] == "spans"] == ["hello from after"]
        assert interrupted(tail) == (0, "")


def test_a_narrow_terminal_shows_what_was_said(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 40, 0, 0))
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", span(7))
        tail = subprocess.Popen(
            [sys.executable, "-m", "caribou", "tail"],
            env=environment(tmp_path),
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(terminal)
        with os.fdopen(controller, "rb", buffering=0) as screen:
            sent = b""
            while b"\n" not in sent:
                sent += screen.read(1024)
            assert interrupted(tail) == (0, "")
    line = re.sub(r"\x1b\[[0-9;]*m", "", sent.decode()).rstrip()
    assert line == "abababab  message.user   number 7"
