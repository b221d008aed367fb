"""Following rollouts with Kestrel's client over lines that break, from a server that breaks them
where it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.following import begun, happened

from caribou import KestrelError
from caribou.kestrel import KestrelClient, LiveStream, _live, _transport
from caribou.kestrel.models import LiveSpan


class Line:
    """A server on a socket: each connection gets the next of its answers, and is then cut, but for
    the last, which is held."""

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        self._answers = iter(answers)
        self._left = len(answers)
        self.heads: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            self._left -= 1
            writer.write(next(self._answers))
            await writer.drain()
            if not self._left:
                await reader.read()  # until the client leaves

    @property
    def places(self) -> list[str | None]:
        """The Last-Event-ID of each request."""
        found = (re.search(r"(?i)^last-event-id: (\S+)", head, re.M) for head in self.heads)
        return [match and match[1] for match in found]


@asynccontextmanager
async def line(*answers: bytes) -> AsyncIterator[Line]:
    there = Line(answers)
    server = await asyncio.start_server(there.answer, "127.0.0.1", 0)
    async with server:
        there.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield there


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
BEGIN = HEAD + b"retry: 100\n\nid: 5\n\n"


def event(content: str, position: int | None = None, name: str = "span") -> bytes:
    texts = dict.fromkeys(set(LiveSpan.__struct_fields__), "")
    numbers = dict.fromkeys(["seq", "turn_index", "intra_index", "version"], 0)
    nothing = dict.fromkeys(["step_number", "end_time", "duration_ms", "score"], None)
    more = {"start_time": "2026-01-01T00:00:00Z", "late": False, "content_start": content}
    row = json.dumps(texts | numbers | nothing | more | {"new": 1}, ensure_ascii=False)
    place = "" if position is None else f"id: {position}\n"
    return f"{place}event: {name}\ndata: {row}\n\n".encode()


async def contents(stream: LiveStream, count: int) -> list[str]:
    async with asyncio.timeout(30):
        return happened([await anext(stream) for _ in range(count)])


@pytest.fixture
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are short."""
    monkeypatch.setattr(_transport, "_FIRST_PAUSE", 0.001)


@pytest.mark.asyncio
async def test_it_goes_on_after_the_last_place_it_was_told() -> None:
    cut = event("lost", 9)
    async with line(
        BEGIN + event("one") + event("two", 7) + event("three") + cut[: len(cut) // 2],
        HEAD + b"retry: 100\n\n" + event("three") + event("four", 9),
        HEAD,
    ) as there:
        client = KestrelClient(there.url)
        async with client.live(phase="eval", spans=True) as stream:
            assert stream.last_event_id == "5"
            assert await contents(stream, 1) == ["one"]
            # As far as it was taken, not as far as it came.
            assert stream.last_event_id == "5"
            assert await contents(stream, 1) == ["two"]
            assert stream.last_event_id == "7"
            assert await contents(stream, 3) == ["three", "three", "four"]
            assert stream.last_event_id == "9"
        await client.aclose()
    assert there.places[:2] == [None, "7"]
    assert "GET /api/v1/live?phase=eval&spans=true HTTP/1.1" in there.heads[1]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_events_may_come_in_any_pieces(size: int, end: bytes) -> None:
    said = "a\u2028b\x85c\r\nd: é🦌 \\"
    text = (b"retry: 700\n\n" + event(said, 8) + b":\n\n" + event("next")).replace(b"\n", end)
    parser = _live._Parser()
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    blocks = [block for piece in pieces for block in parser.feed(piece) if block.data]
    assert [json.loads(block.data)["content_start"] for block in blocks] == [said, "next"]
    assert [(block.id, block.event) for block in blocks] == [("8", "span"), ("", "span")]
    assert parser.pause == 0.7


@pytest.mark.asyncio
async def test_what_a_later_service_tells_is_left_out() -> None:
    later = b"event: weather\ndata: fine\n\n" + b"event: span\n\n" + b"unknown: 1\n\n"
    async with (
        line(BEGIN + later + event("known")) as there,
        KestrelClient(there.url) as client,
        client.live() as stream,
    ):
        assert await contents(stream, 1) == ["known"]


@pytest.mark.asyncio
@pytest.mark.usefixtures("_quickly")
async def test_it_is_tried_again_while_the_service_is_full_or_away() -> None:
    full = b"HTTP/1.1 503 Full\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    async with (
        line(full, b"", BEGIN + event("one")) as there,
        KestrelClient(there.url) as client,
        client.live() as stream,
    ):
        assert await contents(stream, 1) == ["one"]
    assert len(there.heads) == 3


@pytest.mark.asyncio
async def test_a_service_that_stays_away_is_told_of_at_the_deadline() -> None:
    async with line(BEGIN + event("one", 6), b"") as there:
        client = KestrelClient(there.url, timeout=0.5, retries=0)
        stream = client.live()
        assert await contents(stream, 1) == ["one"]
        with pytest.raises(KestrelError, match=r"GET http://127\S+/api/v1/live: "):
            async with asyncio.timeout(30):
                await stream.next()
        # Whoever asks later goes on there.
        assert stream.last_event_id == "6"
        await client.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "401 Unauthorized.*KESTREL_API_URL"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "404 Not Found.*KESTREL_API_URL"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "KESTREL_"),
        (BEGIN + b"event: span\ndata: {}\n\n", "none of Kestrel's.*missing required field"),
        (BEGIN + b"event: span\ndata: \xff\n\n", "none of Kestrel's"),
        (BEGIN + b"data: " + b"x" * 300, "more than 200 bytes"),
        (BEGIN + b"data: xxx\n" * 100, "more than 200 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_told_of(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str
) -> None:
    monkeypatch.setattr(_live, "_LONGEST", 200)
    async with line(answer) as there:
        client = KestrelClient(there.url, "k-5ecret")
        stream = client.live()
        with pytest.raises(KestrelError, match=words):
            async with asyncio.timeout(30):
                await stream.next()
        await stream.aclose()
        await client.aclose()
    assert len(there.heads) == 1
    assert "k-5ecret" in there.heads[0]
    assert "k-5ecret" not in repr(stream) + repr(vars(stream))


@pytest.mark.asyncio
async def test_a_line_that_fell_silent_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "_SILENCE", 0.2)
    silent = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"Last-Event-ID: 5" in head:
                writer.write(HEAD + event("one"))
            else:
                writer.write(BEGIN)
                silent.set()
            await reader.read()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with KestrelClient(url) as client, client.live() as stream:
            assert await contents(stream, 1) == ["one"]
            assert silent.is_set()


@pytest.mark.asyncio
async def test_connections_that_a_program_closes_are_made_again() -> None:
    async with line(BEGIN, HEAD + event("one")) as there:
        client = KestrelClient(there.url)
        async with client.live() as stream:
            following = asyncio.create_task(contents(stream, 1))
            await begun(stream)
            await client.aclose()
            assert await following == ["one"]
        await client.aclose()
    assert there.places == [None, "5"]
