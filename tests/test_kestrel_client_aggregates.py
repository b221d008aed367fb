"""What the client says of many rollouts: what the API says, typed. That this is right is shown
where the API is tested."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from support.kestrel import API, get, remote_backend, serving
from support.rollouts import HOSTILE, START, make_rollouts, store_rollouts
from support.servers import DoorServer
from support.serving import serving as running_service
from support.waiting import wait_until

import caribou.sync as caribou
from caribou import InvalidType, InvalidValue
from caribou.kestrel import BlockingKestrelClient, KestrelClient, TraceFilters
from caribou.kestrel.models import (
    ModelUse,
    Page,
    PassK,
    ScoreDistribution,
    StepSummary,
    ToolUse,
)
from caribou.server.app import create_app
from caribou.server.routes_traces import FILTERS as FILTERS_THERE


@pytest_asyncio.fixture
async def url(door: DoorServer) -> AsyncIterator[str]:
    """A service over a database of its own with rollouts in it."""
    backend = remote_backend(door)
    await store_rollouts(backend, make_rollouts(120, seed=5))
    async with serving(create_app(backend)) as address:
        yield address
    await backend.aclose()


FILTERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"run_id": "train-1", "step_min": 1, "step_max": 3}, {}),
    ({"tags": ["good", HOSTILE]}, {"tag": ["good", HOSTILE]}),
    ({"status": ["ERROR", "TRUNCATED"]}, {"status": ["ERROR", "TRUNCATED"]}),
    ({"meta": {"trial": 2}, "meta_min": {"difficulty": 0.25}}, {"meta.trial": "2", "meta.difficulty.min": "0.25"}),  # noqa: E501
    ({"start_min": START, "env_name": "retail"}, {"start_min": START.isoformat()}),
]  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize(("given", "asked"), FILTERS, ids=[str([*one]) for one, _ in FILTERS])
async def test_each_aggregate_is_that_of_the_filtered(
    url: str, given: dict[str, Any], asked: dict[str, Any]
) -> None:
    query = {k: v for k, v in given.items() if k in ("run_id", "step_min", "step_max", "env_name")}
    query |= asked
    async with KestrelClient(url) as client, httpx.AsyncClient(base_url=url + API) as api:

        async def answered(path: str, kind: Any, **more: Any) -> Any:
            answer = await get(api, f"/aggregates/{path}", **query, **more)
            return msgspec.convert(answer, kind)

        steps = await client.aggregate_steps(**given)
        assert steps == (await answered("steps", Page[StepSummary])).items
        tools = await client.aggregate_tools(limit=2, **given)
        assert tools == (await answered("tools", Page[ToolUse], limit=2)).items
        models = await client.aggregate_models(limit=2, **given)
        assert models == (await answered("models", Page[ModelUse], limit=2)).items
        scores = await client.aggregate_scores(bins=4, **given)
        assert scores == await answered("scores", ScoreDistribution, bins=4)
        assert await client.aggregate_pass_k(k=3, **given) == await answered("pass_k", PassK, k=3)
        # The same rollouts are meant everywhere, and there are some.
        traces = [trace async for trace in client.list_traces(**given)]
        assert sum(step.traces for step in steps) == len(traces) == scores.scored + scores.unscored
        assert traces


@pytest.mark.asyncio
async def test_a_filter_that_is_not_known_is_refused_before_anything_is_sent() -> None:
    client = KestrelClient("http://kestrel.test:1")
    names = [name for name in dir(client) if name.startswith("aggregate_")]
    assert len(names) == 5
    for name in names:
        with pytest.raises(InvalidType, match=rf"{name}\(\): unknown filter 'run'.*run_id"):
            await getattr(client, name)(run="r")
        with pytest.raises(InvalidValue, match=rf"{name}\(\): start_min must have a time zone"):
            await getattr(client, name)(start_min=START.replace(tzinfo=None))
    with pytest.raises(InvalidType, match=r"list_traces\(\): unknown filter 'tag'"):
        client.list_traces(tag="x")  # type: ignore[call-arg]
    with pytest.raises(InvalidType, match="tags must be a list of texts"):
        client.list_traces(tags="abc")


def test_the_client_has_every_filter_of_the_service() -> None:
    apart = {"tags": "tag", "meta": "meta.", "meta_min": "meta.", "meta_max": "meta."}
    ours = {apart.get(name, name) for name in TraceFilters.__annotations__}
    assert ours == {query.name for query in FILTERS_THERE}


def test_they_block_too(tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="the embedded engine is not installed")
    caribou.configure("run", "eval", home=tmp_path)
    for number in range(4):
        with caribou.trace_run({"datapoint_id": "d", "step_number": number % 2}):
            caribou.log(caribou.Grade(score=float(number == 0)))
    caribou.flush()
    with (
        running_service(tmp_path) as service,
        BlockingKestrelClient(KestrelClient(service.url)) as client,
    ):
        wait_until(lambda: len(list(client.list_traces(status="COMPLETED"))) == 4)
        assert client.aggregate_pass_k(k=2, run_id="run") == PassK(datapoints=1, pass_k=[0.25, 0.0])
        steps = client.aggregate_steps(run_id="run")
        assert [(step.step_number, step.mean_score) for step in steps] == [(0, 0.5), (1, 0.0)]
        assert inspect.signature(client.aggregate_steps).parameters.keys() == {"filters"}
