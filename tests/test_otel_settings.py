"""Settings of Langfuse and OTLP backends: where they come from, and what is said of wrong ones."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import caribou.sync as caribou
from caribou import ConfigurationError, InvalidType, InvalidValue
from caribou._recording import active
from caribou._settings import Settings, from_environment

SECRET = "sk-lf-s3cret"
KEYS = {"langfuse_public_key": "pk-lf-1", "langfuse_secret_key": SECRET}


def read(**environ: str) -> Settings:
    return from_environment(environ=environ)


def test_defaults() -> None:
    settings = read()
    assert (settings.langfuse_public_key, settings.langfuse_secret_key) == (None, None)
    assert settings.langfuse_host == "https://us.cloud.langfuse.com"
    assert (settings.otlp_endpoint, settings.otlp_headers) == (None, ())


def test_langfuse_from_the_environment() -> None:
    settings = read(
        LANGFUSE_PUBLIC_KEY="pk-lf-1",
        LANGFUSE_SECRET_KEY=SECRET,
        LANGFUSE_HOST="https://langfuse.example/team/",
    )
    assert settings.langfuse_public_key == "pk-lf-1"
    assert settings.langfuse_secret_key == SECRET
    assert settings.langfuse_host == "https://langfuse.example/team"
    endpoint = "https://eu.example/api/public/otel"
    assert read(LANGFUSE_HOST=endpoint).langfuse_host == "https://eu.example"


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"),
        ("LANGFUSE_SECRET_KEY", "LANGFUSE_PUBLIC_KEY"),
    ],
)
def test_one_key_without_the_other(
    monkeypatch: pytest.MonkeyPatch, there: str, missing: str
) -> None:
    monkeypatch.setenv(there, f"lf-{SECRET}")
    with pytest.raises(ConfigurationError, match=f"^{missing} is not set") as refused:
        caribou.configure()
    assert SECRET not in str(refused.value)
    with pytest.raises(ConfigurationError, match=f"^{missing} is not set"):
        caribou.trace_run({"datapoint_id": "d", "phase": "eval"})


def test_an_empty_key_asks_for_no_langfuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk-lf-1")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", SECRET)
    assert active().langfuse_public_key == "pk-lf-1"
    caribou.configure(langfuse_public_key="")
    assert (active().langfuse_public_key, active().langfuse_secret_key) == (None, None)


@pytest.mark.parametrize(
    ("environ", "endpoint", "headers"),
    [
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
                "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cret,x-team = a%20b%2Cc ,",
            },
            "http://collector:4318/v1/traces",
            (("api-key", "s3cret"), ("x-team", "a b,c")),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector/otlp/"},
            "https://collector/otlp/v1/traces",
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces.example/in",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "k=own",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
                "OTEL_EXPORTER_OTLP_HEADERS": "k=general",
            },
            "https://traces.example/in",
            (("k", "own"),),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces.example",
                "OTEL_EXPORTER_OTLP_HEADERS": "k=general",
            },
            "https://traces.example/",
            (("k", "general"),),
        ),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "k=v"}, None, ()),
        # Another tracer of the program speaks gRPC to it, and its address need be no URL.
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            None,
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json",
            },
            None,
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
                "OTEL_SDK_DISABLED": "True",
            },
            None,
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
                "OTEL_SDK_DISABLED": "false",
            },
            "http://collector:4318/v1/traces",
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            None,
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http://collector:4318/v1/traces",
            (),
        ),
    ],
)
def test_otlp_from_the_environment(
    environ: dict[str, str], endpoint: str | None, headers: tuple[tuple[str, str], ...]
) -> None:
    settings = from_environment(environ=environ)
    assert (settings.otlp_endpoint, settings.otlp_headers) == (endpoint, headers)


@pytest.mark.parametrize(
    ("exporters", "used"),
    [
        ("", True),
        (" , ", True),
        ("otlp", True),
        ("console, OTLP", True),
        # As OpenTelemetry's own package for Python calls it.
        ("otlp_proto_http", True),
        ("none", False),
        (" None ", False),
        ("otlp,none", False),
        ("console", False),
        ("console,zipkin", False),
        ("otlp_proto_grpc", False),
    ],
)
def test_an_endpoint_is_used_where_traces_are_to_go_over_otlp(exporters: str, used: bool) -> None:
    there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    settings = read(**there, OTEL_TRACES_EXPORTER=exporters)
    assert settings.otlp_endpoint == ("http://collector:4318/v1/traces" if used else None)
    # Else it is another tracer's business what goes there, and how.
    wrong = {"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke", "OTEL_TRACES_EXPORTER": exporters}
    if used:
        with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
            read(**there, **wrong)
    else:
        read(**there, **wrong)
    ours = from_environment({"otlp": "http://ours"}, there | wrong)
    assert ours.otlp_endpoint == "http://ours/v1/traces"


def test_otlp_from_configure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://environment:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "k=environment")
    caribou.configure(otlp="http://argument:4318/")
    # The headers are those of the other endpoint.
    assert active().otlp_endpoint == "http://argument:4318/v1/traces"
    assert active().otlp_headers == ()
    caribou.configure(otlp={"endpoint": "http://argument:4318", "headers": {"k": "a,b"}})
    assert active().otlp_headers == (("k", "a,b"),)
    caribou.configure(otlp="")
    assert active().otlp_endpoint is None


def test_the_resource() -> None:
    there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert read(**there).otel_resource == ()
    there["OTEL_RESOURCE_ATTRIBUTES"] = "service.name=shop,team=a%20b"
    assert dict(read(**there).otel_resource) == {"service.name": "shop", "team": "a b"}
    both = read(**there, OTEL_SERVICE_NAME="till")
    assert dict(both.otel_resource)["service.name"] == "till"


def test_a_resource_that_nothing_uses_stops_no_program() -> None:
    settings = read(OTEL_RESOURCE_ATTRIBUTES="another tracer minds", OTEL_SERVICE_NAME="\udcff")
    assert settings.otel_resource == ()


@pytest.mark.parametrize(
    "there",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector"},
        {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": SECRET},
        {"CLICKHOUSE_URL": "https://ch:8443"},
        {"KESTREL_API_URL": "https://kestrel"},
    ],
)
def test_authorities_that_are_none_are_named(tmp_path: Path, there: dict[str, str]) -> None:
    file = tmp_path / "authorities.pem"
    for text in (None, "trust me"):
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE must name .* PEM$"):
            read(**there, SSL_CERT_FILE=str(file))
    # Without TLS nobody needs them.
    read(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector", SSL_CERT_FILE=str(file))
    file.write_text("# ours\n-----BEGIN CERTIFICATE-----\n")
    read(**there, SSL_CERT_FILE=str(file))


def test_space_around_an_address_is_no_part_of_it() -> None:
    assert read(LANGFUSE_HOST=" https://langfuse.example \n").langfuse_host == (
        "https://langfuse.example"
    )


def test_no_secret_is_shown() -> None:
    given = {**KEYS, "otlp": {"endpoint": "http://c", "headers": {"api-key": SECRET}}}
    settings = from_environment(given, environ={})
    assert SECRET not in repr(settings)
    assert "langfuse_secret_key='***'" in repr(settings)
    assert "pk-lf-1" in repr(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings


WRONG: list[tuple[str, Any, str]] = [
    ("langfuse_public_key", 5, "str"),
    ("langfuse_public_key", f"{SECRET}\r\nX-Evil: 1", "printable ASCII"),
    ("langfuse_public_key", f"pk:{SECRET}", "colon"),
    ("langfuse_public_key", f"sk-lf-{SECRET}", "begins with pk-lf-"),
    ("langfuse_secret_key", f"{SECRET}\n", "printable ASCII"),
    ("langfuse_host", "langfuse.example", "http://host:port or https://host:port"),
    ("langfuse_host", f"https://pk:{SECRET}@langfuse.example", "LANGFUSE_SECRET_KEY"),
    ("langfuse_host", 5, "str"),
    ("langfuse_host", "https://langfuse.example:99999", "a port that is not from 1 to 65535"),
    ("langfuse_host", "https://langfuse.example:abc", "a port that is not from 1 to 65535"),
    ("langfuse_host", "https://langfuse.example:0", "a port that is not from 1 to 65535"),
    ("langfuse_host", "https://langfuse example", "space"),
    ("langfuse_host", "https://langfuse\0.example", "control"),
    ("otlp", "grpc://collector:4317", "http://host:port or https://host:port"),
    ("otlp", f"http://u:{SECRET}@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
    ("otlp", 5, "endpoint"),
    ("otlp", {"headers": {}}, "no endpoint"),
    ("otlp", {"endpoint": "http://c", "token": SECRET}, "other keys than endpoint, headers,"),
    ("otlp", {"endpoint": "collector"}, "http://host:port"),
    (
        "otlp",
        {"endpoint": "http://c", "headers": f"api-key {SECRET}"},
        "headers that must have the form key=value,key2=value2",
    ),
    ("otlp", {"endpoint": "http://c", "headers": ["a"]}, "headers that must be a str or a mapping"),
    (
        "otlp",
        {"endpoint": "http://c", "headers": {"a b": SECRET}},
        "headers that must hold names only that an HTTP header can have",
    ),
    ("otlp", {"endpoint": "http://c", "headers": {"k": f"{SECRET}\r\nX: 1"}}, "printable"),
    ("otlp", {"endpoint": "http://c", "headers": {"k": 5}}, "texts"),
    ("otlp", {"endpoint": "http://c", "headers": 5}, "mapping"),
    (
        "otlp",
        {"endpoint": "http://c", "compression": "br"},
        "compression that must be gzip or none",
    ),
    (
        "otlp",
        {"endpoint": "http://c", "compression": True},
        "compression that must be gzip or none",
    ),
    ("otlp", {"endpoint": "http://c", "timeout": 0}, "timeout that must be seconds, from 0.1 to"),
    ("otlp", {"endpoint": "http://c", "timeout": 10_000}, "timeout that must be seconds"),
    ("otlp", {"endpoint": "http://c", "timeout": float("nan")}, "timeout that must be seconds"),
    ("otlp", {"endpoint": "http://c", "timeout": "10"}, "timeout that must be seconds"),
    ("otlp", {"endpoint": "https://c", "certificate": "no/such"}, "readable file of certificates"),
    ("otlp", {"endpoint": "https://c", "certificate": "\0"}, "readable file of certificates"),
    ("otlp", {"endpoint": "https://c", "certificate": 5}, "must be a path, not int"),
    ("otlp", {"endpoint": "https://c", "certificate": b"c"}, "must be a path, not bytes"),
    ("otlp", {"endpoint": "https://c", "client_key": "k.pem"}, "needs client_certificate"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_a_wrong_argument_is_named_and_changes_nothing(name: str, value: Any, words: str) -> None:
    caribou.configure(run_id="before", **KEYS)
    before = active()
    with pytest.raises((InvalidValue, InvalidType)) as refused:
        caribou.configure(**{"run_id": "after", name: value})
    assert str(refused.value).startswith(name)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert active() == before


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("LANGFUSE_HOST", "us.cloud.langfuse.com", "http://host:port"),
        ("LANGFUSE_SECRET_KEY", f"{SECRET}\n", "printable ASCII"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://host:port"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", "names no host"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"Bearer {SECRET}", "key=value,key2=value2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"k={SECRET}%0d%0aX:1", "printable"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "k=%ff", "URL-encoded"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"={SECRET}", "key=value"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http", "must be http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "protobuf", "must be http/protobuf"),
        ("OTEL_SDK_DISABLED", "1", "true or false"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "must be gzip or none"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "deflate", "must be gzip or none"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10", "milliseconds, from 100 to 3600000, or 0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "milliseconds"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1e4", "milliseconds"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "\u0661\u0660\u0660\u0660", "milliseconds"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "9" * 5000, "milliseconds"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "3600001", "milliseconds"),
        ("OTEL_RESOURCE_ATTRIBUTES", "shop", "key=value"),
        ("OTEL_RESOURCE_ATTRIBUTES", "shop=\udcff", "UTF-8"),
        ("OTEL_SERVICE_NAME", "\udcff", "UTF-8"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    if "ENDPOINT" not in variable:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as refused:
        caribou.configure()
    assert str(refused.value).startswith(variable)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)
