"""Span exporters for tests, and rollouts to give them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import caribou
import caribou.sync
from caribou import Message, log

META: dict[str, Any] = {"datapoint_id": "dp", "run_id": "run", "phase": "eval", "step_number": 3}


class Odd(SpanExporter):
    """An exporter that does what it is told, and keeps what it got."""

    def __init__(self, does: Callable[[Sequence[ReadableSpan]], Any] = lambda spans: None) -> None:
        self.does = does
        self.calls: list[list[str]] = []
        self.ended: list[str] = []
        self._inside = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls.append([ids(span) for span in spans])
        # Never two calls at once.
        assert self._inside.acquire(blocking=False)
        try:
            return self.does(spans)
        finally:
            self._inside.release()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.ended.append("force_flush")
        return True

    def shutdown(self) -> None:
        self.ended.append("shutdown")


def ids(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def success(spans: Sequence[ReadableSpan]) -> SpanExportResult:
    return SpanExportResult.SUCCESS


def rollout(count: int = 3, *, opened: Callable[[], object] = lambda: None, **meta: Any) -> None:
    with caribou.sync.trace_run({**META, **meta}):
        opened()
        for number in range(count):
            log(Message(role="user", content=f"content {number}"))


def account(name: str) -> tuple[int, int, int]:
    stats = caribou.stats().sinks[name]
    assert stats.logged == stats.delivered + stats.pending + sum(stats.dropped.values())
    return stats.logged, stats.delivered, stats.pending


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
