"""What every test has: settings of its own, and for asynchronous ones every kind of event loop.

A test marked ``anyio`` runs under asyncio, asyncio with eager tasks (Python 3.12 and up), uvloop
and trio, and fails if Caribou blocks the loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from caribou import _process, _recording

pytest_plugins = ["caribou.testing", "support.fixtures"]

_UNSET = ("CLICKHOUSE_", "CARIBOU_", "LANGFUSE_", "KESTREL_", "OTEL_")


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


_BACKENDS: list[Any] = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]
if sys.version_info >= (3, 12):
    _BACKENDS.append(pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="eager"))


@pytest.fixture(params=_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loop that a test runs under."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Programs under test can be interrupted, also where this run was started to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the surroundings' configuration, a home of the test's own, and no runtime of
    another test's."""
    for name in os.environ:
        if name.startswith(_UNSET):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CARIBOU_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_recording, "_state", _recording._State())
    monkeypatch.setattr(_process, "_settings", None)
    monkeypatch.setattr(_process, "_last_stats", {})
    yield
    _process.shutdown_blocking(1.0)


@pytest.fixture(autouse=True)
def _no_blocking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Caribou's code in the caller's loop may not block. Its own thread may."""
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    own_thread = ["caribou.delivery", "caribou.journal", "caribou.sinks"]
    with blockbuster_ctx("caribou", excluded_modules=own_thread):
        yield
