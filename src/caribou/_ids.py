"""Ids from the operating system's randomness, so that seeding ``random`` never makes two alike."""

from __future__ import annotations

import os
import re
from typing import Final

__all__ = ["new_span_id", "new_trace_id", "pool", "share_of", "to_trace_id"]

_POOL_SIZE: Final = 1024
_OTEL_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{32}")


def new_trace_id() -> str:
    """32 lower-case hex digits."""
    return (new_span_id() + new_span_id()).decode()


def to_trace_id(given: str) -> str:
    """The OpenTelemetry trace id for a user's own: itself, if it has that form, or a hash."""
    if _OTEL_TRACE_ID.fullmatch(given) and given.strip("0"):
        return given.lower()
    return _hash(given, 16).hex()


def share_of(trace_id: str) -> float:
    """A number from 0.0 up to 1.0 that depends on the id alone, and on all of it."""
    return int.from_bytes(_hash(trace_id, 6)) / 2**48


def _hash(text: str, size: int) -> bytes:
    # Seldom needed, and dear to import.
    from hashlib import blake2b

    data = text.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=size, person=b"caribou-trace").digest()


pool: Final[list[str]] = []
"""Span ids that nobody has yet, since a system call for each would be dear."""


def new_span_id() -> bytes:
    """16 lower-case hex digits."""
    # Taking from a list is one step to other threads.
    try:
        return pool.pop().encode()
    except IndexError:
        pool.extend(os.urandom(8 * _POOL_SIZE).hex(" ", 8).split())
        return new_span_id()


# What is left of the pool belongs to the parent process.
os.register_at_fork(after_in_child=pool.clear)
