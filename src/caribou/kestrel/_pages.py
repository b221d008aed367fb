"""Lists that come in pages: all of it by iteration, or one page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from .models import Page

__all__ = ["Pages"]

T = TypeVar("T")


class Pages(Generic[T]):
    """A list at Kestrel: ``async for item in pages`` reads it to its end, page after page.

    Nothing is asked before the first item is wanted; iterating again asks again.
    """

    def __init__(self, fetch: Callable[[str | None], Awaitable[Page[T]]]) -> None:
        self._fetch = fetch

    async def __aiter__(self) -> AsyncIterator[T]:
        cursor = None
        while True:
            page = await self.page(cursor)
            for item in page.items:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def page(self, cursor: str | None = None) -> Page[T]:
        """One page: the first, or the one that another page's ``next_cursor`` leads to.

        Raises:
            KestrelError: it was refused, or there was no answer in time.
        """
        return await self._fetch(cursor)
