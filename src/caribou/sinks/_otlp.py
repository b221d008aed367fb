"""What sinks that speak OTLP over HTTP have in common: batches to requests, answers to failures.

All that is sent may be sent again: a span has its id, and replaces itself. So no failure is
ambiguous, and nothing has to be asked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from caribou._pace import Pace
from caribou.otel.spans import Row, Span, decoded_row
from caribou.sinks._answers import NoAnswer
from caribou.sinks.base import Batch, Misconfigured, Poison, Retry, SinkError, TooLarge

if TYPE_CHECKING:
    import ssl

    from caribou.otel.encoding import Envelope
    from caribou.sinks._otlp_http import Answer, Client

__all__ = [
    "Backend",
    "SpanSink",
    "lines",
    "no_answer",
]

_logger = logging.getLogger("caribou")

REQUEST_BYTES = 1 << 20
"""Of spans in a request, before compression; a larger span goes alone."""

_CHUNK = 128 << 10
# Of what a header says, shorter words are no secrets, and stand in any text.
_SHORTEST_SECRET = 8
# Answers of 500 to a batch before it is halved, and to a single row before it is set aside.
_ATTEMPTS_TOGETHER = 3
_ATTEMPTS_ALONE = 20


@dataclass(frozen=True, slots=True)
class Backend:
    """Who is asked, and which settings are at fault when it refuses.

    ``authorities`` names whom to trust, and ``identity`` the certificate that is shown;
    ``plain_text`` says that a success may be told in it.
    """

    who: str
    address: str
    credentials: str
    authorities: str = "SSL_CERT_FILE"
    identity: str = ""
    plain_text: bool = False


class SpanSender:
    """Sends batches of spans to one address, in requests of bounded size."""

    def __init__(
        self,
        backend: Backend,
        url: str,
        to_span: Callable[[str, Row], Span | None],
        resource: Mapping[str, str],
    ) -> None:
        self._backend = backend
        self._url = url
        self._to_span = to_span
        self._resource = resource
        self._envelope: Envelope | None = None
        # By table: the batch that was last sent, and how many of its lines are acknowledged. A
        # server that takes so many requests a minute would else get the same ones again and again.
        self._sent: dict[str, tuple[str, int]] = {}
        # By address, until it takes something.
        self._refusals: dict[str, Misconfigured] = {}
        # How many requests with spans were taken, and by table the batch that was last answered
        # with 500, how often, and how many requests had been taken by then.
        self._taken = 0
        self._choked: dict[str, tuple[str, int, int]] = {}
        self._warned = ""

    async def send(self, batch: Batch, client: Client) -> None:
        """Send what the batch's rows are as spans; return when the server has all of them.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        try:
            await self._send(batch, client)
        except Retry as error:
            if error.code == 500:
                raise self._choking(batch, error) from None
            raise

    def _choking(self, batch: Batch, error: Retry) -> SinkError:
        """What a 500 means: most often that the server is in trouble, sometimes that it cannot take
        one of the spans, which is not to hold up all others for ever."""
        batch_id, failures, taken = self._choked.get(batch.table, ("", 0, 0))
        if batch_id != batch.batch_id:
            failures, taken = 0, -1
        # A single row is at fault when, time and again, others were taken meanwhile.
        if batch.rows > 1 or self._taken > taken:
            failures += 1
        self._choked[batch.table] = batch.batch_id, failures, self._taken
        if batch.rows > 1 and failures >= _ATTEMPTS_TOGETHER:
            return TooLarge(error.reason, code=error.code, retry_after=error.retry_after or 0.0)
        if batch.rows == 1 and failures >= _ATTEMPTS_ALONE:
            return Poison(f"{error.reason}, and others were taken", code=error.code)
        return error

    async def _send(self, batch: Batch, client: Client) -> None:
        from caribou.otel.encoding import Envelope, encode_span

        if self._envelope is None:
            self._envelope = Envelope(self._resource)
        batch_id, done = self._sent.get(batch.table, ("", 0))
        if batch_id != batch.batch_id:
            done = 0
        spans: list[bytes] = []
        size = number = 0
        pace = Pace()
        for number, line in enumerate(lines(batch.data), 1):
            if number <= done:
                continue
            try:
                span = self._to_span(batch.table, decoded_row(line))
                data = b"" if span is None else encode_span(span)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise Poison(f"a row is no span: {type(error).__name__}: {error}") from None
            if spans and size + len(data) > REQUEST_BYTES:
                await self._request(client, self._envelope.around(spans))
                self._sent[batch.table] = batch.batch_id, number - 1
                spans, size = [], 0
            if data:
                spans.append(data)
                size += len(data)
            if pace.pause():
                await asyncio.sleep(0)
        if spans:
            await self._request(client, self._envelope.around(spans))
        self._sent[batch.table] = batch.batch_id, number

    async def ask(self, client: Client) -> None:
        """Send a request without spans.

        Raises:
            SinkError: the server does not take it.
        """
        await self._request(client, b"")

    async def _request(self, client: Client, request: bytes) -> None:
        from caribou.sinks._otlp_http import partial_success

        try:
            answer = await client.post_spans(self._url, request)
        except NoAnswer as error:
            raise no_answer(error) from None
        self.check(answer, self._url)
        try:
            rejected, message = partial_success(answer, plain=self._backend.plain_text)
        except NoAnswer:
            raise self.nobody(answer) from None
        if rejected > 0:
            # Which they are is not told. The courier halves the batch until it knows.
            told = f"spans rejected: {rejected}"
            raise Poison(f"{told}, {message}" if message else told)
        if request:
            self._taken += 1
        if message and message != self._warned:
            self._warned = message
            _logger.warning("%s took all spans, and says: %s", self._backend.who, message)

    def check(self, answer: Answer, url: str) -> None:
        """Return if the server took what it was sent to ``url``.

        Raises:
            SinkError: it did not.
        """
        status = answer.status
        if status in (401, 403):
            # Of several, one is told of: each may have words of its own, such as a request's id.
            alike = (other for other in self._refusals.values() if other.code == status)
            refusal = next(alike, None) or Misconfigured(
                f"{self._backend.who} refused the credentials; check "
                f"{self._backend.credentials} ({_told(answer)})",
                code=status,
            )
            self._refusals[url] = refusal
            raise Misconfigured(refusal.reason, code=status)
        if 200 <= status < 300:
            self._refusals.pop(url, None)
            return
        told = _told(answer)
        if status == 413:
            raise TooLarge(told, code=status)
        if status in (400, 422):
            if "ingestion-version" in answer.reason:
                raise Misconfigured(f"this version of {self._backend.who} is too old ({told})")
            if answer.content_type == "text/html" or "HTTPS server" in answer.reason:
                # A gateway's word, such as of plain HTTP to a port for TLS: the rows are blameless.
                raise self.nobody(answer)
            raise Poison(told, code=status)
        if status in (408, 425, 429) or status >= 500:
            raise Retry(told, code=status, retry_after=answer.retry_after)
        raise self.nobody(answer)

    def nobody(self, answer: Answer) -> Misconfigured:
        """The error for an answer that somebody else must have given."""
        backend = self._backend
        return Misconfigured(
            f"no {backend.who} answers at {backend.address} ({_told(answer)})", code=answer.status
        )


