"""Reading segments of any owner, this process or another, alive or dead.

Readers trust the committed length and nothing else. They never write, except that whoever has
adopted a dead owner's folder blanks a torn tail (:func:`set_aside_torn`).
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .segment import BLANKING

__all__ = [
    "SegmentFile",
    "count_rows",
    "cut_rows",
    "read_rows",
    "segment_files",
    "set_aside_torn",
]

_NAME = re.compile(r"([a-z_]+)-(\d{8,})\.ndjson")
_CHUNK = 256 << 10


class SegmentFile(NamedTuple):
    """A segment as any process sees it."""

    table: str
    number: int
    path: Path

    @property
    def commit_path(self) -> Path:
        """The file of the committed length."""
        return self.path.with_suffix(".commit")

    def committed(self) -> int:
        """Committed bytes, 0 when the segment is gone or being made."""
        try:
            word = self.commit_path.read_bytes()
        except OSError:
            return 0
        length = struct.unpack("=Q", word)[0] if len(word) == 8 else 0
        return 0 if length == BLANKING else length

    @property
    def blanking(self) -> bool:
        """Whether it was being made, or blanked for use again: no row in it is owed."""
        try:
            return struct.unpack("=Q", self.commit_path.read_bytes())[0] == BLANKING
        except (OSError, struct.error):
            return True


def segment_files(folder: Path) -> list[SegmentFile]:
    """The segments in an owner's folder, ordered by table and number."""
    found: list[SegmentFile] = []
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            found.append(SegmentFile(match[1], int(match[2]), folder / name))
    return sorted(found)


def read_rows(segment: SegmentFile, start: int) -> bytes:
    """The rows committed after byte ``start``; empty when there are none or the segment is gone.

    The owner may use a delivered segment again at any time. It takes the committed length back
    before it does, so what was read counts only if that length still stands afterwards.
    """
    try:
        before = os.stat(segment.commit_path).st_ino
        end = segment.committed()
        if end <= start:
            return b""
        with segment.path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        if os.stat(segment.commit_path).st_ino != before or segment.committed() < end:
            return b""
    except OSError:
        return b""
    return data


def row_chunks(view: memoryview | mmap.mmap, start: int, end: int) -> Iterator[bytes]:
    """Copies of ``[start, end)`` in pieces small enough not to hold the GIL for long."""
    for at in range(start, end, _CHUNK):
        yield bytes(view[at : min(end, at + _CHUNK)])


def count_rows(view: memoryview | mmap.mmap, start: int, end: int) -> int:
    """How many rows lie in ``[start, end)``."""
    return sum(chunk.count(b"\n") for chunk in row_chunks(view, start, end))


def set_aside_torn(segment: SegmentFile, keep: Callable[[bytes], None]) -> None:
    """Give what lies beyond the committed length to ``keep``, and blank it: the torn row of a
    killed process.

    Only for the segment of an owner that was adopted. ``log()`` had not returned for this row.
    """
    if segment.blanking:
        return
    end = segment.committed()
    with segment.path.open("r+b") as file:
        file.seek(end)
        tail = file.read()
        torn = tail.strip(b"\n")
        if torn:
            keep(torn)
            file.seek(end)
            file.write(b"\n" * len(tail))


def cut_rows(view: memoryview | mmap.mmap, start: int, end: int, most: int) -> tuple[int, int]:
    """The longest run of whole rows in ``[start, end)`` of at most ``most`` rows.

    Returns where it ends and how many rows it has.
    """
    rows = 0
    at = cut = start
    for chunk in row_chunks(view, start, end):
        inside = chunk.count(b"\n")
        if rows + inside > most:
            position = -1
            for _ in range(most - rows):
                position = chunk.index(b"\n", position + 1)
                cut = at + position + 1
            return cut, most
        if inside:
            # Chunks end anywhere; rows end here.
            cut = at + chunk.rindex(b"\n") + 1
        rows += inside
        at += len(chunk)
    return end, rows
