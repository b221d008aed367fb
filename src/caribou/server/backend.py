"""What the service needs of the engine that holds the rows."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol

from ..errors import StoreError
from ..store.base import Parameters, Row

__all__ = ["Backend", "Parameters", "Row", "Unavailable"]


class Unavailable(StoreError):
    """The store cannot be reached at the moment; asking again later may do."""


class Backend(Protocol):
    """One engine, asked from the service's event loop.

    SQL is a constant with ``{name:Type}`` placeholders; what comes from outside goes into
    ``parameters`` only.
    """

    @property
    def description(self) -> str:
        """Where the rows are, for people; never holds a credential."""
        ...

    async def rows(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """The answer to one SELECT: numbers as numbers, times as ISO 8601 text in UTC.

        Raises:
            Unavailable: the store cannot be reached.
            StoreError: it refused.
        """
        ...

    async def insert(self, table: str, rows: Sequence[Row]) -> None:
        """Store rows of ``table`` (its plain name, e.g. ``runs``); return when they can be read.

        Raises:
            Unavailable: the store cannot be reached; the rows may be stored or not.
            StoreError: it refused.
        """
        ...

    async def interrupted(self) -> Set[str]:
        """Root span ids of the rollouts that stay PENDING since the process that ran them is dead.

        Empty where nothing is known of processes, as on a server.
        """
        ...

    async def aclose(self) -> None:
        """Let go of the engine or the connections."""
        ...
