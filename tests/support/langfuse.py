"""A model of what Langfuse takes, written from its public reference.

Spans at ``/api/public/otel/v1/traces`` with basic authentication and the header of the ingestion
version, and how attributes become observations:
https://langfuse.com/integrations/native/opentelemetry. Scores at ``/api/public/scores``:
https://api.reference.langfuse.com. Observations and scores replace themselves by their ids.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from support.otlp import Received, Receiver, Refusal

PUBLIC_KEY = "pk-lf-0123"
SECRET_KEY = "sk-lf-s3cret"
AUTHORIZATION = "Basic " + b64encode(f"{PUBLIC_KEY}:{SECRET_KEY}".encode()).decode()
TYPES = {
    *("span", "generation", "event", "embedding", "agent", "tool", "chain", "retriever"),
    *("guardrail", "evaluator"),
}
LEVELS = {"DEBUG", "DEFAULT", "WARNING", "ERROR"}
USAGE = {"input", "output", "input_cache_read", "input_cache_creation", "output_reasoning_tokens"}
ENVIRONMENT = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")
SCORE_FIELDS = {
    *("id", "traceId", "name", "value", "dataType", "comment", "environment", "metadata"),
}

Observation = dict[str, Any]


class Langfuse(Receiver):
    """A project with its observations, traces and scores by id.

    ``score_answers`` may refuse a score instead of taking it. What the reference does not allow
    fails the test by :attr:`complaints`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.authorization = AUTHORIZATION
        self.scores: dict[str, dict[str, Any]] = {}
        self.score_calls = 0
        self.score_answers: Callable[[dict[str, Any]], Refusal | None] = lambda score: None
        self.complaints: list[str] = []

    async def answer(self, request: web.Request, body: bytes) -> web.Response:
        if request.headers.get("Authorization") != self.authorization:
            said = {"message": "Invalid credentials. Confirm that you've configured the right host"}
            return web.json_response(said, status=401)
        match request.raw_path:
            case "/api/public/otel/v1/traces":
                if request.headers.get("x-langfuse-ingestion-version") != "4":
                    self.complaints.append("the header of the ingestion version is missing")
                return self.take_spans(request, body)
            case "/api/public/scores":
                return self._take_score(json.loads(body))
            case path:
                return web.json_response({"message": f"{path} not found"}, status=404)

    def success(self, rejected: int) -> web.Response:
        if not rejected:
            return web.json_response({})
        partial = {"rejectedSpans": rejected, "errorMessage": self.says}
        return web.json_response({"partialSuccess": partial})

    def observations(self) -> dict[str, Observation]:
        """Every observation by its id, as the project's pages show it."""
        return {span.span_id: self._observation(span) for span in self.spans.values()}

    def _take_score(self, score: dict[str, Any]) -> web.Response:
        self.score_calls += 1
        refusal = self.score_answers(score)
        if refusal is not None:
            status, text, headers = refusal
            return web.Response(
                status=status, text=text, headers=headers, content_type="application/json"
            )
        self._require(set(score) <= SCORE_FIELDS, f"fields of a score: {sorted(score)}")
        self._require(re.fullmatch("[0-9a-f]{32}", score["traceId"]) is not None, "a trace id")
        self._require(bool(score["name"]) and bool(score["id"]), "a score without name or id")
        self._require(type(score["value"]) in (int, float), f"a value: {score['value']!r}")
        self._require(score["dataType"] == "NUMERIC", "a data type")
        environment = score.get("environment", "default")
        self._require(ENVIRONMENT.fullmatch(environment) is not None, environment)
        self.scores[score["id"]] = score
        return web.json_response({"id": score["id"]})

    def _observation(self, span: Received) -> Observation:
        given = dict(span.attributes)
        kind = given.pop("langfuse.observation.type")
        level = given.pop("langfuse.observation.level", "ERROR" if span.failed else "DEFAULT")
        usage = self._numbers(given.pop("langfuse.observation.usage_details", "{}"))
        cost = self._numbers(given.pop("langfuse.observation.cost_details", "{}"))
        environment = given.pop("langfuse.environment", "default")
        self._require(kind in TYPES, f"a type: {kind}")
        self._require(level in LEVELS, f"a level: {level}")
        self._require(set(usage) <= USAGE, f"usage: {usage}")
        self._require(all(type(n) is int and n >= 0 for n in usage.values()), f"usage: {usage}")
        self._require(set(cost) <= {"total"}, f"cost: {cost}")
        self._require(kind == "generation" or not (usage or cost), f"usage on a {kind}")
        self._require(ENVIRONMENT.fullmatch(environment) is not None, environment)
        for name, value in given.items():
            if "metadata" in name:
                self._require(isinstance(value, str), f"{name} is {value!r}")
        self._require(kind != "event" or span.start_ns == span.end_ns, "an event with an end")
        tokens = [name for name in given if name.startswith("gen_ai.usage.")]
        self._require(bool(usage) or not tokens, f"{tokens} would be counted as well")
        return {
            "id": span.span_id,
            "traceId": span.trace_id,
            "parentObservationId": span.parent_span_id or None,
            "name": span.name,
            "type": kind,
            "start_ns": span.start_ns,
            "end_ns": span.end_ns,
            "level": level,
            "statusMessage": given.pop(
                "langfuse.observation.status_message", span.status_message or None
            ),
            "input": _json(given.pop("langfuse.observation.input", None)),
            "output": _json(given.pop("langfuse.observation.output", None)),
            "model": given.pop("langfuse.observation.model.name", None),
            "usageDetails": usage,
            "costDetails": cost,
            "environment": environment,
            "traceName": given.pop("langfuse.trace.name"),
            "userId": given.pop("user.id", None),
            "sessionId": given.pop("session.id", None),
            "tags": given.pop("langfuse.trace.tags", []),
            "metadata": _below(given, "langfuse.observation.metadata."),
            "traceMetadata": _below(given, "langfuse.trace.metadata."),
            "experiment": _below(given, "langfuse.experiment."),
            "attributes": given,
        }

    def _numbers(self, text: str) -> dict[str, Any]:
        found = json.loads(text)
        self._require(isinstance(found, dict), f"not an object: {text}")
        return found

    def _require(self, condition: bool, complaint: str) -> None:
        if not condition:
            self.complaints.append(complaint)


def settings(there: Langfuse) -> dict[str, str]:
    """What ``configure`` is given for it."""
    return {
        "langfuse_public_key": PUBLIC_KEY,
        "langfuse_secret_key": SECRET_KEY,
        "langfuse_host": there.url,
    }


def variables(there: Langfuse) -> dict[str, str]:
    """The same in the environment."""
    return {name.upper(): value for name, value in settings(there).items()}


def _json(text: str | None) -> Any:
    """As the pages show a text: as JSON where it is some."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _below(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = [name for name in given if name.startswith(prefix)]
    return {name.removeprefix(prefix): given.pop(name) for name in names}


@contextmanager
def langfuse() -> Iterator[Langfuse]:
    """A project that listens; it must have nothing to complain of."""
    there = Langfuse()
    try:
        there.listen()
        yield there
        there.observations()
        assert there.complaints == []
    finally:
        there.close()
