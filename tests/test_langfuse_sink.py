"""The sink for Langfuse: scores, keys, and what only Langfuse says."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.langfuse import PUBLIC_KEY, SECRET_KEY, Langfuse, langfuse
from support.rows import START, make_batch, span_lines
from support.sinks import failure

from caribou.sinks.base import Batch, Misconfigured, Poison, Retry
from caribou.sinks.langfuse import Langfuse as Sink

pytestmark = pytest.mark.asyncio


@pytest.fixture
def there() -> Iterator[Langfuse]:
    with langfuse() as there:
        yield there


@asynccontextmanager
async def opened(there: Langfuse, **options: Any) -> AsyncIterator[Sink]:
    given = {"public_key": PUBLIC_KEY, "secret_key": SECRET_KEY} | options
    sink = Sink(there.url, **given)
    try:
        yield sink
    finally:
        await sink.aclose()


def score_lines(count: int, **more: Any) -> list[dict[str, Any]]:
    trace_id = os.urandom(16).hex()
    return [
        {
            "run_id": "run",
            "trace_id": trace_id,
            "phase": "eval",
            "datapoint_id": "d",
            "span_id": f"{number + 1:016x}",
            "seq": number,
            "time": f"{START}.000000000",
            "grader_name": "judge",
            "score": number / count,
            **more,
        }
        for number in range(count)
    ]


def scores(*lines: dict[str, Any] | bytes) -> Batch:
    return make_batch(lines, table="scores")


async def test_scores_arrive_once_however_often_they_are_sent(there: Langfuse) -> None:
    lines = score_lines(30, reasoning="so so")
    for _ in range(2):
        # As after a crash, by a process that knows nothing of the first.
        async with opened(there) as sink:
            await sink.send(scores(*lines))
    assert there.score_calls == 60
    assert sorted(score["value"] for score in there.scores.values()) == [n / 30 for n in range(30)]
    assert {score["traceId"] for score in there.scores.values()} == {lines[0]["trace_id"]}
    assert {score["name"] for score in there.scores.values()} == {"judge"}
    assert {score["comment"] for score in there.scores.values()} == {"so so"}


async def test_what_was_not_scored_is_not_sent(there: Langfuse) -> None:
    unscored = [{k: v for k, v in line.items() if k != "score"} for line in score_lines(3)]
    async with opened(there) as sink:
        await sink.send(scores(*unscored))
        await sink.send(scores(*score_lines(1)))
    assert [score["value"] for score in there.scores.values()] == [0.0]


async def test_scores_that_were_taken_are_not_sent_with_those_that_were_not(
    there: Langfuse,
) -> None:
    calls = 0

    def now_and_then(score: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        return (429, '{"message":"slow"}', {"Retry-After": "3"}) if calls % 5 == 0 else None

    there.score_answers = now_and_then
    batch = scores(*score_lines(100))
    waits: list[float | None] = []
    async with opened(there) as sink:
        for _ in range(100):
            try:
                await sink.send(batch)
                break
            except Retry as error:
                waits.append(error.retry_after)
    assert set(waits) == {3}
    assert len(there.scores) == 100
    assert calls < 150


async def test_a_score_that_is_refused_is_the_contents_fault(there: Langfuse) -> None:
    refusal = (400, '{"message":"Invalid request data","error":[{"path":["name"]}]}', {})
    there.score_answers = lambda score: refusal if score["value"] == 0.5 else None
    lines = score_lines(10)
    async with opened(there) as sink:
        error = await failure(sink.send(scores(*lines)))
        assert isinstance(error, Poison)
        assert "Invalid request data" in error.reason
        # Its neighbours are through.
        await sink.send(scores(*(line for line in lines if line["score"] != 0.5)))
    assert len(there.scores) == 9


async def test_trouble_that_passes_comes_before_a_refusal(there: Langfuse) -> None:
    """Else the batch would be halved, and the culprit set aside, for what is no row's fault."""
    there.score_answers = lambda score: (
        (400, "{}", {}) if score["value"] == 0.0 else (503, "{}", {})
    )
    async with opened(there) as sink:
        assert isinstance(await failure(sink.send(scores(*score_lines(4)))), Retry)


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"score":1}', b"\xff"])
async def test_a_line_that_is_no_score_is_refused_here(there: Langfuse, line: bytes) -> None:
    async with opened(there) as sink:
        line = line if line != b"{}" else b'{"score":0.5,"span_id":"a"}'
        assert isinstance(await failure(sink.send(scores(line))), Poison)
    assert there.score_calls == 0


