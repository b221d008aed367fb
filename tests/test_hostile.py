"""Whatever a record holds: no exception, no lost record, no row that ClickHouse refuses."""

from __future__ import annotations

import datetime
import decimal
import json
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from hostile import (
    ODD,
    Colour,
    HostileDict,
    HostileStr,
    Level,
    Liar,
    Model,
    Pair,
    Point,
    Raises,
    Struct,
    cycle,
    deep,
    laughs,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.servers import DoorServer

import caribou.sync as caribou
from caribou import Event, Grade, Message, ToolExecution
from caribou.testing import Capture, capture

META = {"datapoint_id": "d", "phase": "train"}
MIB = 1 << 20


def by_type(value: object) -> str:
    """The name of a case: what pytest would make of hostile values cannot be."""
    return type(value).__name__


@dataclass(frozen=True)
class Odd:
    """One of the values above by its place. A failing test prints this, and not the value: some
    of them no process could print."""

    place: int


ANYTHING = st.recursive(
    st.builds(Odd, st.integers(0, len(ODD) - 1))
    | st.none()
    | st.text(max_size=5)
    | st.integers()
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=6,
)


def build(plan: Any) -> Any:
    if isinstance(plan, Odd):
        return ODD[plan.place]
    if isinstance(plan, list | tuple):
        return type(plan)(map(build, plan))
    if isinstance(plan, dict):
        return {key: build(inner) for key, inner in plan.items()}
    return plan


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (Message, {"role": "user"}),
    (ToolExecution, {"name": "t"}),
    (Grade, {}),
    (Event, {"name": "e"}),
]
REQUIRED = {Message: "role", ToolExecution: "name", Event: "name"}


@st.composite
def plans(draw: st.DrawFn) -> Any:
    kind, required = draw(st.sampled_from(KINDS))
    fields = draw(st.lists(st.sampled_from(kind.__struct_fields__), unique=True, max_size=5))
    values = {field: draw(ANYTHING) for field in fields}
    if values.get(REQUIRED.get(kind, "")) is None:
        values |= required
    return kind, values


TEXTS = {
    *("role", "name", "kind", "tool_call_id", "tool_name", "model", "provider", "grader_name"),
    *("prompt", "error", "requestor", "grader_type", "reasoning", "status_message", "sanitized"),
}
COUNTS = {
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("reasoning_tokens", "passed_count", "total_count", "seq", "turn_index", "intra_index"),
}


def check(row: dict[str, Any]) -> None:
    """Every value is one that its column takes."""
    for column, value in row.items():
        if column in TEXTS:
            assert type(value) is str, column
        elif column in COUNTS:
            assert type(value) is int, column
            assert 0 <= value < 2**63, column
        elif column in ("cost_usd", "duration_ms", "score"):
            assert type(value) in (int, float), column
            assert abs(value) < float("inf"), column
        elif column == "attributes":
            assert type(value) is dict
    assert 0 <= row.get("score", 0) <= 1
    assert row.get("duration_ms", 0) >= 0


@given(st.lists(plans(), min_size=1, max_size=4))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_anything_anywhere_is_stored(items: list[Any]) -> None:
    with capture() as captured:
        with caribou.trace_run(META):
            for kind, fields in items:
                caribou.log(kind(**{name: build(plan) for name, plan in fields.items()}))
        lines = captured._lines["spans"].lines
        assert len(lines) == len(items)
        for line in lines:
            assert len(line) < 5 * MIB
            assert line.endswith(b"}")
            assert b"\n" not in line
            line.decode()
        for row in captured.spans:
            check(row)


def test_each_odd_value_in_each_field_is_taken_by_the_engine(
    door: DoorServer, database: str
) -> None:
    """Each row is refused or taken as a whole; the engine is asked, not a model of it."""
    caribou.configure(clickhouse_url=door.url, clickhouse_database=database, run_id="hostile")
    small = [value for value in ODD if type(value) not in (list, dict) or len(value) <= 5000]
    count = 0
    with caribou.trace_run(META | {"env_name": "\ud800", "trace_id": "\0"}):
        for kind, required in KINDS:
            for field in kind.__struct_fields__:
                for value in small:
                    if value is not None:
                        caribou.log(kind(**(required | {field: value})))
                        count += 1
        for value in small:
            caribou.add_meta({"plain": value, "nested": {"a": [value]}})
            if issubclass(type(value), str) and value != "":
                caribou.add_tags(value)
            with caribou.span("s", attributes={"a": value}):
                count += 1
    result = caribou.flush(60)
    assert result.complete, result
    assert result.sinks["clickhouse"].dropped == {}
    caribou.shutdown()
    (row,) = door.rows(f"SELECT count() AS n, uniqExact(span_id) AS ids FROM {database}.spans")
    assert (int(row["n"]), int(row["ids"])) == (count, count)
    (row,) = door.rows(f"SELECT count() AS n FROM {database}.traces WHERE status = 'COMPLETED'")
    assert int(row["n"]) == 1


