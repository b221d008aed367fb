"""The sink for Kestrel's registry: what it calls, and what it makes of each failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.registry import Registry, problem, registry
from support.rows import make_batch
from support.sinks import failure

from caribou.sinks.base import Misconfigured, Poison, Retry, SinkError, TooLarge
from caribou.sinks.kestrel import Kestrel

pytestmark = pytest.mark.asyncio

KEY = "sesame-0123456789"


@pytest.fixture
def kestrel() -> Iterator[Registry]:
    with registry() as there:
        yield there


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Kestrel]:
    sink = Kestrel(url, api_key=KEY, **options)
    try:
        yield sink
    finally:
        await sink.aclose()


def run(run_id: str, phase: str = "train") -> dict[str, Any]:
    return {"kind": "run", "run_id": run_id, "phase": phase}


def step(run_id: str, number: int) -> dict[str, Any]:
    return {"kind": "run_step", "run_id": run_id, "step_number": number, "phase": "train"}


def datapoint(datapoint_id: str, project: str | None = None) -> dict[str, Any]:
    line = {"kind": "datapoint", "datapoint_id": datapoint_id, "phase": "prod"}
    return line if project is None else line | {"project": project}


def batch(*lines: dict[str, Any] | bytes) -> Any:
    return make_batch(lines, table="registrations")


async def test_a_batch_is_grouped_into_few_calls(kestrel: Registry) -> None:
    lines = [run("r"), step("r", 1), step("r", 2), datapoint("d"), datapoint("d", "p"), run("s")]
    async with opened(kestrel.url) as sink:
        await sink.send(batch(*lines, *lines))
    root = "PUT /api/v1"
    assert kestrel.calls == [
        f"{root}/runs/r",
        f"{root}/runs/s",
        f"{root}/runs/r/steps",
        f"{root}/datapoints",
    ]
    assert kestrel.steps == {("r", 1): 1, ("r", 2): 1}
    assert kestrel.datapoints == {(None, "d"): 1, ("p", "d"): 1}
    assert kestrel.keys == {f"Bearer {KEY}"}


async def test_a_step_brings_its_run_along(kestrel: Registry) -> None:
    async with opened(kestrel.url) as sink:
        await sink.send(batch(step("r", 1)))
    assert kestrel.runs == {"r": 1}
    assert kestrel.phases == {"r": "train"}


async def test_more_than_a_call_takes_goes_in_several(kestrel: Registry) -> None:
    async with opened(kestrel.url) as sink:
        await sink.send(batch(*(datapoint(f"d{number}") for number in range(20_001))))
    assert kestrel.calls == ["PUT /api/v1/datapoints"] * 3
    assert len(kestrel.datapoints) == 20_001


@pytest.mark.parametrize("run_id", ["a/b", "..", ".", "a?b#c", "%2F", "über 東京", "a&b=c;d"])
async def test_any_id_stays_one_segment_of_the_path(kestrel: Registry, run_id: str) -> None:
    async with opened(kestrel.url) as sink:
        await sink.send(batch(run(run_id), step(run_id, 3)))
    assert kestrel.runs == {run_id: 1}
    assert kestrel.steps == {(run_id, 3): 1}


async def test_a_path_in_the_address_is_kept(kestrel: Registry) -> None:
    kestrel.answers = lambda path, body: (200, "{}", {})
    async with opened(f"{kestrel.url}/gateway/") as sink:
        await sink.send(batch(run("r")))
    assert kestrel.calls == ["PUT /gateway/api/v1/runs/r"]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (400, Poison, "not so (items.0)"),
        (422, Poison, "not so"),
        (414, Poison, "not so"),
        (401, Misconfigured, "KESTREL_API_KEY"),
        (403, Misconfigured, "KESTREL_API_KEY"),
        (404, Misconfigured, "KESTREL_API_URL"),
        (405, Misconfigured, "KESTREL_API_URL"),
        (302, Misconfigured, "KESTREL_API_URL"),
        (413, TooLarge, "not so"),
        (429, Retry, "not so"),
        (500, Retry, "not so"),
        (502, Retry, "not so"),
        (503, Retry, "not so"),
    ],
)
async def test_each_status_has_its_meaning(
    kestrel: Registry, status: int, kind: type[SinkError], says: str
) -> None:
    headers = {"Location": "http://elsewhere/"} if status == 302 else {}
    kestrel.answers = lambda path, body: problem(status, "not so", "items.0", **headers)
    async with opened(kestrel.url) as sink:
        error = await failure(sink.send(batch(datapoint("d"))))
    assert type(error) is kind
    assert says in error.reason
    assert str(status) in error.reason
    assert KEY not in error.reason


async def test_a_server_that_asks_for_time_gets_it(kestrel: Registry) -> None:
    kestrel.answers = lambda path, body: problem(503, "busy", **{"Retry-After": "7"})
    async with opened(kestrel.url) as sink:
        assert (await failure(sink.send(batch(run("r"))))).retry_after == 7


async def test_what_is_no_kestrel_registers_nothing(kestrel: Registry) -> None:
    kestrel.answers = lambda path, body: (200, "<html>Welcome!</html>", {})
    async with opened(kestrel.url) as sink:
        error = await failure(sink.send(batch(run("r"))))
    assert isinstance(error, Misconfigured)
    assert "KESTREL_API_URL" in error.reason


async def test_hostile_answers_are_shown_on_one_harmless_line(kestrel: Registry) -> None:
    kestrel.answers = lambda path, body: problem(500, "\x1b[2J\nAll is well\u202e" + "x" * 5000)
    async with opened(kestrel.url) as sink:
        error = await failure(sink.send(batch(run("r"))))
    assert error.reason.isprintable()
    assert len(error.reason) < 500


async def test_no_answer_is_tried_again(kestrel: Registry) -> None:
    kestrel.hang()
    async with opened(kestrel.url, timeout=0.2) as sink:
        error = await failure(sink.send(batch(run("r"))))
        assert isinstance(error, Retry)
        kestrel.refuse()
        error = await failure(sink.send(batch(run("r"))))
        assert isinstance(error, Retry)
        assert "refused" in error.reason
        kestrel.listen()
        await sink.send(batch(run("r")))
    assert kestrel.runs == {"r": 2}  # the first was answered too late


async def test_a_send_that_is_cancelled_leaves_the_sink_usable(kestrel: Registry) -> None:
    kestrel.hang()
    async with opened(kestrel.url) as sink:
        sending = asyncio.create_task(sink.send(batch(run("r"))))
        await asyncio.to_thread(kestrel.called.wait, 10)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        kestrel.go_on()
        await sink.send(batch(run("r")))
        assert not await sink.confirm(batch(run("r")))
    assert "r" in kestrel.runs


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"kind":"run","run_id":7}', b"\xff"])
async def test_a_line_that_is_no_registration_is_refused_here(
    kestrel: Registry, line: bytes
) -> None:
    async with opened(kestrel.url) as sink:
        assert isinstance(await failure(sink.send(batch(run("r"), line))), Poison)
    assert kestrel.calls == []


async def test_what_redaction_left_nothing_of_is_left_out(kestrel: Registry) -> None:
    async with opened(kestrel.url) as sink:
        await sink.send(batch({"kind": "datapoint", "phase": "prod"}))
    assert kestrel.calls == []


async def test_the_key_is_shown_nowhere() -> None:
    sink = Kestrel("http://127.0.0.1:1", api_key=KEY)
    assert repr(sink) == "Kestrel('http://127.0.0.1:1')"
    assert KEY not in sink.target
