"""The embedded engine at one path: a lock so that one process has it, and late import.

Importing the engine takes a second and most commands never need it. It allows one process per
path, corrupts nothing when asked twice but answers with a riddle, so a lock file with the holder's
name in it stands in front.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MissingExtra, StoreError
from ..schema import migrate_sync, parameter, quote
from .base import Parameters

__all__ = ["Engine", "EngineError", "require_engine"]

T = TypeVar("T")

_POLL = 0.05
_MISSING = "reading the local store needs the embedded engine: pip install 'caribou-trace[local]'"
_SETTINGS = (
    "output_format_json_quote_64bit_integers = 0",
    "date_time_output_format = 'iso'",
    # A part of a text may begin or end in the middle of a character.
    "output_format_json_validate_utf8 = 1",
    # Nested values stay JSON text, as they do on a server.
    "input_format_json_read_objects_as_strings = 1",
    "input_format_json_read_arrays_as_strings = 1",
    "input_format_json_read_numbers_as_strings = 1",
    "input_format_json_read_bools_as_strings = 1",
    "input_format_null_as_default = 1",
    "input_format_skip_unknown_fields = 1",
)
_CODE = re.compile(r"Code: (\d+)\.\s*(?:DB::Exception: )?")


class EngineError(StoreError):
    """The engine refused a statement."""


class Engine:
    """One open session. Statements run in a thread that belongs to it, so that Ctrl-C reaches the
    thread that waits for an answer; Python handles no signal while the main thread is in one."""

    def __init__(self, folder: Path, *, wait: float) -> None:
        """Open the engine's files below ``folder``, waiting up to ``wait`` seconds for another
        process to finish with them.

        Raises:
            MissingExtra: the engine is not installed.
            StoreError: another process holds the store, or the folder cannot be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _take_lock(folder / "lock", wait)
        except OSError as error:
            raise StoreError(
                f"the local store {folder} cannot be used: {error.strerror}"
            ) from error
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answer: Future[Any] = Future()
        self._session: Any = None
        threading.Thread(target=self._serve, name="caribou-engine", daemon=True).start()
        try:
            self._session = self._in_thread(lambda: _open_session(folder / "engine")).result()
        except Exception:
            self._end()
            raise

    def prepare(self, database: str) -> None:
        """Make or update the tables in ``database``, and answer as a server does from now on.

        Raises:
            EngineError: the engine refused it.
        """
        migrate_sync(self.run, database=database)
        self.run(f"SET {', '.join(_SETTINGS)}")
        self.run(f"USE {quote(database)}")

    def run(
        self, sql: str, parameters: Parameters | None = None, format: str = "TabSeparated"
    ) -> bytes:
        """Run one statement and return its answer in a ClickHouse output format.

        Raises:
            EngineError: the engine refused it.
        """
        answer = self.submit(sql, parameters, format)
        while not answer.done():
            # A signal that comes between Python's last look for one and the wait does not end it:
            # without a limit Ctrl-C would do nothing until the statement has ended.
            wait_for([answer], _POLL)
        return answer.result()

    def submit(
        self,
        sql: str,
        parameters: Parameters | None = None,
        format: str = "TabSeparated",
        *,
        seconds: int = 0,
    ) -> Future[bytes]:
        """Have one statement run after those before it; its answer, or an ``EngineError``.

        A future that is cancelled before its turn comes is passed over. ``seconds`` is how long the
        statement may take, 0 for any time.
        """
        values = {name: parameter(value) for name, value in (parameters or {}).items()}

        def run() -> bytes:
            try:
                if seconds:
                    self._session.query(f"SET max_execution_time = {seconds}")
                return bytes(self._session.query(sql, format, params=values or None).bytes())
            except Exception as error:
                # What a statement had answered before it failed would come before the next answer.
                self._session.query("SELECT 1")
                raise _engine_error(error) from error
            finally:
                if seconds:
                    self._session.query("SET max_execution_time = 0")

        return self._in_thread(run)

    def close(self) -> None:
        """Close the session and let the next process in.

        Does nothing while a statement runs that an interrupt took the caller away from: the engine
        cannot be told to stop. The lock then ends with the process.
        """
        if self._session is not None and self._answer.done():
            self._in_thread(self._session.close).result()
            self._session = None
            self._end()

    def _end(self) -> None:
        self._work.put(None)
        os.close(self._lock)

    def _in_thread(self, function: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        self._answer = answer

        def work() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        self._work.put(work)
        return answer

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def require_engine() -> None:
    """Look whether the engine is installed, without the second that its import takes.

    Raises:
        MissingExtra: it is not.
    """
    if importlib.util.find_spec("chdb") is None:
        raise MissingExtra(_MISSING)


def _open_session(path: Path) -> Any:
    try:
        from chdb.session import Session  # pyright: ignore
    except ImportError as error:
        raise MissingExtra(_MISSING) from error
    if "?" in str(path.resolve()):
        # The engine would take what follows for options and put its files somewhere else.
        raise StoreError(f"the engine cannot use {path}: set CARIBOU_HOME to a path without '?'")
    path.mkdir(mode=0o700, exist_ok=True)
    try:
        return Session(str(path.resolve()))  # pyright: ignore
    except Exception as error:
        raise StoreError(
            f"the local store {path} cannot be opened: {_engine_error(error)}"
            " (it is rebuilt from the journal when its folder is removed)"
        ) from error


def _take_lock(path: Path, wait: float) -> int:
    """Lock ``path`` and write who holds it.

    Raises:
        StoreError: somebody else held it for all of ``wait`` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < give_up:
                time.sleep(_POLL)
                continue
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(fd)
            raise StoreError(
                f"the local store {path.parent} is in use by {holder}; try again when it has ended"
            ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} ({Path(sys.argv[0]).name or 'python'})".encode(), 0)
    return fd


def _message(error: BaseException) -> str:
    """What the engine said. Where it quotes bytes that are no UTF-8, its Python binding fails over
    them, or says nothing at all."""
    cause = error if isinstance(error, UnicodeDecodeError) else error.__cause__
    if isinstance(cause, UnicodeDecodeError):
        return cause.object.decode("utf-8", "backslashreplace").strip()
    return str(error).strip() or "the engine refused the statement (its message is not valid text)"


def _engine_error(error: Exception) -> EngineError:
    text = _message(error)
    match = _CODE.search(text)
    if match is None:
        return EngineError(text)
    return EngineError(text[match.end() :].strip(), code=int(match[1]))
