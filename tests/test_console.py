"""The debug console: what a person sees of a running program, and what a terminal may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import re
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import unicodedata
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.rows import make_batch, span_lines
from support.servers import DoorServer
from support.waiting import wait_until

from caribou.sinks._console_lines import Lines, cut, harmless, width_of
from caribou.sinks.console import Console

PREAMBLE = """
import asyncio, os, signal, sys, time
import caribou
from caribou import Event, Grade, Message, ToolExecution, log, span, trace_run

META = {"datapoint_id": "dp", "run_id": "run", "phase": "train", "trace_id": "ab" * 16}

async def many(count):
    async with trace_run(META):
        for number in range(count):
            log(Message(role="user", content="x" * 200))
            await asyncio.sleep(0)
"""
COLOUR = re.compile(r"\x1b\[[0-9]+m")
HEAD = re.compile(r"\d\d:\d\d:\d\d\.\d{3} abababab (.*)")


def start(program: str, home: Path, stderr: int, **environ: str) -> subprocess.Popen[str]:
    # The default is a buffer, which has a lock.
    unset = ("NO_COLOR", "TERM", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
        env={**kept, "CARIBOU_HOME": str(home), "CARIBOU_TRACE_DEBUG": "1", **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def shown(lines: list[str]) -> list[str]:
    """The lines without time and trace, which every one must have."""
    found = [HEAD.fullmatch(line) for line in lines]
    assert all(found), lines
    return [match[1] for match in found if match is not None]


def in_pipe(program: str, home: Path) -> list[str]:
    with start(program, home, subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return shown(errors.splitlines())


class Terminal:
    """A terminal that keeps what is written to it."""

    def __init__(self, columns: int) -> None:
        self._main, self.end = os.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # It fails once nobody has the other end open.
        with contextlib.suppress(OSError):
            while data := os.read(self._main, 65536):
                self._written += data

    def close(self) -> list[str]:
        os.close(self.end)
        self._reader.join(20)
        os.close(self._main)
        return self._written.decode().removesuffix("\r\n").split("\r\n")


def in_terminal(program: str, home: Path, columns: int = 80, **environ: str) -> list[str]:
    terminal = Terminal(columns)
    with start(program, home, terminal.end, **environ) as process:
        assert process.wait(60) == 0
    return terminal.close()


ROLLOUT = """
async def main():
    async with trace_run({**META, "step_number": 3}):
        log(Message(role="user", content="How many?\\nTell me."))
        async with span("setup", kind="environment"):
            async with span("inner"):
                log(Event(name="started", data={"port": 80}))
            log(ToolExecution(name="bash", arguments={"cmd": "ls"}, result="a b", duration_ms=31))
        log(ToolExecution(name="bash", arguments="false", error="exit status 1"))
        log(Message(
            role="assistant", tool_calls=[{"function": {"name": "bash", "arguments": "ls"}}],
            input_tokens=1000, cache_read_tokens=204, output_tokens=96, duration_ms=2500,
        ))
        log(Message(role="user", content=[{"type": "text", "text": "See"}, {"type": "image"}]))
        log(Message(role="assistant", grader_name="judge", content="Yes"))
        log(Grade(score=0.5, grader_name="judge", reasoning="half"))
        log(Grade(grader_name="judge"))
        raise ValueError("no more")
try:
    asyncio.run(main())
except ValueError:
    pass
"""


def test_every_record_has_a_line_under_its_scope(tmp_path: Path) -> None:
    lines = [re.sub(r"[\d.]+ ms$", "N ms", line) for line in in_pipe(ROLLOUT, tmp_path)]
    assert lines[:-1] == [
        "         ● rollout  train · run · step 3 · dp",
        "    0.0  message user  How many? Tell me.",
        "    0.0  ▶ environment setup",
        "    0.0    ▶ span inner",
        '    0.0      event started  {"port":80}',
        "    0.0    ◀ span inner  COMPLETED  N ms",
        '    0.0    tool bash  31 ms  {"cmd":"ls"}  = a b',
        "    0.0  ◀ environment setup  COMPLETED  N ms",
        "    0.0  tool bash  ✗ exit status 1  false",
        "    0.1  message assistant  2.5 s · 1,204 → 96 tokens  → bash ls",
        "    1.0  message user  See (+1 more)",
        "    1.0  grader judge  Yes",
        "    1.0  grade judge  0.500  half",
        "    1.0  grade judge  not scored",
    ]
    end = r" +1 turn  ■ rollout ERROR  [\d.]+ ms · 1,204 → 96 tokens  ValueError: no more"
    assert re.fullmatch(end, lines[-1])


def test_a_terminal_gets_the_same_in_colour_and_cut_to_its_columns(tmp_path: Path) -> None:
    lines = in_terminal(ROLLOUT, tmp_path / "a", columns=50)
    assert all(COLOUR.search(line) for line in lines)
    bare = [COLOUR.sub("", line) for line in lines]
    assert max(map(len, bare)) == 50
    whole = in_pipe(ROLLOUT, tmp_path / "b")
    for cut_line, line in zip(shown(bare), whole, strict=True):
        assert line.startswith(cut_line.removesuffix("…")) or " ms" in line


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_without_colours_is_possible(tmp_path: Path, environ: dict[str, str]) -> None:
    shown(in_terminal(ROLLOUT, tmp_path, **environ))


HOSTILE = """
text = "\\x1b[2J\\x1b]0;owned\\x07 \\x9b31m \\u202egnorw \\u2066 \\u200b \\u2028 \\r\\b \\ud800 end"
async def main():
    async with trace_run({**META, "datapoint_id": "dp\\x1b[2J", "run_id": "\\x9b2J"}):
        async with span(text, kind=text):
            log(Message(role=text, content=text, tool_calls=[{"function": {"name": text}}]))
            log(ToolExecution(name=text, arguments={text: text}, error=text))
            log(Grade(score=1, grader_name=text, reasoning=text))
        raise ValueError(text)
