"""A few hundred rollouts with known figures, stored as the writer would store them: each summary
as it began and as it ended, some delivered twice, some still running."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from caribou.server.backend import Backend

START = datetime(2026, 3, 30, tzinfo=UTC)  # two months are in it
HOSTILE = 'it\'s \\ a\ttab\n"quoted" {x:String} ü🦌'
RUNS = ("train-1", "train-2", "eval-1", "shop", HOSTILE)
WORDS = ("refund", "flight", "seat", "Upgrade", "naïve", "get_user", "我要退款。")


@dataclass
class Rollout:
    """One rollout as it is at last."""

    trace: dict[str, Any]
    contents: list[str] = field(default_factory=list[str])
    numbers: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def metadata(self) -> dict[str, str]:
        return self.trace["metadata"]


def make_rollouts(count: int, seed: int = 7) -> list[Rollout]:
    """``count`` rollouts, the same ones for the same seed."""
    chance = random.Random(seed)
    made: list[Rollout] = []
    for number in range(count):
        run = chance.choice(RUNS)
        prod = run == "shop"
        # Many begin at the very same moment.
        start = START + timedelta(minutes=10 * (number // 3), microseconds=number // 7)
        status = chance.choice(["COMPLETED"] * 6 + ["ERROR", "TRUNCATED", "PENDING"])
        running = status == "PENDING"
        numbers = {"trial": float(number % 4), "difficulty": chance.randrange(100) / 100}
        metadata = {"trial": str(number % 4), "difficulty": f"{numbers['difficulty']}"}
        metadata["note"] = chance.choice(["plain", "10", HOSTILE])
        usage = {
            model: {"input_tokens": chance.randrange(900), "cost_usd": chance.randrange(99) / 128}
            for model in chance.sample(["gpt", "claude", "grader"], 2)
        }
        trace: dict[str, Any] = {
            "trace_id": f"{chance.getrandbits(128):032x}",
            "root_span_id": f"{chance.getrandbits(64):016x}",
            "run_id": run,
            "phase": "prod" if prod else "train" if run.startswith("train") else "eval",
            "step_number": None if prod else number % 5,
            "datapoint_id": f"task-{number % 11}",
            "env_name": chance.choice(["airline", "retail"]),
            "model_name": chance.choice(["policy-a", "policy-b"]),
            "grader_name": "" if prod else chance.choice(["reward", "judge"]),
            "status": status,
            "start_time": start,
            "duration_ms": None if running else float(chance.randrange(50) * 100),
            "input_tokens": 0 if running else sum(u["input_tokens"] for u in usage.values()),
            "output_tokens": 0 if running else number,
            "cost_usd": 0.0 if running else sum(u["cost_usd"] for u in usage.values()),
            "usage": {} if running else usage,
            "score": None if running or prod else chance.choice([None, 0.0, 0.25, 1.0, 1.0]),
            "tags": sorted(chance.sample(["good", "bad", HOSTILE], chance.randrange(3))),
            "metadata": metadata,
        }
        contents = [
            " ".join(chance.choices(WORDS, k=2)) + chance.choice([".", "!", ", flights", ""])
            for _ in range(3)
        ]
        made.append(Rollout(trace, contents, numbers))
    return made


async def store_rollouts(backend: Backend, rollouts: list[Rollout]) -> None:
    """Store them; every second one that has ended in two versions, in inserts of their own."""
    began = [_summary(rollout, version=0) for rollout in rollouts[::2]]
    ended = [_summary(rollout, version=1) for rollout in rollouts if not _runs(rollout)]
    running = [_summary(rollout, version=0) for rollout in rollouts if _runs(rollout)]
    await backend.insert("traces", began)
    await backend.insert("traces", ended + running)
    await backend.insert("traces", ended[::5])
    tags: list[dict[str, Any]] = []
    metadata: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    for rollout in rollouts:
        trace = rollout.trace
        ids = {"run_id": trace["run_id"], "trace_id": trace["trace_id"]}
        tags += [{**ids, "tag": tag} for tag in trace["tags"]]
        for key, value in rollout.metadata.items():
            row: dict[str, Any] = {
                "entity_type": "trace", "key": key, "run_id": trace["run_id"],
                "entity_id": trace["trace_id"], "value": value, "version": 2,
            }  # fmt: skip
            if key in rollout.numbers:
                row["value_number"] = rollout.numbers[key]
            metadata.append(row)
            # What it was before somebody edited it.
            metadata.append({**row, "value": "old", "value_number": 0.995, "version": 1})
        spans += _spans(rollout)
    await backend.insert("trace_tags", tags)
    await backend.insert("entity_metadata", metadata)
    await backend.insert("spans", spans)
    await backend.insert("spans", spans[::3])


def _runs(rollout: Rollout) -> bool:
    return rollout.trace["status"] == "PENDING"


def _summary(rollout: Rollout, version: int) -> dict[str, Any]:
    trace = {**rollout.trace, "version": version}
    if version == 0:
        for name in ("duration_ms", "score", "usage", "tags", "metadata"):
            trace.pop(name)
        trace |= {"status": "PENDING", "cost_usd": 0, "input_tokens": 0, "output_tokens": 0}
    trace["start_time"] = _stamp(trace["start_time"])
    if trace["step_number"] is None:
        del trace["step_number"]
    return trace


def _spans(rollout: Rollout) -> list[dict[str, Any]]:
    trace = rollout.trace
    shared = {
        name: trace[name]
        for name in ("run_id", "trace_id", "phase", "datapoint_id", "env_name", "model_name")
    } | {"parent_span_id": trace["root_span_id"], "start_time": _stamp(trace["start_time"])}
    if trace["step_number"] is not None:
        shared["step_number"] = trace["step_number"]
    seed = int(trace["root_span_id"], 16)
    rows: list[dict[str, Any]] = []
    for seq, content in enumerate(rollout.contents):
        rows.append({**shared, "seq": seq, "kind": "message", "role": "user", "content": content})
    tool = {"kind": "tool", "tool_name": f"tool_{seed % 3}", "duration_ms": float(seed % 1000)}
    status = "ERROR" if seed % 4 == 0 else ""
    rows.append({**shared, **tool, "seq": len(rows), "status": status, "result": "marmalade"})
    for row in rows:
        row["span_id"] = f"{(seed + row['seq'] + 1) % 2**64:016x}"
    return rows


def _stamp(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S.%f}001"
