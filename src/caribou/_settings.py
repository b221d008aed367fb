"""Settings: the environment, what ``configure()`` was given over it, and what each must look like.

Every bad value is one exception that names the variable or the argument and the form expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from ._certificates import check_ssl_cert_file
from ._exporters import Exporters, check_exporters
from ._otel_settings import (
    LANGFUSE_HOST,
    check_langfuse,
    check_langfuse_host,
    check_otlp,
    otlp_from_environment,
    resource_from_environment,
)
from ._otlp_transport import Transport
from ._urls import check_clickhouse_url, check_kestrel_url
from .errors import CaribouError, ConfigurationError, InvalidType, InvalidValue, MissingExtra
from .records import Phase

__all__ = ["PHASES", "Redact", "Settings", "from_environment"]

PHASES: Final[tuple[Phase, ...]] = ("train", "eval", "prod")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})
_SECRET: Final = frozenset(
    {"clickhouse_password", "kestrel_api_key", "langfuse_secret_key", "otlp_headers"}
)
_DATABASE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Redact: TypeAlias = Callable[[str, dict[str, Any]], dict[str, Any]]
"""``redact(table, row)``: gives the row as it may be written."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, checked. ``repr()`` shows no secret.

    Attributes:
        run_id: the run of rollouts that name none; in prod the project.
        phase: the phase of rollouts that name none.
        clickhouse_url: ``http(s)://host[:port][/path]`` or ``clickhouse(s)://host[:port]`` without
            credentials; None for local mode.
        clickhouse_database: the database.
        clickhouse_user: the user; None for the server's default.
        clickhouse_password: the password.
        kestrel_api_url: ``http(s)://host[:port][/path]`` of the Kestrel service; None for none.
        kestrel_api_key: its key.
        langfuse_public_key: the public key of a Langfuse project; None for no Langfuse.
        langfuse_secret_key: its secret key.
        langfuse_host: ``http(s)://host[:port][/path]`` of Langfuse.
        otlp_endpoint: the whole URL that OTLP/HTTP traces are posted to; None for none.
        otlp_headers: names and values of headers sent with them.
        otlp_transport: how they are sent.
        exporters: span exporters that get every rollout too.
        otel_resource: attributes of the resource that spans name as their origin.
        home: Caribou's folder.
        journal_dir: the journal's folder.
        journal: where rows wait: on the disk, or in memory only.
        max_journal_bytes: at this size the local store forgets what is delivered elsewhere, or new
            rollouts run untraced.
        sample_rate: the share of rollouts to record, 0.0 to 1.0.
        redact: sees every row before it is written anywhere.
        disabled: record nothing.
        debug: show every record on standard error.
        batch_bytes: a batch holds at most this many bytes of rows.
        batch_rows: and at most this many rows.
        batch_age: and waits at most this many seconds.
    """

    run_id: str | None = None
    phase: Phase | None = None
    clickhouse_url: str | None = None
    clickhouse_database: str = "caribou"
    clickhouse_user: str | None = None
    clickhouse_password: str | None = None
    kestrel_api_url: str | None = None
    kestrel_api_key: str | None = None
    langfuse_public_key: str | None = None
    langfuse_secret_key: str | None = None
    langfuse_host: str = LANGFUSE_HOST
    otlp_endpoint: str | None = None
    otlp_headers: tuple[tuple[str, str], ...] = ()
    otlp_transport: Transport = Transport()
    exporters: Exporters = Exporters()
    otel_resource: tuple[tuple[str, str], ...] = ()
    home: Path = Path(".caribou")
    journal_dir: Path = Path(".caribou/journal")
    journal: Literal["disk", "memory"] = "disk"
    max_journal_bytes: int = 2 << 30
    sample_rate: float = 1.0
    redact: Redact | None = None
    disabled: bool = False
    debug: bool = False
    batch_bytes: int = 4 << 20
    batch_rows: int = 50_000
    batch_age: float = 0.5

    def __rich_repr__(self) -> Any:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            yield name, "***" if name in _SECRET and value else value

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"Settings({shown})"


def from_environment(
    given: Mapping[str, object] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Read the environment, and lay what ``configure()`` was ``given`` over it.

    Raises:
        ConfigurationError: a variable has a value that cannot work.
        InvalidValue: an argument has such a value.
        InvalidType: an argument has the wrong type.
    """
    values: dict[str, Any] = {}
    for name, (variable, check) in _VARIABLES.items():
        text = environ.get(variable)
        if text:
            values[name] = _checked(variable, check, text, environment=True)
    given = given or {}
    if "otlp" not in given:
        # All of it belongs to the one endpoint.
        values["otlp"] = otlp_from_environment(environ, _checked_variable)
    for name, value in given.items():
        values[name] = _checked(name, _ARGUMENTS[name], value, environment=False)
    url = values.get("clickhouse_url")
    if url is not None:
        bare, user, password = url
        values["clickhouse_url"] = bare or None
        # What is said on its own weighs more than what the URL carries along.
        values.setdefault("clickhouse_user", user)
        values.setdefault("clickhouse_password", password)
    public, secret = check_langfuse(
        values.get("langfuse_public_key"), values.get("langfuse_secret_key")
    )
    values |= {"langfuse_public_key": public, "langfuse_secret_key": secret}
    endpoint, headers, transport = values.pop("otlp")
    values.update(otlp_endpoint=endpoint or None, otlp_headers=headers, otlp_transport=transport)
    if public is not None or endpoint or "exporters" in values:
        # Else it is another tracer's business, whatever it looks like.
        values["otel_resource"] = resource_from_environment(environ)
    langfuse = values.get("langfuse_host", LANGFUSE_HOST) if public is not None else None
    otlp = None if transport.certificate else endpoint
    places = (values.get("clickhouse_url"), values.get("kestrel_api_url"), langfuse, otlp)
    if any(str(place).startswith(("https:", "clickhouses:")) for place in places):
        check_ssl_cert_file(environ.get("SSL_CERT_FILE"))
    values.setdefault("home", Path(".caribou"))
    values.setdefault("journal_dir", values["home"] / "journal")
    return Settings(**values)


