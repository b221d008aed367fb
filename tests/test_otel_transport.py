"""How spans travel to an OTLP backend: what settings say of it, and what is seen on the wire."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.otlp import Receiver, receiver
from support.rows import make_batch, span_lines
from support.sinks import failure

import caribou.sync as caribou
from caribou import ConfigurationError
from caribou._recording import active
from caribou._settings import Settings, from_environment
from caribou.sinks.base import Misconfigured, Retry
from caribou.sinks.otlp import OTLP

OPTIONS = "OTEL_EXPORTER_OTLP_"
ARGUMENT = "otlp"
HTTPS = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector"}


def read(**environ: str) -> Settings:
    return from_environment(environ=environ)


def how(settings: Settings) -> tuple[object, ...]:
    """How spans travel, whatever that is called."""
    return msgspec.structs.astuple(settings.otlp_transport)[:5]


DEFAULT = ("gzip", 30.0, None, None, None)


def test_how_spans_travel_by_default() -> None:
    settings = read(OTEL_EXPORTER_OTLP_ENDPOINT="http://c", OTEL_EXPORTER_OTLP_TIMEOUT=" ")
    assert how(settings) == DEFAULT


def test_how_spans_travel_from_the_environment(certificate: Path, other_certificate: Path) -> None:
    general = {
        f"{OPTIONS}COMPRESSION": "None",
        f"{OPTIONS}TIMEOUT": "1500",
        f"{OPTIONS}CERTIFICATE": str(certificate),
        f"{OPTIONS}CLIENT_CERTIFICATE": str(certificate),
        f"{OPTIONS}CLIENT_KEY": str(certificate),
    }
    assert how(read(**HTTPS, **general)) == ("none", 1.5, certificate, certificate, certificate)
    traces = {
        f"{OPTIONS}TRACES_COMPRESSION": "gzip",
        f"{OPTIONS}TRACES_TIMEOUT": "0",
        f"{OPTIONS}TRACES_CERTIFICATE": str(other_certificate),
        f"{OPTIONS}TRACES_CLIENT_CERTIFICATE": str(other_certificate),
        f"{OPTIONS}TRACES_CLIENT_KEY": str(other_certificate),
    }
    other = other_certificate
    assert how(read(**HTTPS, **general, **traces)) == ("gzip", 3600.0, other, other, other)
    # Without an endpoint, without TLS, or for an endpoint of our own they are others' business.
    assert how(read(**general, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="soon")) == DEFAULT
    plain = read(OTEL_EXPORTER_OTLP_ENDPOINT="http://c", OTEL_EXPORTER_OTLP_CERTIFICATE="no/such")
    assert plain.otlp_transport.certificate is None
    ours = from_environment({"otlp": "https://ours"}, environ=HTTPS | general)
    assert how(ours) == DEFAULT


def test_how_spans_travel_from_configure(certificate: Path) -> None:
    caribou.configure(
        otlp={
            "endpoint": "https://c",
            "compression": "none",
            "timeout": 7,
            "certificate": str(certificate),
            "client_certificate": certificate,
            "client_key": None,
        }
    )
    assert how(active()) == ("none", 7.0, certificate, certificate, None)
    caribou.configure(otlp="https://c")
    assert how(active()) == DEFAULT


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_TIMEOUT", "10"), ("OTEL_SDK_DISABLED", "true")],
)
def test_an_endpoint_from_configure_makes_the_environments_nobodys_business(
    variable: str, value: str
) -> None:
    environ = HTTPS | {variable: value}
    settings = from_environment({"otlp": {"endpoint": "http://ours", "timeout": 10}}, environ)
    assert settings.otlp_endpoint == "http://ours/v1/traces"
    assert settings.otlp_transport.timeout == 10


def test_certificates_that_are_none_are_named(
    tmp_path: Path, certificate: Path, other_certificate: Path
) -> None:
    key, crt = tmp_path / "key.pem", tmp_path / "crt.pem"
    begin = "-----BEGIN CERTIFICATE-----"
    for path, text in zip((key, crt), certificate.read_text().split(begin), strict=True):
        path.write_text(text if path is key else begin + text)
    locked, garbled = tmp_path / "locked.pem", tmp_path / "garbled.pem"
    subprocess.run(
        f"openssl rsa -aes128 -passout pass:x -in {key} -out {locked}".split(),
        check=True,
        capture_output=True,
    )
    garbled.write_text(f"# ours\n{begin}\n")
    for prefix in (OPTIONS, f"{OPTIONS}TRACES_"):
        for file in (tmp_path / "missing.pem", tmp_path, key, garbled):
            for option in ("CERTIFICATE", "CLIENT_CERTIFICATE"):
                message = f"^{prefix}{option} must name a .* certificates in PEM$"
                with pytest.raises(ConfigurationError, match=message):
                    read(**HTTPS, **{f"{prefix}{option}": str(file)})
        shown = {f"{prefix}CLIENT_CERTIFICATE": str(crt)}
        with pytest.raises(ConfigurationError, match=f"^{prefix}CLIENT_CERTIFICATE .* key"):
            read(**HTTPS, **shown)
        for file in (tmp_path / "missing.pem", crt, locked, other_certificate):
            with pytest.raises(ConfigurationError, match=f"^{prefix}CLIENT_KEY must name .* key"):
                read(**HTTPS, **shown, **{f"{prefix}CLIENT_KEY": str(file)})
        with pytest.raises(ConfigurationError, match=f"^{prefix}CLIENT_KEY needs .*CLIENT_CERT"):
            read(**HTTPS, **{f"{prefix}CLIENT_KEY": str(key)})
        read(**HTTPS, **shown, **{f"{prefix}CLIENT_KEY": str(key)})


def test_authorities_of_its_own_need_no_others(tmp_path: Path, certificate: Path) -> None:
    read(
        **HTTPS,
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate),
        SSL_CERT_FILE=str(tmp_path / "missing.pem"),
    )


# -- On the wire -----------------------------------------------------------------------------------


@asynccontextmanager
async def opened(there: Receiver, **options: Any) -> AsyncIterator[OTLP]:
    """The sink for it."""
    sink = OTLP(f"{there.url}/v1/traces", **options)
    try:
        yield sink
    finally:
        await sink.aclose()


@pytest.mark.asyncio
async def test_spans_go_uncompressed_where_that_is_asked_for() -> None:
    with receiver() as there:
        async with opened(there, compression="none") as sink:
            await sink.send(make_batch(span_lines(3)))
    (request,) = there.requests
    assert "Content-Encoding" not in request.headers
    assert int(request.headers["Content-Length"]) == request.size
    assert len(there.spans) == 3


@pytest.mark.asyncio
async def test_a_limit_of_time_is_kept() -> None:
    with receiver() as there:
        there.hang()
        async with opened(there, timeout=0.3) as sink:
            began = time.monotonic()
            error = await failure(sink.send(make_batch(span_lines(1))))
            assert 0.2 < time.monotonic() - began < 5
    assert isinstance(error, Retry)
    assert "time limit" in error.reason


def server_side(certificate: Path, *, clients: Path | None = None) -> ssl.SSLContext:
    """A receiver's TLS; with ``clients`` it lets in whoever has a certificate from there."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


