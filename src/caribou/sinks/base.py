"""What delivery asks of a backend, and the few ways in which a backend can answer.

A courier hands a sink one batch at a time per table and waits. Returning means every row of the
batch is acknowledged. Each exception below is one class of failure, and says what the courier does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Ambiguous",
    "Batch",
    "Misconfigured",
    "Poison",
    "Retry",
    "Sink",
    "SinkError",
    "TooLarge",
]


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole journal lines of one table, with an identity that survives a crash.

    ``data`` is NDJSON: ``rows`` lines, each ending in a newline. It is a view of a memory-mapped
    segment and is only valid until ``send`` returns.
    """

    table: str
    batch_id: str
    rows: int
    data: memoryview


class SinkError(Exception):
    """A batch was not acknowledged. ``code`` is the backend's own error code, 0 if none."""

    def __init__(self, reason: str, *, code: int = 0, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.retry_after = retry_after


class Retry(SinkError):
    """Not applied; the same batch may succeed later (``retry_after`` seconds, if it said so)."""


class Ambiguous(SinkError):
    """Bytes were sent and no answer came: the batch may or may not have been applied."""


class TooLarge(SinkError):
    """The backend cannot take so much at once: halve the batch. With ``retry_after`` that is so
    for the moment only, and a single row is tried again; without, it is refused for good."""


class Poison(SinkError):
    """The content was refused: bisect the batch and set the culprit aside."""


class Misconfigured(SinkError):
    """A setting or right is at fault: keep the data, say so once, try again rarely."""


class Sink(Protocol):
    """One backend. Methods run in the I/O thread's loop; ``send`` is never called concurrently
    for the same table. Every method may be cancelled at any await and must stay usable."""

    @property
    def name(self) -> str:
        """Short and stable; it names the sink's cursor files and its row in ``stats()``."""
        ...

    @property
    def target(self) -> str:
        """Where rows go, without credentials, e.g. ``http://localhost:8123/caribou``."""
        ...

    @property
    def tables(self) -> frozenset[str]:
        """The journal tables this sink takes; it never sees the others."""
        ...

    def load(self) -> None:
        """Import what the sink needs. Called once, before anything else, in a thread of its own."""
        ...

    async def send(self, batch: Batch) -> None:
        """Deliver one batch; return once it is acknowledged.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        ...

    async def confirm(self, batch: Batch) -> bool:
        """After :class:`Ambiguous`, or a crash in mid-send: are all rows of the batch there?

        Raises:
            SinkError: the question could not be asked (``Retry`` or ``Misconfigured``).
        """
        ...

    async def aclose(self) -> None:
        """Release connections; never raises, never waits long."""
        ...