def one(captured: Capture, record: Any) -> dict[str, Any]:
    captured.clear()
    with caribou.trace_run(META):
        caribou.log(record)
    (row,) = captured.spans
    return row


def content(captured: Capture, value: Any) -> tuple[Any, str]:
    row = one(captured, Message(role="user", content=value))
    return row.get("content"), row.get("sanitized", "")


@pytest.mark.parametrize(
    ("value", "stored", "marks"),
    [
        ("a\ud800b", "a�b", "surrogate"),
        ("\ud83d\ude00", "\U0001f600", "surrogate"),
        ("\0\x1b", "\0\x1b", ""),
        ([float("nan"), float("inf"), 1.5], [None, None, 1.5], "nonfinite"),
        ([2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)], ""),
        ([2**64], [str(2**64)], "integer"),
        ([10**5000], [f"…[integer of {(10**5000).bit_length()} bits]"], "integer"),
        ([b"caf\xc3\xa9 \xff"], ["café \\xff"], "object"),
        ([datetime.datetime(2026, 1, 2, 3)], ["2026-01-02T03:00:00"], "object"),
        (
            [uuid.UUID(int=7), Path("/p"), decimal.Decimal("0.10")],
            [str(uuid.UUID(int=7)), "/p", "0.10"],
            "object",
        ),
        ([Point(1, 2), Struct(3)], [{"x": 1, "y": 2}, {"a": 3}], "object"),
        ([Model({"a": 1}), Colour.RED], [{"a": 1}, "red"], "object"),
        ([Model(ValueError("x")), Raises()], ["<Model>", "<Raises>"], "object"),
        ([Liar()], ["lies"], "object"),
        ([Level.HIGH, HostileStr("h"), Pair(1, 2)], [3, "h", [1, 2]], ""),
        ({"a": HostileDict(b=1), "c": OrderedDict(d=2)}, {"a": {"b": 1}, "c": {"d": 2}}, ""),
        ({1: "a", "1": "b"}, {"1": "a", "1~1": "b"}, "key"),
        ({None: 1, 1.5: 2, (1, "x"): 3}, {"null": 1, "1.5": 2, '[1,"x"]': 3}, "key"),
        (cycle(), [1, {"again": "…[cycle]"}], "cycle"),
    ],
    ids=by_type,
)
def test_what_becomes_of_odd_values(
    caribou_capture: Capture, value: Any, stored: Any, marks: str
) -> None:
    assert content(caribou_capture, value) == (stored, marks)


@pytest.mark.parametrize(
    ("field", "value", "stored", "marks"),
    [
        ("input_tokens", 7.0, 7, "integer"),
        ("input_tokens", 7.5, 7, "integer"),
        ("input_tokens", True, 1, "integer"),
        ("input_tokens", -1, None, "range"),
        ("input_tokens", 2**63, None, "integer"),
        ("input_tokens", "7", None, "object"),
        ("input_tokens", float("nan"), None, "nonfinite"),
        ("cost_usd", decimal.Decimal("0.5"), 0.5, ""),
        ("cost_usd", 10**400, None, "range"),
        ("cost_usd", float("inf"), None, "nonfinite"),
        ("duration_ms", -1.0, None, "range"),
        ("model", 5, "5", "object"),
        ("model", {"a": 1}, '{"a":1}', "object"),
        ("model", b"elk", "elk", "object"),
        ("model", HostileStr("elk"), "elk", ""),
        ("attributes", ["a"], {"value": ["a"]}, "object"),
        ("attributes", {"a": b"b"}, {"a": "b"}, "object"),
    ],
    ids=by_type,
)
def test_what_becomes_of_odd_fields(
    caribou_capture: Capture, field: str, value: Any, stored: Any, marks: str
) -> None:
    row = one(caribou_capture, Message(role="assistant", **{field: value}))
    assert (row.get(field), row.get("sanitized", "")) == (stored, marks)


