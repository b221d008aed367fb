"""Rows a backend refused for their content, kept beside the journal with the reason.

They are on disk before they count as dropped, and their neighbours go on without them.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import msgspec

__all__ = ["DeadLetter", "DeadLetters", "read_dead_letters"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One refused row: a line of the files in ``dead/``. ``time`` is seconds since the epoch."""

    table: str
    sink: str
    code: int
    reason: str
    time: float
    row: msgspec.Raw


class DeadLetters:
    """Writes into ``dead/`` below the journal's root; with ``root`` None rows are only counted."""

    def __init__(self, root: Path | None) -> None:
        self._folder = None if root is None else root / "dead"

    def add(self, owner: str, table: str, sink: str, code: int, reason: str, row: bytes) -> None:
        """Keep one row.

        Raises:
            OSError: it could not be written; the row must not be counted as set aside.
        """
        letter = DeadLetter(
            table=table,
            sink=sink,
            code=code,
            reason=reason[:2000],
            time=time.time(),
            row=_as_json(row),
        )
        self._write(f"{table}-{sink}-{owner}.ndjson", msgspec.json.encode(letter) + b"\n")

    def add_torn(self, owner: str, table: str, segment: int, data: bytes) -> None:
        """Keep what a killed process had half written, as it is. Nobody was told it was logged."""
        self._write(f"{table}-{segment:08d}-{owner}.torn", data + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._folder / name, flags, 0o600)
        try:
            before = os.fstat(fd).st_size
            if os.write(fd, data) != len(data):
                # Nobody else writes to the file of this owner: take the part back.
                os.ftruncate(fd, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)


def read_dead_letters(root: Path) -> list[DeadLetter]:
    """Every dead letter below the journal's root, oldest first; unreadable lines are left out."""
    letters: list[DeadLetter] = []
    for path in sorted((root / "dead").glob("*.ndjson")):
        for line in path.read_bytes().splitlines():
            try:
                letters.append(msgspec.json.decode(line, type=DeadLetter))
            except msgspec.DecodeError:
                continue
    return sorted(letters, key=lambda letter: letter.time)


def _as_json(row: bytes) -> msgspec.Raw:
    try:
        msgspec.json.decode(row)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.Raw(msgspec.json.encode(row.decode("utf-8", "replace")))
    return msgspec.Raw(row.strip())
