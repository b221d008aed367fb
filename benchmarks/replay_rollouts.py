"""Replay recorded rollouts as concurrent agents, and check by SQL that all of it arrived, and by
Kestrel's API that it says the same of them.

    python benchmarks/replay_rollouts.py FILE

FILE is a JSON array of rollouts as tau-bench publishes them: ``task_id``, ``trial``, ``reward``
and ``traj``, a list of OpenAI-style chat messages. Every rollout becomes an asyncio task that logs
through the public API; all run at once. What is then read back, with ``caribou sql``, comes from
the ClickHouse server in ``CLICKHOUSE_URL``, or else from the local store in ``CARIBOU_HOME``; then
``caribou serve`` is started over it and asked. Exit code 1 when anything differs from the source.
Where the variables of Langfuse or of an OTLP backend are set, the rollouts go there as well; what
arrives there is compared by ``langfuse_rollouts.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import kestrel

import caribou
from caribou.kestrel import BlockingKestrelClient, KestrelClient

PASS_AT = (1, 2, 3, 4)
PASS_QUERY = """
SELECT k, avg(arrayProduct(i -> (rewarded - i) / (trials - i), range(k))) AS pass
FROM (SELECT datapoint_id, count() AS trials, countIf(score = 1) AS rewarded
      FROM traces WHERE run_id = '{run}' GROUP BY datapoint_id)
ARRAY JOIN [1, 2, 3, 4] AS k
GROUP BY k ORDER BY k
"""

Rollout = dict[str, Any]
Chat = list[dict[str, Any]]


async def run_agent(rollout: Rollout, run: str, pauses: random.Random) -> str:
    """Log one rollout as its agent would have; returns the trace's id."""
    meta: caribou.TraceMeta = {
        "datapoint_id": str(rollout["task_id"]),
        "run_id": run,
        "phase": "eval",
        "env_name": "airline",
        "model_name": "gpt-4o",
        "grader_name": "reward",
    }
    async with caribou.trace_run(meta) as trace_id:
        caribou.add_meta({"trial": rollout["trial"]})
        calls: dict[str, Any] = {}
        for message in rollout["traj"]:
            await asyncio.sleep(pauses.random() / 100)
            if message["role"] == "tool":
                call = calls[message["tool_call_id"]]
                caribou.log(
                    caribou.ToolExecution(
                        name=message["name"],
                        call_id=message["tool_call_id"],
                        arguments=call["arguments"],
                        result=message["content"],
                    )
                )
            for call in message.get("tool_calls") or ():
                calls[call["id"]] = call["function"]
            caribou.log(caribou.Message(**message))
        caribou.log(
            caribou.Grade(score=rollout["reward"], grader_name="reward", grader_type="environment")
        )
    return trace_id


def sql(statement: str) -> list[dict[str, Any]]:
    """Rows of a query, as the command line prints them."""
    command = [sys.executable, "-m", "caribou", "sql", "--json", statement]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def turns_of(chat: Chat) -> list[tuple[int, int]]:
    """Turn and intra index of every message, from the definition: a list of turns is cut anew."""
    turns: list[Chat] = []
    for message in chat:
        answered = bool(turns) and any(other["role"] == "assistant" for other in turns[-1])
        if not turns or (answered and message["role"] != "tool"):
            turns.append([])
        turns[-1].append(message)
    return [(t, i) for t, turn in enumerate(turns) for i, _ in enumerate(turn)]


def expected_messages(chat: Chat) -> list[tuple[Any, ...]]:
    """What ``spans`` must say of a chat's messages, in order."""
    return [
        (
            message["role"],
            message["content"],
            json.dumps(message.get("tool_calls") or []),
            message.get("tool_call_id", ""),
            message.get("name", ""),
            *turn,
        )
        for message, turn in zip(chat, turns_of(chat), strict=True)
    ]


