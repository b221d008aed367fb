"""Simulated rollouts for ``caribou demo``: a support desk whose agent gets better with training.

The contents follow from the seed alone; only times differ between two runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .. import (
    Event,
    Grade,
    Message,
    RolloutStatus,
    ToolExecution,
    add_meta,
    add_tags,
    log,
    set_status,
    span,
    trace_run,
)
from ._demo_tasks import Call, Task, make_task

__all__ = ["ROLLOUTS", "run_training"]

_STEPS = 5
_DATAPOINTS = 16
_SAMPLES = 4
ROLLOUTS = _STEPS * _DATAPOINTS * _SAMPLES

_MODEL = "demo-agent-8b"
_SYSTEM = (
    "You answer customers of an online shop. Look things up before you promise anything, and"
    " refund only what the policy allows."
)
# In the order in which the agent learns to keep them, the first ones last.
_CRITERIA = (
    "asks whether anything else is open",
    "gives the right answer",
    "looks everything up first",
    "tries to help",
)


class ShopError(RuntimeError):
    """The simulated shop does not answer."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One sample of one datapoint at one step."""

    step: int
    datapoint: int
    sample: int

    def random(self) -> Random:
        """A generator of its own: the host program's random state is not for Caribou to move."""
        return Random(f"{self.step}/{self.datapoint}/{self.sample}")


async def run_training(run_id: str, done: Callable[[], None]) -> None:
    """Roll out every sample of every step, those of one step all at once.

    Args:
        run_id: the run that they are filed under.
        done: called as each rollout ends.
    """
    for step in range(_STEPS):
        cases = [_Case(step, d, s) for d in range(_DATAPOINTS) for s in range(_SAMPLES)]
        async with asyncio.TaskGroup() as group:
            for case in cases:
                group.create_task(_supervised(run_id, case, done))


async def _supervised(run_id: str, case: _Case, done: Callable[[], None]) -> None:
    try:
        async with asyncio.timeout(0.6):
            await _rollout(run_id, case)
    except (ShopError, TimeoutError):
        pass  # What a training loop does with a failed sample; the trace has it all.
    finally:
        done()


async def _rollout(run_id: str, case: _Case) -> None:
    random = case.random()
    task = make_task(case.datapoint)
    skill = 0.35 + 0.12 * case.step
    failed = sum(random.random() >= skill for _ in _CRITERIA)
    about = {
        "run_id": run_id,
        "phase": "train",
        "step_number": case.step,
        "datapoint_id": f"ticket-{case.datapoint:02d}",
        "env_name": "support-desk",
        "model_name": _MODEL,
    }
    async with trace_run(about):  # pyright: ignore[reportArgumentType]
        difficulty = ("easy", "medium", "hard")[len(task.calls) - 1]
        add_meta({"sample": case.sample, "difficulty": difficulty})
        rollout = asyncio.current_task()
        if rollout is not None and random.random() < 0.02:
            # A sampler that has seen enough gives up on the rest.
            asyncio.get_running_loop().call_later(0.02, rollout.cancel)
        log(Message(role="system", content=_SYSTEM))
        log(Message(role="user", content=task.asked))
        for call in task.calls[: 1 if failed > 2 else None]:
            await _use_tool(random, call)
        await _think(random)
        log(_assistant(random, _answer(task, failed)))
        if random.random() < 0.03:
            set_status(RolloutStatus.TRUNCATED, "the context was full")
            add_tags("context-full")
            return
        async with span("grade", kind="grading"):
            await _think(random)
            log(_grade(failed))
        if not failed:
            add_tags("perfect")


def _answer(task: Task, failed: int) -> str:
    match failed:
        case 0:
            return f"{task.right} Is there anything else I can do for you?"
        case 1:
            return task.right
        case 2 | 3:
            return task.wrong
        case _:
            return "I cannot help you with that."


def _grade(failed: int) -> Grade:
    passed = len(_CRITERIA) - failed
    missed = "; ".join(_CRITERIA[:failed])
    return Grade(
        score=passed / len(_CRITERIA),
        grader_name="policy_check",
        grader_type="rubric",
        criteria=[{"name": name, "passed": i >= failed} for i, name in enumerate(_CRITERIA)],
        passed_count=passed,
        total_count=len(_CRITERIA),
        reasoning=f"Missed: {missed}." if failed else "All criteria are met.",
    )


async def _use_tool(random: Random, call: Call) -> None:
    call_id = f"call_{random.randrange(1 << 32):08x}"
    request = {
        "id": call_id,
        "type": "function",
        "function": {"name": call.tool, "arguments": json.dumps(call.arguments)},
    }
    await _think(random)
    log(_assistant(random, None, tool_calls=[request]))
    milliseconds = random.uniform(2, 20)
    await asyncio.sleep(milliseconds / 1000)
    if random.random() < 0.02:
        log(
            ToolExecution(
                name=call.tool,
                call_id=call_id,
                arguments=call.arguments,
                error="503 from the shop",
                duration_ms=milliseconds,
            )
        )
        raise ShopError(f"{call.tool} failed: 503 from the shop")
    if random.random() < 0.01:
        log(Event(name="shop_hangs", data={"tool": call.tool}))
        await asyncio.sleep(3600)
    result = json.dumps(call.result)
    log(
        ToolExecution(
            name=call.tool,
            call_id=call_id,
            arguments=call.arguments,
            result=result,
            duration_ms=milliseconds,
        )
    )
    log(Message(role="tool", content=result, tool_call_id=call_id, name=call.tool))


async def _think(random: Random) -> None:
    await asyncio.sleep(random.uniform(0.002, 0.02))


def _assistant(
    random: Random, content: str | None, tool_calls: Sequence[object] | None = None
) -> Message:
    tokens = random.randint(10, 120)
    return Message(
        role="assistant",
        content=content,
        tool_calls=tool_calls,
        model=_MODEL,
        input_tokens=random.randint(300, 900),
        output_tokens=tokens,
        cost_usd=tokens * 2e-6,
        duration_ms=random.uniform(200, 1500),
    )
