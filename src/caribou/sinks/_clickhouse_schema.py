"""The tables and views of the database that a sink writes to: made when an insert misses them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from caribou.schema import migrate, quote, scripts
from caribou.sinks._clickhouse_errors import (
    MISSING_SCHEMA,
    NO_RIGHT,
    NoAnswer,
    ServerError,
    as_question,
    missing_right,
    sink_error,
)
from caribou.sinks.base import Misconfigured, SinkError

__all__ = ["Schema"]

_logger = logging.getLogger("caribou")

_LONGEST_PAUSE = 300.0  # seconds between two attempts to make what inserts do well without


class Schema:
    """What one sink knows of its database's schema."""

    def __init__(self, database: str, execute: Callable[[str], Awaitable[bytes]]) -> None:
        """``execute`` runs one statement; it raises ``ServerError`` or ``NoAnswer``."""
        self.made: int = 0
        """How often it was made."""
        self._database = database
        self._execute = execute
        self._lock = asyncio.Lock()
        self._looked = False
        # A making began here, and none has ended well since.
        self._unfinished = False
        self._pause = 0.0
        self._again = 0.0

    async def finish(self) -> SinkError | None:
        """Make what is missing of a schema whose making was cut short, or is of an older version.

        Inserts do well with the tables alone, and would never notice that the views are missing.
        Hence a failure is returned and not raised, as it need not be the insert's.
        """
        if self._looked and not self._unfinished:
            return None
        # An insert that does well without it waits for no making of another one.
        if self._lock.locked() or time.monotonic() < self._again:
            return None
        made = self.made
        if not self._unfinished and not await self._is_older():
            return None
        try:
            await self.make(made)
        except SinkError as failure:
            return failure if self._unfinished else None
        return None

    def put_off(self, failure: SinkError) -> None:
        """An insert went well after ``failure`` of :meth:`finish`: not each is to try it."""
        now = time.monotonic()
        if not self._unfinished or now < self._again:
            return
        if not self._pause:
            _logger.warning(
                "Not all tables and views of the database %s could be made (%s). Rows are stored "
                "even so, and it is tried again.",
                self._database,
                failure.reason,
            )
        self._pause = min(2 * self._pause or 1.0, _LONGEST_PAUSE)
        self._again = now + self._pause

    async def make(self, made: int) -> None:
        """Create or update it, unless another insert did so since it had been ``made``.

        Raises:
            Misconfigured: somebody has to change a right or a setting.
            Retry: it failed, or was cut short.
        """
        async with self._lock:
            if self.made > made:
                return
            self._unfinished = True
            try:
                await migrate(self._execute, database=self._database)
            except ServerError as error:
                failure = as_question(sink_error(error))
                if error.code not in NO_RIGHT:
                    raise failure from None
                # Whoever has the right makes it.
                self._unfinished = False
                right = missing_right(error.message) or f" (CREATE TABLE ON {self._database}.*)"
                raise Misconfigured(
                    f"the tables are missing in database {self._database} and this user may not "
                    f"make them: grant it the right{right}, or have someone who has it run "
                    f"`caribou migrate`: {error.message}",
                    code=error.code,
                ) from None
            except NoAnswer as error:
                raise as_question(sink_error(error)) from None
            self.made += 1
            self._looked = True
            self._unfinished = False
            self._pause = 0.0

    def leave_loop(self) -> None:
        """The next event loop may be another one."""
        self._lock = asyncio.Lock()

    async def _is_older(self) -> bool:
        sql = f"SELECT max(version) FROM {quote(self._database)}.schema_migrations FORMAT TSV"
        try:
            version = int(await self._execute(sql))
        except (ServerError, NoAnswer) as error:
            # There is nothing yet, which the insert finds out; or this user may not look, and the
            # insert is what counts. Otherwise the next insert asks again.
            self._looked = self._looked or sink_error(error).code in MISSING_SCHEMA | NO_RIGHT
            return False
        self._looked = True
        return version < max(number for number, _, _ in scripts())
