"""Settings of Langfuse and of OTLP backends: what each must look like.

The variables of OpenTelemetry are read as its specification of the OTLP exporter has them:
https://opentelemetry.io/docs/specs/otel/protocol/exporter/. Values are never shown, as headers hold
keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from .errors import ConfigurationError, InvalidType, InvalidValue

__all__ = [
    "LANGFUSE_HOST",
    "check_headers",
    "check_langfuse",
    "check_otlp",
    "otlp_from_environment",
    "resource_from_environment",
    "speaks_grpc",
]

LANGFUSE_HOST: Final = "https://us.cloud.langfuse.com"

Headers = tuple[tuple[str, str], ...]
Url = Callable[[object], tuple[str, str | None, str | None]]
Checked = Callable[[str, Callable[[object], object], str], Any]

_PATH: Final = "/v1/traces"
_OTLP_FORM: Final = 'must be an endpoint or {"endpoint": ..., "headers": {...}}'
_FORM: Final = "must have the form key=value,key2=value2, with values URL-encoded"
# https://datatracker.ietf.org/doc/html/rfc9110#name-tokens
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_headers(value: object) -> Headers:
    """``k=v,k2=v2`` or a mapping, as pairs.

    Raises:
        InvalidType: it is neither.
        InvalidValue: a name or a value cannot be a header's.
    """
    if isinstance(value, str):
        pairs = _pairs(value)
    elif isinstance(value, Mapping):
        pairs = list(cast("Mapping[Any, Any]", value).items())
    else:
        raise InvalidType(f"must be a str or a mapping, not {type(value).__name__}")
    for name, text in pairs:
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise InvalidValue("holds a name that no HTTP header can have")
        if not isinstance(text, str):
            raise InvalidType(f"must hold texts; {name} is {type(text).__name__}")
        # A line break would start another header.
        if not text.isascii() or not text.isprintable():
            raise InvalidValue(f"holds a {name} with other than printable ASCII characters")
    return tuple(pairs)


def check_otlp(value: object, url: Url) -> tuple[str, Headers | None]:
    """What ``configure(otlp=...)`` takes: where spans go, and the headers if there are any.

    Raises:
        InvalidType: it is neither a str nor a mapping.
        InvalidValue: a part of it is missing, unknown or malformed.
    """
    if isinstance(value, str):
        return _below(value, url), None
    if not isinstance(value, Mapping):
        raise InvalidType(f"{_OTLP_FORM}, not {type(value).__name__}")
    given = dict(cast("Mapping[str, object]", value))
    endpoint, headers = given.pop("endpoint", None), given.pop("headers", None)
    if given:
        raise InvalidValue(f"has other keys than endpoint and headers; it {_OTLP_FORM}")
    if endpoint is None:
        raise InvalidValue(f"has no endpoint; it {_OTLP_FORM}")
    return _below(endpoint, url), None if headers is None else check_headers(headers)


def otlp_from_environment(
    environ: Mapping[str, str], checked: Checked, url: Url
) -> tuple[str, Headers]:
    """Where spans go by the environment, empty for nowhere, and the headers.

    An endpoint for gRPC is not for us: it belongs to another tracer of the program. ``checked``
    calls a check, and names the variable in what it raises.
    """

    def as_it_is(value: object) -> str:
        return _place(value, url)

    def with_path(value: object) -> str:
        return _below(value, url)

    if speaks_grpc(environ):
        return "", ()
    endpoint: str = ""
    if text := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip():
        endpoint = checked("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", as_it_is, text)
    elif text := environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip():
        endpoint = checked("OTEL_EXPORTER_OTLP_ENDPOINT", with_path, text)
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"):
        if endpoint and (text := environ.get(variable, "").strip()):
            return endpoint, checked(variable, check_headers, text)
    return endpoint, ()


def speaks_grpc(environ: Mapping[str, str]) -> bool:
    """Whether the environment's OTLP endpoint is meant for gRPC."""
    general = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    return (environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or general).strip() == "grpc"


def resource_from_environment(environ: Mapping[str, str]) -> Headers:
    """The attributes of the resource: ``OTEL_RESOURCE_ATTRIBUTES``, and ``OTEL_SERVICE_NAME`` over
    its service.name.

    Raises:
        ConfigurationError: it is malformed.
    """
    try:
        found = dict(_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    except InvalidValue as problem:
        raise ConfigurationError(f"OTEL_RESOURCE_ATTRIBUTES {problem}") from None
    if service := environ.get("OTEL_SERVICE_NAME"):
        found["service.name"] = service
    for variable, texts in (
        ("OTEL_SERVICE_NAME", [service or ""]),
        ("OTEL_RESOURCE_ATTRIBUTES", [*found, *found.values()]),
    ):
        # Bytes that are no UTF-8 are lone surrogates in the environment.
        if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
            raise ConfigurationError(f"{variable} must be text in UTF-8")
    return tuple(found.items())


def check_langfuse(public: str | None, secret: str | None) -> tuple[str | None, str | None]:
    """Both keys, or neither; an empty one asks for no Langfuse.

    Raises:
        ConfigurationError: one is missing.
    """
    if public == "" or secret == "":
        return None, None
    if (public is None) != (secret is None):
        there, missing = "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"
        if public is None:
            there, missing = missing, there
        raise ConfigurationError(
            f"{missing} is not set, and {there} is; Langfuse needs both (langfuse_public_key and "
            "langfuse_secret_key of configure)"
        )
    return public, secret


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for member in text.split(","):
        if not member.strip():
            continue
        name, separator, value = member.partition("=")
        if not separator or not name.strip():
            raise InvalidValue(_FORM)
        try:
            pairs.append((name.strip(), unquote(value.strip(), errors="strict")))
        except UnicodeDecodeError:
            raise InvalidValue(_FORM) from None
    return pairs


def _below(value: object, url: Url) -> str:
    """The traces' address below an endpoint; empty for none."""
    place = _place(value, url)
    return place and f"{place.removesuffix('/')}{_PATH}"


def _place(value: object, url: Url) -> str:
    bare, user, password = url(value)
    if user is not None or password is not None:
        raise InvalidValue("must not hold credentials; they go into OTEL_EXPORTER_OTLP_HEADERS")
    return bare if not bare or urlsplit(bare).path else f"{bare}/"
