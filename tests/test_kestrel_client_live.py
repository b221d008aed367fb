"""Following rollouts with Kestrel's client, from the real service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest
from support.following import begun, happened
from support.serving import Service, rollout, serving

import caribou.sync
from caribou import ConfigurationError, InvalidType, InvalidValue, KestrelError
from caribou.kestrel import BlockingKestrelClient, KestrelClient, LiveStream
from caribou.kestrel.models import LiveEvent, LiveGap, LiveSpan, LiveTrace

A, B = "a" * 32, "b" * 32


async def until(stream: LiveStream, last: str) -> list[LiveEvent]:
    """The events up to the first that tells ``last``."""
    seen: list[LiveEvent] = []
    with anyio.fail_after(30):
        async for event in stream:
            seen.append(event)
            if happened([event]) == [last]:
                return seen
    raise AssertionError(f"the stream ended: {seen}")


@pytest.mark.asyncio
async def test_a_rollout_is_followed_from_its_start_to_its_grade(
    service: Service, service_home: Path
) -> None:
    async with KestrelClient(service.url) as client, client.live(run_id="followed") as stream:
        with rollout(service_home, A, "followed") as running:
            [started] = await until(stream, "started")
            assert isinstance(started, LiveTrace)
            assert (started.trace_id, started.status, started.step_number) == (A, "PENDING", None)
            assert started.start_time.tzinfo is not None
            running.say("hello")
            [said] = await until(stream, "hello")
            assert isinstance(said, LiveSpan)
            assert (said.trace_id, said.kind, said.role) == (A, "message", "user")
            running.finish()
            *records, finished = await until(stream, "finished")
    assert happened(records) == ["grade"]
    assert isinstance(records[0], LiveSpan)
    assert (records[0].grader_name, records[0].score) == ("g", 1.0)
    assert isinstance(finished, LiveTrace)
    assert (finished.status, finished.score, finished.messages) == ("COMPLETED", 1.0, 1)
    assert finished.end_time is not None


@pytest.mark.slow
@pytest.mark.asyncio
async def test_it_goes_on_with_a_service_that_was_started_again(tmp_path: Path) -> None:
    with rollout(tmp_path, A) as running:
        with serving(tmp_path) as first:
            client = KestrelClient(first.url)
            stream = await client.live().__aenter__()
            running.say("one")
            assert happened(await until(stream, "one"))[-1] == "one"
            first.process.kill()
            first.process.wait()
        running.say("two")
        following = asyncio.create_task(until(stream, "finished"))
        with serving(tmp_path, "--port", str(first.port)) as second:
            running.finish()
            assert happened(await following) == ["two", "grade", "finished"]
            place = stream.last_event_id
            # And an orderly end, with nobody there afterwards.
            assert second.end() == (0, "")
        with pytest.raises(KestrelError, match="ConnectError"):
            await KestrelClient(first.url, retries=0).live().next()
    with serving(tmp_path) as third, rollout(tmp_path, B):
        other = KestrelClient(third.url)
        async with other.live(last_event_id=place) as stream:
            assert happened(await until(stream, "started")) == ["started"]
        await other.aclose()
    await client.aclose()


@pytest.mark.asyncio
async def test_who_was_away_too_long_is_told_of_the_gap(service: Service) -> None:
    async with KestrelClient(service.url) as client, client.live(last_event_id="1") as stream:
        assert await anext(stream) == LiveGap()


def test_it_blocks_and_ends_when_another_thread_says_so(
    service: Service, service_home: Path
) -> None:
    with BlockingKestrelClient(KestrelClient(service.url)) as client:
        seen: list[LiveEvent] = []
        told = threading.Event()

        def follow() -> None:
            for event in stream:
                seen.append(event)
                if happened([event]) == ["finished"]:
                    told.set()

        with client.live(run_id="blocking") as stream:
            place = stream.last_event_id
            thread = threading.Thread(target=follow)
            thread.start()
            with rollout(service_home, B, "blocking") as running:
                running.finish()
            assert told.wait(20)
            assert thread.is_alive()
            stream.close()
            thread.join(20)
            assert not thread.is_alive()
        assert happened(seen)[-2:] == ["grade", "finished"]
        assert place is not None
        assert stream.last_event_id is not None
        assert int(place) < int(stream.last_event_id)
        assert next(stream, None) is None
        with client.live(run_id="blocking", spans=False, last_event_id=place) as again:
            assert happened([next(again)])[0] in ("started", "finished")


@pytest.mark.anyio
async def test_any_kind_of_loop_can_be_told_to_stop(
    service: Service, service_home: Path, anyio_backend: object
) -> None:
    run_id = str(anyio_backend)
    client = KestrelClient(service.url)
    stream = client.live(run_id=run_id)
    async with stream:
        with rollout(service_home, os.urandom(16).hex(), run_id) as running:
            await until(stream, "started")
            running.say("one")
            seen = await until(stream, "one")
            # Nothing comes, and whoever waits no longer loses nothing.
            with anyio.move_on_after(0.1) as patience:
                await stream.next()
            assert patience.cancelled_caught
            running.say("two")
            assert happened(await until(stream, "two"))[-1] == "two"
            async with anyio.create_task_group() as group:
                group.start_soon(_close_later, stream)
                async for event in stream:
                    seen.append(event)
    assert happened(seen)[-1] == "one"
    assert await stream.next() is None
    await client.aclose()


async def _close_later(stream: LiveStream) -> None:
    await begun(stream)
    await stream.aclose()


@pytest.mark.asyncio
async def test_streams_take_no_connection_from_calls(service: Service) -> None:
    async with KestrelClient(service.url) as client, contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(client.live())
        async with asyncio.timeout(30):
            await asyncio.gather(*(client.list_runs().page() for _ in range(40)))


_LEAVES_ALL_OPEN = """
import asyncio, caribou, caribou.sync

async def main():
    stream = caribou.get_kestrel_client().live()
    await stream.__aenter__()
    waiting = asyncio.create_task(stream.next())
    await asyncio.sleep(0)

asyncio.run(main())
blocking = caribou.sync.get_kestrel_client().live()
blocking.__enter__()
print("done")
"""


def test_a_program_that_leaves_its_stream_open_ends_quietly(service: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LEAVES_ALL_OPEN],
        env=os.environ | {"KESTREL_API_URL": service.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_without_a_service_there_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="set KESTREL_API_URL"):
        next(caribou.sync.get_kestrel_client().live())


@pytest.mark.parametrize("given", ["", "a b", "1\r\nX-Evil: 1", "é"])
def test_a_place_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InvalidValue, match="last_event_id"):
        KestrelClient("http://k:1").live(last_event_id=given)
    with pytest.raises(InvalidType, match="last_event_id must be a str, not int"):
        KestrelClient("http://k:1").live(last_event_id=1)  # type: ignore[arg-type]
