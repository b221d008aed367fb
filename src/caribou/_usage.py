"""What models took in one rollout, and the sums of it that its summary tells."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ._sanitize import MAX_INTEGER

__all__ = ["Usage", "totals"]

_MAX_COST: Final = sys.float_info.max
_BUCKETS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


class Usage(msgspec.Struct, omit_defaults=True):
    """What one model took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0

    def within_columns(self) -> Usage:
        """A copy in which no sum is more than a column holds."""
        tokens = {bucket: min(getattr(self, bucket), MAX_INTEGER) for bucket in _BUCKETS}
        return Usage(**tokens, cost_usd=_cost(self.cost_usd))


def totals(usage: Mapping[str, Usage]) -> dict[str, Any]:
    """Columns of a summary: what all models took, and each; None for nothing."""
    # Of a copy, as other threads may add to it meanwhile.
    by_model = {model: taken.within_columns() for model, taken in tuple(usage.items())}
    models = by_model.values()
    return {
        "input_tokens": _tokens(sum(model.input_tokens for model in models)),
        "output_tokens": _tokens(sum(model.output_tokens for model in models)),
        "cost_usd": _cost(sum(model.cost_usd for model in models)) or None,
        "usage": by_model or None,
    }


def _tokens(number: int) -> int | None:
    return min(number, MAX_INTEGER) or None


def _cost(amount: float) -> float:
    return max(-_MAX_COST, min(amount, _MAX_COST))
