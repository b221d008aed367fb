"""What a store answers, whichever engine is behind it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

__all__ = ["Parameters", "Progress", "Row", "Store"]

Row = dict[str, Any]
Parameters = Mapping[str, str | int | float | Sequence[str]]
# Called with (bytes loaded so far, bytes to load) while a local store catches up with the journal.
Progress = Callable[[int, int], None]


class Store(ABC):
    """Recorded rollouts, to be read with ClickHouse SQL over the views ``traces``, ``spans``,
    ``scores``, ``entity_metadata`` and ``trace_tags``. A context manager; one thread uses it."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Where the rows are, for people; never holds a credential."""

    @abstractmethod
    def query(self, sql: str, parameters: Parameters | None = None, *, format: str) -> bytes:
        """The answer to one SELECT in a ClickHouse output format, e.g. ``Parquet``.

        ``parameters`` fill ``{name:Type}`` placeholders in ``sql``. The statement must come
        without a FORMAT clause and can only read.

        Raises:
            StoreError: the query was refused or could not be answered; the message says why.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the engine or the connection; may be called twice."""

    def rows(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """The answer as dicts: integers and floats as numbers, times as ISO 8601 text in UTC.

        Raises:
            StoreError: as :meth:`query`.
        """
        answer = self.query(sql, parameters, format="JSONEachRow")
        return [json.loads(line) for line in answer.splitlines()]

    def interrupted(self) -> dict[str, str]:
        """Rollouts that stay PENDING for ever, since the process that ran them is dead: the root
        span id of each, and its run. Empty where nothing is known of processes, as on a server.

        Raises:
            StoreError: as :meth:`query`.
        """
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
