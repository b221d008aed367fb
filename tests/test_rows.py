"""Lines of the journal: the format that delivery, the store and people with ``jq`` rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import caribou
from caribou import Event, Grade, Message, ToolExecution
from caribou.testing import Capture, capture

META = {"datapoint_id": "d", "phase": "train"}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
NAME = TEXT.filter(bool)
COUNT = st.integers(0, 2**63 - 1)
AMOUNT = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | AMOUNT | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=4)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


SHARED: dict[str, Any] = {
    "duration_ms": maybe(st.floats(0, 1e9)),
    "attributes": maybe(OBJECT),
}
RECORDS = st.one_of(
    st.builds(
        Message,
        role=NAME,
        content=maybe(TEXT | st.lists(OBJECT, max_size=3) | OBJECT),
        tool_calls=maybe(st.lists(JSON, max_size=3)),
        tool_call_id=maybe(TEXT),
        name=maybe(TEXT),
        model=maybe(TEXT),
        provider=maybe(TEXT),
        input_tokens=maybe(COUNT),
        output_tokens=maybe(COUNT),
        cache_read_tokens=maybe(COUNT),
        cache_write_tokens=maybe(COUNT),
        reasoning_tokens=maybe(COUNT),
        cost_usd=maybe(AMOUNT),
        grader_name=maybe(TEXT),
        prompt=maybe(TEXT),
        **SHARED,
    ),
    st.builds(
        ToolExecution,
        name=NAME,
        call_id=maybe(TEXT),
        arguments=maybe(OBJECT | TEXT),
        result=JSON,
        error=maybe(TEXT),
        requestor=maybe(TEXT),
        **SHARED,
    ),
    st.builds(
        Grade,
        score=maybe(st.floats(0, 1)),
        grader_name=maybe(TEXT),
        grader_type=maybe(TEXT),
        reasoning=maybe(TEXT),
        criteria=maybe(st.lists(OBJECT, max_size=3)),
        passed_count=maybe(COUNT),
        total_count=maybe(COUNT),
        **SHARED,
    ),
    st.builds(Event, name=NAME, data=maybe(OBJECT), **SHARED),
)


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), names
    return dict(pairs)


def lines(captured: Capture, table: str = "spans") -> list[bytes]:
    return [msgspec.json.encode(row) for row in captured.rows(table)]


@given(st.lists(RECORDS, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_what_is_storable_is_stored_as_it_is(records: list[Any]) -> None:
    with capture() as captured, caribou.sync.trace_run(META):
        for record in records:
            caribou.log(record)
        rows = captured.rows("spans")
    assert len(rows) == len(records)
    for record, row in zip(records, rows, strict=True):
        assert "sanitized" not in row
        kind = type(record)
        fields = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        for field, column in fields:
            value = getattr(record, field)
            if isinstance(record, Event) and field == "name":
                value = f"event.{value}"
            assert row.get(column) == value, column


def journal_lines(home: Path, table: str) -> list[bytes]:
    found: list[bytes] = []
    for path in sorted((home / "journal").glob(f"*/{table}-*.ndjson")):
        found += [line for line in path.read_bytes().split(b"\n") if line]
    return found


def test_the_journal_has_one_object_a_line(tmp_path: Path) -> None:
    meta = META | {
        "run_id": 'r"1\n',
        "step_number": 3,
        "env_name": "e\u2028",
        "model_name": "m",
        "grader_name": "g",
        "trace_id": "mine",
    }
    with caribou.sync.trace_run(meta), caribou.sync.span("s", attributes={"name": "x", "seq": 1}):
        caribou.log(Message(role='us"er\n', content="line\nbreak", attributes={"role": "y"}))
        caribou.log(ToolExecution(name="t\n", error="bad\n", result={"status": 1}, arguments={}))
        caribou.log(Grade(score=0.5, duration_ms=1, criteria=[{"score": 1}]))
        caribou.log(Event(name="e\n", data={"kind": "z"}, duration_ms=0))
        caribou.add_meta({"k\n": {"v": 1}, "key": "value"})
        caribou.add_tags("t\n")
    assert caribou.sync.flush().complete
    counts = {"spans": 6, "traces": 2, "scores": 1, "entity_metadata": 3, "trace_tags": 1}
    for table, count in counts.items():
        found = journal_lines(tmp_path / "home", table)
        assert len(found) == count, table
        for line in found:
            json.loads(line, object_pairs_hook=no_key_twice)
    prefix = json.loads(journal_lines(tmp_path / "home", "spans")[0])
    assert list(prefix)[:9] == [
        *("trace_id", "run_id", "phase", "step_number", "datapoint_id", "env_name"),
        *("model_name", "parent_span_id", "seq"),
    ]


def test_times_are_quoted_decimals(caribou_capture: Capture) -> None:
    with caribou.sync.trace_run(META), caribou.sync.span("s"):
        caribou.log(Message(role="user", duration_ms=2))
        caribou.log(Grade(duration_ms=0.5))
        caribou.log(Event(name="ages", duration_ms=1e300))
    rows = [row for table in ("spans", "traces", "scores") for row in caribou_capture.rows(table)]
    times = [value for row in rows for name, value in row.items() if "time" in name]
    assert len(times) >= 10
    assert all(re.fullmatch(r"\d{10}\.\d{9}", value) for value in times), times
    (ages,) = caribou_capture.events
    assert float(ages["start_time"]) == 0


@pytest.mark.parametrize("role", ["user", "assistant", "rôle", 'q"', "x" * 3000])
def test_a_name_is_made_of_the_role(caribou_capture: Capture, role: str) -> None:
    with caribou.sync.trace_run(META):
        caribou.log(Message(role=role, content="a"))
        caribou.log(Message(role=role, model="m"))
    assert [row["name"] for row in caribou_capture.messages] == [f"message.{role}"] * 2
