"""Every exception Caribou raises on purpose, on one screen.

::

    CaribouError
    ├── InvalidValue (ValueError)      a value outside what a field allows
    ├── InvalidType (TypeError)        a value of the wrong type, or a missing argument
    ├── ConfigurationError             a setting that cannot work, or a missing right on the server
    ├── JournalError                   the journal's folder cannot be used
    ├── StoreError                     a query cannot be answered
    ├── KestrelError                   Kestrel refused a call, or cannot be reached
    └── MissingExtra (ImportError)     an optional package is needed; says which extra installs it

Nothing a rollout logs raises any of these: they are for mistakes in the calling program.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CaribouError",
    "ConfigurationError",
    "InvalidType",
    "InvalidValue",
    "JournalError",
    "KestrelError",
    "MissingExtra",
    "StoreError",
]


class CaribouError(Exception):
    """Base class of every exception that Caribou raises on purpose."""


class InvalidValue(CaribouError, ValueError):
    """A value lies outside what its field allows; the message names the field and the choice."""


class InvalidType(CaribouError, TypeError):
    """A value has the wrong type or is missing; the message names the field and what it takes."""


class ConfigurationError(CaribouError):
    """A setting cannot work as given; the message names the variable and the form expected."""


class JournalError(CaribouError):
    """The journal's folder cannot be used; the message says which and what to do."""


class StoreError(CaribouError):
    """A query could not be answered by the local store or the ClickHouse server.

    Attributes:
        code: ClickHouse's error code, e.g. 60; 0 where it gave none.
    """

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class KestrelError(CaribouError):
    """Kestrel refused a call, or could not be reached; the message says all that is known.

    Attributes:
        status: the HTTP status of the refusal, e.g. 404; None when there was no answer.
        detail: one sentence on what is wrong.
        field: the parameter or field that is wrong, if one is.
        given: what was given there.
        allowed: what is allowed there: a text, or a list of the choices.
        hint: what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        detail: str = "",
        field: str | None = None,
        given: Any = None,
        allowed: Any = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail: str = detail or message
        self.field = field
        self.given = given
        self.allowed = allowed
        self.hint = hint


class MissingExtra(CaribouError, ImportError):
    """An optional package is needed; the message says which extra installs it."""
