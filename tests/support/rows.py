"""Journal lines for tests that have no rollout to make them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from caribou.sinks.base import Batch

START = 1_790_000_000  # seconds since the epoch, in the past of every machine with a right clock


def span_lines(count: int, *, trace_id: str = "", **more: Any) -> list[dict[str, Any]]:
    """``count`` message rows of one trace, each with a content of its own."""
    trace_id = trace_id or os.urandom(16).hex()
    return [
        {
            "run_id": "run",
            "trace_id": trace_id,
            "seq": number,
            "span_id": f"{number + 1:016x}",
            "start_time": f"{START + number}.{number:09d}",
            "kind": "message",
            "name": "message.user",
            "role": "user",
            "content": f"content {number}",
            **more,
        }
        for number in range(count)
    ]


def make_batch(
    rows: Sequence[Mapping[str, Any] | bytes], *, table: str = "spans", batch_id: str = ""
) -> Batch:
    """A batch of these rows; one given as bytes is put in as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return Batch(
        table=table,
        batch_id=batch_id or f"b-{os.urandom(6).hex()}",
        rows=len(lines),
        data=memoryview(b"".join(line + b"\n" for line in lines)),
    )
