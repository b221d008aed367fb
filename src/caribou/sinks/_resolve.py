"""Looking up a host's addresses without holding up the loop or the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

__all__ = ["look_up"]


async def look_up(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[Any, ...]]:
    """What ``socket.getaddrinfo`` answers for a TCP connection, asked in a daemon thread.

    The loop's own executor is joined when the process ends, and a name server that does not answer
    would hold the exit up for as long as it likes.

    Raises:
        OSError: the name is not known, or cannot be one.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Any]] = loop.create_future()

    def settle(found: list[Any] | None, error: OSError | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found or [])

    def ask() -> None:
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
        threading.Thread(target=ask, name="caribou-resolve", daemon=True).start()
    except RuntimeError:
        # Python 3.12 starts no thread once the program has ended; exit has a deadline anyway.
        ask()
    return await answer
