"""Session, user and tags, which every line of a rollout's records has once they are given."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.switches import frequent_switches

import caribou as tracing
import caribou.sync as caribou
from caribou import Event, Grade, Message, ToolExecution, _managers
from caribou._scope import Scope, current
from caribou.otel import generic, langfuse
from caribou.testing import Capture

META = {"datapoint_id": "d", "phase": "train", "run_id": "r"}
NAMES = ("session_id", "user_id", "tags")
RECORDS = [
    Message(role="user", content="plain"),
    Message(role="assistant", content="with more", input_tokens=1),
    Message(role="developer", content="an uncommon role"),
    Message(role="assistant", content="of a grader", grader_name="g"),
    ToolExecution(name="t"),
    Grade(score=1.0),
    Event(name="e"),
]


def fields(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in NAMES if name in row}


def lines(captured: Capture, table: str = "spans") -> list[dict[str, Any]]:
    """The rows of a table, no line of which has a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        assert len(row) == len(pairs)
        return row

    raw = captured._lines[table].lines
    return [json.loads(line, object_pairs_hook=once) for line in raw]


def say(text: str) -> None:
    caribou.log(Message(role="user", content=text))


def test_every_record_has_them_from_then_on(caribou_capture: Capture) -> None:
    expected = [{}, {"session_id": "s"}, {"session_id": "s", "tags": ["b", "a"]}]
    expected.append({"session_id": "s", "user_id": "7", "tags": ["b", "a", "c"]})
    with caribou.trace_run(META):
        for change in (
            lambda: caribou.add_meta({"other": 1}),
            lambda: caribou.add_meta({"session_id": "s"}),
            lambda: caribou.add_tags("b", "a", "b"),
            lambda: (caribou.add_tags("a", "c"), caribou.add_meta({"user_id": 7})),
        ):
            change()
            for record in RECORDS:
                caribou.log(record)
    found = lines(caribou_capture)
    assert [fields(row) for row in found] == [e for e in expected for _ in RECORDS]
    # In the root's own row they stand where they always did.
    last = lines(caribou_capture, "traces")[-1]
    assert fields(last) == {"tags": ["b", "a", "c"]}
    assert last["metadata"] == {"other": "1", "session_id": "s", "user_id": "7"}


