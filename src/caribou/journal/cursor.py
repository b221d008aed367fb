"""How far a sink has got in the segments of one owner, kept beside them.

The file is mapped and holds two copies of the state, written in turn: a number, a length, a
checksum, JSON. A kill in the middle of one leaves the other. Saving is a copy into memory and no
system call: it happens twice a batch, and after every call the thread would queue for the GIL.

What is being sent is written down before it is sent: after a crash the same bytes are asked about
under the same batch id, not guessed.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import zlib
from pathlib import Path

import msgspec

__all__ = ["Cursor", "InFlight"]

_COPY_BYTES = 64 << 10
_HEAD = struct.Struct("=QLL")


class InFlight(msgspec.Struct, frozen=True, array_like=True):
    """Bytes ``[start, end)`` of a segment that were handed to the sink and not yet acknowledged."""

    start: int
    end: int
    rows: int


class _State(msgspec.Struct):
    # table -> segment number (as text) -> acknowledged bytes
    acknowledged: dict[str, dict[str, int]] = {}
    in_flight: dict[str, dict[str, InFlight]] = {}
    # table -> from which to which segment all are acknowledged to their end, in order
    runs: dict[str, list[tuple[int, int]]] = {}


class Cursor:
    """The position of one sink. ``folder`` None keeps it in memory, like the journal it is of."""

    def __init__(self, folder: Path | None, sink: str) -> None:
        self._number = 0
        self._state = _State()
        self._map: mmap.mmap | None = None
        # None once it is of no use: in memory, or where the file cannot be made.
        self._path = None if folder is None else folder / f"{sink}.cursor"
        if self._path is not None:
            self._load(self._path)

    def acknowledged(self, table: str, segment: int) -> int:
        """Bytes of the segment that the sink has acknowledged."""
        if any(first <= segment <= last for first, last in self._state.runs.get(table, ())):
            return sys.maxsize
        return self._state.acknowledged.get(table, {}).get(str(segment), 0)

    def in_flight(self, table: str, segment: int) -> InFlight | None:
        """What was being sent when the state was last saved."""
        return self._state.in_flight.get(table, {}).get(str(segment))

    def sending(self, table: str, segment: int, what: InFlight) -> None:
        """Note, before it happens, that bytes are handed to the sink."""
        self._state.in_flight.setdefault(table, {})[str(segment)] = what
        self._save()

    def acknowledge(self, table: str, segment: int, end: int) -> None:
        """Note that everything before ``end`` is acknowledged or set aside."""
        self._state.acknowledged.setdefault(table, {})[str(segment)] = end
        self._state.in_flight.get(table, {}).pop(str(segment), None)
        self._save()

    def finish(self, table: str, segment: int) -> None:
        """A segment is acknowledged to its end, and nothing will be added to it. Those that follow
        one another take no more room than one, however many there are."""
        if self.acknowledged(table, segment) == sys.maxsize:
            return
        runs: list[tuple[int, int]] = []
        for first, last in sorted([*self._state.runs.get(table, ()), (segment, segment)]):
            if runs and first == runs[-1][1] + 1:
                first, _ = runs.pop()
            runs.append((first, last))
        self._state.runs[table] = runs
        self._state.acknowledged.get(table, {}).pop(str(segment), None)

    def _load(self, path: Path) -> None:
        """Take the latest copy that is whole. Without one, start from the beginning: sending rows
        again is right, as they replace themselves by key, and skipping them would not be."""
        try:
            data = path.read_bytes()
        except OSError:
            return
        for at in (0, _COPY_BYTES):
            if len(data) < at + _COPY_BYTES:
                return
            number, length, checksum = _HEAD.unpack_from(data, at)
            text = data[at + _HEAD.size : at + _HEAD.size + length]
            if number > self._number and zlib.crc32(text) == checksum:
                self._number = number
                self._state = msgspec.json.decode(text, type=_State)

    def _save(self) -> None:
        if self._map is None:
            if self._path is None:
                return
            try:
                self._map = _open(self._path)
            except OSError:
                # A full disk must not stop delivery, which is what makes room on it. Without the
                # file a crash sends rows again, and they replace themselves by key.
                self._path = None
                return
        text = msgspec.json.encode(self._state)
        end = _HEAD.size + len(text)
        if end > _COPY_BYTES:
            # Far more segments than are ever half delivered; the older state is right, only older.
            return
        self._number += 1
        at = self._number % 2 * _COPY_BYTES
        self._map[at + _HEAD.size : at + end] = text
        _HEAD.pack_into(self._map, at, self._number, len(text), zlib.crc32(text))


def _open(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        missing = 2 * _COPY_BYTES - os.fstat(fd).st_size
        if missing > 0:
            # Written, not only made longer: a full disk is an error here and not a SIGBUS later.
            os.pwrite(fd, bytes(missing), 2 * _COPY_BYTES - missing)
        return mmap.mmap(fd, 2 * _COPY_BYTES)
    finally:
        os.close(fd)
