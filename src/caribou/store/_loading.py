"""From the journal into the tables of the local store.

How far each segment has been loaded is kept in one small file beside the engine's folder. Rows
replace themselves by key, so when that file is lost, or a load was killed before it was written,
loading again changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..delivery.dead_letters import DeadLetters
from ..errors import JournalError
from ..journal.owner import owner_folders, read_info
from ..journal.reader import SegmentFile, read_rows, segment_files
from ..schema import TABLES, insert_statement
from ._engine import Engine, EngineError
from .base import Progress

__all__ = ["Loaded", "Loader"]

# Characters the engine's file() takes as a pattern.
_PATTERN = re.compile(r"[*?{}\[\]]")
# The engine is out of memory or disk, or was cancelled: the rows are not at fault.
_NOT_THE_ROWS = frozenset({0, 236, 241, 243, 394})


@dataclass(slots=True)
class Loaded:
    """What one load did: rows refused by the engine are set aside and the rest goes on."""

    bytes: int = 0
    set_aside: int = 0


class Loader:
    """Loads what has been committed to a journal since it last ran."""

    def __init__(self, engine: Engine, journal: Path, state: Path, database: str) -> None:
        self._engine = engine
        self._journal = journal
        self._dead_letters = DeadLetters(journal)
        self._state_path = state
        self._database = database

    def load(self, progress: Progress | None = None) -> Loaded:
        """Load every segment whose owner keeps its rows here, i.e. delivers to no server.

        Raises:
            EngineError: the engine failed in a way that is no row's fault.
        """
        state = self._read_state()
        found = dict(self._segments())
        todo = [
            (key, segment, segment.committed(), state.get(key, 0)) for key, segment in found.items()
        ]
        total = sum(max(end - start, 0) for _, _, end, start in todo)
        result = Loaded()
        try:
            for key, segment, end, start in todo:
                if end <= start:
                    continue
                state[key] = self._load_segment(segment, start, end, result)
                result.bytes += state[key] - start
                if progress is not None:
                    progress(min(result.bytes, total), total)
        finally:
            if result.bytes:
                self._write_state({key: done for key, done in state.items() if key in found})
        return result

    def _segments(self) -> Iterator[tuple[str, SegmentFile]]:
        for folder in owner_folders(self._journal):
            try:
                if read_info(folder).sinks:
                    continue
            except JournalError:
                # `caribou doctor` tells of it; the other owners' rows are still wanted.
                continue
            for segment in segment_files(folder):
                if segment.table in TABLES:
                    yield f"{folder.name}/{segment.path.stem}", segment

    def _load_segment(self, segment: SegmentFile, start: int, end: int, result: Loaded) -> int:
        """Load the bytes after ``start``; returns up to where the segment is loaded now."""
        batch = f"local:{segment.path.parent.name}:{segment.path.stem}:{start}"
        whole = start == 0 and segment.path.stat().st_size == end
        if whole and not _PATTERN.search(str(segment.path.resolve())):
            try:
                self._insert(segment.table, segment.path.resolve(), batch)
                return end
            except EngineError as error:
                if error.code in _NOT_THE_ROWS:
                    raise
        rows = read_rows(segment, start)
        for refused, error in self._insert_rows(segment.table, rows, batch):
            self._set_aside(segment, refused, error, result)
        return start + len(rows)

    def _insert_rows(
        self, table: str, rows: bytes, batch: str
    ) -> Iterator[tuple[bytes, EngineError]]:
        """Insert ``rows``; yields each single row that the engine refuses, with its reason."""
        try:
            with tempfile.NamedTemporaryFile(prefix="caribou-", suffix=".ndjson") as staged:
                staged.write(rows)
                staged.flush()
                self._insert(table, Path(staged.name), batch)
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

    def _write_state(self, state: dict[str, int]) -> None:
        temporary = self._state_path.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._state_path)
