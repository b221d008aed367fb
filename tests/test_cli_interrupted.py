"""Rollouts whose process was killed are told from those that still run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import caribou, environment, on_terminal
from support.servers import DoorServer

pytest.importorskip("chdb", reason="the embedded engine is not installed")

# Two rollouts, of which the second never ends.
PROGRAM = """
import sys
import caribou.sync as caribou
from caribou import Message
for name in ("whole", "open"):
    about = {"datapoint_id": name, "phase": "eval", "run_id": "r", "trace_id": sys.argv[1] * 32}
    with caribou.trace_run(about):
        caribou.log(Message(role="user", content="Hello"))
        if name == "open":
            caribou.flush(DEADLINE)
            print("open", flush=True)
            sys.stdin.read()
"""


def begun(home: Path, digit: str, deadline: float = 0, **env: str) -> subprocess.Popen[str]:
    """A process whose second rollout is under way."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("DEADLINE", str(deadline)), digit],
        env=environment(home, **env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def statuses(home: Path, **env: str) -> dict[str, str]:
    table = caribou("traces", home=home, **env).table
    return {row["trace_id"][0]: row["status"] for row in table if row["datapoint_id"] == "open"}


def test_a_killed_rollout_is_not_shown_as_running(tmp_path: Path) -> None:
    killed, running = begun(tmp_path, "a"), begun(tmp_path, "b")
    with killed, running:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert statuses(tmp_path) == {"a": "INTERRUPTED", "b": "PENDING"}
        [run] = caribou("runs", "--json", home=tmp_path).objects
        counts = [run[key] for key in ("completed", "pending", "interrupted", "failed")]
        assert counts == [2, 1, 1, 0]
        assert "Interrupted" in on_terminal("runs", home=tmp_path, columns=200)[1]
        assert "INTERRUPTED" in caribou("show", "aa", home=tmp_path).out
        assert "INTERRUPTED" not in caribou("show", "bb", home=tmp_path).out
        # What is stored is what the rollout wrote.
        stored = caribou("show", "aa", "--json", home=tmp_path).objects
        assert [rollout["status"] for rollout in stored] == ["COMPLETED", "PENDING"]


def test_of_a_servers_rollouts_nothing_is_claimed(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    env = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    with begun(tmp_path, "a", deadline=30, **env) as killed:
        killed.send_signal(signal.SIGKILL)
    assert statuses(tmp_path, **env) == {"a": "PENDING"}
    [run] = caribou("runs", "--json", home=tmp_path, **env).objects
    assert (run["pending"], run["interrupted"]) == (1, 0)
