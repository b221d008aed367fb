"""An OTLP/HTTP receiver that decodes with the official package and can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

from support.listener import Listener

KINDS = {1: "internal", 3: "client"}


@dataclass(frozen=True)
class Received:
    """A span as it came, in plain values."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    failed: bool
    status_message: str
    events: list[tuple[str, int, dict[str, Any]]]


@dataclass(frozen=True)
class Request:
    """One request of spans."""

    path: str
    headers: dict[str, str]
    size: int
    resource: dict[str, Any]
    scope: tuple[str, str]
    schema_url: str
    spans: list[Received]


Refusal = tuple[int, str, dict[str, str]]


class Receiver(Listener):
    """Keeps the latest of each span by its ids.

    ``answers`` may refuse a request instead. ``rejects`` says which spans it takes nothing of, by
    a partial success; ``says`` is the message of every answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.spans: dict[tuple[str, str], Received] = {}
        self.received = 0
        self.asked = 0
        self.answers: Callable[[Request], Refusal | None] = lambda request: None
        self.rejects: Callable[[Received], bool] = lambda span: False
        self.says = ""

    def traces(self) -> dict[str, list[Received]]:
        """The spans of each trace, in the order of the records; the root is the last."""
        found: dict[str, list[Received]] = {}
        for span in self.spans.values():
            found.setdefault(span.trace_id, []).append(span)
        for spans in found.values():
            spans.sort(key=lambda span: span.attributes.get("caribou.seq", 1 << 60))
        return found

    async def answer(self, request: web.Request, body: bytes) -> web.Response:
        return self.take_spans(request, body)

    def take_spans(self, request: web.Request, body: bytes) -> web.Response:
        """Decode, keep and answer a request of spans."""
        if not body:
            self.asked += 1
            return self.success(0)
        decoded = decode(request, body)
        self.requests.append(decoded)
        refusal = self.answers(decoded)
        if refusal is not None:
            status, text, headers = refusal
            headers = dict(headers)
            kind = "application/json" if text.startswith("{") else "text/plain"
            kind = headers.pop("Content-Type", kind)
            return web.Response(status=status, text=text, headers=headers, content_type=kind)
        rejected = [span for span in decoded.spans if self.rejects(span)]
        for span in decoded.spans:
            if span not in rejected:
                self.received += 1
                self.spans[span.trace_id, span.span_id] = span
        return self.success(len(rejected))

    def success(self, rejected: int) -> web.Response:
        """200, and what was left out."""
        answer = ExportTraceServiceResponse()
        if rejected or self.says:
            answer.partial_success.rejected_spans = rejected
            answer.partial_success.error_message = self.says
        return web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf")


class JsonReceiver(Receiver):
    """One that answers in JSON, as OTLP allows."""

    def success(self, rejected: int) -> web.Response:
        partial = {"rejectedSpans": str(rejected), "errorMessage": self.says}
        return web.json_response({"partialSuccess": partial} if rejected or self.says else {})


def decode(request: web.Request, body: bytes) -> Request:
    """A request as plain values; fails the test where it is not as the protocol says."""
    assert request.method == "POST"
    assert request.headers["Content-Type"] == "application/x-protobuf"
    message = ExportTraceServiceRequest.FromString(body)
    (resource_spans,) = message.resource_spans
    (scope_spans,) = resource_spans.scope_spans
    spans = [received(span) for span in scope_spans.spans]
    assert spans, "a request without spans"
    return Request(
        path=request.raw_path,
        headers=dict(request.headers),
        size=len(body),
        resource=attributes(resource_spans.resource.attributes),
        scope=(scope_spans.scope.name, scope_spans.scope.version),
        schema_url=scope_spans.schema_url,
        spans=spans,
    )


def received(span: Message) -> Received:
    assert len(span.trace_id) == 16
    assert any(span.trace_id)
    assert len(span.span_id) == 8
    assert any(span.span_id)
    assert len(span.parent_span_id) in (0, 8)
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    assert span.name
    return Received(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        kind=KINDS[span.kind],
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=attributes(span.attributes),
        failed=span.status.code == 2,
        status_message=span.status.message,
        events=[(e.name, e.time_unix_nano, attributes(e.attributes)) for e in span.events],
    )


def attributes(pairs: Any) -> dict[str, Any]:
    keys = [pair.key for pair in pairs]
    assert len(keys) == len(set(keys)), f"a key comes twice: {keys}"
    return {pair.key: plain(pair.value) for pair in pairs}


def plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [plain(item) for item in value.array_value.values]
        case None:
            raise AssertionError("a value that is none")
        case field:
            return getattr(value, field)


@contextmanager
def receiver(kind: type[Receiver] = Receiver, tls: SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that listens."""
    there = kind()
    there.tls = tls
    try:
        there.listen()
        yield there
    finally:
        there.close()
