"""Settings of Langfuse and of OTLP backends: what each must look like.

The variables of OpenTelemetry are read as its specification of the OTLP exporter has them:
https://opentelemetry.io/docs/specs/otel/protocol/exporter/. Values are never shown, as headers hold
keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from ._otlp_transport import (
    Checked,
    Transport,
    check_part,
    check_transport,
    found,
    transport_from_environment,
)
from ._urls import check_url
from .errors import ConfigurationError, InvalidType, InvalidValue

__all__ = [
    "LANGFUSE_HOST",
    "check_headers",
    "check_langfuse",
    "check_langfuse_host",
    "check_otlp",
    "otlp_from_environment",
    "resource_from_environment",
    "why_otlp_is_left_alone",
]

LANGFUSE_HOST: Final = "https://us.cloud.langfuse.com"

Headers = tuple[tuple[str, str], ...]
Otlp = tuple[str, Headers, Transport]
"""Where spans are posted to, empty for nowhere; the headers; and how they travel."""

_PATH: Final = "/v1/traces"
_OTLP_FORM: Final = 'must be an endpoint or {"endpoint": ..., "headers": {...}}'
_OTLP_KEYS: Final = (
    *("endpoint", "headers"),
    *(option for option in Transport.__struct_fields__ if option != "names"),
)
_PROTOCOL: Final = "http/protobuf"
_OTHER_PROTOCOLS: Final = ("grpc", "http/json")
# The standard's name, and the one that OpenTelemetry's package for Python has for OTLP over HTTP.
_EXPORTERS: Final = frozenset({"otlp", "otlp_proto_http"})
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
            raise InvalidValue("must hold names only that an HTTP header can have")
        if not isinstance(text, str):
            raise InvalidType(f"must hold texts; {name} is {type(text).__name__}")
        # A line break would start another header.
        if not text.isascii() or not text.isprintable():
            raise InvalidValue(f"must hold printable ASCII characters only; {name} has others")
    return tuple(pairs)


def check_otlp(value: object) -> Otlp:
    """What ``configure(otlp=...)`` takes.

    Raises:
        InvalidType: it is neither a str nor a mapping, or a part of it has the wrong type.
        InvalidValue: a part of it is missing, unknown or cannot work.
    """
    if isinstance(value, str):
        value = {"endpoint": value}
    if not isinstance(value, Mapping):
        raise InvalidType(f"{_OTLP_FORM}, not {type(value).__name__}")
    given = {
        key: part for key, part in cast("Mapping[str, object]", value).items() if part is not None
    }
    if not given.keys() <= set(_OTLP_KEYS):
        raise InvalidValue(f"has other keys than {', '.join(_OTLP_KEYS)}")
    if "endpoint" not in given:
        raise InvalidValue(f"has no endpoint; it {_OTLP_FORM}")
    endpoint = _below(given["endpoint"])
    headers = check_part("headers", check_headers, given.get("headers", {}))
    return endpoint, headers, check_transport(given, tls=_is_tls(endpoint))


def otlp_from_environment(environ: Mapping[str, str], checked: Checked) -> Otlp:
    """What the environment says.

    Raises:
        ConfigurationError: a variable has a value that cannot work.
    """

    variable, text = found(environ, "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not text or why_otlp_is_left_alone(environ):
        return "", (), Transport()
    endpoint = checked(variable, _place if "_TRACES_" in variable else _below, text)
    variable, text = found(environ, "OTEL_EXPORTER_OTLP_HEADERS")
    headers = checked(variable, check_headers, text)
    return endpoint, headers, transport_from_environment(environ, checked, tls=_is_tls(endpoint))


def why_otlp_is_left_alone(environ: Mapping[str, str]) -> str:
    """Why nothing goes to the environment's OTLP endpoint, empty where something does. It is for
    all tracers of a program, of which others may speak what Caribou does not.

    Raises:
        ConfigurationError: a variable has a value that nobody knows.
    """
    # https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#boolean
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower()
    if disabled not in ("", "true", "false"):
        raise ConfigurationError(f"OTEL_SDK_DISABLED must be true or false, not {disabled!r}")
    if disabled == "true":
        return "OTEL_SDK_DISABLED is true"
    # On the same page, #exporter-selection. Other names are those of any package.
    members = environ.get("OTEL_TRACES_EXPORTER", "").lower().split(",")
    exporters = [name for member in members if (name := member.strip())]
    if "none" in exporters or (exporters and _EXPORTERS.isdisjoint(exporters)):
        return f"OTEL_TRACES_EXPORTER is {','.join(exporters)}"
    variable, protocol = found(environ, "OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol in ("", _PROTOCOL):
        return ""
    if protocol not in _OTHER_PROTOCOLS:
        raise ConfigurationError(
            f"{variable} must be {_PROTOCOL}, not {protocol!r}; an endpoint for "
            f"{' or '.join(_OTHER_PROTOCOLS)} is left to other tracers"
        )
    return f"{variable} is {protocol}, and Caribou speaks {_PROTOCOL} only"


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


def check_langfuse_host(value: object) -> str:
    """The address, without the path of the API should it be there; the default for an empty one.

    Raises:
        InvalidType: it is no str.
        InvalidValue: it is no URL of HTTP, or holds credentials.
    """
    bare = check_url(value, "they go into LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY")
    return bare.removesuffix("/api/public/otel") or LANGFUSE_HOST


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


def _is_tls(endpoint: str) -> bool:
    return endpoint.startswith("https:")


def _below(value: object) -> str:
    """The traces' address below an endpoint; empty for none."""
    place = _place(value)
    return place and f"{place.removesuffix('/')}{_PATH}"


def _place(value: object) -> str:
    bare = check_url(value, "they go into OTEL_EXPORTER_OTLP_HEADERS")
    return bare if not bare or urlsplit(bare).path else f"{bare}/"
