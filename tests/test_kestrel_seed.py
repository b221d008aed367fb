"""The seed programme of both phases against the running service: what was logged is what is found,
and what is registered is what the phase asks for."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from commandline import environment
from support.seed import DATAPOINTS, HOSTILE, PROJECT, SERVICE, STEPS, Account
from support.serving import Service, serving
from support.waiting import wait_until

from caribou import RolloutStatus

pytest.importorskip("chdb", reason="the embedded engine is not installed")
pytestmark = pytest.mark.slow

Query = dict[str, Any]
Holds = Callable[[Account], bool]


@dataclass(frozen=True)
class Seed:
    """A service, and what the two programmes say they logged."""

    service: Service
    run_id: str
    moments: list[str]
    rollouts: list[Account]

    def found(self, query: Query, limit: int = 60) -> list[Account]:
        """All traces that a query finds, page after page."""
        traces: list[Account] = []
        more: Query = {}
        while True:
            text = urlencode({**query, "limit": limit, **more}, doseq=True)
            page = self.service.get(f"/api/v1/traces?{text}")
            assert len(page["items"]) <= limit
            traces += page["items"]
            if page["next_cursor"] is None:
                return traces
            assert len(page["items"]) == limit
            more = {"cursor": page["next_cursor"]}


def run_programme(name: str, home: Path, url: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "support.seed", name],
        env=environment(home, KESTREL_API_URL=url),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seed]:
    home = tmp_path_factory.mktemp("seed")
    with serving(home) as service:
        evaluated = run_programme("evaluate", home, service.url)
        served = run_programme("production", home, service.url)
        rollouts = evaluated["rollouts"] + served["rollouts"]
        seed = Seed(service, evaluated["run_id"], evaluated["moments"], rollouts)
        written = evaluated["rows"] + served["rows"]
        wait_until(lambda: service.metric("kestrel_intake_rows_total") == written)
        yield seed


def column(name: str, *values: Any) -> Holds:
    return lambda rollout: rollout[name] in values


def tagged(*tags: str) -> Holds:
    return lambda rollout: {*tags} <= {*rollout["tags"]}


def noted(key: str, *values: str) -> Holds:
    return lambda rollout: rollout["metadata"].get(key) in values


def within(value: Callable[[Account], float | None], low: float, high: float) -> Holds:
    def holds(rollout: Account) -> bool:
        number = value(rollout)
        return number is not None and low <= number <= high

    return holds


def said(pattern: str) -> Holds:
    found = re.compile(pattern, re.IGNORECASE | re.ASCII)
    return lambda rollout: any(found.search(content) for content in rollout["contents"])


def difficulty(rollout: Account) -> float | None:
    value = rollout["metadata"].get("difficulty")
    return None if value is None else float(value)


def in_eval(*steps: int) -> Holds:
    return column("step_number", *steps)


def filters(seed: Seed) -> list[tuple[Query, Holds]]:
    """Queries with one filter or one range each, and what they mean."""
    first, second, _ = seed.moments
    return [
        ({"project": PROJECT}, column("phase", "eval")),
        ({"project": SERVICE}, column("phase", "prod")),
        ({"project": "none"}, lambda rollout: False),
        ({"run_id": seed.run_id}, column("run_id", seed.run_id)),
        ({"run_id": SERVICE}, column("run_id", SERVICE)),
        *(({"step_number": step}, in_eval(step)) for step in range(STEPS + 1)),
        ({"step_min": 1}, in_eval(1, 2)),
        ({"step_max": 1}, in_eval(0, 1)),
        ({"step_min": 1, "step_max": 1}, in_eval(1)),
        *(({"phase": phase}, column("phase", phase)) for phase in ("train", "eval", "prod")),
        *(({"status": status.value}, column("status", status.value)) for status in RolloutStatus),
        ({"status": ["ERROR", "ABORTED"]}, column("status", "ERROR", "ABORTED")),
        *(({"tag": tag}, tagged(tag)) for tag in ("smoke", "hard", "vip", HOSTILE, "none")),
        ({"tag": ["smoke", "hard"]}, tagged("smoke", "hard")),
        ({"meta.trial": "1"}, noted("trial", "1")),
        ({"meta.note": HOSTILE}, noted("note", HOSTILE)),
        (
            {"meta.trial": "2", "meta.note": "10"},
            lambda r: noted("trial", "2")(r) and noted("note", "10")(r),
        ),
        ({"meta.difficulty.min": 0.9}, within(difficulty, 0.9, 2)),
        ({"meta.difficulty.min": 0.25, "meta.difficulty.max": 0.5}, within(difficulty, 0.25, 0.5)),
        ({"meta.trial.max": 1}, noted("trial", "0", "1")),
        ({"score_min": 0.75}, within(lambda r: r["score"], 0.75, 1)),
        ({"score_max": 0}, within(lambda r: r["score"], 0, 0)),
        ({"score_min": 0.25, "score_max": 0.5}, within(lambda r: r["score"], 0.25, 0.5)),
        *(({"grader_name": name}, column("grader_name", name)) for name in ("exact", "judge")),
        *(({"model_name": name}, column("model_name", name)) for name in ("elk-2", HOSTILE)),
        *(({"env_name": name}, column("env_name", name)) for name in ("airline", "retail")),
        ({"datapoint_id": "task-07"}, column("datapoint_id", "task-07")),
        ({"datapoint_id": "ticket-03"}, column("datapoint_id", "ticket-03")),
        ({"text": "REFUND"}, said("refund")),
        ({"text": "pgrad"}, said("pgrad")),
        ({"text": "upgrade for me"}, said("upgrade for me")),
        ({"text": "naïve"}, said("naïve")),
        ({"text": "seat_map"}, said("seat_map")),
        ({"text": "task 7"}, said("task 7")),
        ({"text": "ask 1"}, said("ask 1")),
        ({"text": "rhubarb"}, lambda rollout: False),
        ({"start_min": first}, lambda r: r["step_number"] != 0),
        ({"start_max": second}, in_eval(0, 1)),
        ({"start_min": first, "start_max": second}, in_eval(1)),
    ]


def compare(seed: Seed, query: Query, holds: Holds, limit: int = 60) -> int:
    """Hold what a query finds against what was logged; how many that are."""
    found = [trace["trace_id"] for trace in seed.found(query, limit)]
    wanted = {rollout["trace_id"] for rollout in seed.rollouts if holds(rollout)}
    assert len(found) == len(set(found)), query
    assert set(found) == wanted, query
    return len(found)


def test_each_filter_finds_what_was_logged(seed: Seed) -> None:
    assert len(seed.rollouts) == STEPS * DATAPOINTS + 30
    cases = filters(seed)
    counts = [compare(seed, query, holds) for query, holds in cases]
    assert sum(0 < count < len(seed.rollouts) for count in counts) > 40
    # None that the service has is left out here.
    document = seed.service.get("/api/v1/openapi.json")
    parameters = document["paths"]["/api/v1/traces"]["get"]["parameters"]
    known = {parameter["name"] for parameter in parameters} - {"sort", "limit", "cursor"}
    asked = {name if "." not in name else "meta." for query, _ in cases for name in query}
    assert asked == known


def test_filters_together_find_what_all_of_them_mean(seed: Seed) -> None:
    pairs = [
        (one, other)
        for one, other in combinations(filters(seed), 2)
        if not one[0].keys() & other[0].keys()
    ]
    counts = [
        compare(seed, {**one, **other}, lambda r, a=first, b=second: a(r) and b(r))
        for (one, first), (other, second) in random.Random(3).sample(pairs, 60)
    ]
    assert sum(count > 0 for count in counts) > 25
    everything: Query = {
        "project": PROJECT, "run_id": seed.run_id, "step_min": 1, "step_max": 2, "phase": "eval",
        "status": ["COMPLETED", "TRUNCATED"], "tag": "smoke", "meta.trial.min": 1,
        "meta.note": "10", "score_min": 0.25, "score_max": 1, "grader_name": "exact",
        "model_name": "elk-1", "env_name": "retail", "text": "for me", "start_min": seed.moments[0],
    }  # fmt: skip
    assert (
        compare(
            seed,
            everything,
            lambda r: (
                r["step_number"] in (1, 2)
                and r["status"] in ("COMPLETED", "TRUNCATED")
                and "smoke" in r["tags"]
                and r["metadata"]["note"] == "10"
                and r["score"] is not None
                and r["score"] >= 0.25
                and (r["grader_name"], r["model_name"], r["env_name"])
                == ("exact", "elk-1", "retail")
            ),
        )
        > 0
    )


@pytest.mark.parametrize("sort", ["start_time", "-start_time", "score", "-duration_ms", "cost_usd"])
def test_pages_of_any_size_and_order_end_where_the_list_does(seed: Seed, sort: str) -> None:
    for query, holds in (
        ({}, lambda rollout: True),
        ({"run_id": seed.run_id, "tag": "smoke"}, lambda r: "smoke" in r["tags"]),
        (
            {"text": "refund", "phase": "eval"},
            lambda r: said("refund")(r) and r["phase"] == "eval",
        ),
    ):
        for limit in (7, 51):
            assert compare(seed, {**query, "sort": sort}, holds, limit)


def test_each_trace_says_what_was_logged(seed: Seed) -> None:
    found = {trace["trace_id"]: trace for trace in seed.found({}, 1000)}
    for rollout in seed.rollouts:
        trace = found[rollout["trace_id"]]
        names = [name for name in rollout if name not in ("contents", "tools", "tags")]
        assert {name: trace[name] for name in names} == {name: rollout[name] for name in names}
        assert sorted(trace["tags"]) == sorted(rollout["tags"])
        assert (trace["messages"], trace["tool_calls"]) == (3, rollout["tools"])
    for rollout in seed.rollouts[::15]:
        path = f"/api/v1/traces/{rollout['trace_id']}/spans"
        spans = seed.service.get(path)["items"]
        contents = [span["content"] for span in spans if span["kind"] == "message"]
        assert contents == rollout["contents"]
        assert sum(span["kind"] == "tool" for span in spans) == rollout["tools"]
        assert [s["score"] for s in spans if s["kind"] == "grade"] == [
            score for score in [rollout["score"]] if score is not None
        ]


def test_the_eval_is_registered_and_production_only_by_its_datapoints(seed: Seed) -> None:
    def items(path: str) -> list[Any]:
        page = seed.service.get(f"/api/v1{path}limit=1000")
        assert page["next_cursor"] is None
        return page["items"]

    [run] = items("/runs?")
    assert (run["run_id"], run["project"], run["name"]) == (seed.run_id, PROJECT, "nightly")
    # Opening rollouts registered it again, and left alone what it was created with.
    assert (run["phase"], run["config"], run["tags"]) == ("eval", {"lr": 0.5}, ["n"])
    assert run["status"] == "completed"
    assert items("/runs?archived=true&") == []
    steps = [step["step_number"] for step in items(f"/runs/{seed.run_id}/steps?")]
    assert steps == sorted({r["step_number"] for r in seed.rollouts if r["phase"] == "eval"})
    assert len(steps) == 3

    def of(phase: str) -> list[str]:
        return sorted({r["datapoint_id"] for r in seed.rollouts if r["phase"] == phase})

    everywhere = [(each["project"], each["datapoint_id"]) for each in items("/datapoints?")]
    assert sorted(everywhere) == [
        *(("", datapoint_id) for datapoint_id in of("eval")),
        *((SERVICE, datapoint_id) for datapoint_id in of("prod")),
    ]
    assert (len(of("eval")), len(of("prod"))) == (50, 20)
    assert {project["name"] for project in items("/projects?")} == {PROJECT, SERVICE}
    # What is in production has no run, under its name least of all, and no steps.
    for path in (f"/runs/{quote(SERVICE)}", f"/runs/{quote(SERVICE)}/steps"):
        assert seed.service.request("GET", f"/api/v1{path}")[0] == 404