@pytest.mark.parametrize(
    "role", [5, b"user", Colour.RED, HostileStr("user"), ["a"], Raises()], ids=by_type
)
def test_an_odd_role_loses_no_message(caribou_capture: Capture, role: Any) -> None:
    row = one(caribou_capture, Message(role=role, content="kept"))
    assert row["content"] == "kept"
    assert row["name"] == f"message.{row['role']}"


@pytest.mark.parametrize(
    "text", ["x" * (MIB + 1), "é" * MIB, "\0" * (MIB + 7), "a\U0001f600" * MIB]
)
def test_a_text_is_cut_at_one_mebibyte(caribou_capture: Capture, text: str) -> None:
    stored, marks = content(caribou_capture, text)
    assert marks == "truncated"
    kept, _, note = stored.rpartition("…[truncated: ")
    assert text.startswith(kept)
    assert int(note.split()[0]) == len(text) - len(kept)
    assert len(kept.encode()) <= MIB
    if text[0] == "x":
        assert len(kept) == MIB


def test_depth_is_bounded(caribou_capture: Capture) -> None:
    assert content(caribou_capture, deep(32)) == (deep(32), "")
    stored, marks = content(caribou_capture, deep(10_000))
    assert marks == "depth"
    for _ in range(32):
        stored = stored["down"]
    assert stored == "…[too deep]"


def test_nodes_are_bounded(caribou_capture: Capture) -> None:
    for value in (laughs(), list(range(10**6)), dict.fromkeys(map(str, range(10**6)))):
        stored, marks = content(caribou_capture, value)
        assert "nodes" in marks
        assert len(json.dumps(stored)) < 2 * MIB
    stored, marks = content(caribou_capture, list(range(20_000)))
    assert (stored, marks) == (list(range(20_000)), "")


def test_a_line_is_bounded(caribou_capture: Capture) -> None:
    for text in ("x", "\0", "é"):
        value = [text * 100_000] * 100
        stored, marks = content(caribou_capture, value)
        assert marks == "truncated"
        assert len(stored) == 100
        assert len(caribou_capture._lines["spans"].lines[0]) < 4.5 * MIB


def test_a_dict_that_another_thread_changes(caribou_capture: Capture) -> None:
    shared: dict[str, Any] = {str(number): [number] for number in range(200)}
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            shared[f"new {number % 500}"] = b"odd"
            shared.pop(f"new {(number + 250) % 500}", None)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with caribou.trace_run(META):
            for _ in range(100):
                caribou.log(Event(name="e", data=shared, attributes=shared))
    finally:
        stop.set()
        thread.join()
    assert len(caribou_capture.events) == 100


@given(st.text(st.characters(), max_size=20), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_a_text_on_its_own_is_always_cut_well(text: str, limit: int) -> None:
    from caribou._sanitize import storable_text

    stored = storable_text(text, limit)
    kept = stored.partition("…[truncated: ")[0]
    assert len(kept.encode()) <= limit
    if text.isascii() and len(text) <= limit:
        assert stored == text


@given(ANYTHING)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_metadata_and_attributes_take_anything(plan: Any) -> None:
    value = build(plan)
    with capture() as captured, caribou.trace_run(META):
        caribou.add_meta({"a": value, "b": [value]})
        with caribou.span("s", attributes={"a": value}):
            pass
        assert len(captured.metadata) == 2
        assert len(captured.spans) == 1


def test_a_role_is_what_it_is_and_not_what_it_equals(caribou_capture: Capture) -> None:
    class Loose(str):
        """Equal to its own name in any case, as users' enumerations have been seen to be."""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

        def __hash__(self) -> int:
            return hash(str(self).lower())

    class Strict(StrEnum):
        USER = "user"

    with caribou.trace_run(META):
        for role in (Loose("User"), "user", Strict.USER, Loose("user")):
            caribou.log(Message(role=role, content="text"))
        for content in ("\ud800", "text"):
            caribou.log(Message(role=Loose("User"), content=content))
    assert [row["role"] for row in caribou_capture.messages] == [
        *("User", "user", "user", "user"),
        *("User", "User"),
    ]
    assert [row["seq"] for row in caribou_capture.messages] == [1, 2, 3, 4, 5, 6]