def expected_tools(chat: Chat) -> list[tuple[Any, ...]]:
    """What ``spans`` must say of a chat's tool executions: at the place of the message before.

    Ids of calls repeat within a chat: the latest call before the answer is meant.
    """
    turns = turns_of(chat)
    arguments: dict[str, str] = {}
    tools: list[tuple[Any, ...]] = []
    for at, message in enumerate(chat):
        for call in message.get("tool_calls") or ():
            arguments[call["id"]] = call["function"]["arguments"]
        if message["role"] == "tool":
            call_id = message["tool_call_id"]
            place = turns[at - 1]
            tools.append((message["name"], call_id, arguments[call_id], message["content"], *place))
    return tools


def check(rollouts: dict[str, Rollout], run: str) -> list[str]:
    """Compare everything stored for ``run`` with the source; returns what differs."""
    differences: list[str] = []

    def compare(what: str, seen: object, wanted: object) -> None:
        if isinstance(seen, list) and isinstance(wanted, list) and len(seen) == len(wanted):
            for at, (one, other) in enumerate(zip(seen, wanted, strict=True)):
                compare(f"{what} [{at}]", one, other)
        elif seen != wanted:
            differences.append(f"{what}: {seen!r:.500}, but should be {wanted!r:.500}")

    spans: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sql(
        "SELECT trace_id, seq, kind, role, content, tool_calls, tool_call_id, tool_name, arguments,"
        " result, turn_index, intra_index, score, late, sanitized FROM spans"
        f" WHERE run_id = '{run}' ORDER BY trace_id, seq"
    ):
        spans[row["trace_id"]].append(row)
    compare("traces with spans", sorted(spans), sorted(rollouts))
    seen_kinds = {"message": 0, "tool": 0, "grade": 0}
    for trace_id, rollout in rollouts.items():
        kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in seen_kinds}
        for row in spans[trace_id]:
            kinds[row["kind"]].append(row)
            seen_kinds[row["kind"]] += 1
            compare(f"{trace_id} {row['seq']}", (row["late"], row["sanitized"]), (False, ""))
        messages = [
            (
                row["role"],
                row["content"],
                json.dumps(json.loads(row["tool_calls"] or "[]")),
                row["tool_call_id"],
                row["tool_name"],
                int(row["turn_index"]),
                int(row["intra_index"]),
            )
            for row in kinds["message"]
        ]
        compare(f"messages of {trace_id}", messages, expected_messages(rollout["traj"]))
        tools = [
            (
                row["tool_name"],
                row["tool_call_id"],
                row["arguments"],
                row["result"],
                int(row["turn_index"]),
                int(row["intra_index"]),
            )
            for row in kinds["tool"]
        ]
        compare(f"tools of {trace_id}", tools, expected_tools(rollout["traj"]))
        grades = [row["score"] for row in kinds["grade"]]
        compare(f"grades of {trace_id}", grades, [rollout["reward"]])
    chats = [rollout["traj"] for rollout in rollouts.values()]
    compare("messages", seen_kinds["message"], sum(map(len, chats)))
    compare("tools", seen_kinds["tool"], sum(len(expected_tools(chat)) for chat in chats))
    compare("grades", seen_kinds["grade"], len(rollouts))
    check_traces(rollouts, run, compare)
    print("stored:", ", ".join(f"{count:,} {kind}" for kind, count in seen_kinds.items()))
    return differences


