"""Spans as the objects of OpenTelemetry's SDK, which its exporters take.

Needs the package opentelemetry-sdk (extra ``otel``): import this module late.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage]
    attach,
    set_value,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from caribou._version import __version__
from caribou.otel import attributes as names
from caribou.otel.spans import Span, Value, resource_attributes, whole

__all__ = ["Origin", "ReadableSpan", "SpanExportResult", "untraced"]

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_KINDS: Final = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}


def untraced() -> None:
    """Mark the calling thread's context, so that instrumented libraries make no spans of what an
    exporter does: it would export those in turn."""
    attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))


class Origin:
    """Where spans come from: the program, and the library that tells of it."""

    def __init__(self, resource: Mapping[str, str]) -> None:
        """``resource`` are attributes of the program's."""
        self._resource = Resource(resource_attributes(resource))
        self._scope = InstrumentationScope("caribou", __version__, names.SCHEMA_URL)

    def readable(self, span: Span) -> ReadableSpan:
        """One span.

        Raises:
            ValueError: an id is malformed.
        """
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_span_id) if span.parent_span_id else None,
            resource=self._resource,
            attributes=_attributes(span.attributes),
            events=[
                Event(event.name, _attributes(event.attributes), event.time_ns)
                for event in span.events
            ],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.status_message) if span.failed else Status(),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    if not _TRACE_ID.fullmatch(trace_id) or not _SPAN_ID.fullmatch(span_id):
        raise ValueError("a trace id must have 32 and a span id 16 hex digits")
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=flags)


def _attributes(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {name: _value(value) for name, value in attributes.items()}


def _value(value: Value) -> Value:
    if isinstance(value, str | float | bool):
        return value
    if isinstance(value, int):
        return whole(value)
    return tuple(value)
