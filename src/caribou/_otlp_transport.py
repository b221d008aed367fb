"""How spans travel to an OTLP backend: the standard's variables, and the same from Python.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ names the variables. A time is
milliseconds there, as in all of OpenTelemetry's variables:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from ._certificates import check_certificates, check_identity
from .errors import InvalidType, InvalidValue

__all__ = [
    "Checked",
    "Transport",
    "check_part",
    "check_transport",
    "found",
    "transport_from_environment",
]

Part = TypeVar("Part")

Checked: TypeAlias = Callable[[str, Callable[[object], object], str], Any]
"""Calls a check of a variable's text, and names the variable in what that raises."""

_FILES: Final = {
    "certificate": "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "client_certificate": "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "client_key": "OTEL_EXPORTER_OTLP_CLIENT_KEY",
}
# Seconds. A shorter time is one that was written in seconds, as OpenTelemetry's own Python package
# reads it; nothing would ever arrive in it.
_SHORTEST: Final = 0.1
_LONGEST: Final = 3600.0
_MILLISECONDS: Final = (
    f"must be milliseconds, from {_SHORTEST * 1000:.0f} to {_LONGEST * 1000:.0f}, or 0 for no limit"
)
_SECONDS: Final = f"must be seconds, from {_SHORTEST} to {_LONGEST:.0f}"


class Transport(msgspec.Struct, frozen=True):
    """How requests are sent.

    Attributes:
        compression: of their bodies.
        timeout: seconds for one, its answer included.
        certificate: a PEM file of the authorities to trust; None for SSL_CERT_FILE, else the
            system's.
        client_certificate: a PEM file of the certificate that this side shows; None for none.
        client_key: a PEM file of its key; None where that is in the same file.
        names: what these three are called where they were set, or would be.
    """

    compression: Literal["gzip", "none"] = "gzip"
    timeout: float = 30.0
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    names: tuple[str, ...] = tuple(_FILES.values())


def found(environ: Mapping[str, str], variable: str) -> tuple[str, str]:
    """What sets an option of the exporter, and its text, empty for none: the variable for traces,
    else this one for all signals."""
    for name in (variable.replace("_OTLP_", "_OTLP_TRACES_"), variable):
        if text := environ.get(name, "").strip():
            return name, text
    return variable, ""


def transport_from_environment(
    environ: Mapping[str, str], checked: Checked, *, tls: bool
) -> Transport:
    """What the environment says of it. Certificates are looked at where they matter, for ``tls``.

    Raises:
        ConfigurationError: a variable has a value that cannot work.
    """
    options: dict[str, Any] = {}
    variable, text = found(environ, "OTEL_EXPORTER_OTLP_COMPRESSION")
    if text:
        options["compression"] = checked(variable, _compression, text)
    variable, text = found(environ, "OTEL_EXPORTER_OTLP_TIMEOUT")
    if text:
        options["timeout"] = checked(variable, _milliseconds, text)
    if tls:
        names: dict[str, str] = {}
        texts: dict[str, object] = {}
        for option, general in _FILES.items():
            names[option], text = found(environ, general)
            if text:
                texts[option] = text
        options |= _files(texts, names, checked)
        options["names"] = tuple(names.values())
    return Transport(**options)


def check_part(what: str, check: Callable[[object], Part], value: object) -> Part:
    """``value`` as ``check`` makes it, whose complaints say ``what`` they are about.

    Raises:
        InvalidType: it has the wrong type.
        InvalidValue: it cannot work.
    """
    try:
        return check(value)
    except (InvalidType, InvalidValue) as problem:
        raise type(problem)(f"has {what} that {problem}") from None


def check_transport(given: Mapping[str, object], *, tls: bool) -> Transport:
    """What a mapping says of it, by the names of :class:`Transport`.

    Raises:
        InvalidType: a value has the wrong type.
        InvalidValue: a value cannot work.
    """

    def checked(name: str, check: Callable[[object], object], value: object) -> Any:
        return check_part(f"a {name}", check, value)

    options: dict[str, Any] = {"names": tuple(f'otlp["{name}"]' for name in _FILES)}
    for name, check in (("compression", _compression), ("timeout", _seconds)):
        if name in given:
            options[name] = checked(name, check, given[name])
    if tls:
        files = {name: given[name] for name in _FILES if name in given}
        options |= _files(files, {name: name for name in _FILES}, checked)
    return Transport(**options)


def _files(
    given: Mapping[str, object], names: Mapping[str, str], checked: Callable[..., Any]
) -> dict[str, Path]:
    """Files of certificates that can be used; ``names`` is what each is called by its user."""

    def identity(value: object) -> Path:
        path = _certificate_file(value)
        if "client_key" not in given:
            check_identity(path, None)
        return path

    def key(value: object) -> Path:
        if "client_certificate" not in files:
            raise InvalidValue(f"needs {names['client_certificate']}, which is not set")
        path = _path(value)
        check_identity(files["client_certificate"], path)
        return path

    files: dict[str, Path] = {}
    checks = {"certificate": _certificate_file, "client_certificate": identity, "client_key": key}
    for name, value in given.items():
        files[name] = checked(names[name], checks[name], value)
    return files


def _compression(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidType(f"must be gzip or none, not {type(value).__name__}")
    if value.lower() not in ("gzip", "none"):
        raise InvalidValue(f"must be gzip or none, not {value!r}")
    return value.lower()


def _milliseconds(value: object) -> float:
    text = str(value)
    # Digits of other scripts are digits to Python.
    if not text.isascii() or not text.isdigit():
        raise InvalidValue(f"{_MILLISECONDS}, not {text!r}")
    # A request that nobody answers is tried again after all.
    seconds = int(text[:20]) / 1000 or _LONGEST
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InvalidValue(f"{_MILLISECONDS}, not {text[:20]}")
    return seconds


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidType(f"{_SECONDS}, not {type(value).__name__}")
    if not _SHORTEST <= value <= _LONGEST:
        raise InvalidValue(f"{_SECONDS}, not {value!r}")
    return float(value)


def _path(value: Any) -> Path:
    try:
        return Path(value)
    except TypeError:
        raise InvalidType(f"must be a path, not {type(value).__name__}") from None


def _certificate_file(value: object) -> Path:
    path = _path(value)
    check_certificates(path)
    return path