try:
    asyncio.run(main())
except ValueError:
    pass
"""


def test_what_agents_print_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    for line in in_terminal(HOSTILE, tmp_path, columns=400):
        assert COLOUR.sub("", line).isprintable()


def test_records_are_seen_while_the_program_runs(tmp_path: Path) -> None:
    program = """
    caribou.configure(batch_age=60)
    async def main():
        async with trace_run(META):
            log(Message(role="user", content="first"))
            await asyncio.to_thread(sys.stdin.readline)
    asyncio.run(main())
    """
    with start(program, tmp_path, subprocess.PIPE) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline(), process.stderr.readline()]
        assert process.poll() is None
        process.communicate("go on\n", timeout=60)
    assert shown([line.rstrip() for line in lines])[1] == "    0.0  message user  first"


def test_a_pipe_that_nobody_reads_holds_up_nothing(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    program = """
    async def main():
        await many(3000)
        result = await caribou.flush(20)
        print(result.complete, sorted(result.sinks), flush=True)
        began = time.monotonic()
        await caribou.shutdown(20)
        print(time.monotonic() - began < 5)
    asyncio.run(main())
    """
    reader, writer = os.pipe()
    environ = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    with start(program, tmp_path, writer, **environ) as process:
        out, _ = process.communicate(timeout=30)
    os.close(writer)
    left = os.read(reader, 1 << 20)
    os.close(reader)
    assert (process.returncode, out) == (0, "True ['clickhouse']\nTrue\n")
    # It did fill up, and what is in there is whole lines.
    assert len(left) > 50_000
    assert shown(left.decode().splitlines())
    (count,) = door.rows(f"SELECT count() AS n FROM {database}.spans")
    assert int(count["n"]) == 3000


def test_a_pipe_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    program = """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    asyncio.run(many(1000))
    print((lambda result: result.complete)(asyncio.run(caribou.shutdown())))
    """
    reader, writer = os.pipe()
    os.close(reader)
    with start(program, tmp_path, writer) as process:
        os.close(writer)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "True\n")


def test_a_terminal_that_does_not_block_gets_everything(tmp_path: Path) -> None:
    program = """
    asyncio.run(many(1000))
    sys.stdin.readline()
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with start(program, tmp_path, writer) as process, os.fdopen(reader) as lines:
        os.close(writer)
        wait_until(lambda: waiting_bytes(reader) > 50_000)
        found = [lines.readline().rstrip("\n") for _ in range(1002)]
        process.communicate("end\n", timeout=60)
    assert len(shown(found)) == 1002


