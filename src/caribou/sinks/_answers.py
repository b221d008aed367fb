"""What HTTP tells of a failure, whoever answers; needs no HTTP library."""

from __future__ import annotations

import os
import re
import time
from email.utils import parsedate_to_datetime

__all__ = ["NoAnswer", "clean", "retry_after"]

# What the HTTP library says of a connection, with its own settings in the middle.
_NO_CONNECTION = re.compile(r"Cannot connect to host \S+ ssl:.+? \[(.*)\]")
_LONGEST_REASON = 400  # characters


class NoAnswer(Exception):
    """No whole answer came.

    ``sent`` says whether any of the body may have left; ``permanent`` that trying again is of
    little use until somebody changes something; ``cure`` what they might change.
    """

    def __init__(self, reason: str, *, sent: bool, permanent: bool = False, cure: str = "") -> None:
        super().__init__(reason)
        self.sent = sent
        self.permanent = permanent
        self.cure = cure

    @property
    def reason(self) -> str:
        """Why, in words that are fit for a person."""
        return f"{self.cure} ({self._why()})" if self.cure else self._why()

    def _why(self) -> str:
        text = str(self)
        found = _NO_CONNECTION.match(text)
        if found is None:
            return text
        why = found[1]
        cause = self.__context__
        if "Connect call failed" in why and isinstance(cause, OSError) and cause.errno:
            # The text has the address once more, and only the number says what happened.
            why = os.strerror(cause.errno)
        elif why == "None":
            # An error without words, from the exchange of keys.
            why = "the connection ended while it was made; does that port speak TLS?"
        return f"cannot be reached: {why[:1].lower()}{why[1:]}"


def clean(text: str) -> str:
    """One short line that is safe to show: servers quote what agents wrote in their messages. It
    goes into sentences, hence without its full stop."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    line = line if line.endswith("..") else line.removesuffix(".")
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"


def retry_after(value: str) -> float | None:
    """Seconds, from either form that HTTP allows: a number of them, or a date."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
