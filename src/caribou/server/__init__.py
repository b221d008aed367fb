"""Kestrel the service: the HTTP API over the traces and the registry, and its pages."""

from __future__ import annotations
