"""The routes of `traces`."""

from __future__ import annotations

from .routing import Route

__all__ = ["routes"]

routes: list[Route] = []
