"""How names become addresses; imports aiohttp, so import it late."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ["DaemonResolver"]


class DaemonResolver(AbstractResolver):
    """Look names up in a daemon thread.

    The loop's own executor is joined when the process ends, and a name server that does not answer
    would hold the exit up for as long as it likes.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def settle(found: list[Any] | None, error: OSError | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found or [])

        def look_up() -> None:
            found, error = None, None
            try:
                found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as failure:
                error = failure
            except UnicodeError as failure:  # a name that cannot be one
                error = OSError(str(failure))
            # The loop may be gone by the time an answer comes.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, found, error)

        try:
            threading.Thread(target=look_up, name="caribou-resolve", daemon=True).start()
        except RuntimeError:
            # Python 3.12 starts no thread once the program has ended; exit has a deadline anyway.
            look_up()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in await answer
        ]

    async def close(self) -> None:
        """Nothing is held."""
