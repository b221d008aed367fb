"""Ids from the operating system's randomness, so that seeding ``random`` never makes two alike."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

__all__ = ["new_span_id", "new_trace_id", "to_trace_id"]

_POOL_SIZE = 128
_OTEL_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")

_pool: Iterator[bytes] = iter(())


def new_span_id() -> bytes:
    """16 lower-case hex digits. Cut from a pool, since one system call an id is dear."""
    return next(_pool, None) or _refill()


def new_trace_id() -> str:
    """32 lower-case hex digits."""
    return os.urandom(16).hex()


def to_trace_id(given: str) -> str:
    """The OpenTelemetry trace id for a user's own: itself, if it has that form, or a hash."""
    if _OTEL_TRACE_ID.fullmatch(given) and given.strip("0"):
        return given.lower()
    return hashlib.blake2b(
        given.encode("utf-8", "surrogatepass"), digest_size=16, person=b"caribou-trace"
    ).hexdigest()


def _refill() -> bytes:
    global _pool
    digits = os.urandom(8 * _POOL_SIZE).hex().encode()
    # The iterator is complete before it is published: next() on it is atomic, so no two threads
    # ever get the same id, and two that refill at once merely waste a pool.
    pool = iter([digits[at : at + 16] for at in range(0, len(digits), 16)])
    first = next(pool)
    _pool = pool
    return first


def _drop_pool() -> None:
    global _pool
    _pool = iter(())


# What is left of the pool belongs to the parent process.
os.register_at_fork(after_in_child=_drop_pool)
