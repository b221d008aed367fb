"""Kestrel's client when something goes wrong: what it tries again, what it says, what it keeps to
itself."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

import caribou
from caribou import InvalidValue, KestrelError
from caribou.kestrel import BlockingKestrelClient, KestrelClient, _transport

URL = "http://kestrel.test:8000"
KEY = "k-5ecret"
RUN: dict[str, Any] = {
    **dict.fromkeys(("run_id", "project_id", "project", "name", "phase", "status"), "r"),
    **dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00Z"),
    "config": {},
    "tags": [],
    "archived": False,
    "finished_at": None,
    "new_in_a_later_version": 1,
}

pytestmark = pytest.mark.asyncio


@pytest.fixture
def kestrel() -> Iterator[respx.MockRouter]:
    with respx.mock(base_url=f"{URL}/api/v1") as router:
        yield router


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> KestrelClient:
    """A client whose pauses between attempts are short."""
    monkeypatch.setattr(_transport, "_FIRST_PAUSE", 0.001)
    return KestrelClient(URL, KEY)


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError(""),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        httpx.Response(429),
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(503),
        httpx.Response(504),
    ],
    ids=str,
)
async def test_a_passing_fault_is_not_seen(
    kestrel: respx.MockRouter, client: KestrelClient, fault: Any
) -> None:
    route = kestrel.post("/runs").mock(
        side_effect=[fault, fault, *[httpx.Response(201, json=RUN)] * 2]
    )
    assert (await client.create_run(name="n")).run_id == "r"
    sent = [call.request for call in route.calls]
    assert len(sent) == 3
    # The same to the byte, so that the service takes it for one.
    assert len({(each.content, each.headers["Idempotency-Key"]) for each in sent}) == 1
    assert sent[0].headers["Authorization"] == f"Bearer {KEY}"
    await client.create_run(name="n")
    assert route.calls.last.request.headers["Idempotency-Key"] != sent[0].headers["Idempotency-Key"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500, 501])
async def test_a_refusal_is_not_tried_again(
    kestrel: respx.MockRouter, client: KestrelClient, status: int
) -> None:
    route = kestrel.get("/runs/r").respond(status, json={"detail": "no", "status": status})
    with pytest.raises(KestrelError) as refused:
        await client.get_run("r")
    assert (refused.value.status, refused.value.detail, route.call_count) == (status, "no", 1)


async def test_in_the_end_the_last_failure_is_told(
    kestrel: respx.MockRouter, client: KestrelClient
) -> None:
    route = kestrel.get("/runs/r").mock(side_effect=httpx.ConnectError("All attempts failed"))
    with pytest.raises(KestrelError) as refused:
        await client.get_run("r")
    assert str(refused.value) == (f"GET {URL}/api/v1/runs/r: All attempts failed (ConnectError)")
    assert (refused.value.status, route.call_count) == (None, 6)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)
    problem = {"detail": "the store cannot be reached", "hint": "try again in a few seconds"}
    kestrel.get("/runs/r").respond(503, json=problem)
    with pytest.raises(KestrelError, match="503 Service Unavailable: the store cannot be reached"):
        await client.get_run("r")


@pytest.mark.parametrize("as_date", [False, True])
async def test_it_comes_back_when_asked_to(
    kestrel: respx.MockRouter, client: KestrelClient, as_date: bool
) -> None:
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    headers = {"Retry-After": after if as_date else "1"}
    answers = [httpx.Response(429, headers=headers), httpx.Response(200, json=RUN)]
    kestrel.get("/runs/r").mock(side_effect=answers)
    start = time.monotonic()
    await client.get_run("r")
    assert 0.9 <= time.monotonic() - start < 5


@pytest.mark.parametrize("header", ["9999999999999", "Wed, 21 Oct 2999 07:28:00 GMT"])
async def test_it_does_not_wait_past_its_deadline(
    kestrel: respx.MockRouter, client: KestrelClient, header: str
) -> None:
    route = kestrel.get("/runs/r").respond(503, headers={"Retry-After": header})
    with pytest.raises(KestrelError, match="503"):
        await client.get_run("r")
    assert route.call_count == 1


@pytest.mark.parametrize("header", ["soon", "", "-1", "Wed, 99 Oct"])
async def test_a_header_that_says_nothing_is_none(
    kestrel: respx.MockRouter, client: KestrelClient, header: str
) -> None:
    answers = [
        httpx.Response(503, headers={"Retry-After": header}),
        httpx.Response(200, json=RUN),
    ]
    kestrel.get("/runs/r").mock(side_effect=answers)
    assert (await client.get_run("r")).run_id == "r"


async def test_a_service_that_never_answers_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = KestrelClient(f"http://127.0.0.1:{silent.getsockname()[1]}", KEY, timeout=0.3)
        start = time.monotonic()
        with pytest.raises(KestrelError, match=r"no answer within 0\.3 seconds"):
            await client.get_run("r")
        assert time.monotonic() - start < 2
        await client.aclose()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(200, html="<h1>Hello</h1>"), "not answered as Kestrel does"),
        (httpx.Response(200, json={"run_id": 5}), "not answered as Kestrel does"),
        (httpx.Response(200, content=b"\xff"), "not answered as Kestrel does"),
        (httpx.Response(404, html="<h1>nginx</h1>"), "404 Not Found"),
        (httpx.Response(404, json=["x"]), "404 Not Found"),
        (httpx.Response(301, headers={"Location": "https://x.test/"}), "leads to https://x.test/"),
        (httpx.Response(599), "599"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.status_code),
)
async def test_something_else_behind_the_url_is_recognised(
    kestrel: respx.MockRouter, client: KestrelClient, answer: httpx.Response, words: str
) -> None:
    kestrel.get("/runs/r").mock(return_value=answer)
    with pytest.raises(KestrelError, match="KESTREL_API_URL") as refused:
        await client.get_run("r")
    assert words in str(refused.value)


async def test_nothing_of_an_answer_reaches_the_terminal_as_a_command(
    kestrel: respx.MockRouter, client: KestrelClient
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n" + "x" * 5000
    problem = {"detail": hostile, "field": hostile, "given": {hostile: 1}, "allowed": [hostile]}
    kestrel.get("/runs/r").respond(400, json=problem | {"hint": hostile})
    with pytest.raises(KestrelError) as refused:
        await client.get_run("r")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 4000
    assert refused.value.detail == hostile
    assert pickle.loads(pickle.dumps(refused.value)).field == hostile


@pytest.mark.parametrize("base", [URL, f"{URL}/", f"{URL}/api/v1", f"{URL}/api/v1/"])
async def test_the_url_may_hold_the_path_of_the_api(kestrel: respx.MockRouter, base: str) -> None:
    kestrel.get("/runs/r").respond(json=RUN)
    assert (await KestrelClient(base).get_run("r")).run_id == "r"
    assert "Authorization" not in kestrel.calls.last.request.headers


async def test_filters_are_parameters(kestrel: respx.MockRouter, client: KestrelClient) -> None:
    route = kestrel.get("/traces").respond(json={"items": [], "next_cursor": None})
    found = client.list_traces(
        run_id="a&b=c",
        step_min=0,
        tags=["x", "y"],
        meta={"k": "v", "trial": 3},
        meta_min={"loss": 0.5},
        start_min=datetime(2026, 1, 1, tzinfo=UTC),
        sort="score",
        page_size=7,
    )
    assert [trace async for trace in found] == []
    assert route.calls.last.request.url.params.multi_items() == [
        ("run_id", "a&b=c"),
        ("step_min", "0"),
        ("start_min", "2026-01-01T00:00:00+00:00"),
        ("sort", "score"),
        ("limit", "7"),
        ("meta.k", "v"),
        ("meta.trial", "3"),
        ("meta.loss.min", "0.5"),
        ("tag", "x"),
        ("tag", "y"),
    ]


async def test_the_key_is_nowhere_to_be_seen(
    kestrel: respx.MockRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_transport, "_FIRST_PAUSE", 0.001)
    caplog.set_level(0)
    caribou.configure(kestrel_api_url=URL, kestrel_api_key=KEY)
    client = caribou.get_kestrel_client()
    shown = [repr(client), str(client), repr(vars(client)), repr(BlockingKestrelClient(client))]
    faults: list[Any] = [httpx.ConnectError("no"), httpx.Response(401), httpx.Response(200)]
    for fault in faults:
        kestrel.get("/runs/r").mock(
            side_effect=fault if isinstance(fault, Exception) else None,
            return_value=None if isinstance(fault, Exception) else fault,
        )
        with pytest.raises(KestrelError) as refused:
            await client.get_run("r")
        told = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
        shown += [*told.format(), repr(refused.value), repr(vars(refused.value))]
    with pytest.raises(InvalidValue) as wrong:
        KestrelClient(URL, KEY, timeout=0)
    told = traceback.TracebackException.from_exception(wrong.value, capture_locals=True)
    frames = [frame for frame in told.stack if "caribou" in Path(frame.filename).parts]
    shown += [repr(frame.locals) for frame in frames]
    assert frames
    assert KEY not in "".join(shown) + caplog.text


@pytest.mark.parametrize("key", ["a\r\nX-Evil: 1", "a\x00", "é"])
async def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(InvalidValue, match="printable ASCII") as refused:
        KestrelClient(URL, key)
    told = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    frames = [frame for frame in told.stack if "caribou" in Path(frame.filename).parts]
    assert frames
    assert repr(key) not in str(refused.value) + "".join(repr(frame.locals) for frame in frames)


async def test_connections_are_used_again_and_closed() -> None:
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        body = httpx.Response(200, json=RUN).content
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        closed.set()
        writer.close()

    closed = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with KestrelClient(url) as client:
            for _ in range(5):
                await client.get_run("r")
            assert (accepted, closed.is_set()) == (1, False)
        await asyncio.wait_for(closed.wait(), 20)
