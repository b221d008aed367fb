"""What the native protocol's blocks hold is byte for byte what the engine makes of the lines."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hostile import ODD
from support.native import layout, store_block
from support.rows import make_batch, span_lines
from support.servers import DoorServer
from support.sinks import off_loop, open_sink

import caribou.sync as caribou
from caribou import Event, Grade, Message, ToolExecution
from caribou._varint import varint
from caribou.schema import TABLES
from caribou.sinks._clickhouse_native_blocks import Block, Unreadable, UnsupportedType
from caribou.sinks.clickhouse_native import _whole_lines
from caribou.testing import capture

META: dict[str, Any] = {"datapoint_id": "d", "phase": "train", "run_id": "r"}
# A text of escapes takes six bytes for one, and lines of mebibytes prove no more than small ones.
SMALL = [value for value in ODD if type(value) not in (str, list, dict) or len(value) <= 5000]


@functools.cache
def journal_lines(*, hostile: bool) -> dict[str, list[bytes]]:
    """What rollouts write to each table."""
    with capture() as captured:
        for step in (None, 3):
            meta = META if step is None else META | {"step_number": step}
            with caribou.trace_run(meta):
                caribou.add_tags("a", 'qu"oted', "ünï")
                # What comes of them on every line is no column of ``spans``.
                caribou.add_meta({"session_id": "s", "user_id": 7})
                caribou.add_meta({"number": 2.5, "text": 'tab\t\\ "', "nested": {"a": [None, 1e3]}})
                _log_everything()
                if hostile:
                    _log_hostile()
        return {table: list(captured._lines[table].lines) for table in TABLES}


def _log_everything() -> None:
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a": "\\u00e9"}'},
    }
    caribou.log(Message(role="system", content="Line\nfeed, \\ and \u2028 and 🦌 and \0"))
    caribou.log(Message(role="user", content=[{"type": "text", "text": 'say "ü" \\n'}]))
    caribou.log(
        Message(
            role="assistant",
            tool_calls=[call],
            model="gpt",
            provider="openai",
            input_tokens=2**53 + 1,
            output_tokens=0,
            cost_usd=0.1 + 0.2,
            duration_ms=1e-7,
            attributes={"text": "ü", "number": 1.5, "flag": True, "none": None, "deep": {"a": [1]}},
        )
    )
    caribou.log(ToolExecution(name="f", arguments={"a": [1, 2.0, None]}, result={"b": "c"}))
    caribou.log(ToolExecution(name="f", arguments="", result="", error="it broke"))
    caribou.log(Grade(score=1.0, criteria=[{"name": "x", "passed": True}], passed_count=1))
    caribou.log(Grade(score=None, reasoning="none"))
    caribou.log(Event(name="e", data={"k": {"deep": [1e308, -0.0]}}))
    with caribou.span("scope", attributes={"a": "b"}):
        caribou.log(Message(role="user", content="inside"))


def _log_hostile() -> None:
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (Message, {"role": "user"}),
        (ToolExecution, {"name": "t"}),
        (Grade, {}),
        (Event, {"name": "e"}),
    ]
    for kind, required in kinds:
        for field in kind.__struct_fields__:
            for value in SMALL:
                if value is not None:
                    caribou.log(kind(**(required | {field: value})))
    for number, value in enumerate(SMALL):
        caribou.add_meta({f"plain {number}": value, f"nested {number}": {"a": [value]}})
        if issubclass(type(value), str) and value != "":
            caribou.add_tags(value)
        with caribou.span("s", attributes={"a": value}):
            pass


async def stored(door: DoorServer, database: str, table: str) -> bytes:
    """All that is stored, as the engine itself writes it down."""
    order = ", ".join(TABLES[table].identity)
    sql = f"SELECT * EXCEPT ingested_at FROM {database}.{table}_rows ORDER BY {order}"
    status, answer = await off_loop(door.post, "/?default_format=Native", sql.encode())
    assert status == 200, answer
    return answer


async def assert_same(
    door: DoorServer, database: str, lines: Sequence[bytes | dict[str, Any]], table: str = "spans"
) -> None:
    """The same lines in both forms leave the same bytes."""
    batch = make_batch(lines, table=table)
    other = f"{database}_native"
    async with open_sink(door.url, database) as sink:
        await sink.send(batch)
    async with open_sink(door.url, other) as sink:
        await sink.send(make_batch(span_lines(1)))  # makes the tables
    await off_loop(door.sql, f"TRUNCATE TABLE {other}.spans_rows")
    await off_loop(store_block, door, other, batch)
    expected = await stored(door, database, table)
    [found] = await off_loop(door.rows, f"SELECT count() AS n FROM {database}.{table}_rows")
    assert int(found["n"]) == len(lines)
    assert await stored(door, other, table) == expected


@pytest.mark.asyncio
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("hostile", [False, True], ids=["usual", "hostile"])
async def test_every_table_is_stored_the_same(
    door: DoorServer, database: str, table: str, hostile: bool
) -> None:
    lines = await off_loop(journal_lines, hostile=hostile)
    await assert_same(door, database, lines[table], table)


@pytest.mark.asyncio
async def test_what_is_left_out_or_null_is_stored_the_same(door: DoorServer, database: str) -> None:
    names = [column.name for column in TABLES["spans"].columns]
    lines: list[bytes | dict[str, Any]] = [
        {"trace_id": name, name: None} for name in names if name != "trace_id"
    ]
    lines += [{"trace_id": None}, {"trace_id": "odd", "unknown": {"a": 1}, "late": True}]
    lines += [{"trace_id": f"i{n}", "step_number": n, "seq": -n} for n in (0, -1, 2**63 - 1)]
    await assert_same(door, database, lines)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "value", ["7", "-1.50", "1e3", "true", '{"b": [1 ,2]}', '[ "x" ]', '"\\/"']
)
async def test_what_is_no_text_is_stored_as_the_json_that_it_is(
    door: DoorServer, database: str, value: str
) -> None:
    fields = ("content", "result", "arguments", "tool_calls", "criteria", "data", "error")
    lines = [
        f'{{"trace_id": "{name}", "{name}": {value}, "attributes": {{"a": {value}, "": ""}}}}'
        for name in fields
    ]
    await assert_same(door, database, [line.encode() for line in lines])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "time", ["0000000000.000000000", "1790000000", "1790000000.5", "9000000000.123456789"]
)
async def test_times_are_stored_the_same(door: DoorServer, database: str, time: str) -> None:
    row = {"trace_id": "t", "start_time": time, "end_time": time}
    await assert_same(door, database, [row, {"trace_id": "u"}])


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [1, 255, 256, 257, 65_537])
async def test_any_number_of_different_names_is_stored_the_same(
    door: DoorServer, database: str, count: int
) -> None:
    lines = [f'{{"seq":{n},"name":"name {n}","structured":["{n}"]}}' for n in range(count)]
    await assert_same(door, database, [line.encode() for line in lines])


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b'{"seq":"x"}',
        b'{"seq":9223372036854775808}',
        b'{"seq":1e99}',
        b'{"content":"\\ud800"}',
        b'{"late":"perhaps"}',
        b'{"start_time":"-1.5"}',
        b'{"start_time":"2026-01-01"}',
        b'{"end_time":"99999999999.0"}',
        b'{"attributes":7}',
        b'{"structured":"content"}',
        b'{"content":"never closed}',
    ],
)
def test_a_line_that_does_not_fit_is_refused_without_quoting_it(line: bytes) -> None:
    block = Block(layout("spans"))
    with pytest.raises(Unreadable) as caught:
        block.add(line + b"\n")
    assert "perhaps" not in str(caught.value)


def test_a_type_that_is_not_known_is_named() -> None:
    from caribou.sinks._clickhouse_native_blocks import Layout

    with pytest.raises(UnsupportedType, match=r"Decimal\(9, 2\)"):
        Layout([("seq", "Int64"), ("cost", "Nullable(Decimal(9, 2))")])


def test_slices_are_whole_lines_and_all_of_them() -> None:
    lines = [json.dumps({"content": "x" * size}).encode() + b"\n" for size in (1, 300_000, 0, 9)]
    lines = lines * 3000
    data = memoryview(b"".join(lines[:9000:3] + lines[1:2]))
    start, slices = 0, []
    while start < len(data):
        slices.append(_whole_lines(data, start))
        start += len(slices[-1])
    assert b"".join(slices) == bytes(data)
    assert all(part.endswith(b"\n") for part in slices)


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (2**21, b"\x80\x80\x80\1")],
)
def test_numbers_take_seven_bits_a_byte(number: int, written: bytes) -> None:
    assert varint(number) == written