@asynccontextmanager
async def opened_as_set(source: str, url: str, **files: Path) -> AsyncIterator[OTLP]:
    """The sink as settings make it, where ``source`` is an argument or how variables begin."""
    options = {name: str(path) for name, path in files.items()}
    if source == ARGUMENT:
        settings = from_environment({"otlp": {"endpoint": url, **options}}, {})
    else:
        variables = {f"{source}{name.upper()}": path for name, path in options.items()}
        settings = read(OTEL_EXPORTER_OTLP_ENDPOINT=url, **variables)
    assert settings.otlp_endpoint is not None
    sink = OTLP(settings.otlp_endpoint, **msgspec.structs.asdict(settings.otlp_transport))
    try:
        yield sink
    finally:
        await sink.aclose()


def called(source: str, name: str) -> str:
    """What a user calls one of the files."""
    return f'otlp["{name}"]' if source == ARGUMENT else f"{source}{name.upper()}"


every_source = pytest.mark.parametrize("source", [ARGUMENT, OPTIONS, f"{OPTIONS}TRACES_"])


@pytest.mark.asyncio
@pytest.mark.parametrize("source", [ARGUMENT, OPTIONS])
async def test_the_authorities_of_one_endpoint(certificate: Path, source: str) -> None:
    batch = make_batch(span_lines(3))
    with receiver(tls=server_side(certificate)) as there:
        async with opened_as_set(source, there.url) as sink:
            refused = await failure(sink.send(batch))
        assert isinstance(refused, Misconfigured)
        assert f"{called(source, 'certificate')}, else SSL_CERT_FILE, names" in refused.reason
        async with opened_as_set(source, there.url, certificate=certificate) as sink:
            await sink.send(batch)
    assert len(there.spans) == 3


