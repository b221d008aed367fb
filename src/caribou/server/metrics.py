"""What the service counts of itself, in Prometheus' text format."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from aiohttp import web
from aiohttp.typedefs import Handler

__all__ = ["MEDIA_TYPE", "Metric", "Metrics"]

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Metric = tuple[str, Literal["counter", "gauge"], str, float]
"""Name, type, help and value of one that is read when it is asked for."""


class Metrics:
    """Counts requests, by route and not by path: paths are as many as callers like."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts each request and how long its answer took; that of a stream has no duration."""
        begun = time.perf_counter()
        status = 500
        response: web.StreamResponse | None = None
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as refusal:
            status = refusal.status
            raise
        finally:
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "none"
            method = request.method if request.method in _METHODS else "other"
            self._requests[route, method, status] += 1
            if response is None or response.content_type != "text/event-stream":
                took = time.perf_counter() - begun
                self._durations[route][bisect_left(_BOUNDS, took)] += 1
                self._seconds[route] += took

    def text(self, more: Iterable[Metric]) -> str:
        """All of them, with ``more``."""
        return "\n".join([*self._lines(), *_simple(more), ""])

    def _lines(self) -> Iterator[str]:
        name = "kestrel_requests_total"
        yield f"# HELP {name} Requests answered."
        yield f"# TYPE {name} counter"
        for (route, method, status), count in sorted(self._requests.items()):
            labels = f'route="{route}",method="{method}",status="{status}"'
            yield f"{name}{{{labels}}} {count}"
        name = "kestrel_request_seconds"
        yield f"# HELP {name} Time until an answer was ready."
        yield f"# TYPE {name} histogram"
        for route, counts in sorted(self._durations.items()):
            total = 0
            for bound, count in zip((*_BOUNDS, "+Inf"), counts, strict=True):
                total += count
                yield f'{name}_bucket{{route="{route}",le="{bound}"}} {total}'
            yield f'{name}_sum{{route="{route}"}} {self._seconds[route]:.6f}'
            yield f'{name}_count{{route="{route}"}} {total}'


def _simple(metrics: Iterable[Metric]) -> Iterator[str]:
    for name, kind, text, value in metrics:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        yield f"{name} {value:g}" if value != int(value) else f"{name} {int(value)}"
