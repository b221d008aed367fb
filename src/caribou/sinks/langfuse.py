"""Deliver rollouts to Langfuse: spans over OTLP/HTTP, and scores by the scores API.

``caribou.otel.langfuse`` makes both. Everything has an id that comes from its row, so whatever is
sent again replaces itself.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from caribou.otel.langfuse import to_score, to_span
from caribou.otel.spans import decoded_row
from caribou.sinks._answers import NoAnswer
from caribou.sinks._otlp import Backend, SpanSink, lines, no_answer
from caribou.sinks.base import Batch, Misconfigured, Poison, Retry

if TYPE_CHECKING:
    from caribou.sinks._otlp_http import Client

__all__ = ["Langfuse"]

_BACKEND = Backend(
    who="Langfuse",
    address="LANGFUSE_HOST",
    credentials="LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY",
)
_TRACES = "/api/public/otel/v1/traces"
_SCORES = "/api/public/scores"
_SCORES_AT_ONCE = 8
# Scores that were taken, kept so that a batch of which some were refused does not go whole again.
_REMEMBERED = 20_000


class Langfuse(SpanSink):
    """The sink for a project of Langfuse; implements ``Sink``.

    Args:
        host: ``http(s)://host[:port]``.
        public_key: names the project.
        secret_key: never shown.
        resource: attributes of the program that is traced, such as ``service.name``.
        timeout: seconds for one request, its answer included.
        connect_timeout: seconds for reaching the host, TLS included.
    """

    # The scores API has limits of its own, which are no reason to keep spans waiting.
    apart: frozenset[str] = frozenset({"scores"})

    def __init__(
        self,
        host: str,
        *,
        public_key: str,
        secret_key: str,
        resource: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        self._host = host.rstrip("/")
        self._public_key = public_key
        self._scored: dict[str, None] = {}
        credentials = b64encode(f"{public_key}:{secret_key}".encode()).decode()
        super().__init__(
            _BACKEND,
            self._host + _TRACES,
            to_span,
            resource=resource,
            headers={
                "Authorization": f"Basic {credentials}",
                # The table that Langfuse's pages read since version 4, without a delay.
                "x-langfuse-ingestion-version": "4",
            },
            secrets=[secret_key],
            connections=2 + _SCORES_AT_ONCE,
            timeout=timeout,
            connect_timeout=connect_timeout,
        )

    @property
    def name(self) -> str:
        """``langfuse``: names the sink's cursor files and its row in ``stats()``."""
        return "langfuse"

    @property
    def target(self) -> str:
        """The host and the public key, which says which project of it."""
        return f"{self._host} ({self._public_key})"

    @property
    def tables(self) -> frozenset[str]:
        """Records, summaries and scores. What the other tables hold is in the summaries."""
        return frozenset({"spans", "traces", "scores"})

    async def send(self, batch: Batch) -> None:
        """Send the batch's rows; return when Langfuse has taken them.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        if batch.table == "scores":
            await self._send_scores(batch, self.open())
        else:
            await super().send(batch)

    async def _send_scores(self, batch: Batch, client: Client) -> None:
        scores: list[dict[str, Any]] = []
        for line in lines(batch.data):
            try:
                score = to_score(decoded_row(line))
            except (ValueError, TypeError, KeyError) as error:
                raise Poison(f"a row is no score: {type(error).__name__}: {error}") from None
            if score is not None and score["id"] not in self._scored:
                scores.append(score)
            if len(scores) == _SCORES_AT_ONCE:
                await self._post_scores(scores, client)
                scores = []
        if scores:
            await self._post_scores(scores, client)

    async def _post_scores(self, scores: list[dict[str, Any]], client: Client) -> None:
        """Send a few scores at once; what was taken is remembered, also where others failed."""
        posts = (self._post_score(score, client) for score in scores)
        outcomes = await asyncio.gather(*posts, return_exceptions=True)
        failures: list[BaseException] = []
        for score, outcome in zip(scores, outcomes, strict=True):
            if outcome is None:
                self._scored[score["id"]] = None
            else:
                failures.append(outcome)
        while len(self._scored) > _REMEMBERED:
            del self._scored[next(iter(self._scored))]
        if failures:
            # Halving the batch is for when all others are through.
            raise min(failures, key=lambda failure: not isinstance(failure, Retry | Misconfigured))

    async def _post_score(self, score: dict[str, Any], client: Client) -> None:
        from caribou.sinks._otlp_http import said

        url = self._host + _SCORES
        try:
            answer = await client.post_json(url, score)
        except NoAnswer as error:
            raise no_answer(error) from None
        self.sender.check(answer, url)
        try:
            taken = "id" in said(answer)
        except (ValueError, msgspec.DecodeError):
            taken = False
        if not taken:
            # A page that logs people in, for one, says 200 to everything.
            raise self.sender.nobody(answer)
