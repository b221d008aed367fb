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

__all__ = ["ROLLOUTS", "run_training"]

_STEPS = 5
_DATAPOINTS = 16
_SAMPLES = 4
ROLLOUTS = _STEPS * _DATAPOINTS * _SAMPLES

_MODEL = "demo-agent-8b"
_ITEMS = ("a kettle", "running shoes", "a desk lamp", "a rain jacket", "headphones", "a tent")
_WISHES = (
    "I never got {item} that I ordered last week.",
    "I want to send back {item}, it is not what the picture showed.",
    "Why was I charged twice for {item}?",
    "Please change the delivery address for {item}.",
)
_SYSTEM = (
    "You answer customers of an online shop. Look orders up before you promise anything, and"
    " refund only what the policy allows: unopened, within 30 days."
)
_ANSWERS = (
    "I have refunded order {order}; the money is back on your card within 3 days.",
    "Order {order} is on its way again and should arrive tomorrow.",
    "I am sorry, order {order} is past the 30 days, so I cannot refund it.",
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
    order = f"A{random.randrange(10_000, 99_999)}"
    skill = 0.35 + 0.12 * case.step
    about = {
        "run_id": run_id,
        "phase": "train",
        "step_number": case.step,
        "datapoint_id": f"ticket-{case.datapoint:02d}",
        "env_name": "support-desk",
        "model_name": _MODEL,
    }
    async with trace_run(about):  # pyright: ignore[reportArgumentType]
        add_meta({"sample": case.sample, "difficulty": random.choice(["easy", "medium", "hard"])})
        task = asyncio.current_task()
        if task is not None and random.random() < 0.02:
            # A sampler that has seen enough gives up on the rest.
            asyncio.get_running_loop().call_later(0.02, task.cancel)
        log(Message(role="system", content=_SYSTEM))
        wish = random.choice(_WISHES).format(item=random.choice(_ITEMS))
        log(Message(role="user", content=f"{wish} Order {order}."))
        for number in range(random.randint(1, 4)):
            await _use_tool(random, number, order)
        await _think(random)
        log(_assistant(random, random.choice(_ANSWERS).format(order=order)))
        if random.random() < 0.03:
            set_status(RolloutStatus.TRUNCATED, "the context was full")
            add_tags("context-full")
            return
        async with span("grade", kind="grading"):
            await _think(random)
            passed = sum(random.random() < skill for _ in range(4))
            log(
                Grade(
                    score=passed / 4,
                    grader_name="policy_check",
                    grader_type="rubric",
                    passed_count=passed,
                    total_count=4,
                    reasoning="Looked the order up, kept to the policy, told the customer.",
                )
            )
        if passed == 4:
            add_tags("perfect")


async def _use_tool(random: Random, number: int, order: str) -> None:
    tool = ("lookup_order", "check_policy", "refund", "send_mail")[number]
    call_id = f"call_{random.randrange(1 << 32):08x}"
    arguments = {"order": order}
    call = {
        "id": call_id,
        "type": "function",
        "function": {"name": tool, "arguments": json.dumps(arguments)},
    }
    await _think(random)
    log(_assistant(random, None, tool_calls=[call]))
    milliseconds = random.uniform(2, 20)
    await asyncio.sleep(milliseconds / 1000)
    if random.random() < 0.02:
        log(
            ToolExecution(
                name=tool,
                call_id=call_id,
                arguments=arguments,
                error="503 from the shop",
                duration_ms=milliseconds,
            )
        )
        raise ShopError(f"{tool} failed: 503 from the shop")
    if random.random() < 0.01:
        log(Event(name="shop_hangs", data={"tool": tool}))
        await asyncio.sleep(3600)
    result = json.dumps({"order": order, "status": "delivered", "days": random.randint(1, 60)})
    log(
        ToolExecution(
            name=tool,
            call_id=call_id,
            arguments=arguments,
            result=result,
            duration_ms=milliseconds,
        )
    )
    log(Message(role="tool", content=result, tool_call_id=call_id, name=tool))


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
