"""What ``import caribou`` gives, and what it does not cost."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import get_type_hints

import pytest

import caribou
import caribou.sync
import caribou.testing
from caribou.kestrel import KestrelClient

FUNCTIONS = {
    *("configure", "trace_run", "span", "log", "add_meta", "add_tags", "set_status", "set_error"),
    *("increment_turn", "increment_intra", "set_turn_index", "set_intra_index", "flush"),
    *("shutdown", "current_trace_id", "stats", "get_kestrel_client"),
}
TYPES = {
    *("Message", "ToolExecution", "Grade", "Event", "RolloutStatus", "TraceMeta", "FlushResult"),
    *("SinkStats", "Stats"),
}
EXCEPTIONS = {
    *("CaribouError", "InvalidValue", "InvalidType", "ConfigurationError", "JournalError"),
    *("StoreError", "MissingExtra", "KestrelError"),
}


def test_exactly_these_names() -> None:
    assert set(caribou.__all__) == FUNCTIONS | TYPES | EXCEPTIONS | {"__version__"}
    assert caribou.__all__ == sorted(caribou.__all__)
    shown = {name for name in vars(caribou) if not name.startswith("_")}
    modules = {name for name in shown if inspect.ismodule(getattr(caribou, name))}
    assert shown - modules - {"annotations"} == set(caribou.__all__) - {"__version__"}


def test_exceptions_are_one_tree() -> None:
    for name in EXCEPTIONS:
        assert issubclass(getattr(caribou, name), caribou.CaribouError)
    assert issubclass(caribou.InvalidValue, ValueError)
    assert issubclass(caribou.InvalidType, TypeError)
    assert issubclass(caribou.MissingExtra, ImportError)


@pytest.mark.parametrize("name", sorted(FUNCTIONS | TYPES | EXCEPTIONS))
def test_each_name_is_documented(name: str) -> None:
    thing = getattr(caribou, name)
    assert (inspect.getdoc(thing) or "").strip()
    if name in FUNCTIONS:
        known = {**vars(sys.modules[thing.__module__]), "KestrelClient": KestrelClient}
        assert get_type_hints(inspect.unwrap(thing), known)
        documented = inspect.getdoc(thing) or ""
        for parameter in inspect.signature(thing).parameters:
            assert parameter in documented, parameter


def loaded(program: str) -> set[str]:
    command = [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["caribou", "caribou.sync"])
def test_importing_is_light(module: str) -> None:
    heavy = {
        "aiohttp",
        "anyio",
        "asynch",
        "asyncio",
        "chdb",
        "click",
        "httpx",
        "rich",
        "trio",
        "zstandard",
    }
    assert not loaded(f"import {module}") & heavy


def test_the_blocking_side_comes_along() -> None:
    assert "caribou.sync" in loaded("import caribou\nassert caribou.sync.trace_run")


def test_nothing_of_the_hosts_is_taken() -> None:
    program = """
import logging, random, signal, sys, threading, warnings
def seen():
    return (
        [signal.getsignal(number) for number in signal.valid_signals()],
        sys.excepthook, threading.excepthook, sys.unraisablehook, random.getstate(),
        list(logging.root.handlers), logging.root.level, list(warnings.filters),
    )
before = seen()
import caribou.sync as caribou
with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
    caribou.log(caribou.Message(role="user", content="x"))
caribou.flush()
assert seen() == before
"""
    assert "caribou" in loaded(program)
