"""One segment: a file of rows that is valid NDJSON at every moment, and its committed length.

The file is filled with newlines before it is used. Filling allocates its blocks, so a full disk is
an :class:`OSError` here and never a SIGBUS under a caller, and whoever reads the file beyond the
rows finds blank lines only. Rows are copied in through a shared map: once copied they are in the
page cache, which outlives the process.

The committed length stands beside the segment as one aligned 64-bit word in a map of its own. It
is stored after the row is wholly in place, so a reader that trusts it never sees half a row.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

__all__ = ["Segment"]

_CHUNK = b"\n" * (1 << 18)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

# Stands in the place of the length while a delivered segment is blanked: it has no rows, and what
# is left in it is nobody's.
BLANKING = 1 << 63


def _fill(fd: int, end: int) -> None:
    """Newlines over ``[0, end)``, in one system call: after each, the thread queues for the GIL."""
    at = 0
    while at < end:
        whole, rest = divmod(end - at, len(_CHUNK))
        if hasattr(os, "pwritev"):
            at += os.pwritev(fd, [_CHUNK] * whole + [_CHUNK[:rest]], at)
        else:
            at += os.pwrite(fd, _CHUNK if whole else _CHUNK[:rest], at)


def _create(path: Path, content: int) -> mmap.mmap:
    """Make a file of ``content`` newlines (or 8 zero bytes for a length word) and map it."""
    fd = os.open(path, _OPEN, 0o600)
    try:
        if content:
            _fill(fd, content)
        else:
            os.pwrite(fd, bytes(8), 0)
        return mmap.mmap(fd, content or 8)
    except BaseException:
        # Nothing half-made may stay behind: a later attempt uses the same name.
        os.unlink(path)
        raise
    finally:
        os.close(fd)


class Segment:
    """A segment this process writes. ``folder`` None keeps it in anonymous memory."""

    __slots__ = (
        "_commit_map",
        "_length",
        "_map",
        "commit",
        "folder",
        "number",
        "rows",
        "sealed",
        "size",
        "table",
    )

    def __init__(self, table: str, number: int, size: int, folder: Path | None) -> None:
        """Make the file, filled and mapped.

        Raises:
            OSError: the disk or its quota is full, or the folder cannot be written.
        """
        self.table: str = table
        self.number: int = number
        self.size: int = size
        self.folder: Path | None = folder
        self.sealed: bool = False
        # How many rows it has, where its writer counted them; set before it is sealed.
        self.rows: int | None = None
        self._length: int | None = None
        self._map: mmap.mmap | None
        if folder is None:
            self._map = mmap.mmap(-1, size)
            self._map[:] = b"\n" * size
            self._commit_map = mmap.mmap(-1, 8)
        else:
            self._map = _create(self.path, size)
            try:
                self._commit_map = _create(self.commit_path, 0)
            except BaseException:
                self._map.close()
                os.unlink(self.path)
                raise
        self.commit: memoryview[int] = memoryview(self._commit_map).cast("Q")

    def __repr__(self) -> str:
        return f"<Segment {self.table}-{self.number:08d} {self.committed} of {self.size} bytes>"

    @property
    def path(self) -> Path:
        """The segment's file; only for segments on disk."""
        assert self.folder is not None
        return self.folder / f"{self.table}-{self.number:08d}.ndjson"

    @property
    def commit_path(self) -> Path:
        """The file of the committed length; only for segments on disk."""
        assert self.folder is not None
        return self.folder / f"{self.table}-{self.number:08d}.commit"

    @property
    def committed(self) -> int:
        """How many bytes of the segment are whole rows."""
        return self.commit[0] if self._length is None else self._length

    @property
    def map(self) -> mmap.mmap:
        """The rows in memory, mapped again if the segment was put to rest."""
        if self._map is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._map = mmap.mmap(fd, self.size)
            finally:
                os.close(fd)
        return self._map

    def rest(self) -> None:
        """Unmap a sealed segment that waits for its turn.

        However long a backend is down, a backlog takes neither this process's memory nor its file
        descriptors (a map holds one).
        """
        if self.folder is None or self._map is None or not self._unmap():
            return
        if self._length is None:
            self._length = self.committed
            self._release_commit()

    def recycle(self, number: int) -> None:
        """Make a delivered segment blank again under a new number, keeping its blocks and map.

        The length goes first: another process that was reading looks whether it is still there
        after it has read, and so never takes the newlines or the next rows for the old ones.
        """
        end = self.committed
        if self.folder is None:
            self.map[:end] = b"\n" * end
        else:
            old, old_commit = self.path, self.commit_path
            if self._length is not None:
                self._open_commit()
            self.commit[0] = BLANKING
            # Through the map, holding the interpreter lock for 0.1 ms a megabyte: system calls
            # would let go of it, and each then waits for it up to 5 ms while the program is busy.
            rows = self.map
            for at in range(0, end, len(_CHUNK)):
                rows[at : min(end, at + len(_CHUNK))] = _CHUNK[: end - at]
            self.number = number
            os.rename(old, self.path)
            os.rename(old_commit, self.commit_path)
        self.commit[0] = 0
        self.number = number
        self.rows = None
        self.sealed = False

    def close(self, *, cut: bool = False) -> None:
        """Unmap for good. ``cut`` shortens the file to its rows, or removes it if it has none."""
        end = self.committed
        if self._length is None:
            self._length = end
            self._release_commit()
        if not self._unmap() or not cut or self.folder is None:
            return
        if end:
            os.truncate(self.path, end)
        else:
            self.remove()

    def remove(self) -> None:
        """Delete the files. The map, if still open, stays usable until it is closed."""
        if self.folder is not None:
            self.commit_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def _open_commit(self) -> None:
        fd = os.open(self.commit_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._commit_map = mmap.mmap(fd, 8)
        finally:
            os.close(fd)
        self.commit = memoryview(self._commit_map).cast("Q")
        self._length = None

    def _unmap(self) -> bool:
        """False when a view is still out, of a send under way; the map then stays with it."""
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                return False
            self._map = None
        return True

    def _release_commit(self) -> None:
        self.commit.release()
        self._commit_map.close()
