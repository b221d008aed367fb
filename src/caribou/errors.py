"""Every exception Caribou raises on purpose, on one screen.

::

    CaribouError
    ├── InvalidValue (ValueError)      a value outside what a field allows
    ├── InvalidType (TypeError)        a value of the wrong type, or a missing argument
    ├── ConfigurationError             a setting that cannot work, or a missing right on the server
    ├── JournalError                   the journal's folder cannot be used
    ├── StoreError                     a query cannot be answered
    └── MissingExtra (ImportError)     an optional package is needed; says which extra installs it

Nothing a rollout logs raises any of these: they are for mistakes in the calling program.
"""

from __future__ import annotations

__all__ = [
    "CaribouError",
    "ConfigurationError",
    "InvalidType",
    "InvalidValue",
    "JournalError",
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
    """A query could not be answered by the local store or the ClickHouse server."""


class MissingExtra(CaribouError, ImportError):
    """An optional package is needed; the message says which extra installs it."""
