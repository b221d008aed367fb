"""How far a sink has got in the segments of one owner, kept beside them.

The file is replaced in one step, so a kill leaves the old state or the new one. What was being
sent is written down before it is sent: after a crash the same bytes are asked about under the same
batch id, not guessed.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

__all__ = ["Cursor", "InFlight"]


class InFlight(msgspec.Struct, frozen=True, array_like=True):
    """Bytes ``[start, end)`` of a segment that were handed to the sink and not yet acknowledged."""

    start: int
    end: int
    rows: int


class _State(msgspec.Struct):
    # table -> segment number (as text) -> acknowledged bytes
    acknowledged: dict[str, dict[str, int]] = {}
    in_flight: dict[str, dict[str, InFlight]] = {}


class Cursor:
    """The position of one sink. ``folder`` None keeps it in memory, like the journal it is of."""

    def __init__(self, folder: Path | None, sink: str) -> None:
        self._path = None if folder is None else folder / f"{sink}.cursor"
        self._state = _State()
        if self._path is not None:
            try:
                self._state = msgspec.json.decode(self._path.read_bytes(), type=_State)
            except FileNotFoundError:
                pass
            except (OSError, msgspec.DecodeError):
                # Unreadable: start again from the beginning. Rows replace themselves by key, so
                # sending twice is right, and skipping would not be.
                self._state = _State()

    def acknowledged(self, table: str, segment: int) -> int:
        """Bytes of the segment that the sink has acknowledged."""
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

    def forget(self, table: str, segment: int) -> None:
        """The segment is gone."""
        self._state.acknowledged.get(table, {}).pop(str(segment), None)
        self._state.in_flight.get(table, {}).pop(str(segment), None)

    def _save(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_suffix(".new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, msgspec.json.encode(self._state))
            finally:
                os.close(fd)
            os.replace(temporary, self._path)
        except OSError:
            # A full disk must not stop delivery, which is what makes room on it. The next save
            # carries this one's state too; a crash before it sends rows again, which replace
            # themselves by key.
            temporary.unlink(missing_ok=True)
