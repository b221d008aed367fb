"""The tracers that are measured, each behind the same few calls.

One record is one call of ``record``. What is the same in a whole trace, OpenTelemetry users put on
the root span; Caribou writes it in every row.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

ROLES = ("user", "assistant")


class Side(Protocol):
    """One tracer."""

    def rollout(self, number: int) -> AbstractAsyncContextManager[object]:
        """The scope of one rollout."""
        ...

    def record(self, index: int, content: str) -> None:
        """Record one message of the current rollout."""
        ...

    async def finish(self) -> None:
        """Wait until everything is delivered, and stop."""
        ...


class Bare:
    """No tracer: what the loop and the measuring cost by themselves."""

    @contextlib.asynccontextmanager
    async def rollout(self, number: int) -> AsyncIterator[None]:
        """Nothing."""
        yield

    def record(self, index: int, content: str) -> None:
        """Nothing."""

    async def finish(self) -> None:
        """Nothing."""


class Caribou:
    """Caribou with the journal on disk, delivering to what the environment names."""

    def __init__(self) -> None:
        import caribou

        self._caribou = caribou
        self._log = caribou.log
        self._message = caribou.Message
        caribou.configure(run_id="bench", phase="train")

    def rollout(self, number: int) -> AbstractAsyncContextManager[object]:
        """One ``trace_run``."""
        return self._caribou.trace_run(
            {
                "datapoint_id": f"datapoint-{number}",
                "step_number": 1,
                "env_name": "bench",
                "model_name": "model",
            }
        )

    def record(self, index: int, content: str) -> None:
        """One ``log``."""
        self._log(self._message(role=ROLES[index & 1], content=content))

    async def finish(self) -> None:
        """Flush and shut down."""
        result = await self._caribou.flush(60)
        await self._caribou.shutdown(10)
        if not result.complete:
            raise SystemExit(f"not everything was delivered: {result}")


class OpenTelemetry:
    """opentelemetry-sdk: BatchSpanProcessor and the OTLP/HTTP exporter."""

    def __init__(self, queue: int | None = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource({"service.name": "bench"}))
        exporter = OTLPSpanExporter(f"{os.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=queue))
        self._tracer = self._provider.get_tracer("bench")

    @contextlib.asynccontextmanager
    async def rollout(self, number: int) -> AsyncIterator[None]:
        """One root span."""
        attributes = {
            "run_id": "bench",
            "phase": "train",
            "datapoint_id": f"datapoint-{number}",
            "step_number": 1,
            "env_name": "bench",
            "model_name": "model",
        }
        with self._tracer.start_as_current_span("rollout", attributes=attributes):
            yield

    def record(self, index: int, content: str) -> None:
        """One child span with the attributes of a message."""
        role = ROLES[index & 1]
        attributes: dict[str, str | int] = {
            "kind": "message",
            "role": role,
            "content": content,
            "seq": index,
            "turn_index": index >> 1,
            "intra_index": index & 1,
        }
        self._tracer.start_span(f"message.{role}", attributes=attributes).end()

    async def finish(self) -> None:
        """Flush and shut down."""
        self._provider.force_flush(120_000)
        self._provider.shutdown()


def make(name: str) -> Side:
    """The side called ``name``; the names are in :data:`SIDES`."""
    return SIDES[name]()


SIDES = {
    "bare": Bare,
    "caribou": Caribou,
    "caribou-kestrel": Caribou,
    "caribou-langfuse": Caribou,
    "caribou-native": Caribou,
    "caribou-otlp": Caribou,
    "sdk": OpenTelemetry,
    "sdk-raised": lambda: OpenTelemetry(queue=1 << 22),
}

SERVICES: dict[str, tuple[str, ...]] = {
    "bare": (),
    "caribou": ("clickhouse",),
    "caribou-kestrel": ("clickhouse", "kestrel"),
    "caribou-langfuse": ("clickhouse", "langfuse"),
    "caribou-native": ("native",),
    "caribou-otlp": ("otlp",),
    "sdk": ("otlp",),
    "sdk-raised": ("otlp",),
}
"""What each side delivers to."""