def waiting_bytes(pipe: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return count


@pytest.mark.parametrize("standing_in", ["None", "io.StringIO()", "Closed()", "object()"])
def test_another_standard_error_is_no_trouble(tmp_path: Path, standing_in: str) -> None:
    program = f"""
    import io
    class Closed(io.StringIO):
        def write(self, text): raise RuntimeError(text)
    before, sys.stderr = sys.stderr, {standing_in}
    asyncio.run(many(3))
    assert asyncio.run(caribou.shutdown()).complete
    written = sys.stderr.getvalue() if isinstance(sys.stderr, io.StringIO) else ""
    sys.stderr = before
    print(written.count("message user"))
    """
    with start(program, tmp_path, subprocess.PIPE) as process:
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert out == ("3\n" if standing_in == "io.StringIO()" else "0\n")


def test_lines_that_are_not_shown_are_counted() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, open(reader) as lines:
        asyncio.run(_shown_late(stream, lines, span_lines(40_000, content="x" * 100)))


async def _shown_late(stream: TextIO, lines: TextIO, rows: list[dict[str, Any]]) -> None:
    console = Console(stream)
    for start_of in range(0, len(rows), 1000):
        await console.send(make_batch(rows[start_of : start_of + 1000]))
    closing = asyncio.create_task(console.aclose())
    note = re.compile(r"… ([\d,]+) lines are not shown")
    read = 0
    while (match := note.match(line := await asyncio.to_thread(lines.readline))) is None:
        assert "xxx" in line
        read += 1
    assert 0 < read < len(rows)
    assert read + int(match[1].replace(",", "")) == len(rows)
    await closing


@pytest.mark.asyncio
async def test_a_rollout_ends_after_what_was_logged_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Time enough for a slow machine: here it is the next rows that bring the end out.
    monkeypatch.setattr("caribou.sinks.console._AFTER_OTHERS", 60)
    out = io.StringIO()
    console = Console(out)
    row = b'{"trace_id":"a","start_time":"1790000000.000000000","status":"%b"}'
    await console.send(make_batch([row % b"PENDING", row % b"COMPLETED"], table="traces"))
    await asyncio.to_thread(wait_until, lambda: "● rollout" in out.getvalue())
    await console.send(make_batch(span_lines(1)))
    await console.aclose()
    begun, record, end = out.getvalue().splitlines()
    assert ("● rollout" in begun, "content 0" in record, "■ rollout" in end) == (True, True, True)


def test_an_outer_scope_is_remembered_however_many_lie_in_it() -> None:
    lines = Lines()
    start_of = {"trace_id": "a" * 32, "start_time": "1790000000.000000000", "name": "span.s"}

    def line(**columns: object) -> str:
        row = json.dumps({**start_of, **columns}).encode()
        return lines.line(row, width=200, colour=False).rstrip("\n")[24:]

    outer = line(span_id="outer", parent_span_id="root", status="PENDING", kind="span")
    assert outer.endswith("  ▶ span s")
    for number in range(20_000):
        inner = line(span_id=str(number), parent_span_id="outer", status="PENDING", kind="span")
        assert inner.endswith("    ▶ span s")
    assert line(span_id="r", parent_span_id="19999", kind="event").endswith("      event span.s")
    # One that is long gone leaves what comes late at the margin.
    assert "0.0  event" in line(span_id="r", parent_span_id="0", kind="event")


# The time that an example takes is the machine's.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ANY_TEXT = st.text(
    st.characters(exclude_categories=[]) | st.sampled_from("\x1b\x9b\u202e\u0301漢a")
)


@patient
@given(ANY_TEXT)
@example("\x1b[31m\x9b\u202e\u200b\u2028\ud800\U000e0041")
def test_text_is_made_harmless(text: str) -> None:
    safe = harmless(text)
    assert safe.isprintable()
    assert harmless(safe) == safe
    assert not re.search("[\u200d\ufe0f\u115f\u3164]", safe)


@patient
@given(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="\u115f\u1160")))
def test_text_that_is_harmless_stays(text: str) -> None:
    assert harmless(text) == re.sub("[\u3164\uffa0]", "", text)


@patient
@given(ANY_TEXT.map(harmless), st.integers(0, 40))
def test_text_is_cut_to_columns(text: str, width: int) -> None:
    short = cut(text, width)
    assert width_of(short) <= width
    if short != text:
        assert text.startswith(short.removesuffix("…"))
        # Cut no earlier than needed: at most one column is left, before a wide character.
        assert width_of(short) >= width - 1


def test_wide_characters_take_two_columns() -> None:
    assert cut("漢字漢字", 6) == "漢字…"
    assert width_of("e\u0301漢") == 3
    assert unicodedata.normalize("NFC", cut("e\u0301e\u0301e\u0301", 2)) == "é…"


@patient
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\😀\x1f'), min_size=1))
def test_the_first_of_a_long_content_is_shown(text: str) -> None:
    whole = text * (20_000 // len(text))
    row = json.dumps({"span_id": "s", "kind": "message", "name": "message.user", "content": whole})
    for encoded in (row.encode(), json.dumps(json.loads(row), ensure_ascii=False).encode()):
        line = Lines().line(encoded, width=150, colour=False).rstrip("\n")
        _, _, content = line.partition("message user")
        beginning = harmless(whole[:200])
        assert beginning.startswith(content.strip().removesuffix("…"))
        assert width_of(line) <= 150


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


COLUMNS = ("content", "kind", "status", "data", "start_time", "span_id", "trace_id", "tool_calls")


@pytest.mark.parametrize(
    ("calls", "shown"),
    [
        ({"function": {"name": "ls", "arguments": "/"}}, "→ ls /"),
        ({"id": 1}, '→ {"id":1}'),
        (5, "→ 5"),
        ("ls", "→ ls"),
        ([{"function": {"name": "ls"}}], "→ ls"),
        ([], "x"),
    ],
)
def test_calls_of_tools_of_any_form_are_shown(calls: object, shown: str) -> None:
    row = {"span_id": "a" * 16, "kind": "message", "role": "assistant", "content": "x"}
    line = Lines().line(json.dumps(row | {"tool_calls": calls}).encode(), width=200, colour=False)
    assert line.rstrip().endswith(shown)


@patient
@given(st.dictionaries(st.sampled_from(COLUMNS), JSON))
def test_a_row_of_any_form_makes_at_most_one_line(row: dict[str, Any]) -> None:
    line = Lines().line(json.dumps(row).encode(), width=100, colour=False)
    assert line.count("\n") <= 1
    assert line.rstrip("\n").isprintable()
