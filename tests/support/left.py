"""One rollout, recorded here or by a program of its own, and what is left of it in the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import caribou.sync as caribou
from caribou import Grade, Message, ToolExecution
from caribou.journal.owner import owner_folders
from caribou.journal.reader import read_rows, segment_files

PROGRAM = """
import caribou.sync as c
with c.trace_run({"datapoint_id": "d", "phase": "eval", "run_id": "r"}):
    c.log(c.Message(role="user", content="hello"))
    with c.span("step"):
        c.log(c.Message(role="assistant", content="hi"))
        c.log(c.ToolExecution(name="look", result="sky"))
    c.log(c.Grade(score=0.5, grader_name="judge"))
"""

ROWS = {"spans": 6, "traces": 2, "scores": 1}
"""What is in the journal of such a program."""


def kept(home: Path) -> dict[str, int]:
    """How many rows of each table lie in the journal."""
    return {
        segment.table: rows.count(b"\n")
        for folder in owner_folders(home / "journal")
        for segment in segment_files(folder)
        if (rows := read_rows(segment, 0))
    }


def trace(datapoint_id: str = "d", **more: Any) -> None:
    """One rollout of five records, one of them a grade, and of six spans."""
    meta = {"datapoint_id": datapoint_id, "phase": "eval", "run_id": "r"} | more
    with caribou.trace_run(meta):
        caribou.log(Message(role="user", content="hello"))
        with caribou.span("step"):
            caribou.log(Message(role="assistant", content="hi", model="m", input_tokens=2))
            caribou.log(ToolExecution(name="look", result="sky"))
        caribou.log(Grade(score=0.5, grader_name="judge"))