def check_traces(rollouts: dict[str, Rollout], run: str, compare: Any) -> None:
    """Compare the summaries, the grades' own table and the metadata."""
    summaries = sql(
        "SELECT trace_id, datapoint_id, status, score, turns, messages, tool_calls,"
        f" metadata['trial'] AS trial FROM traces WHERE run_id = '{run}' ORDER BY trace_id"
    )
    compare("summaries", [row["trace_id"] for row in summaries], sorted(rollouts))
    for row in summaries:
        rollout = rollouts[row["trace_id"]]
        chat = rollout["traj"]
        seen = (row["datapoint_id"], row["status"], row["score"], row["trial"])
        wanted = (str(rollout["task_id"]), "COMPLETED", rollout["reward"], str(rollout["trial"]))
        compare(f"summary of {row['trace_id']}", seen, wanted)
        counted = tuple(int(row[name]) for name in ("turns", "messages", "tool_calls"))
        answers = sum(message["role"] == "assistant" for message in chat)
        wanted_counts = (answers, len(chat), len(expected_tools(chat)))
        compare(f"totals of {row['trace_id']}", counted, wanted_counts)
    scores = sql(f"SELECT trace_id, score FROM scores WHERE run_id = '{run}'")
    wanted_scores = sorted((trace_id, rollout["reward"]) for trace_id, rollout in rollouts.items())
    compare("scores", sorted((row["trace_id"], row["score"]) for row in scores), wanted_scores)


def pass_hat(rollouts: list[Rollout]) -> list[float]:
    """pass^k of the source, from the definition: of n trials of a task, c were rewarded."""
    trials: dict[Any, list[float]] = defaultdict(list)
    for rollout in rollouts:
        trials[rollout["task_id"]].append(rollout["reward"])
    return [
        fmean(comb(int(sum(rewards)), k) / comb(len(rewards), k) for rewards in trials.values())
        for k in PASS_AT
    ]


def check_pass(by: str, seen: list[float], rollouts: list[Rollout]) -> list[str]:
    """Print pass^k as somebody computed it; returns where the source says something else."""
    shown = [f"{each:.3f}" for each in seen]
    wanted = [f"{each:.3f}" for each in pass_hat(rollouts)]
    print(f"pass^1..{len(shown)} by {by}: {' '.join(shown)}")
    return [] if shown == wanted else [f"pass^k by {by}: {shown}, but should be {wanted}"]


def pass_by_sql(run: str) -> list[float]:
    """pass^k from a query over the view ``traces``."""
    return [row["pass"] for row in sql(PASS_QUERY.format(run=run))]


def pass_by_api(run: str) -> list[float]:
    """pass^k from Kestrel, over all traces of the run."""
    with kestrel() as url, BlockingKestrelClient(KestrelClient(url)) as client:
        start = time.perf_counter()
        found = client.aggregate_pass_k(k=max(PASS_AT), run_id=run)
        print(f"{url} answers for {found.datapoints} datapoints", end=" ")
        print(f"in {(time.perf_counter() - start) * 1000:.0f} ms")
        return found.pass_k


async def replay(rollouts: list[Rollout], run: str) -> dict[str, Rollout]:
    """Run all agents at once and wait for delivery; returns the rollouts by trace id."""
    pauses = random.Random(0)
    start = time.perf_counter()
    agents = (run_agent(rollout, run, pauses) for rollout in rollouts)
    trace_ids = await asyncio.gather(*agents)
    logged = time.perf_counter() - start
    result = await caribou.shutdown(60)
    print(f"{len(rollouts)} concurrent agents ran for {logged:.2f} s; {result}")
    return dict(zip(trace_ids, rollouts, strict=True))


def main() -> int:
    """Replay, check, and say what was found."""
    parser = argparse.ArgumentParser(description="Replay rollouts and verify what was stored.")
    parser.add_argument("file", type=Path, help="JSON array of rollouts")
    rollouts: list[Rollout] = json.loads(parser.parse_args().file.read_text())
    run = f"replay-{os.urandom(4).hex()}"
    print(f"run {run}")
    by_trace = asyncio.run(replay(rollouts, run))
    differences = check(by_trace, run)
    differences += check_pass("SQL", pass_by_sql(run), rollouts)
    differences += check_pass("the API", pass_by_api(run), rollouts)
    for difference in differences[:20]:
        print(difference, file=sys.stderr)
    print(f"{len(differences)} differences" if differences else "everything equals its source")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
