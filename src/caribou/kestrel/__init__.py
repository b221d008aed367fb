"""Kestrel: where runs, steps, datapoints and their rollouts are found."""

from __future__ import annotations

from . import models as models
from ._filters import TraceFilters
from ._live import LiveStream
from .blocking import BlockingKestrelClient, BlockingLiveStream, BlockingPages
from .client import KestrelClient, Pages

__all__ = [
    "BlockingKestrelClient",
    "BlockingLiveStream",
    "BlockingPages",
    "KestrelClient",
    "LiveStream",
    "Pages",
    "TraceFilters",
    "models",
]
