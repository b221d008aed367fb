"""Recorded rollouts to ClickHouse, to an OTLP receiver and to Langfuse, compared row by row.

    python benchmarks/langfuse_rollouts.py FILE

FILE is as for ``replay_rollouts.py``. Every rollout becomes an asyncio task that logs through the
public API; all run at once, and everything goes to three places at once: the embedded ClickHouse
engine behind HTTP (extra ``local``), a receiver that decodes OTLP with the official package, and
the tests' model of Langfuse. The file tells no tokens and costs, so each answer of the model is
given some. Exit code 1 when anything that arrived differs from what ClickHouse holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.langfuse import langfuse, settings
from support.otlp import receiver
from support.readback import differences
from support.servers import DoorServer

import caribou

Rollout = dict[str, Any]


async def run_agent(rollout: Rollout, run: str, chance: random.Random) -> None:
    """Log one rollout as its agent would have."""
    meta: caribou.TraceMeta = {
        "datapoint_id": str(rollout["task_id"]),
        "run_id": run,
        "phase": "eval",
        "env_name": "airline",
        "model_name": "gpt-4o",
        "grader_name": "reward",
    }
    async with caribou.trace_run(meta):
        caribou.add_meta({"trial": rollout["trial"], "session_id": f"task-{rollout['task_id']}"})
        caribou.add_tags("tau-bench", f"trial-{rollout['trial']}")
        calls: dict[str, Any] = {}
        for message in rollout["traj"]:
            await asyncio.sleep(chance.random() / 100)
            if message["role"] == "tool":
                async with caribou.span("environment", attributes={"tool": message["name"]}):
                    caribou.log(
                        caribou.ToolExecution(
                            name=message["name"],
                            call_id=message["tool_call_id"],
                            arguments=calls[message["tool_call_id"]]["arguments"],
                            result=message["content"],
                            duration_ms=chance.random() * 10,
                        )
                    )
            for call in message.get("tool_calls") or ():
                calls[call["id"]] = call["function"]
            caribou.log(caribou.Message(**message, **usage(message, chance)))
        caribou.log(
            caribou.Grade(score=rollout["reward"], grader_name="reward", grader_type="environment")
        )


def usage(message: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """What an answer of the model took; nothing for other messages."""
    if message["role"] != "assistant":
        return {}
    return {
        "provider": "openai",
        "input_tokens": chance.randrange(4000),
        "output_tokens": chance.randrange(400),
        "cache_read_tokens": chance.randrange(2000),
        "cost_usd": chance.randrange(1000) / 65536,
        "duration_ms": chance.random() * 1000,
    }


async def record(rollouts: list[Rollout], run: str) -> caribou.FlushResult:
    """Run all agents at once and wait for delivery."""
    chance = random.Random(0)
    start = time.perf_counter()
    await asyncio.gather(*(run_agent(rollout, run, chance) for rollout in rollouts))
    logged = time.perf_counter()
    result = await caribou.shutdown(120)
    delivered = time.perf_counter() - logged
    print(f"{len(rollouts)} concurrent agents: {logged - start:.2f} s, and {delivered:.2f} s more")
    return result


def main() -> int:
    """Record, compare, and say what was found."""
    parser = argparse.ArgumentParser(description="Rollouts to Langfuse and OTLP, verified.")
    parser.add_argument("file", type=Path, help="JSON array of rollouts")
    rollouts: list[Rollout] = json.loads(parser.parse_args().file.read_text())
    with tempfile.TemporaryDirectory() as folder, langfuse() as there, receiver() as collector:
        door = DoorServer(Path(folder) / "engine")
        door.start()
        try:
            caribou.configure(
                **settings(there),
                otlp=collector.url,
                clickhouse_url=door.url,
                clickhouse_database="bench",
                home=Path(folder) / "home",
            )
            result = asyncio.run(record(rollouts, f"replay-{os.urandom(4).hex()}"))
            for name, sink in result.sinks.items():
                print(f"{name}: {sink.delivered:,} of {sink.logged:,} rows delivered")
            found, counts = differences(
                lambda sql: door.rows(sql.format(database="bench")), collector, there
            )
        finally:
            door.stop()
        size = sum(request.size for request in collector.requests)
        print(f"OTLP: {len(collector.requests)} requests, {size:,} bytes before compression")
        for row, spans in ((collector, "OTLP"), (there, "Langfuse")):
            print(f"{spans}: {len(row.spans):,} spans, {row.received:,} received")
    print("compared:", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for difference in found[:20]:
        print(difference, file=sys.stderr)
    print(f"{len(found)} differences" if found else "everything equals what ClickHouse holds")
    return 1 if found or not result.complete else 0


if __name__ == "__main__":
    sys.exit(main())
