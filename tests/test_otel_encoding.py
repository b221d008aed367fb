"""What is written without the protobuf package is what the package writes, and reads."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from support.golden import SPAN, TRACE, USER

from caribou.otel import generic, langfuse
from caribou.otel.encoding import encode_span
from caribou.otel.spans import Common, Span, SpanEvent

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(0, 20_000).map("é".__mul__)
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
VALUES = TEXTS | INTEGERS | st.booleans() | st.floats(allow_nan=False) | st.lists(TEXTS, max_size=3)
ATTRIBUTES = st.dictionaries(TEXTS, VALUES, max_size=6)
TIMES = st.integers(0, (1 << 64) - 1)
IDS = {size: st.binary(min_size=size, max_size=size).filter(any) for size in (8, 16)}


def value(given: Any) -> AnyValue:
    """A value as the package's own message."""
    if isinstance(given, bool):
        return AnyValue(bool_value=given)
    if isinstance(given, int):
        return AnyValue(int_value=given)
    if isinstance(given, float):
        return AnyValue(double_value=given)
    if isinstance(given, str):
        return AnyValue(string_value=given)
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=item) for item in given]))


def attributes(given: dict[str, Any]) -> list[KeyValue]:
    """Attributes as the package's own messages."""
    return [KeyValue(key=name, value=value(item)) for name, item in given.items()]


@given(
    ids=st.tuples(IDS[16], IDS[8], IDS[8] | st.just(b"")),
    name=TEXTS,
    kind=st.sampled_from(["internal", "client"]),
    times=st.tuples(TIMES, TIMES),
    both=st.tuples(ATTRIBUTES, ATTRIBUTES),
    failed=st.booleans(),
    event=st.none() | ATTRIBUTES,
)
def test_a_span_is_read_as_it_was_told(
    ids: tuple[bytes, bytes, bytes],
    name: str,
    kind: Any,
    times: tuple[int, int],
    both: tuple[dict[str, Any], dict[str, Any]],
    failed: bool,
    event: dict[str, Any] | None,
) -> None:
    common, own = both
    common = {key: common[key] for key in common.keys() - own.keys()}
    trace_id, span_id, parent_span_id = ids
    span = Span(
        trace_id=trace_id.hex(),
        span_id=span_id.hex(),
        parent_span_id=parent_span_id.hex(),
        name=name,
        kind=kind,
        start_ns=times[0],
        end_ns=times[1],
        own=own,
        common=Common(common),
        failed=failed,
        status_message="why" if failed else "",
        events=() if event is None else (SpanEvent(name="happened", time_ns=7, attributes=event),),
    )
    expected = Message(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_span_id,
        name=name,
        kind=Message.SPAN_KIND_CLIENT if kind == "client" else Message.SPAN_KIND_INTERNAL,
        start_time_unix_nano=times[0],
        end_time_unix_nano=times[1],
        attributes=attributes(common) + attributes(own),
        events=[]
        if event is None
        else [Message.Event(name="happened", time_unix_nano=7, attributes=attributes(event))],
        status=Status(code=Status.STATUS_CODE_ERROR, message="why") if failed else None,
        flags=0x101,
    )
    # Twice: what is common, and what is short, is kept from the first time.
    for _ in range(2):
        assert list(ScopeSpans.FromString(encode_span(span)).spans) == [expected]


def read(span: Span | None) -> Message:
    """What a receiver makes of a span."""
    assert span is not None
    (message,) = ScopeSpans.FromString(encode_span(span)).spans
    return message


def test_equal_values_of_different_types_stay_apart() -> None:
    for number in (1, True, 1.0, 1):
        span = Span(trace_id=TRACE, span_id=SPAN, name="n", start_ns=1, end_ns=2, own={"v": number})
        assert list(read(span).attributes) == attributes({"v": number})


@pytest.mark.parametrize("mapper", [generic, langfuse])
def test_steps_that_are_equal_and_of_different_types_stay_apart(mapper: Any) -> None:
    told = [read(mapper.to_span("spans", USER | {"step_number": n})) for n in (1, True, 1.0)]
    (name,) = {a.key for a in told[0].attributes if a.key.endswith("step_number")}
    values = {str(a.value) for span in told for a in span.attributes if a.key == name}
    assert len(values) == 3


@pytest.mark.parametrize("mapper", [generic, langfuse])
def test_no_attribute_is_told_twice(mapper: Any) -> None:
    own = {"run_id": "mine", "step_number": 7, "name": "mine"}
    found = [a.key for a in read(mapper.to_span("spans", USER | {"attributes": own})).attributes]
    assert len(found) == len(set(found))


def test_what_is_large_is_not_kept() -> None:
    """Agents make up names of attributes, and hooks may give anything to any row."""
    tracemalloc.start()
    try:
        for number in range(200):
            row = USER | {"attributes": {f"{number}{'x' * 50_000}": 1}}
            for mapper in (generic, langfuse):
                read(mapper.to_span("spans", row | {"session_id": f"{number}{'y' * 50_000}"}))
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "field",
    [
        {"trace_id": TRACE[:-1]},
        {"trace_id": "0" * 32},
        {"span_id": "x" * 16},
        {"parent_span_id": "00"},
        {"start_ns": -1},
        {"end_ns": 1 << 64},
        {"name": "\ud800"},
        {"own": {"text": "\ud800"}},
    ],
)
def test_what_cannot_be_told_is_an_error(field: dict[str, Any]) -> None:
    span = {"trace_id": TRACE, "span_id": SPAN, "name": "n", "start_ns": 1, "end_ns": 2, "own": {}}
    encode_span(Span(**span))
    with pytest.raises(ValueError, match=r"digits|time|surrogates|hexadecimal"):
        encode_span(Span(**span | field))