@pytest.mark.parametrize("said", ["", "[]", "{}", "null", "<html>Log in</html>", '"fine"'])
async def test_a_score_is_taken_only_by_what_answers_as_langfuse_does(
    there: Langfuse, said: str
) -> None:
    there.score_answers = lambda score: (200, said, {})
    async with opened(there) as sink:
        error = await failure(sink.send(scores(*score_lines(1))))
    assert isinstance(error, Misconfigured)
    assert "answers at LANGFUSE_HOST" in error.reason


@pytest.mark.parametrize("status", [200, 207])
async def test_errors_of_single_events_are_read(there: Langfuse, status: int) -> None:
    said = '{"successes":[],"errors":[{"id":"x","status":400,"message":"no such time"}]}'
    there.answers = lambda request: (status, said, {})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(2))))
    assert isinstance(error, Poison)
    assert "spans rejected: 1" in error.reason
    assert "no such time" in error.reason


async def test_few_scores_are_on_their_way_at_once(there: Langfuse) -> None:
    there.hang()
    async with opened(there) as sink:
        sending = asyncio.create_task(sink.send(scores(*score_lines(100))))
        await asyncio.to_thread(there.called.wait, 10)
        await asyncio.sleep(0.1)
        assert 1 <= there.waiting <= 8
        there.go_on()
        await sending
    assert len(there.scores) == 100


async def test_wrong_keys_are_named_in_the_same_words_for_spans_and_scores(
    there: Langfuse,
) -> None:
    async with opened(there, secret_key="sk-lf-wr0ng") as sink:
        first = await failure(sink.send(make_batch(span_lines(1))))
        second = await failure(sink.send(scores(*score_lines(1))))
    for error in (first, second):
        assert isinstance(error, Misconfigured)
        assert "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY" in error.reason
        assert "wr0ng" not in error.reason
    assert first.reason == second.reason


async def test_a_right_that_is_missing_is_told_in_the_same_words_until_it_is_there(
    there: Langfuse,
) -> None:
    """Answers have the number of the request in them, and spans are taken meanwhile."""
    numbers = itertools.count(1)
    there.score_answers = lambda _: (403, json.dumps({"message": f"request {next(numbers)}"}), {})
    async with opened(there) as sink:
        first = await failure(sink.send(scores(*score_lines(1))))
        await sink.send(make_batch(span_lines(1)))
        second = await failure(sink.send(scores(*score_lines(1))))
        there.score_answers = lambda _: None
        await sink.send(scores(*score_lines(1)))
        there.score_answers = lambda _: (403, '{"message": "later"}', {})
        third = await failure(sink.send(scores(*score_lines(1))))
    assert "request 1" in first.reason
    assert second.reason == first.reason
    assert "later" in third.reason


async def test_a_comment_that_is_cut_says_how_long_it_was(there: Langfuse) -> None:
    async with opened(there) as sink:
        await sink.send(scores(*score_lines(1, reasoning="y" * 800_000)))
    [score] = there.scores.values()
    assert len(score["comment"]) == 512 * 1024
    assert score["metadata"]["original_bytes.reasoning"] == 800_000


async def test_a_langfuse_that_is_too_old_costs_no_row(there: Langfuse) -> None:
    said = 'Unsupported x-langfuse-ingestion-version: \\"4\\". Maximum supported: \\"3\\".'
    there.answers = lambda request: (400, f'{{"error":"{said}"}}', {})
    async with opened(there) as sink:
        error = await failure(sink.send(make_batch(span_lines(1))))
    assert isinstance(error, Misconfigured)
    assert "too old" in error.reason