def _checked(
    name: str, check: Callable[[object], object], value: object, *, environment: bool
) -> object:
    try:
        return check(value)
    except CaribouError as problem:
        message = f"{name} {problem}"
        given = type(problem)
        if environment and given is not MissingExtra:
            raise ConfigurationError(message) from None
        raise given(message) from None


def _checked_variable(variable: str, check: Callable[[object], object], text: str) -> Any:
    return _checked(variable, check, text, environment=True)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"must be a str, not {type(value).__name__}")
    if not value:
        raise InvalidValue("must not be empty")
    return value


def _phase(value: object) -> str:
    if value not in PHASES:
        raise InvalidValue(f"must be one of {', '.join(PHASES)}, not {value!r}")
    return str(value)


def _key(value: object) -> str:
    text = _password(value)
    # It travels in an HTTP header, where a line break would start another header.
    if not text.isascii() or not text.isprintable():
        raise InvalidValue("must hold printable ASCII characters only")
    return text


def _public_key(value: object) -> str:
    key = _key(value)
    if key.startswith("sk-lf-"):
        # It is shown, unlike the other.
        raise InvalidValue("must not be the secret key; it is the key that begins with pk-lf-")
    if ":" in key:
        # It is the user's name in basic authentication, which a colon ends.
        raise InvalidValue("must not hold a colon; it is the key that begins with pk-lf-")
    return key


def _database(value: object) -> str:
    name = _text(value)
    if not _DATABASE.fullmatch(name):
        raise InvalidValue("must be a name of letters, digits and underscores")
    return name


def _password(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"must be a str, not {type(value).__name__}")
    return value


def _path(value: Any) -> Path:
    try:
        path = Path(value)
    except TypeError:
        raise InvalidType(f"must be a path, not {type(value).__name__}") from None
    if value == "" or "\0" in str(path):
        raise InvalidValue("must be a path to a folder")
    return path


def _journal(value: object) -> str:
    if value not in ("disk", "memory"):
        raise InvalidValue(f"must be 'disk' or 'memory', not {value!r}")
    return str(value)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.strip().lower() in _TRUE:
            return True
        if value.strip().lower() in _FALSE:
            return False
    raise InvalidValue(f"must be 1 or 0, true or false, not {value!r}")


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"must be an int, not {type(value).__name__}")
    if value < 1:
        raise InvalidValue(f"must be at least 1, not {value}")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidType(f"must be a number, not {type(value).__name__}")
    return float(value)


def _seconds(value: object) -> float:
    number = _number(value)
    if not 0 < number <= 3600:
        raise InvalidValue(f"must be seconds, more than 0 and at most 3600, not {value!r}")
    return number


def _share(value: object) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise InvalidValue(f"must be from 0.0 to 1.0, not {value!r}")
    return number


def _hook(value: object) -> object:
    if not callable(value):
        raise InvalidType(f"must be callable, redact(table, row), not {type(value).__name__}")
    return value


_VARIABLES: Final[dict[str, tuple[str, Callable[[object], object]]]] = {
    "clickhouse_url": ("CLICKHOUSE_URL", check_clickhouse_url),
    "clickhouse_database": ("CLICKHOUSE_DATABASE", _database),
    "clickhouse_user": ("CLICKHOUSE_USER", _text),
    "clickhouse_password": ("CLICKHOUSE_PASSWORD", _password),
    "kestrel_api_url": ("KESTREL_API_URL", check_kestrel_url),
    "kestrel_api_key": ("KESTREL_API_KEY", _key),
    "langfuse_public_key": ("LANGFUSE_PUBLIC_KEY", _public_key),
    "langfuse_secret_key": ("LANGFUSE_SECRET_KEY", _key),
    "langfuse_host": ("LANGFUSE_HOST", check_langfuse_host),
    "home": ("CARIBOU_HOME", _path),
    "journal_dir": ("CARIBOU_JOURNAL_DIR", _path),
    "disabled": ("CARIBOU_DISABLED", _switch),
    "debug": ("CARIBOU_TRACE_DEBUG", _switch),
}

_ARGUMENTS: Final[dict[str, Callable[[object], object]]] = {
    "run_id": _text,
    "phase": _phase,
    "clickhouse_url": check_clickhouse_url,
    "clickhouse_database": _database,
    "clickhouse_user": _text,
    "clickhouse_password": _password,
    "kestrel_api_url": check_kestrel_url,
    "kestrel_api_key": _key,
    "langfuse_public_key": _public_key,
    "langfuse_secret_key": _key,
    "langfuse_host": check_langfuse_host,
    "otlp": check_otlp,
    "exporters": check_exporters,
    "home": _path,
    "journal_dir": _path,
    "journal": _journal,
    "max_journal_bytes": _count,
    "sample_rate": _share,
    "redact": _hook,
    "disabled": _switch,
    "debug": _switch,
    "batch_bytes": _count,
    "batch_rows": _count,
    "batch_age": _seconds,
}
