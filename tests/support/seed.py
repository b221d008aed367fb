"""The seed programme, run as ``python -m support.seed``: an eval and a service in production,
traced as their programs would trace them. What it logged it prints as JSON, from its own account.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

import caribou
from caribou import Event, Grade, Message, ToolExecution, TraceMeta

STEPS, DATAPOINTS = 3, 50
PROJECT, SERVICE = "air/line ü", "shop"
HOSTILE = 'it\'s "so" \\ {x:String} 🦌'
TAGS = {"smoke": 3, "hard": 7, HOSTILE: 11}
WORDS = ("refund", "Upgrade", "naïve", "seat_map")

Account = dict[str, Any]


async def attempt(run_id: str, step: int, number: int) -> Account:
    """One rollout of the eval; what was logged of it."""
    kept: Account = {
        "run_id": run_id,
        "phase": "eval",
        "step_number": step,
        "datapoint_id": f"task-{number:02}",
        "env_name": ("airline", "retail")[number % 2],
        "model_name": ("elk-1", "elk-2", HOSTILE)[number % 3],
        "grader_name": "exact" if number % 5 else "judge",
        "status": "COMPLETED",
        "score": None,
        "tags": [tag for tag, every in TAGS.items() if number % every == 0],
        "metadata": {
            "trial": str(step),
            "difficulty": str(number / 50),
            "note": "10" if number % 4 else HOSTILE,
        },
        "input_tokens": 100 + number,
        "tools": 1 + number % 2,
    }
    names = ("run_id", "phase", "step_number", "datapoint_id")
    meta: Any = {name: kept[name] for name in (*names, "env_name", "model_name", "grader_name")}
    try:
        async with caribou.trace_run(meta) as kept["trace_id"]:
            caribou.add_tags(*kept["tags"])
            caribou.add_meta(
                {"trial": step, "difficulty": number / 50, "note": kept["metadata"]["note"]}
            )
            await _talk(kept, f"Task {number}: {WORDS[number % 4]} for me, flight {step}.")
            for call in range(kept["tools"]):
                async with caribou.span("environment", kind="env_step"):
                    caribou.log(
                        ToolExecution(
                            name=f"tool_{call}", arguments={"n": number}, result="rhubarb"
                        )
                    )
            if number % 10 == 1:
                kept["status"] = "ERROR"
                raise RuntimeError("the environment is gone")
            if number % 10 == 2:
                kept["status"] = "TRUNCATED"
                caribou.set_status("TRUNCATED", "no turns left")
            kept["score"] = (number + step) % 5 / 4
            caribou.log(
                Grade(score=kept["score"], grader_name=kept["grader_name"], reasoning="So.")
            )
    except RuntimeError:
        pass
    return kept


async def serve(number: int) -> Account:
    """One conversation in production; what was logged of it."""
    kept: Account = {
        "run_id": SERVICE,
        "phase": "prod",
        "step_number": None,
        "datapoint_id": f"ticket-{number % 20:02}",
        "env_name": "",
        "model_name": "elk-2",
        "grader_name": "",
        "status": "COMPLETED" if number % 6 else "ABORTED",
        "score": None,
        "tags": ["vip"] if number % 4 == 0 else [],
        "metadata": {"trial": str(number)},
        "input_tokens": 100 + number,
        "tools": 0,
    }
    meta: TraceMeta = {"datapoint_id": kept["datapoint_id"], "model_name": kept["model_name"]}
    async with caribou.trace_run(meta) as kept["trace_id"]:
        caribou.add_tags(*kept["tags"])
        caribou.add_meta({"trial": number})
        await _talk(kept, f"Ticket {number}: {WORDS[number % 4]}, please.")
        caribou.log(Event(name="handover", data={"to": "nobody"}))
        caribou.set_status(kept["status"])
    return kept


async def _talk(kept: Account, question: str) -> None:
    kept["contents"] = ["You are kind.", question, "I see to it."]
    roles = ("system", "user")
    for role, content in zip(roles, kept["contents"], strict=False):
        caribou.log(Message(role=role, content=content))
        await asyncio.sleep(0)
    caribou.log(
        Message(
            role="assistant",
            content=kept["contents"][-1],
            model=kept["model_name"],
            input_tokens=kept["input_tokens"],
            output_tokens=5,
            cost_usd=0.25,
        )
    )


async def evaluate() -> dict[str, Any]:
    """The eval, step after step, the rollouts of a step at once."""
    client = caribou.get_kestrel_client()
    project = await client.get_or_create_project(name=PROJECT)
    run = await client.create_run(
        project_id=project.project_id, name="nightly", phase="eval", config={"lr": 0.5}, tags=["n"]
    )
    rollouts: list[Account] = []
    moments: list[str] = []
    for step in range(STEPS):
        rollouts += await asyncio.gather(
            *(attempt(run.run_id, step, number) for number in range(DATAPOINTS))
        )
        moments.append(datetime.now(UTC).isoformat())
    await client.update_run(run.run_id, status="completed", finished=True)
    return {"run_id": run.run_id, "rollouts": rollouts, "moments": moments}


async def production() -> dict[str, Any]:
    """The service: all it asks of Kestrel by itself is its project."""
    project = await caribou.get_kestrel_client().get_or_create_project(name=SERVICE)
    caribou.configure(run_id=project.name, phase="prod")
    return {"rollouts": await asyncio.gather(*(serve(number) for number in range(30)))}


async def main() -> None:
    programme = {"evaluate": evaluate, "production": production}[sys.argv[1]]
    account = await programme()
    result = await caribou.shutdown(60)
    assert result.complete, result
    print(json.dumps({**account, "rows": result.sinks["local"].logged}))


if __name__ == "__main__":
    asyncio.run(main())
