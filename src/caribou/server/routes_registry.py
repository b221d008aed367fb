"""Projects, runs, run steps and datapoints over HTTP."""

from __future__ import annotations

from .routing import Route

__all__ = ["routes"]

routes: list[Route] = []
