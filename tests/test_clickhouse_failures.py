"""Every way in which an insert can fail, and what the ClickHouse sink makes of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.faultproxy import (
    Answer,
    BlackHole,
    CutBody,
    FaultProxy,
    SlowDrip,
    SwallowAnswer,
)
from support.rows import make_batch, span_lines
from support.servers import DoorServer
from support.sinks import contents, failure, off_loop, open_sink, settled

from caribou.sinks.base import (
    Ambiguous,
    Misconfigured,
    Poison,
    Retry,
    SinkError,
    TooLarge,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.filterwarnings("error")]


# -- what was refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b'{"seq":"x"}',
        b'{"content":"\\ud800"}',
        b'{"seq":1,"seq":2}',
        b'{"late":"perhaps"}',
        b'{"start_time":"-1.5"}',
        b'{"attributes":7}',
        b'{"content":"never closed}',
    ],
)
async def test_one_bad_row_is_poison_and_nothing_of_its_batch_is_stored(
    door: DoorServer, database: str, line: bytes
) -> None:
    batch = make_batch([*span_lines(50), line, *span_lines(50)])
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        refused = await failure(sink.send(batch))
        assert isinstance(refused, Poison)
        assert refused.code > 0
        assert not await sink.confirm(batch)
    assert len(await contents(door, database)) == 1


async def test_a_reason_holds_no_terminal_escapes(door: DoorServer, database: str) -> None:
    bad = b'{"seq": \x1b[31mred\x1b]0;title\x07 \xff}'
    async with open_sink(door.url, database) as sink:
        refused = await failure(sink.send(make_batch([bad])))
    assert isinstance(refused, Poison)
    assert refused.reason.isprintable()
    assert len(refused.reason) <= 400


@pytest.mark.parametrize(
    ("body", "told"),
    [(b"Down for\nmaintenance.\n", "Down for maintenance"), (b"Wait ...", "Wait ...")],
)
async def test_a_reason_has_no_full_stop_as_it_goes_into_sentences(
    proxy: FaultProxy, database: str, body: bytes, told: str
) -> None:
    async with open_sink(proxy.url, database) as sink:
        proxy.fault(Answer(503, {}, body))
        refused = await failure(sink.send(make_batch(span_lines(1))))
    assert refused.reason == f"HTTP status 503: {told}"


async def test_out_of_memory_asks_for_smaller_batches(door: DoorServer, database: str) -> None:
    async with open_sink(door.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(door.control, settings={"max_memory_usage": "5000000"})
        refused = await failure(sink.send(make_batch(span_lines(5000, content="x" * 2000))))
    assert isinstance(refused, TooLarge)
    assert refused.code == 241


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(429, {"Retry-After": "7"}), Retry),
        (Answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), Retry),
        (Answer(500), Retry),
        (Answer(502), Ambiguous),
        (Answer(504), Ambiguous),
        (Answer(413), TooLarge),
        (Answer(401), Misconfigured),
        (Answer(403), Misconfigured),
        (Answer(400), Misconfigured),
        (Answer(302, {"Location": "http://127.0.0.1:9/"}), Misconfigured),
        (Answer(500, {"X-ClickHouse-Exception-Code": "252"}), Retry),
        (Answer(500, {"X-ClickHouse-Exception-Code": "319"}), Ambiguous),
        (Answer(404, {"X-ClickHouse-Exception-Code": "115"}), Misconfigured),
        (Answer(500, {}, b"Code: 202, e.displayText() = DB::Exception: Too many"), Retry),
        (Answer(500, {}, b"Code: 27, e.displayText() = DB::Exception: Cannot parse"), Poison),
        (Answer(200, {"X-ClickHouse-Exception-Code": "241"}), TooLarge),
        (Answer(200, {}, b"Code: 243. DB::Exception: Not enough space"), Retry),
        (
            Answer(
                200,
                {"X-ClickHouse-Exception-Tag": "abcd"},
                b"__exception__\r\nabcd\r\nCode: 27. DB::Exception: no\r\n26 abcd\r\n__exception__",
            ),
            Poison,
        ),
    ],
)
async def test_each_refusal_is_told_apart(
    proxy: FaultProxy, database: str, answer: Answer, expected: type[SinkError]
) -> None:
    async with open_sink(proxy.url, database) as sink:
        proxy.fault(answer)
        refused = await failure(sink.send(make_batch(span_lines(3))))
    assert type(refused) is expected
    if answer.status == 429:
        assert refused.retry_after == 7
    if answer.status == 503:
        assert refused.retry_after == 0


# -- answers that do not come ----------------------------------------------------------------------


async def test_refused_is_retry_and_works_when_the_server_is_back(
    proxy: FaultProxy, database: str
) -> None:
    batch = make_batch(span_lines(3))
    async with open_sink(proxy.url, database) as sink:
        proxy.refuse()
        assert type(await failure(sink.send(batch))) is Retry
        assert type(await failure(sink.confirm(batch))) is Retry
        proxy.accept()
        await sink.send(batch)
        await off_loop(proxy.refuse)  # the sink's loop sees its idle connection end
        assert type(await failure(sink.send(batch))) is Retry
        proxy.accept()
        assert await sink.confirm(batch)


async def test_an_unknown_host_is_retry(database: str) -> None:
    async with open_sink("http://host.invalid:8123", database) as sink:
        assert type(await failure(sink.send(make_batch(span_lines(1))))) is Retry
    async with open_sink("http://bad..name:8123", database) as sink:
        assert isinstance(await failure(sink.send(make_batch(span_lines(1)))), SinkError)


@pytest.mark.parametrize("compression", ["zstd", "none"])
async def test_a_lost_answer_is_ambiguous_and_reading_back_finds_the_rows(
    proxy: FaultProxy, door: DoorServer, database: str, compression: str
) -> None:
    batch = make_batch(span_lines(20))
    async with open_sink(proxy.url, database, compression=compression) as sink:
        await sink.send(make_batch(span_lines(1)))
        proxy.fault(SwallowAnswer(), times=1)
        assert type(await failure(sink.send(batch))) is Ambiguous
        assert await settled(sink, batch)
    assert len(await contents(door, database)) == 21


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("cut", [CutBody(rows=7), CutBody(after=100), CutBody(after=0)])
async def test_a_cut_body_is_ambiguous_and_reading_back_finds_rows_missing(
    proxy: FaultProxy, door: DoorServer, database: str, compression: str, cut: CutBody
) -> None:
    batch = make_batch(span_lines(20))
    await off_loop(door.control, keep_cut=True)
    async with open_sink(proxy.url, database, compression=compression) as sink:
        await sink.send(make_batch(span_lines(1)))
        proxy.fault(cut, times=1)
        assert type(await failure(sink.send(batch))) is Ambiguous
        assert not await settled(sink, batch)
        await sink.send(batch)
        assert await sink.confirm(batch)
    assert len(await contents(door, database)) == 21


async def test_rows_that_a_cut_left_behind_do_not_pass_for_the_whole(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    """Twice the first half is as many rows as the batch has, and still not the batch."""
    batch = make_batch(span_lines(20))
    await off_loop(door.control, keep_cut=True)
    async with open_sink(proxy.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        for attempt in (1, 2):
            proxy.fault(CutBody(rows=10), times=1)
            await failure(sink.send(batch))
            # The door stores what was cut off when it notices: asked until it has.
            query = f"SELECT count() AS n FROM {database}.spans_rows"
            while (await off_loop(door.rows, query))[0]["n"] < 1 + 10 * attempt:
                pass
        assert not await settled(sink, batch)


async def test_a_black_hole_ends_with_the_time_limit(proxy: FaultProxy, database: str) -> None:
    async with open_sink(proxy.url, database, timeout=0.3) as sink:
        proxy.fault(BlackHole(), every=True)
        started = time.monotonic()
        # Nothing was inserted yet: the first request only asks for the version.
        assert type(await failure(sink.send(make_batch(span_lines(1))))) is Retry
        proxy.clear()
        await sink.send(make_batch(span_lines(1)))
        proxy.fault(BlackHole())
        assert type(await failure(sink.send(make_batch(span_lines(1))))) is Ambiguous
        assert time.monotonic() - started < 10


async def test_a_slow_answer_is_waited_for(
    proxy: FaultProxy, door: DoorServer, database: str
) -> None:
    async with open_sink(proxy.url, database) as sink:
        await sink.send(make_batch(span_lines(1)))
        proxy.fault(SlowDrip(step=20, interval=0.01), times=1)
        await sink.send(make_batch(span_lines(2)))
    assert len(await contents(door, database)) == 3


async def test_reading_back_waits_for_an_insert_that_still_runs(
    door: DoorServer, database: str
) -> None:
    batch = make_batch(span_lines(5))
    async with open_sink(door.url, database, timeout=1.0) as sink:
        await sink.send(make_batch(span_lines(1)))
        await off_loop(door.control, hold=True)
        assert type(await failure(sink.send(batch))) is Ambiguous
        asked = await failure(sink.confirm(batch))
        assert type(asked) is Retry
        assert asked.retry_after is not None
        await off_loop(door.control, hold=False)
        assert await settled(sink, batch)


async def test_reading_back_before_there_is_a_table_finds_nothing(
    door: DoorServer, database: str
) -> None:
    async with open_sink(door.url, database) as sink:
        assert not await sink.confirm(make_batch(span_lines(1)))


# -- TLS -------------------------------------------------------------------------------------------


async def test_a_handshake_that_fails_is_retry(proxy: FaultProxy, database: str) -> None:
    proxy.garble()
    async with open_sink(proxy.url.replace("http:", "https:"), database) as sink:
        assert type(await failure(sink.send(make_batch(span_lines(1))))) is Retry


async def test_an_untrusted_certificate_names_the_variable_that_trusts_it(
    door: DoorServer, certificate: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(door.port, certificate=certificate) as proxy:
        async with open_sink(proxy.url, database) as sink:
            refused = await failure(sink.send(make_batch(span_lines(1))))
        assert type(refused) is Misconfigured
        assert "SSL_CERT_FILE" in refused.reason
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with open_sink(proxy.url, database) as sink:
            await sink.send(make_batch(span_lines(1)))
