"""What people read: narrow terminals, sums without noise, titles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commandline import caribou, on_terminal, record

pytest.importorskip("chdb", reason="the embedded engine is not installed")

PROGRAM = """
import contextlib
import caribou.sync as caribou
from caribou import Grade, Message
with caribou.trace_run({"datapoint_id": "checkout-flow-17", "phase": "train", "step_number": 3,
                        "run_id": "nightly-2026-11-02", "env_name": "shop", "trace_id": "a" * 32}):
    for cost in (0.1, 0.2, 0.0):
        caribou.log(Message(role="assistant", content="Hello", cost_usd=cost))
    caribou.log(Message(role="assistant", content="Almost for nothing", cost_usd=0.0000123))
    with caribou.span("final", kind="grading"):
        caribou.log(Grade(score=0.5, grader_name="exact"))
    with contextlib.ExitStack() as stack:
        for depth in range(12):
            stack.enter_context(caribou.span(f"level {depth}"))
        caribou.log(Message(role="user", content="From the depth of these scopes, a sentence."))
with caribou.trace_run({"datapoint_id": "checkout-flow-18", "phase": "train", "step_number": 3,
                        "run_id": "nightly-2026-11-02", "trace_id": "b" * 32}):
    for cost in (0.1, 0.2):
        caribou.log(Message(role="assistant", content="Hello", cost_usd=cost))
caribou.shutdown()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recorded rollouts of one run."""
    home = tmp_path_factory.mktemp("recorded")
    record(home, PROGRAM)
    # Loaded here, so that no terminal below shows a progress bar.
    assert caribou("runs", home=home).code == 0
    return home


def lines_of(*arguments: str, home: Path, columns: int) -> list[str]:
    code, shown = on_terminal(*arguments, home=home, columns=columns)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("columns", [30, 40, 50])
def test_a_narrow_listing_of_traces_has_what_matters_whole(home: Path, columns: int) -> None:
    head, _, *rows = lines_of("traces", home=home, columns=columns)
    assert head.split()[0] == "Trace"
    assert {"Status", "Score"} <= set(head.split())
    row = next(row for row in rows if row.startswith("a"))
    assert row.split()[0] == "a" * 12
    assert {"COMPLETED", "0.500"} <= set(row.split())


RUNS = """
import caribou.sync as caribou
for name in ("alpha", "beta"):
    for number in range(12):
        with caribou.trace_run({"datapoint_id": f"checkout-flow-{number}", "phase": "train",
                                "step_number": 3, "run_id": f"nightly-2026-11-02-{name}"}):
            caribou.log(caribou.ToolExecution(name="look", arguments={}, error="lost"))
            caribou.log(caribou.Message(role="assistant", content="Hi", input_tokens=5000,
                                        output_tokens=100, cost_usd=0.1))
            caribou.log(caribou.Grade(score=0.5, grader_name="exact"))
caribou.shutdown()
"""


@pytest.mark.parametrize(("command", "columns"), [("runs", 40), ("runs", 80), ("traces", 80)])
def test_runs_can_be_told_apart(tmp_path: Path, command: str, columns: int) -> None:
    record(tmp_path, RUNS)
    assert caribou("runs", home=tmp_path).code == 0
    shown = lines_of(command, home=tmp_path, columns=columns)
    assert "Score" in shown[0].split()
    cells = {cell for line in shown for cell in line.split() if cell.startswith("nightly")}
    assert cells == {"nightly-2026-11-02-alpha", "nightly-2026-11-02-beta"}


@pytest.mark.parametrize("columns", [30, 40])
def test_where_no_table_fits_rows_are_printed_as_lines(home: Path, columns: int) -> None:
    shown = lines_of("sql", "SELECT * FROM traces ORDER BY trace_id", home=home, columns=columns)
    assert max(map(len, shown)) <= columns
    pairs = [line.split(maxsplit=1) for line in shown]
    assert [pair[1] for pair in pairs if pair[:1] == ["status"]] == ["COMPLETED"] * 2
    assert [pair[1] for pair in pairs if pair[:1] == ["phase"]] == ["train"] * 2
    text = "".join(shown).replace(" ", "")
    assert "a" * 32 in text
    assert "nightly-2026-11-02" in text


def test_a_wide_terminal_gets_a_table(home: Path) -> None:
    head, _, row, *_ = lines_of("runs", home=home, columns=200)
    assert head.split()[:2] == ["Run", "Phase"]
    assert row.split()[:2] == ["nightly-2026-11-02", "train"]


@pytest.mark.parametrize("columns", [30, 50])
def test_a_deep_conversation_stays_readable(home: Path, columns: int) -> None:
    shown = lines_of("show", "aa", home=home, columns=columns)
    assert max(map(len, shown)) <= columns
    start = next(i for i, line in enumerate(shown) if "From the" in line)
    assert shown[start].strip().startswith("From the depth")
    sentence = " ".join(line.strip() for line in shown[start : start + 5])
    assert "From the depth of these scopes, a sentence." in sentence


def test_sums_are_shown_without_noise(home: Path, tmp_path: Path) -> None:
    [run] = caribou("runs", "--json", home=home).objects
    assert run["total_cost_usd"] == 0.6000123
    costs = {"a" * 32: 0.3000123, "b" * 32: 0.3}
    traces = caribou("traces", "--json", home=home).objects
    assert {row["trace_id"]: row["cost_usd"] for row in traces} == costs
    rows = caribou("traces", home=home).table
    assert {row["trace_id"]: row["cost_usd"] for row in rows} == {
        key: str(cost) for key, cost in costs.items()
    }
    lines = map(json.loads, caribou("export", home=home).out.splitlines())
    assert {line["trace_id"]: line["cost_usd"] for line in lines} == costs
    # SQL answers exactly what was asked for, and a terminal shows digits that can be read.
    sql = "SELECT 0.1 + 0.2 AS sum, 1e15 / 7 AS large"
    assert caribou("sql", sql, home=home).table[0]["sum"] == "0.30000000000000004"
    assert "0.30000" not in "".join(lines_of("sql", sql, home=home, columns=80))


def test_small_costs_keep_digits_and_scopes_are_named(home: Path) -> None:
    out = caribou("show", "aa", home=home).out
    assert "$0.000012" in out
    assert "$0.1000" in out
    assert "span final grading" in out
    assert "span level 0" in out
