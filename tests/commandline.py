"""Running the ``caribou`` command as a person does: in a process of its own, in a pipe or in a
terminal, and journals for it to read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caribou.journal.journal import Journal

_LIMIT = 100.0  # seconds; the first import of the engine reads some 500 MB
# What may be set where the tests run and would change what they see.
_UNSET = (
    *("CLICKHOUSE_", "CARIBOU_", "LANGFUSE_", "KESTREL_", "OTEL_"),
    *("FORCE_COLOR", "NO_COLOR", "COLUMNS"),
)

# A program that records the least there is to look at.
ONE_ROLLOUT = """
import caribou.sync as caribou
with caribou.trace_run({"datapoint_id": "d", "phase": "eval", "run_id": "r", "trace_id": "a" * 32}):
    caribou.log(caribou.Message(role="user", content="Hello"))
caribou.shutdown()
"""


@dataclass(frozen=True)
class Answer:
    """What one command said."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Standard output as the array of objects that --json promises."""
        value = json.loads(self.out)
        assert isinstance(value, list)
        return value

    @property
    def table(self) -> list[dict[str, str]]:
        """Standard output as tab-separated lines under a line of names."""
        head, *lines = (line.split("\t") for line in self.out.splitlines())
        return [dict(zip(head, line, strict=True)) for line in lines]


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment with nothing of the surroundings' configuration."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_UNSET)}
    return clean | {"CARIBOU_HOME": str(home), "TERM": "xterm-256color"} | more


def without_engine(folder: Path) -> dict[str, str]:
    """A variable that makes the embedded engine as good as not installed."""
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['chdb'] = None\n")
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), before)))}


def caribou(*arguments: str, home: Path, **env: str) -> Answer:
    """Run a command with its output in pipes."""
    process = subprocess.run(
        [sys.executable, "-m", "caribou", *arguments],
        env=environment(home, **env),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=_LIMIT,
    )
    return Answer(process.returncode, process.stdout.decode(), process.stderr.decode())


def refused(answer: Answer) -> str:
    """The one sentence of a command that could not do what was asked."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("caribou: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    return answer.err


def on_terminal(*arguments: str, home: Path, columns: int = 100, **env: str) -> tuple[int, str]:
    """Run a command in a terminal; its exit code and all that it sent there."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "caribou", *arguments],
        env=environment(home, **env),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    watchdog = threading.Timer(_LIMIT, process.kill)
    watchdog.start()
    sent = bytearray()
    # Reading fails once the last process has closed its end.
    with contextlib.suppress(OSError):
        while chunk := os.read(controller, 65536):
            sent += chunk
    os.close(controller)
    code = process.wait()
    watchdog.cancel()
    return code, sent.decode()


@contextlib.contextmanager
def running(*arguments: str, home: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "caribou", *arguments],
        env=environment(home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    watchdog = threading.Timer(_LIMIT, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@contextlib.contextmanager
def open_journal(home: Path, sinks: dict[str, str] | None = None) -> Iterator[Journal]:
    """A journal of a process that lives: this one."""
    journal = Journal(
        home / "journal",
        sinks=sinks or {},
        max_bytes=1 << 30,
        rolled=lambda: None,
        successor=_no_successor,
    )
    try:
        yield journal
    finally:
        journal.close(delivered=False)


def write_rows(journal: Journal, table: str, *rows: dict[str, Any] | bytes) -> None:
    for row in rows:
        line = row if isinstance(row, bytes) else json.dumps(row).encode()
        journal.streams[table].append(line)


def record(home: Path, program: str, **env: str) -> None:
    """Run a program of its own that records rollouts into ``home``."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def _no_successor(table: str) -> Any:
    raise AssertionError(f"a row of {table} came after its journal was closed")
