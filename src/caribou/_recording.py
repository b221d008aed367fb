"""Under which settings this process records, and where to: the runtime, or a test's capture."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from . import _process
from ._ids import share_of
from ._rollout import Recorder
from ._scope import Scope, calling_frame, settle
from ._settings import Settings, from_environment
from .delivery.accounting import FlushResult, Stats

__all__ = [
    "Capturing",
    "active",
    "captured",
    "recording_with",
    "scope_for",
    "set_defaults",
    "skip_reason",
]

_MAX_SITES: Final = 1000


class Capturing(Recorder, Protocol):
    """What stands in for the process's runtime in a user's tests."""

    def result(self) -> FlushResult:
        """What flushing gives: there is nothing to deliver."""
        ...

    def stats(self) -> Stats:
        """The counts so far."""
        ...

    def count_outside(self) -> None:
        """Count a call that had no rollout to belong to."""
        ...


class _State:
    """What ``configure()`` was given, the settings in force once something needed them, a capture
    that stands in for the runtime, and the places already warned of."""

    def __init__(self, capture: Capturing | None = None) -> None:
        self.given: Mapping[str, object] = {}
        self.settings: Settings | None = None
        self.capture = capture
        self.sites: set[tuple[str, int]] = set()


_state = _State()


def set_defaults(given: Mapping[str, object]) -> None:
    """Lay ``given`` over what was given before.

    Raises:
        InvalidType: an argument has the wrong type.
        InvalidValue: an argument has a value that cannot work.
        ConfigurationError: a variable of the environment has such a value.
    """
    merged = {**_state.given, **given}
    settings = _read(merged)
    _state.given = merged
    _state.settings = settings
    if _state.capture is None:
        _process.reconfigure(settings)


def active() -> Settings:
    """The settings in force.

    Raises:
        ConfigurationError: a variable of the environment has a value that cannot work.
    """
    if _state.settings is None:
        _state.settings = _read(_state.given)
        if _state.capture is None:
            _process.reconfigure(_state.settings)
    return _state.settings


def _read(given: Mapping[str, object]) -> Settings:
    # What a test captures does not depend on the environment that the test runs in.
    return from_environment(given, os.environ if _state.capture is None else {})


@contextmanager
def recording_with(capture: Capturing) -> Generator[None]:
    """Record with ``capture`` instead of the runtime, under settings of its own."""
    global _state
    before, _state = _state, _State(capture)
    try:
        yield
    finally:
        _state = before


def captured() -> Capturing | None:
    """What stands in for the runtime, if anything does."""
    return _state.capture


def skip_reason(recorder: Recorder, trace_id: str) -> str | None:
    """Why a new rollout is not recorded: None if it is, empty if its rows are not even counted."""
    settings = recorder.settings
    if settings.disabled:
        return ""
    if not recorder.accepting:
        return "journal_full"
    if settings.sample_rate < 1.0:
        # By the id, so that all parts of a trace agree, in every process.
        return None if share_of(trace_id) < settings.sample_rate else "sampled"
    return None


def scope_for(call: str, depth: int = 1) -> Scope | None:
    """The scope that a call belongs to. Where there is none that is said, once for each place in
    the program: the one ``depth`` calls above the function that asks."""
    scope = settle()
    if scope is not None or active().disabled:
        return scope
    if _state.capture is not None:
        _state.capture.count_outside()
    else:
        _process.count_outside()
    frame = calling_frame(depth + 1)
    site = (frame.f_code.co_filename, frame.f_lineno)
    if site not in _state.sites and len(_state.sites) < _MAX_SITES:
        _state.sites.add(site)
        message = f"{call} was called outside any trace_run, and recorded nothing"
        warnings.warn_explicit(message, RuntimeWarning, *site)
    return None
