"""A small server that stands for Kestrel's registry where it is to fail; the real one cannot be
made to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from support.listener import Listener

Answer = tuple[int, str, dict[str, str]]


class Registry(Listener):
    """What was registered, and how often. ``answers`` may refuse a request instead, given its path
    and its body; :meth:`hang` leaves all without an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()
        self.phases: dict[str, str] = {}
        self.steps: Counter[tuple[str, int]] = Counter()
        self.datapoints: Counter[tuple[str | None, str]] = Counter()
        self.calls: list[str] = []
        self.keys: set[str] = set()
        self.answers: Callable[[str, Any], Answer | None] = lambda path, body: None

    def note(self, request: web.Request) -> None:
        self.calls.append(f"{request.method} {request.raw_path}")
        self.keys.add(request.headers.get("Authorization", ""))

    async def answer(self, request: web.Request, body: bytes) -> web.Response:
        said = json.loads(body)
        path = request.raw_path
        refusal = self.answers(path, said)
        if refusal is not None:
            status, text, headers = refusal
            return web.Response(status=status, text=text, headers=headers)
        self._register(path.removeprefix("/api/v1"), said)
        return web.json_response({})

    def _register(self, path: str, body: Any) -> None:
        match path.split("/")[1:]:
            case ["runs", run_id]:
                self.runs[unquote(run_id)] += 1
                self.phases[unquote(run_id)] = body["phase"]
            case ["runs", run_id, "steps"]:
                numbers = [item["step_number"] for item in body["items"]]
                self.steps.update((unquote(run_id), number) for number in numbers)
            case ["datapoints"]:
                assert len(body["items"]) <= 10_000
                self.datapoints.update(
                    (item.get("project"), item["datapoint_id"]) for item in body["items"]
                )
            case _:
                raise AssertionError(path)


def problem(status: int, detail: str, field: str = "", **headers: str) -> Answer:
    """An answer as Kestrel refuses."""
    details = {"title": "Refused", "status": status, "detail": detail, "field": field}
    return status, json.dumps(details), headers


@contextmanager
def registry() -> Iterator[Registry]:
    """A registry that listens."""
    there = Registry()
    try:
        there.listen()
        yield there
    finally:
        there.close()
