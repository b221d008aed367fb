"""Rollouts and spans in generators, and managers that are entered and left in different places."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager

import anyio
import pytest
from scopes import meta, parents, say

import caribou
from caribou import span, trace_run
from caribou._scope import current
from caribou.testing import Capture


async def conversation(*texts: str) -> AsyncGenerator[str]:
    async with trace_run(meta("generator")):
        for text in texts:
            say(text)
            yield text
            say(f"{text} again")
        async with span("end"):
            yield "end"
            say("end")


@pytest.mark.anyio
async def test_leaving_an_asynchronous_generator_early(caribou_capture: Capture) -> None:
    async with trace_run(meta("consumer")):
        generator = conversation("a", "b")
        async for text in generator:
            if text == "b":
                break
        await generator.aclose()
        say("mine")
    found = parents(caribou_capture)
    assert found == {
        "a": "generator",
        "a again": "generator",
        "b": "generator",
        "mine": "consumer",
    }
    status = {row["datapoint_id"]: row["status"] for row in caribou_capture.traces}
    assert status == {"generator": "ABORTED", "consumer": "COMPLETED"}


@pytest.mark.asyncio
async def test_a_generator_closed_by_its_finaliser(caribou_capture: Capture) -> None:
    closed = asyncio.Event()

    async def watched() -> AsyncGenerator[str]:
        try:
            async with trace_run(meta("generator")):
                say("a")
                yield "a"
        finally:
            closed.set()

    async with trace_run(meta("consumer")):
        async for _ in watched():
            break
        gc.collect()
        # The loop closes it in a task of its own, in a context of its own.
        await closed.wait()
        say("mine")
        assert parents(caribou_capture) == {"a": "generator", "mine": "consumer"}
    assert [row["status"] for row in caribou_capture.traces] == ["COMPLETED", "ABORTED"]
    assert len(caribou_capture.rows("traces")) == 4
    assert current.get() is None


@pytest.mark.anyio
async def test_a_generator_driven_by_a_task_for_each_step(caribou_capture: Capture) -> None:
    async def drive(generator: AsyncGenerator[str]) -> None:
        async def step() -> None:
            nonlocal more
            try:
                await anext(generator)
            except StopAsyncIteration:
                more = False

        more = True
        while more:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)

    await drive(conversation("a", "b"))
    expected = {"a": "generator", "a again": "generator", "b": "generator", "b again": "generator"}
    assert parents(caribou_capture) == expected | {"end": "end"}
    (row,) = caribou_capture.traces
    assert row["status"] == "COMPLETED"
    assert current.get() is None

    caribou_capture.clear()
    async with trace_run(meta("outer")):
        say("before")
        await drive(conversation("a"))
        say("after")
    assert parents(caribou_capture) == {
        "before": "outer",
        "a": "generator",
        "a again": "generator",
        "end": "end",
        "after": "outer",
    }


@pytest.mark.anyio
async def test_managers_of_the_users_own(caribou_capture: Capture) -> None:
    @asynccontextmanager
    async def traced(name: str) -> AsyncIterator[str]:
        async with trace_run(meta(name)) as trace_id, span("inside"):
            yield trace_id

    async with traced("one"):
        say("a")
        async with traced("two"):
            say("b")
            async with span("step"):
                say("c")
        say("d")
    found = parents(caribou_capture)
    assert found == {"a": "inside", "b": "inside", "c": "step", "d": "inside"}
    traces = {row["content"]: row["trace_id"] for row in caribou_capture.messages}
    assert traces["a"] == traces["d"] != traces["b"] == traces["c"]


@pytest.mark.anyio
async def test_entered_in_one_task_and_left_in_another(caribou_capture: Capture) -> None:
    run = trace_run(meta("root"))

    async def enter() -> None:
        await run.__aenter__()
        say("inside")

    async def leave() -> None:
        await run.__aexit__(None, None, None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
    assert parents(caribou_capture) == {"inside": "root"}
    assert len(caribou_capture.rows("traces")) == 2
    assert current.get() is None


def test_a_plain_generator(caribou_capture: Capture) -> None:
    def steps() -> Generator[str]:
        with caribou.sync.trace_run(meta("generator")):
            say("a")
            yield "a"
            say("b")

    generator = steps()
    # Each step in a context of its own, as frameworks do that run them in threads.
    contextvars.copy_context().run(next, generator)
    contextvars.copy_context().run(next, generator, None)
    assert parents(caribou_capture) == {"a": "generator", "b": "generator"}
    assert current.get() is None