def test_before_any_record(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        caribou.add_meta({"session_id": 'qu"oted ü\n', "user_id": "u"})
        say("x")
    (row,) = lines(caribou_capture)
    assert fields(row) == {"session_id": 'qu"oted ü\n', "user_id": "u"}


def test_scopes_that_were_open_before_have_them_too(caribou_capture: Capture) -> None:
    with caribou.trace_run(META), caribou.span("outer"):
        say("1")
        with caribou.span("inner"):
            say("2")
            caribou.add_tags("t")
            say("3")
        say("4")
        with caribou.span("next"):
            say("5")
    found = [
        (row["name"], row.get("content"), row.get("version", 0), fields(row))
        for row in lines(caribou_capture)
    ]
    tagged = {"tags": ["t"]}
    assert found == [
        ("outer", None, 0, {}),
        ("message.user", "1", 0, {}),
        ("inner", None, 0, {}),
        ("message.user", "2", 0, {}),
        ("message.user", "3", 0, tagged),
        ("inner", None, 1, tagged),
        ("message.user", "4", 0, tagged),
        ("next", None, 0, tagged),
        ("message.user", "5", 0, tagged),
        ("next", None, 1, tagged),
        ("outer", None, 1, tagged),
    ]


def test_they_change_and_go(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        for session in ("a", "b", "", "x" * 201, "c"):
            caribou.add_meta({"session_id": session})
            say(session)
    sessions = [row.get("session_id") for row in lines(caribou_capture)]
    assert sessions == ["a", "b", None, None, "c"]


def test_rollouts_have_their_own(caribou_capture: Capture) -> None:
    with caribou.trace_run(META | {"trace_id": "a" * 32}):
        caribou.add_tags("first")
        with caribou.trace_run(META):
            say("within")
        say("first")
    with caribou.trace_run(META | {"trace_id": "a" * 32}):
        caribou.add_tags("second")
        say("second")
    found = [(row["content"], fields(row)) for row in lines(caribou_capture)]
    assert found == [
        ("within", {}),
        ("first", {"tags": ["first"]}),
        ("second", {"tags": ["second"]}),
    ]


@pytest.mark.parametrize("name", ["session_id", "user_id"])
@pytest.mark.parametrize(("size", "carried"), [(200, True), (201, False)])
def test_what_langfuse_would_drop_stands_in_the_summary_only(
    caribou_capture: Capture, name: str, size: int, carried: bool
) -> None:
    value = "ü" * size
    with caribou.trace_run(META):
        caribou.add_meta({name: value})
        caribou.add_tags("before", value, "after")
        say("x")
    (row,) = lines(caribou_capture)
    tags = ["before", value, "after"] if carried else ["before", "after"]
    assert fields(row) == {name: value, "tags": tags} if carried else {"tags": tags}
    last = lines(caribou_capture, "traces")[-1]
    assert (last["metadata"][name], last["tags"]) == (value, ["before", value, "after"])


def test_no_tags_make_lines_huge(caribou_capture: Capture) -> None:
    # A control character takes six bytes of JSON.
    tags = [f"{number:03d}" + "\x01" * 7 for number in range(1000)]
    with caribou.trace_run(META):
        say("x")
        caribou.add_tags(*tags)
        say("x")
    before, after = caribou_capture._lines["spans"].lines
    (_, row) = lines(caribou_capture)
    assert row["tags"] == tags[: len(row["tags"])]
    assert 1950 < len(after) - len(before) <= 2060
    assert lines(caribou_capture, "traces")[-1]["tags"] == tags


@pytest.mark.asyncio
async def test_what_comes_late(caribou_capture: Capture) -> None:
    closed = asyncio.Event()

    async def straggler() -> None:
        with caribou.span("long"):
            await closed.wait()
            say("1")
            caribou.add_tags("late")
            say("2")

    async def stranger() -> None:
        # Its own scope is closed by then.
        await closed.wait()
        await asyncio.sleep(0)
        say("3")
        with caribou.span("new"):
            say("4")

    with caribou.trace_run(META):
        with caribou.span("step"):
            caribou.add_meta({"session_id": "s"})
            tasks = [asyncio.ensure_future(straggler()), asyncio.ensure_future(stranger())]
            await asyncio.sleep(0)
        caribou.add_meta({"user_id": "u"})
    closed.set()
    await asyncio.gather(*tasks)
    found = {
        (row.get("content", row["name"]), row.get("version", 0)): (
            row.get("late", False),
            fields(row),
        )
        for row in lines(caribou_capture)
    }
    session = {"session_id": "s"}
    both = session | {"user_id": "u"}
    everything = both | {"tags": ["late"]}
    assert found == {
        ("step", 0): (False, {}),
        ("long", 0): (False, session),
        ("step", 1): (False, session),
        ("1", 0): (True, both),
        ("2", 0): (True, everything),
        ("long", 1): (True, everything),
        ("3", 0): (True, everything),
        ("new", 0): (True, everything),
        ("4", 0): (True, everything),
        ("new", 1): (True, everything),
    }


def test_threads_that_change_and_log_at_once(caribou_capture: Capture) -> None:
    writers, changers, each = 3, 3, 60
    running = threading.Barrier(writers + changers)

    def write(number: int) -> None:
        running.wait()
        for count in range(each):
            with caribou.span(f"{number}"):
                say("in a new scope")
                caribou.log(Message(role="assistant", content=f"{count}"))
            caribou.log(Message(role="system", content="outside"))

    def change(number: int) -> None:
        running.wait()
        for count in range(each):
            caribou.add_tags(f"{number}.{count}")
            caribou.add_meta({"session_id": f"{number}.{count}"})

    with caribou.trace_run(META), caribou.span("shared"), frequent_switches():
        jobs = [(write, number) for number in range(writers)]
        jobs += [(change, number) for number in range(changers)]
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=job) for job in jobs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for role in ("user", "assistant", "system", "tool"):
            caribou.log(Message(role=role, content="last"))
        with caribou.span("last"):
            say("last")
    found = lines(caribou_capture)
    summary = lines(caribou_capture, "traces")[-1]
    for row in found:
        # Whole, if maybe a moment old.
        assert row.get("tags", []) == summary["tags"][: len(row.get("tags", []))]
        number, _, count = row.get("session_id", "0.0").partition(".")
        assert int(number) < changers
        assert int(count) < each
    assert len(found) == writers * each * 5 + 4 + 3 + 2
    last = {"session_id": summary["metadata"]["session_id"], "tags": summary["tags"]}
    assert len(last["tags"]) == changers * each
    at_last = [row for row in found if "last" in (row.get("content"), row["name"])]
    assert [fields(row) for row in at_last] == [last] * 7


@contextmanager
def interrupted(at: int, change: Callable[[], None]) -> Iterator[list[int]]:
    """``change`` runs before the line of number ``at`` of the library's code, as it would where a
    thread comes between or a finaliser runs. Gives what is not empty once it has."""
    library = str(Path(caribou.__file__).parent)
    left, done = itertools.repeat(None, at), []

    def at_line(frame: FrameType, event: str, _: object) -> Callable[..., object]:
        if event == "line" and not done and next(left, done) is done:
            done.append(at)
            change()
        return at_line

    def at_call(frame: FrameType, *_: object) -> Callable[..., object] | None:
        return at_line if frame.f_code.co_filename.startswith(library) else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield done
    finally:
        sys.settrace(before)


def test_a_change_that_comes_between_any_two_lines(caribou_capture: Capture) -> None:
    def change() -> None:
        caribou.add_meta({"session_id": "new"})
        caribou.add_tags("theirs")

    def act(done: list[int]) -> int | None:
        """Do what may be interrupted. Gives how many lines there were at the first step that began
        after the change."""
        since = None
        inner = caribou.span("inner")
        for step in (
            lambda: say("1"),
            lambda: caribou.add_tags("ours"),
            lambda: caribou.log(ToolExecution(name="t")),
            inner.__enter__,
            lambda: say("2"),
            lambda: caribou.add_meta({"user_id": "u"}),
            lambda: say("3"),
            lambda: inner.__exit__(None, None, None),
            lambda: say("4"),
        ):
            if done and since is None:
                since = len(caribou_capture.rows("spans"))
            step()
        return since

    for at in itertools.count():
        caribou_capture.clear()
        with caribou.trace_run(META), caribou.span("outer"):
            with interrupted(at, change) as done:
                since = act(done)
            if not done:
                break
            before = len(caribou_capture.rows("spans"))
            for role in ("user", "assistant"):
                caribou.log(Message(role=role, content="last"))
        found = lines(caribou_capture)
        assert len(found) == 1 + 5 + 2 + 2 + 1, at
        for row in found[before if since is None else since :]:
            assert row["session_id"] == "new", at
            assert "theirs" in row["tags"], at
        for row in found[before:]:
            assert row["user_id"] == "u", at
            assert set(row["tags"]) == {"ours", "theirs"}, at
    assert at > 100


def test_a_hook_may_change_them_and_take_them_away(caribou_capture: Capture) -> None:
    def redact(table: str, row: dict[str, Any]) -> dict[str, Any]:
        row.pop("user_id", None)
        return row | {"session_id": "***"} if table == "spans" else row

    caribou.configure(redact=redact)
    with caribou.trace_run(META):
        caribou.add_meta({"session_id": "s", "user_id": "u"})
        caribou.add_tags("t")
        say("x")
    (row,) = lines(caribou_capture)
    assert fields(row) == {"session_id": "***", "tags": ["t"]}
    assert row["sanitized"] == ""


def test_a_hook_that_fails_takes_them_with_the_rest(caribou_capture: Capture) -> None:
    caribou.configure(redact=lambda table, row: {}[table])
    with caribou.trace_run(META):
        caribou.add_meta({"session_id": "s", "user_id": "u"})
        caribou.add_tags("t")
        say("x")
    (row,) = lines(caribou_capture)
    assert fields(row) == {}
    assert row["sanitized"] == "redaction_failed"


def test_what_is_not_recorded_has_none(caribou_capture: Capture) -> None:
    caribou.configure(sample_rate=0.0)
    with caribou.trace_run(META), caribou.span("s"):
        caribou.add_meta({"session_id": "s"})
        caribou.add_tags("t")
        say("x")
    assert lines(caribou_capture) == []
    assert caribou_capture.stats().sinks["capture"].pending == 0


@pytest.mark.asyncio
async def test_what_is_logged_from_a_scope_that_has_ended_has_them(
    caribou_capture: Capture,
) -> None:
    tagged = asyncio.Event()

    async def straggler() -> None:
        await tagged.wait()
        say("from where it began")
        async with tracing.span("child"):
            pass

    async with tracing.trace_run(META):
        async with tracing.span("step"):
            task = asyncio.create_task(straggler())
            await asyncio.sleep(0)
        caribou.add_tags("after")
        tagged.set()
        await task
    assert [row.get("tags") for row in caribou_capture.spans[-2:]] == [["after"]] * 2
    assert not any("late" in row for row in caribou_capture.spans)


def test_a_span_whose_opening_was_interrupted_is_not_kept(
    caribou_capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(scope: Scope, frame: object) -> None:
        raise KeyboardInterrupt

    with caribou.trace_run(META):
        scope = current.get()
        assert scope is not None
        with monkeypatch.context() as patch:
            patch.setattr(_managers, "enter", interrupted)
            with pytest.raises(KeyboardInterrupt), caribou.span("never"):
                pass
        assert scope.rollout.scopes == {scope}


def test_none_is_no_session(caribou_capture: Capture) -> None:
    with caribou.trace_run(META):
        caribou.add_meta({"session_id": "s", "user_id": None})
        say("signed out")
        caribou.add_meta({"session_id": None})
        say("and gone")
    assert [fields(row) for row in caribou_capture.spans] == [{"session_id": "s"}, {}]
    metadata = caribou_capture.traces[-1]["metadata"]
    assert metadata == {"session_id": "", "user_id": ""}
    for mapper in (generic, langfuse):
        root = mapper.to_span("traces", caribou_capture.traces[-1])
        assert root is not None
        assert not {"session.id", "gen_ai.conversation.id", "user.id"} & root.attributes.keys()
