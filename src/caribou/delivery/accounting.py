"""Per sink, at every moment: ``logged = delivered + pending + dropped``.

The unit is the row: one line of the journal, in any table.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

import msgspec

__all__ = ["FlushResult", "Ledger", "Notices", "SinkStats", "Stats"]

_logger = logging.getLogger("caribou")


class SinkStats(msgspec.Struct, frozen=True, kw_only=True):
    """One sink's account, in rows: ``logged = delivered + pending + sum(dropped.values())``.

    Attributes:
        logged: rows accepted for this sink: logged by this process, recovered from dead ones, or
            refused for a reason that ``dropped`` names.
        recovered: of these, rows recovered from processes that died.
        delivered: rows the sink has acknowledged.
        pending: rows in the journal that it has not.
        dropped: rows that will not be delivered, by reason: ``dead_letter``, ``journal_full``,
            ``sampled``.
        last_error: why the last attempt failed; None once one succeeds.
    """

    logged: int
    recovered: int
    delivered: int
    pending: int
    dropped: dict[str, int]
    last_error: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What ``stats()`` returns.

    Attributes:
        sinks: the account of each sink by its name; in local mode the journal is the store, and
            its account stands under ``local``.
        journal_bytes: bytes of segments that hold rows which are waiting, or kept.
        outside_rollout: calls that had no rollout to belong to and recorded nothing.
    """

    sinks: dict[str, SinkStats]
    journal_bytes: int = 0
    outside_rollout: int = 0


class FlushResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``flush()`` and ``shutdown()`` return.

    Attributes:
        complete: every sink has acknowledged (or set aside as a dead letter) all that was logged
            before the call.
        seconds: how long the call took.
        sinks: the account of each sink at the end of the call.
    """

    complete: bool
    seconds: float
    sinks: dict[str, SinkStats]

    @property
    def pending(self) -> int:
        """Rows that are still to be delivered, over all sinks."""
        return sum(sink.pending for sink in self.sinks.values())


class Ledger:
    """The running account of one sink. Only the I/O thread writes to it."""

    def __init__(self) -> None:
        self.recovered = 0
        self.delivered = 0
        self.dropped: Counter[str] = Counter()
        self.last_error: str | None = None

    def stats(self, own_rows: Callable[[], int], refused: Counter[str]) -> SinkStats:
        """The account, given the rows this process appended and those refused before that."""
        # What left ``pending`` is read before what entered it, so that what is logged and
        # delivered meanwhile shows as pending for a moment, and never as a negative number.
        dropped = self.dropped + refused
        delivered = self.delivered
        logged = own_rows() + self.recovered + refused.total()
        return SinkStats(
            logged=logged,
            recovered=self.recovered,
            delivered=delivered,
            pending=logged - delivered - dropped.total(),
            dropped=dict(dropped),
            last_error=self.last_error,
        )


class Notices:
    """Warnings about one sink, each at most once in ``every`` seconds, however often it happens."""

    def __init__(self, every: float = 300.0) -> None:
        self._every = every
        self._last: dict[str, float] = {}

    def warn(self, key: str, message: str, *args: object) -> None:
        """Log ``message`` unless the same ``key`` was warned of lately."""
        now = time.monotonic()
        if now - self._last.get(key, -self._every) >= self._every:
            self._last[key] = now
            _logger.warning(message, *args)

    def settle(self, key: str, message: str, *args: object) -> None:
        """Say at INFO that the trouble under ``key`` is over, if it was warned of."""
        if self._last.pop(key, None) is not None:
            _logger.info(message, *args)
