"""Values as a person reads them."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "cost",
    "count",
    "counted",
    "duration",
    "mean",
    "minute",
    "moment",
    "score",
    "score_style",
    "some",
    "status_style",
]

_STATUS_STYLES = {
    "COMPLETED": "green",
    "PENDING": "cyan",
    "TRUNCATED": "yellow",
    "ABORTED": "yellow",
    "INTERRUPTED": "yellow",
}


def status_style(status: Any) -> str:
    """The colour of a rollout's or span's status."""
    return _STATUS_STYLES.get(str(status), "red")


def score(value: Any) -> str:
    """A score with three decimals."""
    return f"{float(value):.3f}"


def score_style(value: Any) -> str:
    """Green for a full score, red for none, yellow between."""
    return "green" if float(value) >= 1 else "red" if float(value) <= 0 else "yellow"


def count(value: Any) -> str:
    """A whole number with separators."""
    return f"{int(value):,}"


def counted(value: int, noun: str) -> str:
    """How many of what: 1 row, 2 rows, 3 ended processes."""
    plural = "" if value == 1 else "es" if noun.endswith("s") else "s"
    return f"{count(value)} {noun}{plural}"


def cost(value: Any) -> str:
    """US dollars, with as many decimals as small sums need."""
    amount = float(value)
    if abs(amount) >= 1 or amount == 0:
        return f"${amount:,.2f}"
    # Two digits of what is less than a hundredth of a cent, within reason.
    decimals = 1 - math.floor(math.log10(abs(amount)))
    return f"${amount:.{min(max(4, decimals), 12)}f}"


def duration(milliseconds: Any) -> str:
    """A duration given in milliseconds, in the unit that suits it."""
    ms = float(milliseconds)
    if ms < 1:
        return f"{ms * 1000:.0f} µs"
    if ms < 1000:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d} h"


def moment(iso: Any) -> str:
    """An ISO 8601 time in UTC, to the second."""
    return str(iso)[:19].replace("T", " ")


def minute(iso: Any) -> str:
    """An ISO 8601 time in UTC, to the minute."""
    return moment(iso)[:16]


def some(value: Any) -> str:
    """A whole number with separators; nothing for zero."""
    return count(value) if int(value) else ""


def mean(value: Any) -> str:
    """A mean of counts."""
    return f"{float(value):,.1f}"
