"""The redaction hook: it sees every row before the journal does, and fails closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from ._sanitize import encode, storable_row
from ._settings import Redact

__all__ = ["Appender", "redacted"]

# What a row is found, ordered and joined by. A hook cannot change it.
_IDENTITY: Final = frozenset(
    [
        "run_id",
        "project",
        "trace_id",
        "span_id",
        "parent_span_id",
        "root_span_id",
        "entity_type",
        "entity_id",
        "key",
        "phase",
        "step_number",
        "seq",
        "start_time",
        "end_time",
        "time",
        "kind",
        "version",
    ]
)

_decode: Final = msgspec.json.Decoder().decode
_warned: set[int] = set()


class Appender(Protocol):
    """What takes the rows of one table."""

    def append(self, line: bytes | bytearray) -> None:
        """Take one row: a line of JSON without its newline. It is the caller's again afterwards."""
        ...


class _Redacted:
    __slots__ = ("_append", "_hook", "_table")

    def __init__(self, table: str, hook: Redact, inner: Appender) -> None:
        self._table = table
        self._hook = hook
        self._append = inner.append

    def append(self, line: bytes | bytearray) -> None:
        row: dict[str, Any] = _decode(line)
        identity = {name: value for name, value in row.items() if name in _IDENTITY}
        before = row.get("sanitized", "")
        try:
            after = self._hook(self._table, row)
            if not isinstance(after, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"redact must return a dict, not {type(after).__name__}")
            clean, marks = storable_row(self._table, after)
        except Exception as problem:
            _warn_once(self._hook, self._table, problem)
            clean, marks = {}, {"redaction_failed"}
        kept = {name: clean[name] for name in clean.keys() - _IDENTITY if clean[name] is not None}
        if self._table == "spans":
            marks.update(mark for mark in before.split(",") if mark)
            kept["sanitized"] = ",".join(sorted(marks))
        self._append(encode(identity | kept))


def redacted(streams: Mapping[str, Appender], hook: Redact) -> dict[str, Appender]:
    """The same streams, behind the hook."""
    return {table: _Redacted(table, hook, inner) for table, inner in streams.items()}


def _warn_once(hook: Redact, table: str, problem: Exception) -> None:
    if id(hook) in _warned:
        return
    _warned.add(id(hook))
    import logging

    # The message of the exception may hold what was to be redacted.
    logging.getLogger("caribou").warning(
        "the redact hook failed on a row of %s (%s); such rows are stored without their content",
        table,
        type(problem).__name__,
    )