class SpanSink(ABC):
    """A ``Sink`` that sends spans to one address, but for what it is called."""

    def __init__(
        self,
        backend: Backend,
        url: str,
        to_span: Callable[[str, Row], Span | None],
        *,
        resource: Mapping[str, str] | None,
        headers: Mapping[str, str],
        secrets: Iterable[str] = (),
        connections: int,
        timeout: float,
        connect_timeout: float,
        compressed: bool = True,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """``url`` is where spans are posted to. What a header says is never shown, nor are
        ``secrets``; times are seconds. ``tls`` is for another trust than the program's, and raises
        :class:`Misconfigured`."""
        self.sender: SpanSender = SpanSender(backend, url, to_span, resource or {})
        self._backend = backend
        self._url = url
        self._headers = headers
        self._secrets = [
            word
            for text in (*headers.values(), *secrets)
            for word in text.split()
            if len(word) >= _SHORTEST_SECRET
        ]
        self._connections = connections
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._compressed = compressed
        self._tls = tls
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    @property
    @abstractmethod
    def target(self) -> str:
        """Where spans go, without credentials; see ``Sink``."""

    def load(self) -> None:
        """Import the HTTP client and the encoder; see ``Sink``. Where they are missing, every batch
        says so."""
        with contextlib.suppress(ImportError):
            importlib.import_module("caribou.sinks._otlp_http")

    async def send(self, batch: Batch) -> None:
        """Send the batch's rows as spans; return when the backend has taken them.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        await self.sender.send(batch, self.open())

    async def confirm(self, batch: Batch) -> bool:
        """Always False: nobody can be asked, and what is sent again has the same id."""
        return False

    async def check(self) -> None:
        """Ask whether spans would be taken, by a request without any, and close.

        Raises:
            SinkError: they would not.
        """
        try:
            await self.sender.ask(self.open())
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the next ``send`` opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def open(self) -> Client:
        """The client, made when it is first needed.

        Raises:
            Misconfigured: a package is missing, or a file of certificates.
        """
        if self._client is None:
            try:
                from caribou.sinks._otlp_http import Client
            except ImportError as error:
                raise Misconfigured(
                    f"the package of {error.name} is missing: pip install 'caribou-trace[otlp]'"
                ) from None
            self._client = Client(
                self._url,
                who=self._backend.who,
                variable=self._backend.address,
                authorities=self._backend.authorities,
                identity=self._backend.identity,
                headers=self._headers,
                secrets=self._secrets,
                connections=self._connections,
                timeout=self._timeout,
                connect_timeout=self._connect_timeout,
                compressed=self._compressed,
                tls=None if self._tls is None else self._tls(),
            )
        return self._client


def no_answer(error: NoAnswer) -> SinkError:
    """What it means that no whole answer came: to send again does no harm."""
    return (Misconfigured if error.permanent else Retry)(error.reason)


def lines(data: memoryview) -> Iterator[bytes]:
    """The lines of a batch, copied a few at a time."""
    rest = b""
    for at in range(0, len(data), _CHUNK):
        *whole, rest = (rest + bytes(data[at : at + _CHUNK])).split(b"\n")
        yield from whole


def _told(answer: Answer) -> str:
    status = f"HTTP status {answer.status}"
    return f"{status}: {answer.reason}" if answer.reason else status
