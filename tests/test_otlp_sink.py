"""The sinks that speak OTLP: what they send, and what they make of each failure."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import logging
import os
import sys
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.langfuse import AUTHORIZATION, PUBLIC_KEY, SECRET_KEY, Langfuse
from support.otlp import JsonReceiver, Receiver, Refusal, Request, receiver
from support.rows import make_batch, span_lines
from support.sinks import failure

from caribou._version import __version__
from caribou.sinks._otlp import REQUEST_BYTES
from caribou.sinks.base import Misconfigured, Poison, Retry, SinkError, TooLarge
from caribou.sinks.langfuse import Langfuse as LangfuseSink
from caribou.sinks.otlp import OTLP

pytestmark = pytest.mark.asyncio

Sink = OTLP | LangfuseSink

API_KEY = "s3cret-0123"


@pytest.fixture(params=[Receiver, JsonReceiver, Langfuse], ids=["protobuf", "json", "langfuse"])
def there(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    """A receiver of each kind."""
    with receiver(request.param) as there:
        yield there


@asynccontextmanager
async def opened(there: Receiver, **options: Any) -> AsyncIterator[Sink]:
    """The sink for it."""
    sink: Sink
    if isinstance(there, Langfuse):
        keys = {"public_key": PUBLIC_KEY, "secret_key": SECRET_KEY}
        sink = LangfuseSink(there.url, **keys, **options)
    else:
        headers = {"x-api-key": API_KEY}
        sink = OTLP(f"{there.url}/v1/traces", headers=headers, **options)
    try:
        yield sink
    finally:
        await sink.aclose()


async def test_a_batch_arrives_as_spans_of_this_library(there: Receiver) -> None:
    async with opened(there, resource={"service.name": "shop", "team": "elks"}) as sink:
        await sink.send(make_batch(span_lines(3)))
    (request,) = there.requests
    assert [span.name for span in request.spans] == ["message.user"] * 3
    assert request.scope == ("caribou", __version__)
    assert request.schema_url.endswith("/1.41.0")
    assert request.resource == {
        "service.name": "shop",
        "team": "elks",
        "telemetry.sdk.name": "caribou",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }
    assert request.headers["Content-Encoding"] == "gzip"
    if isinstance(there, Langfuse):
        assert request.path == "/api/public/otel/v1/traces"
        assert request.headers["Authorization"] == AUTHORIZATION
        assert there.complaints == []
    else:
        assert request.path == "/v1/traces"
        assert request.headers["x-api-key"] == API_KEY


async def test_requests_are_bounded_and_a_large_span_goes_alone(there: Receiver) -> None:
    lines = span_lines(40)
    for line in lines:
        line["content"] = "x" * (200 << 10)
    lines[20]["content"] = [{"type": "text", "text": "y" * (100 << 10)} for _ in range(5)]
    lines[20] |= {"prompt": "z" * (500 << 10), "attributes": {"more": "w" * (500 << 10)}}
    lines[20] |= {"tool_calls": ["v" * (500 << 10)]}
    async with opened(there) as sink:
        await sink.send(make_batch(lines))
    assert len(there.spans) == 40
    assert len(there.requests) > 4
    for request in there.requests:
        assert request.size <= REQUEST_BYTES + 1000 or len(request.spans) == 1
    order = [span.start_ns for request in there.requests for span in request.spans]
    assert order == sorted(order)


async def test_without_isal_the_standard_library_compresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("isal", "isal.isal_zlib"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("caribou.sinks._otlp_http")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    body = os.urandom(1 << 20) + b"a" * 100_000
    assert gzip.decompress(await module._compressed(body)) == body
    assert module.zlib is zlib


async def test_what_does_not_compress_goes_through_too(there: Receiver) -> None:
    lines = span_lines(2)
    for line in lines:
        given = (b64encode(os.urandom(384 << 10)).decode() for _ in range(3))
        line["content"], line["prompt"], line["attributes"] = (
            next(given),
            next(given),
            {"a": next(given)},
        )
    async with opened(there) as sink:
        await sink.send(make_batch(lines))
    # From this size on the library has doubts about a body in one piece.
    assert int(there.requests[0].headers["Content-Length"]) > 1 << 20
    assert len(there.spans) == 2


async def test_rows_of_scopes_that_open_are_not_sent(there: Receiver) -> None:
    async with opened(there) as sink:
        await sink.send(make_batch(span_lines(2, status="PENDING")))
    assert there.requests == []


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (400, Poison, "not so"),
        (422, Poison, "not so"),
        (401, Misconfigured, "refused the credentials"),
        (403, Misconfigured, "refused the credentials"),
        (404, Misconfigured, "answers at"),
        (405, Misconfigured, "answers at"),
        (302, Misconfigured, "answers at"),
        (413, TooLarge, "not so"),
        (408, Retry, "not so"),
        (429, Retry, "not so"),
        (500, Retry, "not so"),
        (502, Retry, "not so"),
        (503, Retry, "not so"),
        (504, Retry, "not so"),
    ],
)
async def test_each_status_has_its_meaning(
    there: Receiver, status: int, kind: type[SinkError], says: str
) -> None:
    headers = {"Location": "http://elsewhere/"} if status == 302 else {}
    there.answers = lambda request: (status, '{"message":"not so"}', headers)
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert type(error) is kind
    assert says in error.reason
    assert str(status) in error.reason
    assert SECRET_KEY not in error.reason
    if kind is Misconfigured:
        what = ("HOST", "KEY") if isinstance(there, Langfuse) else ("ENDPOINT", "HEADERS")
        assert what[status in (401, 403)] in error.reason


async def test_a_server_that_asks_for_time_gets_it(there: Receiver) -> None:
    there.answers = lambda request: (429, "slow down", {"Retry-After": "7"})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert (type(error), error.retry_after) == (Retry, 7)
    assert "slow down" in error.reason


async def test_a_partial_success_is_a_refusal(there: Receiver) -> None:
    there.rejects = lambda span: span.attributes.get("caribou.seq") == 1
    if isinstance(there, Langfuse):
        there.rejects = lambda span: span.attributes["langfuse.observation.metadata.seq"] == "1"
    there.says = "a span id of zeros"
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(3))))
        assert isinstance(error, Poison)
        assert "spans rejected: 1, a span id of zeros" in error.reason
        there.says = ""
        await sink.send(make_batch(span_lines(1)))


async def test_a_warning_is_no_refusal_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with receiver() as there:
        there.says = "names with dots are discouraged"
        async with opened(there) as sink:
            for _ in range(3):
                await sink.send(make_batch(span_lines(1)))
    assert len(there.spans) == 3
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "discouraged" in warning.getMessage()


@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/x-protobuf"])
async def test_what_is_no_otlp_receiver_takes_nothing(there: Receiver, kind: str) -> None:
    there.answers = lambda request: (200, "<html>Welcome!</html>", {"Content-Type": kind})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert isinstance(error, Misconfigured)
    assert "answers at" in error.reason


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("<html>The plain HTTP request was sent to HTTPS port</html>", "text/html"),
        ("Client sent an HTTP request to an HTTPS server.", "text/plain"),
    ],
)
async def test_a_gateways_refusal_is_no_rows_fault(there: Receiver, says: str, kind: str) -> None:
    there.answers = lambda request: (400, says, {"Content-Type": kind})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(3))))
    assert isinstance(error, Misconfigured)
    assert "answers at" in error.reason


def chokes(there: Receiver) -> None:
    """Answer with 500 to whatever has the record 0 in it."""

    def answer(request: Request) -> Refusal | None:
        bad = any("content 0" in str(span.attributes) for span in request.spans)
        return (500, "cannot process", {}) if bad else None

    there.answers = answer


async def test_a_batch_that_is_answered_500_is_halved_when_it_was_tried(there: Receiver) -> None:
    chokes(there)
    batch = make_batch(span_lines(2))
    async with opened(there) as sink:
        errors = [await failure(sink.send(batch)) for _ in range(3)]
    assert [type(error) for error in errors] == [Retry, Retry, TooLarge]
    # Not at once: most often the server is in trouble.
    assert errors[2].retry_after is not None


async def test_a_row_that_is_answered_500_waits_while_nothing_else_is_taken(
    there: Receiver,
) -> None:
    chokes(there)
    batch = make_batch(span_lines(1))
    async with opened(there) as sink:
        for _ in range(50):
            assert isinstance(await failure(sink.send(batch)), Retry)


async def test_a_row_that_is_answered_500_while_others_are_taken_is_at_fault(
    there: Receiver,
) -> None:
    chokes(there)
    bad, *good = (make_batch([line]) for line in span_lines(31))
    async with opened(there) as sink:
        errors: list[SinkError] = []
        for batch in good[:20]:
            errors.append(await failure(sink.send(bad)))
            await sink.send(batch)
        # Another row begins anew.
        other = await failure(sink.send(make_batch(span_lines(1))))
    assert [type(error) for error in errors] == [Retry] * 19 + [Poison]
    assert isinstance(other, Retry)


async def test_a_flood_of_an_answer_does_not_fill_the_memory(there: Receiver) -> None:
    there.answers = lambda request: (200, '{"a":"' + "x" * (32 << 20) + '"}', {})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert isinstance(error, Misconfigured)
    assert "bytes came back" in error.reason


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
async def test_a_key_that_a_server_repeats_is_not_shown(there: Receiver, status: int) -> None:
    secrets = (SECRET_KEY, AUTHORIZATION.removeprefix("Basic "), API_KEY)

    def repeat(request: Any) -> Any:
        sent = request.headers.get("x-api-key") or request.headers["Authorization"]
        assert any(secret in sent for secret in secrets)
        ours = SECRET_KEY if isinstance(there, Langfuse) else ""
        return status, f"{sent} {ours} is wrong", {}

    there.answers = repeat
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert "is wrong" in error.reason
    assert not any(secret in error.reason for secret in secrets)


@pytest.mark.parametrize("value", ["²", "soon", "Mon, 01 Jan 2020 00:00:00 +99999999999999999"])
async def test_a_senseless_wait_is_none(there: Receiver, value: str) -> None:
    there.answers = lambda request: (429, "enough", {"Retry-After": value})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert (type(error), error.retry_after) == (Retry, None)


async def test_hostile_answers_are_shown_on_one_harmless_line(there: Receiver) -> None:
    there.answers = lambda request: (500, "\x1b[2J\nAll is well\u202e" + "x" * 5000, {})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert error.reason.isprintable()
    assert len(error.reason) < 500


async def test_no_answer_is_tried_again(there: Receiver) -> None:
    there.hang()
    async with opened(there, timeout=0.3) as sink:
        batch = make_batch(span_lines(5))
        assert isinstance(await failure(sink.send(batch)), Retry)
        there.refuse()
        error = await failure(sink.send(batch))
        assert isinstance(error, Retry)
        assert "refused" in error.reason
        there.listen()
        await sink.send(batch)
        assert not await sink.confirm(batch)
    assert len(there.spans) == 5


async def test_a_port_without_tls_is_told_of_in_words() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sink = OTLP(f"https://127.0.0.1:{port}/v1/traces")
        error = await failure(sink.send(make_batch(span_lines(1))))
        await sink.aclose()
    assert isinstance(error, Retry)
    assert "does that port speak TLS?" in error.reason


async def test_a_send_that_is_cancelled_leaves_the_sink_usable(there: Receiver) -> None:
    there.hang()
    async with opened(there) as sink:
        batch = make_batch(span_lines(5))
        sending = asyncio.create_task(sink.send(batch))
        await asyncio.to_thread(there.called.wait, 10)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        there.go_on()
        await sink.send(batch)
    assert len(there.spans) == 5


async def test_what_is_taken_is_not_sent_again_with_the_rest(there: Receiver) -> None:
    """A receiver that takes one request at a time would else never get beyond the first."""
    lines = span_lines(30, content="x" * (300 << 10))
    taken = 0

    def one_at_a_time(request: Any) -> Any:
        nonlocal taken
        taken += 1
        return (429, "enough", {}) if taken % 2 == 0 else None

    there.answers = one_at_a_time
    batch = make_batch(lines)
    async with opened(there) as sink:
        for _ in range(20):
            try:
                await sink.send(batch)
                break
            except Retry:
                pass
    assert len(there.spans) == there.received == 30


BAD = [
    b"{",
    b"[]",
    b"\xff",
    b"{}",
    json.dumps(span_lines(1)[0] | {"span_id": "xyz"}).encode(),
    json.dumps(span_lines(1)[0] | {"trace_id": "1" * 31}).encode(),
    json.dumps(span_lines(1)[0] | {"trace_id": "1" * 34}).encode(),
    json.dumps(span_lines(1)[0] | {"trace_id": "0" * 32}).encode(),
    json.dumps(span_lines(1)[0] | {"parent_span_id": "a-b"}).encode(),
    json.dumps(span_lines(1)[0] | {"start_time": "yesterday"}).encode(),
    json.dumps(span_lines(1)[0] | {"input_tokens": "many", "cache_read_tokens": 1}).encode(),
    json.dumps(span_lines(1)[0] | {"content": "\ud800"}).encode(),
]


@pytest.mark.parametrize("line", BAD)
async def test_a_line_that_is_no_span_is_refused_here(there: Receiver, line: bytes) -> None:
    row = span_lines(1, role="assistant")[0]
    if b"many" in line:
        line = line.replace(b'"user"', b'"assistant"')
    async with opened(there) as sink:
        assert isinstance(await failure(sink.send(make_batch([row, line]))), Poison)
    assert there.requests == []


async def test_the_loop_is_free_while_a_batch_is_encoded(there: Receiver) -> None:
    there.refuse()
    rounds = 0

    async def watch() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with opened(there) as sink:
        counts: list[int] = []
        for batch in (make_batch(span_lines(1)), make_batch(span_lines(3000))):
            before = rounds
            await failure(sink.send(batch))
            counts.append(rounds - before)
    watching.cancel()
    # Some 60 ms of work, in stretches of half a millisecond.
    assert counts[1] - counts[0] > 30


async def test_no_secret_is_shown() -> None:
    with receiver(Langfuse) as there:
        async with opened(there) as sink:
            assert repr(sink) == f"Langfuse('{there.url} ({PUBLIC_KEY})')"
            assert SECRET_KEY not in sink.target
    with receiver() as there:
        async with opened(there) as sink:
            assert repr(sink) == f"OTLP('{there.url}/v1/traces')"


@pytest.mark.parametrize("says", ["OK", "accepted 3 spans, 7 ms"])
async def test_plain_text_is_a_success_of_other_receivers_than_langfuse(
    there: Receiver, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    there.answers = lambda request: (200, says, {"Content-Type": "text/plain"})
    async with opened(there) as sink:
        if isinstance(there, Langfuse):
            assert isinstance(await failure(sink.send(make_batch(span_lines(1)))), Misconfigured)
            return
        await sink.send(make_batch(span_lines(3)))
        says += ", again"
        await sink.send(make_batch(span_lines(3)))
    assert len(there.requests) == 2
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "plain text" in warning.getMessage()


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_nothing_is_a_success(
    there: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    there.answers = lambda request: (status, "", {"Content-Type": "text/plain"})
    async with opened(there) as sink:
        await sink.send(make_batch(span_lines(3)))
    assert caplog.records == []


async def test_a_page_under_a_wrong_name_is_no_success(there: Receiver) -> None:
    there.answers = lambda request: (200, "\n<!DOCTYPE html>Hi", {"Content-Type": "text/plain"})
    async with opened(there) as sink:
        assert isinstance(await failure(sink.send(make_batch(span_lines(1)))), Misconfigured)
