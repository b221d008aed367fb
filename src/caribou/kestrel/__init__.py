"""Kestrel: where runs, steps, datapoints and their rollouts are found."""

from __future__ import annotations
