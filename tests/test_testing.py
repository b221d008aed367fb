"""``caribou.testing``: what users' tests rely on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import caribou
from caribou import Event, Grade, Message, ToolExecution
from caribou.testing import Capture, capture

pytest_plugins = ["pytester"]

META = {"datapoint_id": "d", "phase": "eval"}


async def agent() -> None:
    async with caribou.trace_run(META), caribou.span("step"):
        caribou.log(Message(role="user", content="hello"))
        caribou.log(Message(role="user", content="ok?", grader_name="judge"))
        caribou.log(ToolExecution(name="look"))
        caribou.log(Grade(score=1.0))
        caribou.log(Event(name="end"))
        caribou.add_meta({"k": 1})
        caribou.add_tags("t")


def test_rows_by_kind() -> None:
    with capture() as captured:
        asyncio.run(agent())
        result = asyncio.run(caribou.flush())
    assert [row["content"] for row in captured.messages] == ["hello"]
    assert [row["tool_name"] for row in captured.tools] == ["look"]
    assert [row["score"] for row in captured.grades] == [1.0]
    assert [row["name"] for row in captured.events] == ["event.end"]
    assert [row["status"] for row in captured.traces] == ["COMPLETED"]
    assert [row["key"] for row in captured.metadata] == ["k"]
    assert [row["tag"] for row in captured.tags] == ["t"]
    assert len(captured.spans) == 6
    assert len(captured.rows("spans")) == 7
    assert len(captured.rows("scores")) == 1
    assert result.complete
    assert result.sinks["capture"].delivered == 7 + 2 + 1 + 1 + 1
    captured.clear()
    assert captured.spans == captured.traces == []


def test_a_capture_is_apart_from_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKHOUSE_URL", "not even a URL")
    with capture() as outer:
        caribou.configure("outer", sample_rate=1.0)
        asyncio.run(agent())
        with capture() as inner:
            caribou.configure(sample_rate=0.0)
            asyncio.run(agent())
        asyncio.run(agent())
        asyncio.run(caribou.shutdown())
    assert (len(outer.traces), len(inner.traces)) == (2, 0)
    assert {row["run_id"] for row in outer.traces} == {"outer"}
    assert not (tmp_path / "home").exists()
    with pytest.raises(caribou.ConfigurationError):
        caribou.trace_run(META)


def test_a_capture_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="test failed"), capture() as captured:
        raise RuntimeError("test failed")
    asyncio.run(agent())
    assert captured.traces == []
    assert caribou.stats().sinks["local"].delivered > 0


def test_a_rollout_in_progress_stays_where_it_began(caribou_capture: Capture) -> None:
    with caribou.sync.trace_run(META):
        with capture() as inner:
            caribou.log(Message(role="user", content="x"))
        assert inner.spans == []
    assert len(caribou_capture.messages) == 1


def test_the_fixture_in_a_users_suite(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["caribou.testing"]')
    pytester.makepyfile(
        """
        import caribou.sync as caribou

        def agent():
            with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
                caribou.log(caribou.Message(role="user", content="hello"))

        def test_one(caribou_capture):
            agent()
            assert [row["content"] for row in caribou_capture.messages] == ["hello"]

        def test_other(caribou_capture):
            assert caribou_capture.messages == []
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    assert not (pytester.path / ".caribou").exists()
