"""Servers as pytest fixtures; pulled in by ``pytest_plugins = ["support.fixtures"]``."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.faultproxy import FaultProxy
from support.servers import DoorServer, OldServer
from support.serving import Service, serving

if TYPE_CHECKING:
    from support.langfuse import Langfuse
    from support.otlp import Receiver


@pytest.fixture(scope="session")
def _door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoorServer]:
    if importlib.util.find_spec("chdb") is None:
        pytest.skip("the embedded engine is not installed: pip install 'caribou-trace[local]'")
    door = DoorServer(tmp_path_factory.mktemp("door") / "engine")
    door.start()
    yield door
    door.stop()


@pytest.fixture
def door(_door: DoorServer) -> Iterator[DoorServer]:
    """The current engine behind HTTP; shared, so keep to a ``database`` of your own."""
    yield _door
    _door.control(settings={}, deny=[], hold=False, keep_cut=False)


@pytest.fixture
def database() -> str:
    """A database name that no other test uses; nothing is created."""
    return f"test_{os.urandom(6).hex()}"


@pytest.fixture
def proxy(door: DoorServer) -> Iterator[FaultProxy]:
    """A proxy in front of ``door`` that can be told to misbehave."""
    with FaultProxy(door.port) as proxy:
        yield proxy


@pytest.fixture
def there() -> Iterator[Langfuse]:
    """The model of Langfuse; needs the extra ``otlp``."""
    from support.langfuse import langfuse

    with langfuse() as there:
        yield there


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """An OTLP receiver; needs the extra ``otlp``."""
    from support.otlp import receiver

    with receiver() as collector:
        yield collector


@pytest.fixture
def old_server(tmp_path: Path) -> Iterator[OldServer]:
    """A real server, of 2018, empty and for this test alone."""
    if not OldServer.available():
        pytest.skip("clickhouse-server is not installed: apt-get install clickhouse-server")
    server = OldServer(tmp_path / "clickhouse")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def locked_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoorServer]:
    """Another door, which lets in the user ``agent`` with ``correct horse`` only."""
    if importlib.util.find_spec("chdb") is None:
        pytest.skip("the embedded engine is not installed: pip install 'caribou-trace[local]'")
    path = tmp_path_factory.mktemp("locked") / "engine"
    door = DoorServer(path, user="agent", password="correct horse")
    door.start()
    yield door
    door.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, and its key in one PEM file."""
    return _make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def other_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, which does not vouch for the first."""
    return _make_certificate(tmp_path_factory.mktemp("tls"))


def _make_certificate(folder: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = folder / "both.pem"
    # The name says which is which: OpenSSL looks for an issuer by it.
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {path} -out {path}.crt "
        f"-subj /CN=127.0.0.1/O={folder.name} -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    with path.open("a") as both:
        both.write(Path(f"{path}.crt").read_text())
    return path


@pytest.fixture(scope="module")
def service_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``service`` finds its store and the journals that it takes in."""
    pytest.importorskip("chdb", reason="the embedded engine is not installed")
    return tmp_path_factory.mktemp("service") / "home"


@pytest.fixture(scope="module")
def service(service_home: Path) -> Iterator[Service]:
    """``caribou serve`` over the embedded engine, for all tests of a module."""
    with serving(service_home) as service:
        yield service
