"""Kestrel: where runs, steps, datapoints and their rollouts are found."""

from __future__ import annotations

from . import models as models
from .blocking import BlockingKestrelClient, BlockingPages
from .client import KestrelClient, Pages

__all__ = ["BlockingKestrelClient", "BlockingPages", "KestrelClient", "Pages", "models"]
