"""What the addresses of services must look like. None is ever shown: it may hold a password."""

from __future__ import annotations

import importlib.util
from typing import Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from .errors import InvalidType, InvalidValue, MissingExtra

__all__ = ["check_clickhouse_url", "check_kestrel_url", "check_url", "is_native"]

_HTTP: Final = ("http", "https")
_NATIVE: Final = ("clickhouse", "clickhouses")


def is_native(url: str) -> bool:
    """Whether a ``clickhouse_url`` speaks ClickHouse's native protocol, and not HTTP."""
    return urlsplit(url).scheme in _NATIVE


def check_clickhouse_url(value: object) -> tuple[str, str | None, str | None]:
    """The URL of either protocol without credentials, the user, the password. An empty one asks for
    local mode.

    Raises:
        InvalidType: it is no str.
        InvalidValue: it is no URL of a ClickHouse server.
        MissingExtra: the package for its protocol is not installed.
    """
    bare, user, password = _parted(value, _HTTP + _NATIVE)
    if is_native(bare):
        if urlsplit(bare).path:
            raise InvalidValue(
                "takes no path with clickhouse(s)://; the database goes into CLICKHOUSE_DATABASE"
            )
        if importlib.util.find_spec("asynch") is None:
            raise MissingExtra(
                "with clickhouse(s):// needs the package asynch: "
                "pip install 'caribou-trace[native]'"
            )
    return bare, user, password


def check_kestrel_url(value: object) -> str | None:
    """The URL, without the path of the API should it be there; None for an empty one, which asks
    for no Kestrel.

    Raises:
        InvalidType: it is no str.
        InvalidValue: it is no URL of HTTP, or holds credentials.
    """
    bare = check_url(value, "the key goes into KESTREL_API_KEY")
    return bare.removesuffix("/api/v1") or None


def check_url(value: object, credentials: str) -> str:
    """A URL of HTTP, which may be empty; ``credentials`` says where those go, as it holds none.

    Raises:
        InvalidType: it is no str.
        InvalidValue: it is no URL of HTTP, or holds credentials.
    """
    bare, user, password = _parted(value, _HTTP)
    if user is not None or password is not None:
        raise InvalidValue(f"must not hold credentials; {credentials}")
    return bare


def _parted(value: object, schemes: tuple[str, ...]) -> tuple[str, str | None, str | None]:
    """The URL without credentials, the user, the password; nothing for an empty one."""
    if not isinstance(value, str):
        raise InvalidType(f"must be a str, not {type(value).__name__}")
    value = value.strip()
    if not value:
        return "", None, None
    known = " or ".join(f"{scheme}://host:port" for scheme in schemes)
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        raise InvalidValue(f"is not a URL; it must have the form {known}") from None
    if parts.scheme not in schemes:
        shown = f"{parts.scheme}://" if parts.scheme and "://" in value else "no scheme"
        raise InvalidValue(f"has {shown}; it must have the form {known}")
    if not host:
        raise InvalidValue(f"names no host; it must have the form {known}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise InvalidValue(f"has a port that is not from 1 to 65535; it must have the form {known}")
    if not host.isprintable() or " " in host:
        raise InvalidValue(f"has a space or a control in its host; it must have the form {known}")
    if parts.query or parts.fragment:
        raise InvalidValue(f"must not have a query or a fragment; it must have the form {known}")
    shown_host = f"[{host}]" if ":" in host else quote(host, safe="")
    place = shown_host if port is None else f"{shown_host}:{port}"
    bare = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return bare, user, password
