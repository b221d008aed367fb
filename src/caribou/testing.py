"""What it takes to test a program that logs: a capture in memory, and a pytest fixture for it.

::

    from caribou.testing import capture

    def test_agent():
        with capture() as captured:
            run_agent()
        assert captured.traces[0]["status"] == "COMPLETED"
        assert [row["content"] for row in captured.messages] == ["Hello", "Hi"]

Inside, nothing is written to disk or sent anywhere, and neither the environment nor what the
program configured before is in force. For pytest, ``pytest_plugins = ["caribou.testing"]`` in
``conftest.py`` gives the fixture ``caribou_capture``, which does the same for one test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from ._recording import active, recording_with
from ._redact import Appender
from ._settings import Settings
from .delivery.accounting import FlushResult, SinkStats, Stats

__all__ = ["Capture", "capture"]

_TABLES: Final = ("spans", "traces", "entity_metadata", "trace_tags", "scores")


class _Lines:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def append(self, line: bytes | bytearray) -> None:
        """Take one row."""
        self.lines.append(bytes(line))


class Capture:
    """What was logged, as rows: dicts whose keys are the names of columns. A column at its default
    has no key. Lists are made anew at each look, in the order of logging."""

    def __init__(self) -> None:
        self._lines = {table: _Lines() for table in _TABLES}
        self.streams: Mapping[str, Appender] = self._lines
        self.accepting = True
        self.registrar: None = None
        self._dropped: Counter[str] = Counter()
        self._outside = 0

    @property
    def settings(self) -> Settings:
        """The settings in force: what the test itself gave to ``configure()``."""
        return active()

    @property
    def traces(self) -> list[dict[str, Any]]:
        """The summary of each rollout, as it is now."""
        return self._latest("traces", "root_span_id")

    @property
    def spans(self) -> list[dict[str, Any]]:
        """Every span: records, and scopes as they are now."""
        return self._latest("spans", "span_id")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of agents' conversations."""
        return self._of_kind("message")

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tool executions."""
        return self._of_kind("tool")

    @property
    def grades(self) -> list[dict[str, Any]]:
        """The grades."""
        return self._of_kind("grade")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events."""
        return self._of_kind("event")

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """Rows of ``entity_metadata``, every edit."""
        return self.rows("entity_metadata")

    @property
    def tags(self) -> list[dict[str, Any]]:
        """Rows of ``trace_tags``."""
        return self.rows("trace_tags")

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every row of a table as it was written.

        Args:
            table: ``spans``, ``traces``, ``entity_metadata``, ``trace_tags`` or ``scores``.

        Raises:
            KeyError: there is no such table.
        """
        return [msgspec.json.decode(line) for line in tuple(self._lines[table].lines)]

    def clear(self) -> None:
        """Forget what was captured so far."""
        for stream in self._lines.values():
            stream.lines.clear()

    def count_dropped(self, reason: str, rows: int) -> None:
        """Count rows that are not recorded, and why."""
        self._dropped[reason] += rows

    def count_outside(self) -> None:
        """Count a call that had no rollout to belong to."""
        self._outside += 1

    def stats(self) -> Stats:
        """What ``caribou.stats()`` gives."""
        rows = sum(len(stream.lines) for stream in self._lines.values())
        account = SinkStats(
            logged=rows + self._dropped.total(),
            recovered=0,
            delivered=rows,
            pending=0,
            dropped=dict(self._dropped),
        )
        return Stats(sinks={"capture": account}, outside_rollout=self._outside)

    def result(self) -> FlushResult:
        """What ``caribou.flush()`` gives: there is nothing to wait for."""
        return FlushResult(complete=True, seconds=0.0, sinks=self.stats().sinks)

    def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.spans if row["kind"] == kind]

    def _latest(self, table: str, key: str) -> list[dict[str, Any]]:
        latest: dict[str, dict[str, Any]] = {}
        for row in self.rows(table):
            known = latest.get(row[key])
            if known is None or row.get("version", 0) >= known.get("version", 0):
                latest[row[key]] = row
        return list(latest.values())


@contextmanager
def capture() -> Generator[Capture]:
    """Capture what any thread of this process logs, in place of recording it."""
    captured = Capture()
    with recording_with(captured):
        yield captured


try:
    import pytest
except ImportError:
    pass
else:

    @pytest.fixture(name="caribou_capture")
    def _caribou_capture() -> Iterator[Capture]:  # pyright: ignore[reportUnusedFunction]
        """What the test logs."""
        with capture() as captured:
            yield captured
