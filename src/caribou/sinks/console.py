"""The debug console (``CARIBOU_TRACE_DEBUG``): one readable line per span, written as it ends.

It runs in the I/O thread like any sink, so a slow terminal is never in the caller's way.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import msgspec

from .base import Batch

__all__ = ["Console"]

_COLOURS = {"message": "36", "tool": "33", "grade": "32", "event": "35"}
_TEXT_WIDTH = 100


def harmless(text: str) -> str:
    """``text`` on one line, without anything a terminal would act upon."""
    return "".join(c if c.isprintable() else " " for c in text)


class Console:
    """Writes spans to ``stream`` (standard error by default), in colour on a terminal."""

    name: str = "console"
    target: str = "console"
    tables: frozenset[str] = frozenset({"spans"})

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._colour = self._stream.isatty()

    def load(self) -> None:
        """Nothing to import."""

    async def send(self, batch: Batch) -> None:
        """Print the rows. A terminal that is gone is no reason to keep them."""
        rows = [msgspec.json.decode(row) for row in bytes(batch.data).splitlines()]
        # A scope's first row, written when it opens, has no end yet.
        lines = [self._line(row) for row in rows if row.get("status") != "PENDING"]
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            return

    async def confirm(self, batch: Batch) -> bool:
        """Nothing is printed twice."""
        return True

    async def aclose(self) -> None:
        """Nothing to release."""

    def _line(self, row: dict[str, Any]) -> str:
        seconds, _, fraction = str(row.get("start_time", "0")).partition(".")
        clock = int(seconds) % 86_400
        time = f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}.{fraction[:3]}"
        turn = f"{row.get('turn_index', 0)}.{row.get('intra_index', 0)}"
        name = harmless(str(row.get("name", "")))
        tokens = (row.get("input_tokens") or 0) + (row.get("output_tokens") or 0)
        facts = [
            f"{row['duration_ms']:.0f} ms" if row.get("duration_ms") else "",
            f"{tokens} tokens" if tokens else "",
            f"score {row['score']}" if row.get("score") is not None else "",
            harmless(str(row.get("status_message") or "")),
            _first_text(row),
        ]
        body = "  ".join(fact for fact in facts if fact)
        trace = harmless(str(row.get("trace_id", "")))[:8]
        if self._colour:
            failed = row.get("status") == "ERROR"
            colour = "31" if failed else _COLOURS.get(str(row.get("kind")), "34")
            name = f"\x1b[{colour}m{name}\x1b[0m"
        return f"{time} {trace} {turn:>6}  {name}  {body}\n"


def _first_text(row: dict[str, Any]) -> str:
    for key in ("content", "arguments", "result", "reasoning", "data"):
        value = row.get(key)
        if value:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            text = harmless(text[: _TEXT_WIDTH + 1])
            return text if len(text) <= _TEXT_WIDTH else text[:_TEXT_WIDTH] + "…"
    return ""
