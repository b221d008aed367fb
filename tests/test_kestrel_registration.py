"""Opening a rollout registers what it belongs to, once, whatever Kestrel does meanwhile."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import caribou as command
from commandline import environment, record
from support.registry import Registry, problem, registry
from support.servers import DoorServer
from support.serving import serving

import caribou.sync as caribou
from caribou import Message, _registration
from caribou._registration import Registrar
from caribou.journal.owner import is_alive, owner_folders
from caribou.journal.reader import read_rows, segment_files
from caribou.testing import capture


@pytest.fixture
def kestrel() -> Iterator[Registry]:
    with registry() as there:
        yield there


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def trace(datapoint_id: str = "d", **more: Any) -> None:
    """One rollout: of step 1 of run r in training, unless told otherwise."""
    with caribou.trace_run(
        {"datapoint_id": datapoint_id, "phase": "train", "run_id": "r", "step_number": 1} | more
    ):
        caribou.log(Message(role="user", content="hello"))


def kept(home: Path) -> dict[str, int]:
    """How many rows of each table lie in the journal."""
    return {
        segment.table: rows.count(b"\n")
        for folder in owner_folders(home / "journal")
        for segment in segment_files(folder)
        if (rows := read_rows(segment, 0))
    }


def test_each_phase_registers_what_it_asks_for_once(kestrel: Registry) -> None:
    caribou.configure(kestrel_api_url=kestrel.url, kestrel_api_key="sesame")
    for number in range(60):
        trace(f"d{number % 20}", step_number=number % 3)
        trace(f"e{number % 20}", run_id="s", phase="eval", step_number=None)
        trace("live", run_id="shop", phase="prod", step_number=None)
        trace("alone", run_id=None, step_number=None)
    assert caribou.shutdown(20).complete
    assert set(kestrel.runs) == {"r", "s"}
    assert kestrel.phases == {"r": "train", "s": "eval"}
    assert kestrel.steps == {("r", 0): 1, ("r", 1): 1, ("r", 2): 1}
    datapoints = {(None, f"{letter}{number}") for letter in "de" for number in range(20)}
    assert set(kestrel.datapoints) == datapoints | {(None, "alone"), ("shop", "live")}
    assert set(kestrel.datapoints.values()) == {1}
    assert kestrel.keys == {"Bearer sesame"}


def test_without_kestrel_nothing_is_written_for_it(home: Path) -> None:
    trace()
    caribou.shutdown(20)
    assert kept(home).keys() == {"spans", "traces"}


def test_what_is_not_recorded_is_not_registered(kestrel: Registry) -> None:
    caribou.configure(kestrel_api_url=kestrel.url, sample_rate=0.0)
    trace()
    result = caribou.shutdown(20)
    assert result.complete
    assert result.sinks["kestrel"].logged == 0
    assert result.sinks["local"].dropped == {"sampled": 3}
    assert kestrel.calls == []


def test_a_capture_registers_nothing(kestrel: Registry) -> None:
    with capture() as captured:
        caribou.configure(kestrel_api_url=kestrel.url)
        trace()
    assert len(captured.traces) == 1
    assert kestrel.calls == []


def test_redaction_comes_before_registration(kestrel: Registry) -> None:
    def redact(table: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"datapoint_id": "***"} if "datapoint_id" in row else row

    caribou.configure(kestrel_api_url=kestrel.url, redact=redact)
    trace("alice@example.org", phase="prod", run_id="shop", step_number=None)
    assert caribou.shutdown(20).complete
    assert kestrel.datapoints == {("shop", "***"): 1}


def test_without_clickhouse_traces_stay_in_the_local_store(kestrel: Registry, home: Path) -> None:
    caribou.configure(kestrel_api_url=kestrel.url)
    trace()
    result = caribou.shutdown(20)
    assert result.complete
    assert result.sinks["local"].delivered == 3
    assert result.sinks["kestrel"].delivered == 3
    assert kept(home) == {"spans": 1, "traces": 2}
    # The next process has no business with what the first one left, and leaves it unlocked.
    caribou.configure(kestrel_api_url=kestrel.url)
    trace("other")
    assert caribou.flush(20).complete
    assert [is_alive(folder) for folder in owner_folders(home / "journal")].count(False) == 1
    caribou.shutdown(20)
    assert len(list(owner_folders(home / "journal"))) == 2
    shown = command("traces", "--json", home=home).objects
    assert {row["datapoint_id"] for row in shown} == {"d", "other"}
    assert kestrel.datapoints == {(None, "d"): 1, (None, "other"): 1}


def test_kestrel_down_costs_clickhouse_nothing_and_loses_nothing(
    kestrel: Registry, door: DoorServer, database: str, caplog: pytest.LogCaptureFixture, home: Path
) -> None:
    kestrel.refuse()
    caribou.configure(
        kestrel_api_url=kestrel.url, clickhouse_url=door.url, clickhouse_database=database
    )
    with caplog.at_level(logging.INFO, "caribou"):
        for number in range(300):
            trace(f"d{number}", step_number=number)
        result = caribou.flush(2.0)
        assert not result.complete
        assert result.sinks["clickhouse"].pending == 0
        assert result.sinks["kestrel"].pending == 601
        assert "refused" in (result.sinks["kestrel"].last_error or "")
        kestrel.listen()
        assert caribou.flush(30).complete
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert kestrel.url in warnings[0]
    assert "kestrel takes rows again." in caplog.messages
    # Each batch of steps brings its run along, and what was logged meanwhile is another batch.
    assert list(kestrel.runs) == ["r"]
    assert set(kestrel.steps.values()) == set(kestrel.datapoints.values()) == {1}
    assert len(kestrel.steps) == len(kestrel.datapoints) == 300
    assert door.rows(f"SELECT toInt32(count()) AS n FROM {database}.traces") == [{"n": 300}]
    assert caribou.shutdown(20).complete
    assert list(owner_folders(home / "journal")) == []


def test_a_silent_kestrel_delays_no_rollout_and_no_deadline(kestrel: Registry, home: Path) -> None:
    kestrel.hang()
    caribou.configure(kestrel_api_url=kestrel.url, batch_age=0.01)
    trace()
    assert kestrel.called.wait(10)
    began = time.monotonic()
    for number in range(100):
        trace(f"d{number}")
    assert time.monotonic() - began < 1.0
    result = caribou.shutdown(0.5)
    assert not result.complete
    assert time.monotonic() - began < 3.0
    assert kept(home)["registrations"] == 103


def test_a_refused_datapoint_is_set_aside_and_the_rest_registered(
    kestrel: Registry, home: Path
) -> None:
    def answers(path: str, body: Any) -> Any:
        items = body.get("items", [])
        bad = [item for item in items if item.get("datapoint_id") == "d7"]
        return problem(422, "not a good name", "items.7.datapoint_id") if bad else None

    kestrel.answers = answers
    caribou.configure(kestrel_api_url=kestrel.url)
    for number in range(20):
        trace(f"d{number}")
    result = caribou.shutdown(20)
    assert result.complete
    assert result.sinks["kestrel"].dropped == {"dead_letter": 1}
    assert set(kestrel.datapoints) == {(None, f"d{n}") for n in range(20) if n != 7}
    (letters,) = (home / "journal" / "dead").glob("registrations-kestrel-*.ndjson")
    assert json.loads(letters.read_text())["row"]["datapoint_id"] == "d7"


def test_a_refused_key_is_named_and_nothing_lost(
    kestrel: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    kestrel.answers = lambda path, body: problem(401, "no such key")
    caribou.configure(kestrel_api_url=kestrel.url, kestrel_api_key="sesame-0123456789")
    trace()
    assert not caribou.flush(1.0).complete
    assert "KESTREL_API_KEY" in caplog.text
    assert "sesame" not in caplog.text
    kestrel.answers = lambda path, body: None
    assert caribou.shutdown(30).complete
    assert kestrel.datapoints == {(None, "d"): 1}


KILLED = """
import os, signal
import caribou.sync as caribou
for number in range(50):
    meta = {"datapoint_id": f"d{number}", "phase": "eval", "run_id": "r", "step_number": number}
    with caribou.trace_run(meta):
        caribou.log(caribou.Message(role="user", content="hello"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("server", [False, True], ids=["local", "clickhouse"])
def test_the_next_process_registers_what_a_killed_one_left(
    kestrel: Registry, home: Path, request: pytest.FixtureRequest, database: str, server: bool
) -> None:
    there: dict[str, str] = {"KESTREL_API_URL": kestrel.url}
    if server:
        door: DoorServer = request.getfixturevalue("door")
        there |= {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    kestrel.refuse()
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment(home, **there))
    assert killed.returncode == -signal.SIGKILL
    assert kept(home)["registrations"] == 101
    kestrel.listen()
    record(home, "import caribou.sync as c\nwith c.trace_run({'datapoint_id': 'next', "
           "'phase': 'prod'}): pass\nassert c.shutdown(60).complete", **there)  # fmt: skip
    assert kestrel.runs == {"r": 1}
    assert len(kestrel.steps) == 50
    assert len(kestrel.datapoints) == 51
    assert not list(home.glob("journal/*/registrations-*"))
    if server:
        assert list(owner_folders(home / "journal")) == []
    else:
        assert kept(home)["spans"] == 50


def test_registrations_of_the_dead_are_kept_by_a_process_without_kestrel(
    kestrel: Registry, door: DoorServer, database: str, home: Path
) -> None:
    clickhouse = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    kestrel.refuse()
    there = environment(home, KESTREL_API_URL=kestrel.url, **clickhouse)
    subprocess.run([sys.executable, "-c", KILLED], env=there)
    caribou.configure(clickhouse_url=door.url, clickhouse_database=database)
    trace()
    assert caribou.shutdown(20).complete
    assert kept(home) == {"registrations": 101}
    doctor = command("doctor", home=home, **clickhouse)
    assert f"for kestrel at {kestrel.url}: 101 rows" in doctor.out
    assert "set KESTREL_API_URL to that server and run: caribou replay" in doctor.out
    kestrel.listen()
    replayed = command("replay", home=home, KESTREL_API_URL=kestrel.url)
    assert replayed.code == 0, replayed
    assert "101 delivered, 0 pending" in replayed.out
    assert list(owner_folders(home / "journal")) == []
    assert len(kestrel.datapoints) == 50


def test_what_is_known_is_bounded_and_may_be_registered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_registration, "_MAX_KNOWN", 4096)
    registrar = Registrar()
    lines: list[bytes] = []

    def register(datapoint_id: str) -> None:
        registrar.register(
            {"phase": "eval", "datapoint_id": datapoint_id}, lambda line: lines.append(bytes(line))
        )

    register("first")
    register("first")
    assert len(lines) == 1
    for number in range(200):
        register(f"d{number}")
    assert len(lines) == 201
    assert len(registrar._known) < 40
    register("first")
    assert len(lines) == 202


def test_the_real_service_has_what_rollouts_belong_to(home: Path) -> None:
    with serving(home.with_name("service"), KESTREL_API_KEY="sesame") as service:
        caribou.configure(kestrel_api_url=service.url, kestrel_api_key="sesame")
        for number in range(40):
            trace(f"d{number % 10}", run_id="tr/ain ü", step_number=number % 4)
        trace("live", run_id="shop", phase="prod", step_number=None)
        assert caribou.shutdown(30).complete

        def get(path: str) -> Any:
            return service.get(f"/api/v1{path}", Authorization="Bearer sesame")

        assert [run["run_id"] for run in get("/runs")["items"]] == ["tr/ain ü"]
        run = get("/runs/tr%2Fain%20%C3%BC")
        assert (run["phase"], run["project_id"]) == ("train", "")
        steps = get("/runs/tr%2Fain%20%C3%BC/steps")["items"]
        assert [step["step_number"] for step in steps] == [0, 1, 2, 3]
        found = get("/datapoints")["items"]
        assert len(found) == 11
        shop = get("/datapoints?project=shop")["items"]
        assert [(each["datapoint_id"], each["project"]) for each in shop] == [("live", "shop")]
