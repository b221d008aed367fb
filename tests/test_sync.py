"""The blocking side: the same names, the same rows, and both sides at once."""

from __future__ import annotations

import ast
import asyncio
import inspect
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import caribou
import caribou.sync
from caribou import Message
from caribou.testing import Capture

META = {"datapoint_id": "d", "phase": "eval"}


def test_it_has_every_name() -> None:
    assert set(caribou.sync.__all__) == set(caribou.__all__)
    waiting = {"trace_run", "span", "flush", "shutdown", "get_kestrel_client"}
    for name in set(caribou.__all__) - waiting:
        assert getattr(caribou.sync, name) is getattr(caribou, name)
    for name in waiting:
        one, other = getattr(caribou.sync, name), getattr(caribou, name)
        assert inspect.signature(one).parameters == inspect.signature(other).parameters
        assert not inspect.iscoroutinefunction(one)


def test_a_script_changes_one_line_and_its_withs(caribou_capture: Capture) -> None:
    program = """
    import caribou
    async def agent():
        async with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
            caribou.log(caribou.Message(role="user", content="hello"))
            async with caribou.span("step"):
                caribou.log(caribou.Message(role="assistant", content="hi"))
            caribou.set_status(caribou.RolloutStatus.TRUNCATED)
        await caribou.flush()
    """
    program = textwrap.dedent(program)
    space: dict[str, object] = {}
    exec(compile(ast.parse(program), "script", "exec"), space)
    asyncio.run(space["agent"]())  # type: ignore[operator]
    script = program.replace("import caribou", "import caribou.sync as caribou")
    script = script.replace("async ", "").replace("await ", "")
    exec(compile(ast.parse(script), "script", "exec"), space)
    space["agent"]()  # type: ignore[operator]
    one, other = caribou_capture.traces
    same = ("status", "datapoint_id", "phase", "turns", "messages")
    assert [one[name] for name in same] == [other[name] for name in same]
    rows = [
        [
            (row["seq"], row["name"], row["turn_index"], row["intra_index"])
            for row in caribou_capture.spans
            if row["trace_id"] == trace["trace_id"]
        ]
        for trace in (one, other)
    ]
    assert rows[0] == rows[1]


def test_the_wrong_with_is_an_error_of_pythons() -> None:
    manager = caribou.trace_run(META)
    with pytest.raises(TypeError, match="context manager"), manager:  # type: ignore[attr-defined]
        pass


@pytest.mark.anyio
async def test_one_side_within_the_other(caribou_capture: Capture) -> None:
    async with caribou.trace_run(META):
        with caribou.sync.span("blocking"):
            caribou.log(Message(role="user", content="in blocking"))
            async with caribou.span("asynchronous"):
                caribou.log(Message(role="user", content="in asynchronous"))
    names = {row["span_id"]: row["name"] for row in caribou_capture.spans}
    parents = {row["content"]: names[row["parent_span_id"]] for row in caribou_capture.messages}
    assert parents == {"in blocking": "blocking", "in asynchronous": "asynchronous"}


def test_threads_have_rollouts_of_their_own(tmp_path: Path) -> None:
    def agent(number: int) -> None:
        with caribou.sync.trace_run({"datapoint_id": str(number), "phase": "eval"}):
            for _ in range(50):
                caribou.log(Message(role="user", content=str(number)))

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = caribou.sync.flush()
    assert result.complete
    assert result.sinks["local"].delivered == 8 * 52


def test_what_threads_log_at_once_is_never_mixed(caribou_capture: Capture) -> None:
    def agent(letter: str) -> None:
        with caribou.sync.trace_run({"datapoint_id": letter, "phase": "eval"}):
            for number in range(300):
                caribou.log(Message(role="user", content=f"{letter * (number + 1)}"))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=agent, args=(letter,)) for letter in "abcdefgh"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    found = [(row["datapoint_id"], row["content"]) for row in caribou_capture.messages]
    assert sorted(found) == [(x, x * (n + 1)) for x in "abcdefgh" for n in range(300)]


def test_flush_and_shutdown_answer_without_a_runtime() -> None:
    assert caribou.sync.flush(0.0).complete
    assert caribou.sync.shutdown(0.0).complete
    assert caribou.sync.shutdown(0.0).complete


def test_shutdown_and_on(tmp_path: Path) -> None:
    for _ in range(3):
        with caribou.sync.trace_run(META):
            caribou.log(Message(role="user", content="x"))
        result = caribou.sync.shutdown()
        assert result.complete
        assert result.sinks["local"].delivered == 3


def test_a_script_needs_no_event_loop_and_no_farewell(tmp_path: Path) -> None:
    script = """
    import caribou.sync as caribou
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        caribou.log(caribou.Message(role="user", content="hello"))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    found = [p.read_text() for p in (tmp_path / "home/journal").glob("*/spans-*.ndjson")]
    assert sum(text.count('"content":"hello"') for text in found) == 1