@pytest.mark.asyncio
async def test_other_authorities_than_those_are_not_trusted(
    certificate: Path, other_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with receiver(tls=server_side(certificate)) as there:
        async with opened(there, certificate=other_certificate) as sink:
            refused = await failure(sink.send(make_batch(span_lines(1))))
    assert isinstance(refused, Misconfigured)
    assert "not trusted" in refused.reason


@pytest.fixture
def apart(other_certificate: Path, tmp_path: Path) -> dict[str, Path]:
    """The other certificate with its key in a file of its own."""
    begin = "-----BEGIN CERTIFICATE-----"
    key, rest = other_certificate.read_text().split(begin)
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "crt.pem").write_text(begin + rest)
    return {"client_certificate": tmp_path / "crt.pem", "client_key": tmp_path / "key.pem"}


@pytest.mark.asyncio
async def test_a_receiver_that_asks_who_it_is_is_told(
    certificate: Path, other_certificate: Path, apart: dict[str, Path]
) -> None:
    together = {"client_certificate": other_certificate}
    with receiver(tls=server_side(certificate, clients=other_certificate)) as there:
        for options in (together, apart):
            async with opened(there, certificate=certificate, **options) as sink:
                await sink.send(make_batch(span_lines(3)))
        assert len(there.requests) == 2
        wrong = {"client_certificate": certificate}
        for options in ({}, wrong):
            async with opened(there, certificate=certificate, **options) as sink:
                assert isinstance(await failure(sink.send(make_batch(span_lines(3)))), Retry)
    assert len(there.requests) == 2


@pytest.mark.asyncio
@every_source
async def test_a_file_that_is_gone_keeps_the_rows(
    certificate: Path, tmp_path: Path, source: str
) -> None:
    file = tmp_path / "authorities.pem"
    file.symlink_to(certificate)
    batch = make_batch(span_lines(3))
    with receiver(tls=server_side(certificate)) as there:
        async with opened_as_set(source, there.url, certificate=file) as sink:
            file.unlink()
            refused = await failure(sink.send(batch))
            assert isinstance(refused, Misconfigured)
            assert f"that {called(source, 'certificate')} names cannot be used" in refused.reason
            file.symlink_to(certificate)
            await sink.send(batch)
    assert len(there.spans) == 3


@contextmanager
def refusing(tls: ssl.SSLContext) -> Iterator[str]:
    """Shakes hands, or says why not as OpenSSL does, and then reads on: asyncio's TLS hangs up."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                ) as secure:
                    with suppress(OSError):
                        secure.do_handshake()
                    with suppress(OSError):
                        while socket.socket.recv(secure, 1 << 16):
                            pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.asyncio
@every_source
@pytest.mark.parametrize(
    ("version", "shown"),
    # Before 1.3 no certificate at all is a handshake that failed, for whatever reason.
    [
        (ssl.TLSVersion.TLSv1_2, {"client_certificate"}),
        (ssl.TLSVersion.TLSv1_3, {"client_certificate"}),
        (ssl.TLSVersion.TLSv1_3, set[str]()),
    ],
)
async def test_a_client_s_certificate_that_is_refused_is_named(
    certificate: Path,
    other_certificate: Path,
    source: str,
    version: ssl.TLSVersion,
    shown: set[str],
) -> None:
    tls = server_side(certificate, clients=other_certificate)
    tls.maximum_version = version
    files = dict.fromkeys({"certificate", *shown}, certificate)
    name = called(source if shown or source == ARGUMENT else OPTIONS, "client_certificate")
    with refusing(tls) as url:
        async with opened_as_set(source, url, **files) as sink:
            for refused in (
                await failure(sink.send(make_batch(span_lines(1)))),
                await failure(sink.check()),
            ):
                assert isinstance(refused, Retry)
                assert f"; {name} names it (" in refused.reason
                assert "ALERT" in refused.reason
                assert "Cannot connect to host" not in refused.reason
