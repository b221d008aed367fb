"""Spans as OTLP, in protobuf.

Needs the package opentelemetry-proto (extras ``otlp`` and ``langfuse``): import this module late.
What every span has, and texts, are written here in a third of the time that the package takes; the
package writes the rest. A protobuf message is no more than its fields in a row. A span is encoded
alone, so that it is known how large it is.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags, Status

from caribou._varint import varint
from caribou._version import __version__

from . import attributes as names
from .spans import Span, Value, resource_attributes, whole

__all__ = ["Envelope", "encode_span", "rejected"]

_KINDS: Final = {"internal": Message.SPAN_KIND_INTERNAL, "client": Message.SPAN_KIND_CLIENT}
_SHORT: Final = 128
_MOST_ENCODED: Final = 4096
_encoded: dict[tuple[str, object], bytes] = {}

# Fields of TracesData, ResourceSpans, ScopeSpans, Span, KeyValue and AnyValue; all hold messages or
# texts.
_RESOURCE_SPANS: Final = b"\x0a"
_RESOURCE: Final = b"\x0a"
_SCOPE_SPANS: Final = b"\x12"
_SCOPE: Final = b"\x0a"
_SPANS: Final = b"\x12"
_SCHEMA_URL: Final = b"\x1a"
_ATTRIBUTES: Final = b"\x4a"
_KEY: Final = b"\x0a"
_VALUE: Final = b"\x12"
_STRING_VALUE: Final = b"\x0a"
_PARENT: Final = b"\x22"
_NAME: Final = b"\x2a"
# Of a span: both ids, kind, both times, and flags, each after its tag.
_HEAD: Final = struct.Struct("<2s16s2s8sBBBQBQ2sI")
# Sampled; and it is known that the parent is not another process's.
_FLAGS: Final = 0x001 | SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK


def encode_span(span: Span) -> bytes:
    """One span, as it stands in a request.

    Raises:
        ValueError: an id is malformed, for which receivers refuse a whole request, or a value
            cannot be told in OTLP.
    """
    ids = b"\x0a\x10", _id(span.trace_id, 16), b"\x12\x08", _id(span.span_id, 8)
    times = 0x39, span.start_ns, 0x41, span.end_ns
    try:
        head = _HEAD.pack(*ids, 0x30, _KINDS[span.kind], *times, b"\x85\x01", _FLAGS)
    except struct.error:
        raise ValueError("a time must be from 1970 to 2554") from None
    parts = [head, _field(_NAME, span.name.encode())]
    if span.parent_span_id:
        parts.append(_field(_PARENT, _id(span.parent_span_id, 8)))
    if span.events or span.failed:
        parts.append(_outcome(span))
    common = span.common
    if common.encoded is None:
        common.encoded = b"".join(_attribute(*pair) for pair in common.attributes.items())
    parts.append(common.encoded)
    for name, value in span.own.items():
        # What is short, and the same in many spans, is encoded once. Only texts and whole numbers:
        # 1.0 and True are equal to 1.
        kind = type(value)
        if (kind is int or (kind is str and len(cast("str", value)) <= _SHORT)) and (
            len(name) <= _SHORT
        ):
            part = _encoded.get((name, value))
            if part is None:
                if len(_encoded) >= _MOST_ENCODED:
                    _encoded.clear()
                part = _encoded[name, cast("str | int", value)] = _attribute(name, value)
        else:
            part = _attribute(name, value)
        parts.append(part)
    return _field(_SPANS, b"".join(parts))


def _outcome(span: Span) -> bytes:
    """What few spans have: events, and the status of a failure."""
    events: Any = [
        {
            "name": event.name,
            "time_unix_nano": event.time_ns,
            "attributes": _attributes(event.attributes),
        }
        for event in span.events
    ]
    status = None
    if span.failed:
        status = Status(code=Status.STATUS_CODE_ERROR, message=span.status_message)
    return Message(events=events, status=status).SerializeToString()


class Envelope:
    """What stands around spans in a request: where they come from, and which library says so."""

    def __init__(self, resource: Mapping[str, str]) -> None:
        """``resource`` are attributes of the program's."""
        scope = InstrumentationScope(name="caribou", version=__version__).SerializeToString()
        schema = _field(_SCHEMA_URL, names.SCHEMA_URL.encode())
        attributes = _attributes(resource_attributes(resource))
        self._resource = _field(_RESOURCE, Resource(attributes=attributes).SerializeToString())
        self._scope = _field(_SCOPE, scope) + schema

    def around(self, spans: Sequence[bytes]) -> bytes:
        """A whole request of these spans."""
        size = len(self._scope) + sum(map(len, spans))
        scope_spans = _SCOPE_SPANS + varint(size)
        head = self._resource + scope_spans
        start = _RESOURCE_SPANS + varint(len(head) + size) + head + self._scope
        return b"".join((start, *spans))


def rejected(answer: bytes) -> tuple[int, str]:
    """How many spans a receiver that answered in protobuf did not take, and what it says.

    Raises:
        ValueError: it is no such answer.
    """
    try:
        partial = ExportTraceServiceResponse.FromString(answer).partial_success
    except Exception as error:  # the package's own class, which has no public name
        raise ValueError(str(error)) from None
    return partial.rejected_spans, partial.error_message


def _id(text: str, size: int) -> bytes:
    data = bytes.fromhex(text)
    # Zeros alone mean that there is none.
    if len(data) != size or not any(data):
        raise ValueError(f"an id must have {2 * size} hex digits, and not zeros alone")
    return data


def _attribute(name: str, value: Value) -> bytes:
    """One attribute, as it stands in a span."""
    if type(value) is str:
        # Most of all bytes are such values. Made as the package makes them, in half the time.
        text = value.encode()
        key = _key(name) if len(name) <= _SHORT else _field(_KEY, name.encode())
        return _field(_ATTRIBUTES, key + _field(_VALUE, _field(_STRING_VALUE, text)))
    # Given as dicts, messages are made in C.
    pair: Any = {"key": name, "value": _value(value)}
    return _field(_ATTRIBUTES, KeyValue(**pair).SerializeToString())


@functools.lru_cache(_MOST_ENCODED)
def _key(name: str) -> bytes:
    return _field(_KEY, name.encode())


def _attributes(attributes: Mapping[str, Value]) -> list[Any]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        return {"string_value": value}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int):
        return {"int_value": whole(value)}
    if isinstance(value, float):
        return {"double_value": value}
    return {"array_value": {"values": [{"string_value": item} for item in value]}}


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data
