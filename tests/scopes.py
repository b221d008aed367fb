"""Saying things in rollouts and spans, and finding out where they were stored."""

from __future__ import annotations

from caribou import Message, log
from caribou.testing import Capture

META = {"datapoint_id": "d", "phase": "train"}


def say(text: str) -> None:
    log(Message(role="user", content=text))


def parents(captured: Capture) -> dict[str, str]:
    """Each message's parent by name: a span's name, or the datapoint of the rollout."""
    names = {row["span_id"]: row["name"] for row in captured.spans if row["kind"] == "span"}
    names |= {row["root_span_id"]: row["datapoint_id"] for row in captured.traces}
    return {row["content"]: names[row["parent_span_id"]] for row in captured.messages}


def lateness(captured: Capture) -> dict[str, bool]:
    return {row.get("content", row["name"]): row.get("late", False) for row in captured.spans}


def meta(name: str) -> dict[str, str]:
    return META | {"datapoint_id": name}
