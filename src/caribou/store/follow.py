"""Following the journals of this machine as they grow, without any engine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ..journal.owner import owner_folders
from ..journal.reader import read_rows, segment_files
from .base import Row

__all__ = ["JournalFollower", "decoded"]

_TABLES = ("traces", "spans")


class JournalFollower:
    """Reads spans and trace summaries of every owner below ``journal``, dead or alive.

    Times are ISO 8601 text in UTC, as a store gives them.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._positions: dict[Path, int] = {}

    def new(self) -> list[tuple[str, Row]]:
        """Rows committed since the last call, each with its table, by start time.

        The first call gives those of each owner's last segments. Rows that were logged, delivered
        and removed between two calls are not seen.
        """
        first = not self._positions
        rows: list[tuple[str, Row]] = []
        positions: dict[Path, int] = {}
        for folder in owner_folders(self._journal):
            segments = [s for s in segment_files(folder) if s.table in _TABLES]
            last = {segment.table: segment.path for segment in segments}
            for segment in segments:
                start = self._positions.get(segment.path, 0)
                if first and segment.path != last[segment.table]:
                    positions[segment.path] = segment.committed()
                    continue
                data = read_rows(segment, start)
                positions[segment.path] = start + len(data)
                rows += ((segment.table, _with_iso_times(row)) for row in decoded(data))
        self._positions = positions
        return sorted(rows, key=_moment)


def decoded(data: bytes) -> Iterator[Row]:
    """The rows in whole journal lines; what is no JSON is left out."""
    for line in data.splitlines():
        try:
            yield msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


def _with_iso_times(row: Row) -> Row:
    return row | {key: _iso(row[key]) for key in ("start_time", "end_time") if key in row}


def _iso(stamp: Any) -> Any:
    """Seconds since the epoch, as in a journal's line, as a date and time with nanoseconds."""
    seconds, _, fraction = str(stamp).partition(".")
    try:
        second = datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return stamp
    return f"{second:%Y-%m-%dT%H:%M:%S}.{fraction:0<9.9}Z"


def _moment(item: tuple[str, Row]) -> str:
    row = item[1]
    return str((row.get("end_time") if item[0] == "traces" else None) or row.get("start_time", ""))
