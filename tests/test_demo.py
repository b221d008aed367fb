"""``caribou demo``: the main job on one machine, from rollouts to a person's eyes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commandline import caribou, on_terminal, refused, without_engine

pytest.importorskip("chdb", reason="the embedded engine is not installed")


def test_the_demo_records_and_shows(tmp_path: Path) -> None:
    code, shown = on_terminal("demo", home=tmp_path, columns=120)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0
    assert "320 rollouts" in plain
    assert "100%" in plain
    for expected in ("support-desk", "turn 0", "grade policy_check  1.000"):
        assert expected in plain
    assert "Is there anything else I can do for you?" in " ".join(plain.split())
    [more] = re.findall(r"caribou show ([0-9a-f]{12})", plain)
    assert caribou("show", more, home=tmp_path).code == 0

    sql = """
    SELECT count() AS traces, uniqExact(step_number) AS steps,
        countIf(status = 'COMPLETED') AS good, countIf(status = 'ERROR') AS failed,
        countIf(status = 'ABORTED') AS stopped, countIf(status = 'TRUNCATED') AS cut,
        countIf(status = 'PENDING') AS pending, countIf(duration_ms > 500) AS timed_out
    FROM traces
    """
    [row] = caribou("sql", sql, "--json", home=tmp_path).objects
    assert row["traces"] == 320
    assert row["steps"] == 5
    assert row["pending"] == 0
    assert row["good"] > 200
    assert min(row["failed"], row["stopped"], row["cut"], row["timed_out"]) >= 1
    # A ticket is the same for every sample, and what is said of it fits.
    sql = """
    SELECT uniqExactIf(content, role = 'user') AS asked, uniqExact(datapoint_id) AS tickets,
        groupUniqArrayIf(tool_name, kind = 'tool') AS tools
    FROM spans GROUP BY toUInt8(substring(datapoint_id, 8)) % 6 AS ticket ORDER BY ticket
    """
    kinds = caribou("sql", sql, "--json", home=tmp_path).objects
    assert all(kind["asked"] == kind["tickets"] for kind in kinds)
    assert [sorted(kind["tools"]) for kind in kinds] == [
        ["lookup_order", "track_parcel"],
        ["check_policy", "create_return", "lookup_order"],
        ["check_policy", "lookup_order"],
        ["book_slot", "list_slots"],
        ["calculate", "get_prices", "quote_delivery"],
        ["list_payments"],
    ]
    assert row["good"] + row["failed"] + row["stopped"] + row["cut"] == 320


def test_its_contents_are_the_same_each_time(tmp_path: Path) -> None:
    answers = [caribou("demo", "--json", home=tmp_path / name) for name in "ab"]
    first, second = (
        {
            (t["step_number"], t["datapoint_id"], t["metadata"]["sample"]): t["score"]
            for t in answer.objects
            # Which call is under way when one is stopped depends on the clock.
            if t["status"] == "COMPLETED"
        }
        for answer in answers
    )
    both = first.keys() & second.keys()
    assert len(both) > 200
    assert {key: first[key] for key in both} == {key: second[key] for key in both}


def test_without_the_engine_it_says_so_before_it_records(tmp_path: Path) -> None:
    home = tmp_path / "home"
    sentence = refused(caribou("demo", home=home, **without_engine(tmp_path)))
    assert "pip install 'caribou-trace[local]'" in sentence
    assert not list(home.rglob("*.ndjson"))
