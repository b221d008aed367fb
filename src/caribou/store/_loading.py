"""From the journal into the tables of the local store.

How far each segment has been loaded is kept in one small file beside the engine's folder. Rows
replace themselves by key, so when that file is lost, or a load was killed before it was written,
loading again changes nothing.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..delivery.dead_letters import DeadLetters
from ..journal.owner import owner_folders
from ..journal.reader import SegmentFile, count_rows, read_rows, segment_files
from ..schema import TABLES, insert_statement
from ._engine import Engine, EngineError
from .base import Progress
from .living import keeps_rows_here, may_live

__all__ = ["Loaded", "Loader"]

# Characters the engine's file() takes as a pattern.
_PATTERN = re.compile(r"[*?{}\[\]]")
# The engine is out of memory or disk, or was cancelled: the rows are not at fault.
_NOT_THE_ROWS = frozenset({0, 236, 241, 243, 394})


# Segments smaller than this are inserted together, up to this many bytes: each insert makes a part
# of the table, and many short-lived processes would make more of them than the engine allows.
_TOGETHER = 4 << 20


@dataclass(slots=True)
class Loaded:
    """What one load did: rows refused by the engine are set aside and the rest goes on."""

    bytes: int = 0
    rows: int = 0
    set_aside: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes ``[start, end)`` of a segment, committed and not loaded yet."""

    segment: SegmentFile
    start: int
    end: int

    @property
    def key(self) -> str:
        """The segment's name in the state file."""
        return f"{self.segment.path.parent.name}/{self.segment.path.stem}"

    @property
    def batch_id(self) -> str:
        return f"local:{self.key}:{self.start}"

    @property
    def file(self) -> Path | None:
        """The segment's file, if the engine can read all of it as it is."""
        try:
            path = self.segment.path.resolve()
            whole = self.start == 0 and path.stat().st_size == self.end
        except OSError:
            return None
        return path if whole and not _PATTERN.search(str(path)) else None


class Loader:
    """Loads what has been committed to a journal since it last ran.

    Called again and again it does not look at owners twice that were dead and loaded to their end.
    """

    def __init__(self, engine: Engine, journal: Path, state: Path, database: str) -> None:
        self._engine = engine
        self._journal = journal
        self._dead_letters = DeadLetters(journal)
        self._state_path = state
        self._database = database
        self._state = self._read_state()
        self._finished: set[str] = set()

    def load(self, progress: Progress | None = None) -> Loaded:
        """Load every segment whose owner keeps its rows here, i.e. delivers to no server.

        Raises:
            EngineError: the engine failed in a way that is no row's fault.
        """
        before, state = self._state, dict[str, int]()
        todo: list[_Piece] = []
        folders = list(owner_folders(self._journal))
        self._finished.intersection_update(folder.name for folder in folders)
        for key, end in before.items():
            if key.partition("/")[0] in self._finished:
                state[key] = end
        # Asked before their segments are looked at: the dead add nothing to what is found then.
        dead = {folder.name for folder in folders if self._is_dead(folder)}
        for segment in self._segments(folders):
            piece = _Piece(segment, 0, segment.committed())
            state[piece.key] = before.get(piece.key, 0)
            if piece.end > state[piece.key]:
                todo.append(_Piece(segment, state[piece.key], piece.end))
        total = sum(piece.end - piece.start for piece in todo)
        result = Loaded()
        try:
            for group in _groups(todo):
                self._load_group(group, state, result)
                result.bytes += sum(piece.end - piece.start for piece in group)
                if progress is not None:
                    progress(result.bytes, total)
        finally:
            self._state = state
            if todo:
                self._write_state()
        self._finished |= dead
        return result

    def _is_dead(self, folder: Path) -> bool:
        return folder.name in self._finished or not may_live(folder)

    def _segments(self, folders: list[Path]) -> Iterator[SegmentFile]:
        for folder in folders:
            if folder.name not in self._finished and keeps_rows_here(folder):
                yield from (segment for segment in segment_files(folder) if segment.table in TABLES)

    def _load_group(self, group: list[_Piece], state: dict[str, int], result: Loaded) -> None:
        """Load pieces of one table with one insert; one by one if any row of them is refused."""
        table = group[0].segment.table
        if len(group) == 1:
            self._load_piece(group[0], state, result)
            return
        rows = [read_rows(piece.segment, piece.start) for piece in group]
        try:
            self._stage(table, b"".join(rows), group[0].batch_id)
        except EngineError as error:
            if error.code in _NOT_THE_ROWS:
                raise
            for piece in group:
                self._load_piece(piece, state, result)
            return
        for piece, data in zip(group, rows, strict=True):
            state[piece.key] = piece.start + len(data)
            result.rows += data.count(b"\n")

    def _load_piece(self, piece: _Piece, state: dict[str, int], result: Loaded) -> None:
        table = piece.segment.table
        file = piece.file
        if file is not None:
            try:
                # Counted first: the journal may delete it at any time, to make room.
                count = _rows_in(file)
                self._insert(table, file, piece.batch_id)
            except FileNotFoundError:
                pass
            except EngineError as error:
                if error.code in _NOT_THE_ROWS:
                    raise
            else:
                state[piece.key] = piece.end
                result.rows += count
                return
        rows = read_rows(piece.segment, piece.start)
        for refused, error in self._insert_rows(table, rows, piece.batch_id):
            self._set_aside(piece.segment, refused, error, result)
        state[piece.key] = piece.start + len(rows)
        result.rows += rows.count(b"\n")

    def _insert_rows(
        self, table: str, rows: bytes, batch: str
    ) -> Iterator[tuple[bytes, EngineError]]:
        """Insert ``rows``; yields each single row that the engine refuses, with its reason."""
        try:
            self._stage(table, rows, batch)
        except EngineError as error:
            if error.code in _NOT_THE_ROWS:
                raise
            lines = rows.splitlines(keepends=True) if rows.count(b"\n") > 1 else [rows]
            if len(lines) == 1:
                yield rows, error
                return
            middle = len(lines) // 2
            for half in (lines[:middle], lines[middle:]):
                yield from self._insert_rows(table, b"".join(half), batch)

    def _stage(self, table: str, rows: bytes, batch: str) -> None:
        with tempfile.NamedTemporaryFile(prefix="caribou-", suffix=".ndjson") as staged:
            staged.write(rows)
            staged.flush()
            self._insert(table, Path(staged.name), batch)

    def _insert(self, table: str, path: Path, batch: str) -> None:
        self._engine.run(insert_statement(self._database, table, batch, path=str(path)))

    def _set_aside(
        self, segment: SegmentFile, row: bytes, error: EngineError, result: Loaded
    ) -> None:
        owner = segment.path.parent.name
        self._dead_letters.add(owner, segment.table, "local", error.code, str(error), row)
        result.set_aside += 1

    def _read_state(self) -> dict[str, int]:
        try:
            return json.loads(self._state_path.read_bytes())
        except (OSError, ValueError):
            return {}

    def _write_state(self) -> None:
        temporary = self._state_path.with_suffix(".new")
        temporary.write_text(json.dumps(self._state))
        os.replace(temporary, self._state_path)


def _rows_in(path: Path) -> int:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return count_rows(view, 0, len(view))


def _groups(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces by table, small ones together."""
    group: list[_Piece] = []
    size = 0
    for piece in sorted(pieces, key=lambda piece: piece.segment.table):
        length = piece.end - piece.start
        if group and (group[0].segment.table != piece.segment.table or size + length > _TOGETHER):
            yield group
            group, size = [], 0
        group.append(piece)
        size += length
    if group:
        yield group
