"""What processes left for Langfuse and OTLP backends: who delivers it, and what stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import caribou as command
from commandline import environment, record
from support.langfuse import Langfuse, settings, variables
from support.left import PROGRAM, ROWS, kept, trace
from support.otlp import Receiver
from support.servers import DoorServer

import caribou.sync as caribou
from caribou.journal.owner import is_alive, owner_folders


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_what_a_local_process_left_goes_to_langfuse_once_and_stays(
    there: Langfuse, home: Path
) -> None:
    there.refuse()
    ended = f"{PROGRAM}\nc.shutdown(0.2)"
    subprocess.run([sys.executable, "-c", ended], env=environment(home, **variables(there)))
    assert kept(home) == ROWS
    there.listen()
    for number in range(3):
        # Each takes over what the dead left, if there is anything to do.
        record(home, f"{PROGRAM}\nassert c.shutdown(30).complete", **variables(there))
        assert len(there.spans) == 6 * (number + 2)
        assert there.received == len(there.spans)
    assert len(list(owner_folders(home / "journal"))) == 4
    assert not any(is_alive(folder) for folder in owner_folders(home / "journal"))
    assert len(command("traces", "--json", home=home).objects) == 4
    assert len(there.scores) == 4


def test_a_dead_process_that_is_done_is_not_adopted(there: Langfuse, home: Path) -> None:
    record(home, f"{PROGRAM}\nassert c.shutdown(30).complete", **variables(there))
    caribou.configure(**settings(there))
    trace()
    assert caribou.flush(20).complete
    alive = [is_alive(folder) for folder in owner_folders(home / "journal")]
    assert alive.count(True) == 1
    assert caribou.stats().sinks["langfuse"].recovered == 0


def test_rows_wait_for_langfuse_when_another_process_has_no_keys(
    there: Langfuse, door: DoorServer, database: str, home: Path
) -> None:
    clickhouse = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    there.refuse()
    ended = f"{PROGRAM}\nc.shutdown(0.2)"
    subprocess.run(
        [sys.executable, "-c", ended], env=environment(home, **variables(there), **clickhouse)
    )
    for _ in range(2):
        record(home, f"{PROGRAM}\nassert c.shutdown(60).complete", **clickhouse)
    count = door.rows(f"SELECT toInt32(count()) AS n FROM {database}.traces")
    assert count == [{"n": 3}]
    # Two processes with a server left nothing; of the first, what Langfuse has not got.
    assert kept(home) == ROWS
    doctor = command("doctor", home=home, **clickhouse)
    assert f"for langfuse at {there.url} (pk-lf-0123): 9 rows" in doctor.out
    assert "set LANGFUSE_HOST and both keys to that server and run: caribou replay" in doctor.out
    there.listen()
    replayed = command("replay", home=home, **variables(there), **clickhouse)
    assert replayed.code == 0, replayed
    assert "9 delivered, 0 pending" in replayed.out
    assert (len(there.spans), len(there.scores)) == (6, 1)
    assert list(owner_folders(home / "journal")) == []


def test_replay_sends_what_was_recorded_without_langfuse_and_keeps_it(
    there: Langfuse, collector: Receiver, home: Path
) -> None:
    record(home, f"{PROGRAM}\nc.shutdown(30)")
    assert there.spans == {}
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    for expected in ("17 delivered, 0 pending", "Nothing to replay"):
        replayed = command("replay", home=home, **variables(there), **otlp)
        assert replayed.code == 0, replayed
        assert expected in replayed.out
    assert there.received == collector.received == 6
    assert kept(home) == ROWS
    assert len(command("traces", "--json", home=home).objects) == 1


KILLED = """
import os, signal
import caribou.sync as c
for number in range(50):
    with c.trace_run({"datapoint_id": f"d{number}", "phase": "eval", "run_id": "r"}):
        c.log(c.Message(role="user", content="hello"))
        c.log(c.Grade(score=0.5, grader_name="judge"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("server", [False, True], ids=["local", "clickhouse"])
def test_the_next_process_delivers_what_a_killed_one_left(
    there: Langfuse, home: Path, request: pytest.FixtureRequest, database: str, server: bool
) -> None:
    env = variables(there)
    if server:
        door: DoorServer = request.getfixturevalue("door")
        env |= {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    there.refuse()
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment(home, **env))
    assert killed.returncode == -signal.SIGKILL
    there.listen()
    record(home, f"{PROGRAM}\nassert c.shutdown(60).complete", **env)
    assert len(there.spans) == 50 * 3 + 6
    assert len(there.scores) == 51
    if server:
        assert list(owner_folders(home / "journal")) == []
    else:
        shown = command("traces", "--json", "--limit", "100", home=home).objects
        assert len(shown) == 51


def test_without_its_package_nothing_is_lost_and_the_extra_is_named(
    there: Langfuse, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry'] = None\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{PROGRAM}\nc.shutdown(1)"],
        env=environment(home, **variables(there), PYTHONPATH=path),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0
    assert ended.stderr.count("pip install 'caribou-trace[otlp]'") == 1
    assert "Traceback" not in ended.stderr
    assert kept(home) == ROWS
    replayed = command("replay", home=home, **variables(there))
    assert "9 delivered, 0 pending" in replayed.out
    assert len(there.spans) == 6
