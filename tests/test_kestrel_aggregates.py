"""What charts show, against figures computed in Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from math import comb
from statistics import fmean
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.kestrel import api, get, remote_backend
from support.rollouts import HOSTILE, Rollout, make_rollouts, store_rollouts
from support.servers import DoorServer

pytestmark = pytest.mark.asyncio

ROLLOUTS = make_rollouts(240, seed=11)


@pytest_asyncio.fixture
async def client(door: DoorServer) -> AsyncIterator[httpx.AsyncClient]:
    backend = remote_backend(door)
    await store_rollouts(backend, ROLLOUTS)
    async with api(backend) as client:
        yield client


def chosen(**wanted: Any) -> list[Rollout]:
    return [r for r in ROLLOUTS if all(r.trace[name] == v for name, v in wanted.items())]


def mean(values: list[Any]) -> Any:
    there = [value for value in values if value is not None]
    return pytest.approx(fmean(there)) if there else None


@pytest.mark.parametrize("query", [{}, {"run_id": "train-1"}, {"run_id": HOSTILE}])
async def test_figures_by_step(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    groups: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    for rollout in chosen(**query):
        groups[rollout.trace["step_number"]].append(rollout.trace)
    items = (await get(client, "/aggregates/steps", **query))["items"]
    steps = sorted(groups, key=lambda step: -1 if step is None else step)
    assert [item["step_number"] for item in items] == steps
    for item in items:
        traces = groups[item["step_number"]]
        scores = [trace["score"] for trace in traces]
        assert item["traces"] == len(traces)
        assert item["mean_score"] == mean(scores)
        assert item["score_count"] == sum(score is not None for score in scores)
        assert item["mean_duration_ms"] == mean([trace["duration_ms"] for trace in traces])
        assert item["statuses"] == Counter(trace["status"] for trace in traces)
        for name in ("input_tokens", "output_tokens", "cost_usd"):
            assert item[name] == pytest.approx(sum(trace[name] for trace in traces)), name


async def test_the_distribution_of_scores(client: httpx.AsyncClient) -> None:
    found = await get(client, "/aggregates/scores", bins=4, run_id="eval-1")
    scores = [rollout.trace["score"] for rollout in chosen(run_id="eval-1")]
    there = [score for score in scores if score is not None]
    bins = Counter(min(int(score * 4), 3) for score in there)
    assert [item["traces"] for item in found["items"]] == [bins[i] for i in range(4)]
    assert [item["low"] for item in found["items"]] == [0, 0.25, 0.5, 0.75]
    assert found["items"][-1]["high"] == 1
    assert (found["scored"], found["unscored"]) == (len(there), len(scores) - len(there))
    assert found["mean_score"] == mean(there)


async def test_no_scores_have_no_mean(client: httpx.AsyncClient) -> None:
    found = await get(client, "/aggregates/scores", run_id="none")
    assert (found["scored"], found["mean_score"], len(found["items"])) == (0, None, 20)


@pytest.mark.parametrize(
    ("query", "rollouts"),
    [
        ({}, ROLLOUTS),
        ({"run_id": "train-2", "step_min": 2}, [r for r in chosen(run_id="train-2") if r.trace["step_number"] >= 2]),  # noqa: E501
        ({"status": "ERROR"}, chosen(status="ERROR")),
        ({"tag": "good"}, [r for r in ROLLOUTS if "good" in r.trace["tags"]]),
    ],
)  # fmt: skip
async def test_tools_are_counted_once(
    client: httpx.AsyncClient, query: dict[str, Any], rollouts: list[Rollout]
) -> None:
    calls: dict[str, list[int]] = defaultdict(list)
    for rollout in rollouts:
        seed = int(rollout.trace["root_span_id"], 16)
        calls[f"tool_{seed % 3}"].append(seed)
    items = (await get(client, "/aggregates/tools", **query))["items"]
    assert {item["tool_name"]: item["calls"] for item in items} == {
        name: len(seeds) for name, seeds in calls.items()
    }
    for item in items:
        seeds = calls[item["tool_name"]]
        assert item["errors"] == sum(seed % 4 == 0 for seed in seeds)
        assert item["mean_duration_ms"] == mean([float(seed % 1000) for seed in seeds])
        assert item["max_duration_ms"] == max(seed % 1000 for seed in seeds)
    slowest = [item["p95_duration_ms"] for item in items]
    assert slowest == sorted(slowest, reverse=True)
    one = (await get(client, "/aggregates/tools", **query, limit=1))["items"]
    assert [item["tool_name"] for item in one] == [items[0]["tool_name"]]


async def test_tokens_and_cost_by_model(client: httpx.AsyncClient) -> None:
    wanted: dict[str, Counter[str]] = defaultdict(Counter)
    for rollout in chosen(env_name="retail"):
        for model, buckets in rollout.trace["usage"].items():
            wanted[model].update(traces=1, **buckets)
    items = (await get(client, "/aggregates/models", env_name="retail"))["items"]
    assert {item["model"] for item in items} == set(wanted)
    for item in items:
        figures = wanted[item["model"]]
        assert item["traces"] == figures["traces"]
        assert item["input_tokens"] == figures["input_tokens"]
        assert item["cost_usd"] == pytest.approx(figures["cost_usd"])
        assert item["cache_read_tokens"] == 0
    costs = [item["cost_usd"] for item in items]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("query", [{}, {"run_id": "train-1"}, {"run_id": "none"}])
async def test_pass_k(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    trials: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for rollout in chosen(**query):
        trace = rollout.trace
        trials[trace["run_id"], trace["datapoint_id"]].append((trace["score"] or 0) >= 1)
    wanted: list[float] = []
    for k in range(1, 7):
        shares = [comb(sum(t), k) / comb(len(t), k) for t in trials.values() if len(t) >= k]
        wanted += [fmean(shares)] if shares else []
    found = await get(client, "/aggregates/pass_k", k=6, **query)
    assert found["datapoints"] == len(trials)
    assert found["pass_k"] == pytest.approx(wanted)
