"""The debug console (``CARIBOU_TRACE_DEBUG``): one readable line per record, as it is logged.

A terminal can stop taking what it is sent at any moment, and for as long as it likes: a pager, a
Ctrl-S, a pipe that nobody reads. So lines are made and written in a thread of the console's own,
and the sink only leaves rows to it. What does not fit into its bounded memory is counted and not
shown; the journal never waits for a terminal.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from ._console_lines import Lines
from .base import Batch

__all__ = ["Console"]

_logger = logging.getLogger("caribou")

_MOST_WAITING = 8 << 20
# Rows of several tables come one after another: so long, in seconds, they are waited for.
_GATHERING = 0.03
# The end of a rollout is shown after what was logged before it, which may come with the next rows.
_AFTER_OTHERS = 0.15
# A pipe takes this much whole, so lines of others cannot come in between (POSIX, PIPE_BUF).
_WRITE = 4096
# Of one core, making lines takes a fifth at most while the program runs.
_REST = 4
_FAREWELL_LOOKS = 50
_WIDTH = 200
_LEAST_WIDTH = 20


class Console:
    """Writes spans and the ends of rollouts to a stream, in colour on a terminal; implements
    ``Sink``.

    Args:
        stream: where to; by default what ``sys.stderr`` is at the time.
    """

    name: str = "console"
    target: str = "console"
    tables: frozenset[str] = frozenset({"spans", "traces"})

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lines = Lines()
        # The I/O thread appends, the console's takes; of each number one of them is the writer.
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes_taken = 0
        self._bytes_done = 0
        self._skipped = 0
        self._told = 0
        self._gone = False
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caribou-console", daemon=True)
        try:
            # At once: Python 3.12 starts no thread once the program has ended.
            self._thread.start()
        except RuntimeError:
            self._gone = True

    def load(self) -> None:
        """Nothing to import."""

    async def send(self, batch: Batch) -> None:
        """Leave the rows, or as many as there is room for, to the console's thread."""
        if self._gone:
            return
        room = _MOST_WAITING - (self._bytes_taken - self._bytes_done)
        if len(batch.data) <= room:
            rows = bytes(batch.data)
        else:
            rows = bytes(batch.data[:room])
            rows = rows[: rows.rfind(b"\n") + 1]
            self._skipped += batch.rows - rows.count(b"\n")
        if rows:
            self._bytes_taken += len(rows)
            self._waiting.append((batch.table, rows))
        self._woken.set()

    async def confirm(self, batch: Batch) -> bool:
        """Nothing is shown twice."""
        return True

    async def aclose(self) -> None:
        """Give what waits half a second to be shown."""
        self._ending.set()
        self._woken.set()
        for _ in range(_FAREWELL_LOOKS):
            if not self._thread.is_alive():
                return
            await asyncio.sleep(0.01)

    def _run(self) -> None:
        # Writing to a pipe that was closed, or from the background, must not end or stop a program
        # that has these signals' default actions; it fails instead, or goes through.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE, signal.SIGTTOU})
        ended: list[bytes] = []
        while not self._gone:
            self._woken.wait(_AFTER_OTHERS if ended else None)
            self._woken.clear()
            self._ending.wait(_GATHERING)
            # Before the look at what waits: nothing is appended once this is set.
            last = self._ending.is_set()
            begun, rows, ending = self._take()
            skipped, self._told = self._skipped - self._told, self._skipped
            self._show(begun)
            self._show(rows)
            self._show(ended)
            ended = ending
            if skipped:
                self._write(f"… {skipped:,} lines are not shown: the console is too slow\n")
            if last:
                self._show(ended)
                return
        self._waiting.clear()

    def _take(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """What waits: rollouts that began, what was logged, and rollouts that ended."""
        begun: list[bytes] = []
        rows: list[bytes] = []
        ending: list[bytes] = []
        while self._waiting:
            table, data = self._waiting.popleft()
            if table == "spans":
                rows += data.splitlines()
            else:
                for row in data.splitlines():
                    (begun if b'"status":"PENDING"' in row else ending).append(row)
        return begun, rows, ending

    def _show(self, rows: list[bytes]) -> None:
        for chunk in self._chunks(rows):
            self._write(chunk)
            if self._gone:
                return

    def _chunks(self, rows: list[bytes]) -> Iterator[str]:
        """The lines of ``rows``, a few at a time, with a rest after each."""
        width, colour = self._look()
        began = time.thread_time()
        chunk, size = "", 0
        for row in rows:
            line = self._line(row, width, colour)
            length = len(line.encode(errors="replace"))
            if size + length > _WRITE:
                yield chunk
                # Others want the interpreter too. At the end there are none to wait for it.
                self._ending.wait(_REST * (time.thread_time() - began))
                began = time.thread_time()
                chunk, size = "", 0
            chunk += line
            size += length
            self._bytes_done += len(row) + 1
        if chunk:
            yield chunk

    def _line(self, row: bytes, width: int, colour: bool) -> str:
        try:
            return self._lines.line(row, width=width, colour=colour)
        except Exception:
            # A defect, and one line is not worth those that follow.
            _logger.debug("A row cannot be shown", exc_info=True)
            return ""

    def _look(self) -> tuple[int, bool]:
        """The columns there are, and whether colours are wanted."""
        stream = self._stream or sys.stderr
        try:
            if not stream.isatty():
                return _WIDTH, False
            columns = os.get_terminal_size(stream.fileno()).columns
        except Exception:
            # Any object may stand in for the stream.
            return _WIDTH, False
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return max(columns, _LEAST_WIDTH) if columns else _WIDTH, not plain

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stderr
        try:
            descriptor = _descriptor(stream)
            if descriptor is None:
                stream.write(text)
                stream.flush()
            else:
                _write_all(descriptor, text.encode(stream.encoding, "backslashreplace"))
        except ValueError:
            # Closed. Another may have taken its place by the next line.
            return
        except Exception:
            # The terminal is gone, or what stands in for it fails, and it does not come back.
            self._gone = True


def _descriptor(stream: TextIO) -> int | None:
    """The file to write to past the stream's buffer, if it has one. A write that is blocked would
    keep the buffer's lock, and with it the program from ending."""
    try:
        return stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
    except io.UnsupportedOperation:
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            # Somebody made the terminal non-blocking, for all who have it open.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
