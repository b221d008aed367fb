"""Which rollout and span a record belongs to, however tasks, threads and generators are used."""

from __future__ import annotations

import contextvars
import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from scopes import META, lateness, meta, parents, say

import caribou
from caribou import Message, log, span, trace_run
from caribou._scope import current
from caribou.testing import Capture


@pytest.mark.anyio
async def test_concurrent_rollouts_do_not_mix(caribou_capture: Capture) -> None:
    async def agent(number: int) -> None:
        async with trace_run(meta(f"dp-{number}")):
            for turn in range(3):
                say(f"{number} {turn}")
                async with span(f"step {number}"):
                    await anyio.lowlevel.checkpoint()
                    say(f"{number} {turn} inside")
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(agent, number)
    found = parents(caribou_capture)
    assert len(found) == 30 * 6
    for text, parent in found.items():
        number = text.split()[0]
        assert parent == (f"step {number}" if "inside" in text else f"dp-{number}")
    assert current.get() is None


@pytest.mark.anyio
async def test_tasks_of_a_span_are_its_children(caribou_capture: Capture) -> None:
    async def child(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        async with span(f"child {number}"):
            await anyio.lowlevel.checkpoint()
            say(f"in child {number}")
        say(f"after child {number}")

    async with trace_run(meta("root")), span("all"):
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(child, number)
        say("after")
    found = parents(caribou_capture)
    assert found == {
        "after": "all",
        **{f"in child {n}": f"child {n}" for n in range(5)},
        **{f"after child {n}": "all" for n in range(5)},
    }


@pytest.mark.anyio
async def test_worker_threads_belong_to_the_rollout(caribou_capture: Capture) -> None:
    async with trace_run(meta("root")), span("step"):
        await anyio.to_thread.run_sync(say, "from a thread")
    assert parents(caribou_capture) == {"from a thread": "step"}


@pytest.mark.anyio
async def test_a_cancelled_rollout_is_aborted_and_ends_once(caribou_capture: Capture) -> None:
    entered = anyio.Event()

    async def agent() -> None:
        async with trace_run(META), span("step"):
            entered.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(agent)
        await entered.wait()
        tasks.cancel_scope.cancel()
    assert [row["status"] for row in caribou_capture.rows("traces")] == ["PENDING", "ABORTED"]
    assert [row["status"] for row in caribou_capture.rows("spans")] == ["PENDING", "ABORTED"]


@pytest.mark.anyio
async def test_a_rollout_that_times_out_is_aborted(caribou_capture: Capture) -> None:
    with anyio.move_on_after(0.01):
        async with trace_run(META):
            await anyio.sleep_forever()
    assert caribou_capture.traces[0]["status"] == "ABORTED"


@pytest.mark.anyio
async def test_a_task_that_outlives_its_rollout_is_late(caribou_capture: Capture) -> None:
    closed, done = anyio.Event(), anyio.Event()

    async def straggler() -> None:
        await closed.wait()
        say("late")
        async with span("late span"):
            say("later")
        caribou.add_tags("late")
        done.set()

    async with anyio.create_task_group() as tasks:
        async with trace_run(meta("root")) as trace_id, span("step"):
            say("early")
            tasks.start_soon(straggler)
        closed.set()
        await done.wait()
        assert caribou.current_trace_id() is None
    assert {row["trace_id"] for row in caribou_capture.spans} == {trace_id}
    assert parents(caribou_capture) == {"early": "step", "late": "step", "later": "late span"}
    assert lateness(caribou_capture) == {
        "early": False,
        "step": False,
        "late": True,
        "late span": True,
        "later": True,
    }
    summaries = caribou_capture.rows("traces")
    versions = [row.get("version", 0) for row in summaries]
    assert versions == sorted(set(versions))
    assert versions[0] == 0
    assert (summaries[1]["messages"], summaries[-1]["messages"]) == (1, 3)
    assert summaries[-1]["tags"] == ["late"]
    assert summaries[-1]["end_time"] == summaries[1]["end_time"]


@pytest.mark.anyio
async def test_a_span_that_outlives_its_rollout_is_late(caribou_capture: Capture) -> None:
    inside, closed, done = anyio.Event(), anyio.Event(), anyio.Event()

    async def straggler() -> None:
        async with span("long"):
            inside.set()
            await closed.wait()
            say("late")
        done.set()

    async with anyio.create_task_group() as tasks:
        async with trace_run(meta("root")):
            tasks.start_soon(straggler)
            await inside.wait()
        closed.set()
        await done.wait()
    assert lateness(caribou_capture) == {"long": True, "late": True}
    assert caribou_capture.spans[0]["status"] == "COMPLETED"


@pytest.mark.anyio
async def test_scopes_left_in_the_wrong_order(caribou_capture: Capture) -> None:
    outer, inner = span("outer"), span("inner")
    async with trace_run(meta("root")):
        await outer.__aenter__()
        await inner.__aenter__()
        await outer.__aexit__(None, None, None)
        say("in inner")
        await inner.__aexit__(None, None, None)
        say("in root")
    assert parents(caribou_capture) == {"in inner": "inner", "in root": "root"}


@pytest.mark.anyio
async def test_contexts_keep_no_contents_alive(caribou_capture: Capture) -> None:
    class Heavy(dict[str, str]):
        pass

    async def agent() -> weakref.ref[Heavy]:
        heavy = Heavy(text="x" * 1000)
        log(Message(role="user", content=heavy))  # type: ignore[arg-type]
        caribou.add_meta(heavy)
        async with span("step", attributes=heavy):
            pass
        return weakref.ref(heavy)

    async with trace_run(META):
        reference = await agent()
        gc.collect()
        assert reference() is None
        kept = contextvars.copy_context()
    assert kept is not None


def test_outside_a_rollout_each_place_is_told_once(caribou_capture: Capture) -> None:
    def agent() -> None:
        for _ in range(3):
            log(Message(role="user"))
            caribou.add_tags("lost")
        caribou.set_error("lost")

    with pytest.warns(RuntimeWarning) as warned:
        agent()
    places = [(warning.filename, str(warning.message).split("(")[0]) for warning in warned]
    assert places == [(__file__, name) for name in ("log", "add_tags", "set_error")]
    assert caribou.stats().outside_rollout == 7
    assert caribou_capture.spans == []


@pytest.mark.anyio
async def test_a_span_outside_a_rollout_lets_its_body_run(caribou_capture: Capture) -> None:
    with pytest.warns(RuntimeWarning, match=r"span\(\)") as warned:
        async with span("lost"):
            ran = True
    assert ran
    assert warned[0].filename == __file__
    assert caribou_capture.spans == []


def test_the_runtime_counts_what_is_outside() -> None:
    before = caribou.stats().outside_rollout
    with pytest.warns(RuntimeWarning):
        say("lost")
    assert caribou.stats().outside_rollout == before + 1


def test_a_thread_without_the_context_is_outside(caribou_capture: Capture) -> None:
    found: list[Any] = []
    with caribou.sync.trace_run(META):
        thread = threading.Thread(target=lambda: found.append(caribou.current_trace_id()))
        thread.start()
        thread.join()
    assert found == [None]


def test_a_forked_child_goes_on_with_ids_of_its_own(caribou_capture: Capture) -> None:
    with caribou.sync.trace_run(META):
        say("parent")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            caribou_capture.clear()
            with caribou.sync.span("child"):
                say("child")
            ids = "".join(row["span_id"] for row in caribou_capture.spans)
            os.write(write, ids.encode())
            os._exit(0)
        with caribou.sync.span("parent"):
            say("parent again")
        os.waitpid(child, 0)
        ids = os.read(read, 1000).decode()
        os.close(read)
        os.close(write)
    mine = {row["span_id"] for row in caribou_capture.spans}
    theirs = {ids[at : at + 16] for at in range(0, len(ids), 16)}
    assert len(theirs) == 2
    assert not mine & theirs


def test_a_forked_child_does_not_end_its_parents_rollout(caribou_capture: Capture) -> None:
    with caribou.sync.trace_run(META):
        read, write = os.pipe()
        manager = caribou.sync.span("shared")
        manager.__enter__()
        child = os.fork()
        if child == 0:
            run = caribou.sync.trace_run(META)
            run.__enter__()
            run.__exit__(None, None, None)
            manager.__exit__(None, None, None)
            root = current.get()
            assert root is not None
            root.rollout.finish(None)
            statuses = [row["status"] for row in caribou_capture.rows("traces")]
            os.write(write, " ".join(statuses).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 1000).decode() == "PENDING PENDING COMPLETED"
        os.close(read)
        os.close(write)
        manager.__exit__(None, None, None)
    assert [row["status"] for row in caribou_capture.traces] == ["COMPLETED"]


@pytest.mark.anyio
async def test_the_journal_under_every_loop(tmp_path: Path) -> None:
    async def agent(number: int) -> None:
        async with trace_run(meta(f"dp-{number}")), span("step"):
            say("x" * 100_000)
            await anyio.lowlevel.checkpoint()
            say("y")

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(agent, number)
    result = await caribou.flush()
    assert result.complete
    assert result.sinks["local"].delivered == 20 * 6
    assert (await caribou.shutdown()).complete
    await agent(20)
    assert (await caribou.shutdown()).sinks["local"].delivered == 6
