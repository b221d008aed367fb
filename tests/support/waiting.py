"""Waiting for what no event tells of, with a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Block until ``condition()`` holds.

    Raises:
        TimeoutError: it did not within ``timeout`` seconds.
    """
    pause = threading.Event()
    for _ in range(int(timeout / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise TimeoutError
