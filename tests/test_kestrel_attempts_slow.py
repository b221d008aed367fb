"""Clients that are slow on purpose: each is let go in time, and the others are served meanwhile."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.serving import Service, serving

pytest.importorskip("chdb", reason="the embedded engine is not installed")

pytestmark = pytest.mark.slow

STATED = 30.0  # seconds, after which a connection is let go
LOOKS = 15.0  # seconds more: until the service looks, or has ended the reading of what still comes
PAGE = 20_000_000  # bytes of the page that is not read
HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


class Client(threading.Thread):
    """One that sends what it is told to, a byte a second from some point on, and maybe reads."""

    def __init__(self, port: int, at_once: bytes, dripped: bytes = b"", *, reads: bool) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_connection(("127.0.0.1", port), STATED + LOOKS + 10)
        self._at_once, self._dripped, self._reads = at_once, dripped, reads
        self.answer = b""
        self.took = 0.0
        self.start()

    def run(self) -> None:
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError), self._socket:
            self._socket.sendall(self._at_once)
            dripping = threading.Thread(target=self._drip, daemon=True)
            dripping.start()
            if not self._reads:
                # It is not told that the connection is closed before it reads.
                time.sleep(STATED + LOOKS - 2)
            while chunk := self._socket.recv(1 << 16):
                self.answer += chunk
        self.took = time.monotonic() - begun

    def _drip(self) -> None:
        with contextlib.suppress(OSError):
            for byte in self._dripped:
                self._socket.sendall(bytes([byte]))
                time.sleep(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home"), "--clickhouse-port", "0") as service:
        for number in range(PAGE // 500_000):
            body = {"name": "large", "config": {"text": "x" * 500_000}}
            assert service.request("PUT", f"/api/v1/runs/{number}", {"name": "large"})[0] == 200
            status, _ = service.request("PATCH", f"/api/v1/runs/{number}", body)
            assert status == 200
        yield service


@pytest.mark.timeout(180)
def test_slow_clients_are_let_go_and_others_served(service: Service) -> None:
    clients: dict[str, Callable[[], Client]] = {
        "silent": lambda: Client(service.port, b"", reads=True),
        "first line": lambda: Client(service.port, b"GET /a", b"b" * 300, reads=True),
        "headers": lambda: Client(service.port, b"GET /" + HEAD, b"X: y\r\n" * 100, reads=True),
        "body": lambda: Client(
            service.port,
            b"POST /api/v1/projects" + HEAD + JSON + b"Content-Length: 1000\r\n\r\n",
            b" " * 300,
            reads=True,
        ),
        "chunks": lambda: Client(
            service.port,
            b"POST /api/v1/projects" + HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\n",
            b"1\r\n \r\n" * 60,
            reads=True,
        ),
        "body for nothing": lambda: Client(
            service.port,
            b"POST /nothing" + HEAD + JSON + b"Content-Length: 1000\r\n\r\n",
            b" " * 300,
            reads=True,
        ),
        "kept alive": lambda: Client(service.port, b"GET /healthz" + HEAD + b"\r\n", reads=True),
        "unread": lambda: Client(
            service.port, b"GET /api/v1/runs?limit=1000" + HEAD + b"\r\n", reads=False
        ),
    }
    running = {f"{name} {n}": make() for name, make in clients.items() for n in range(20)}
    while any(client.is_alive() for client in running.values()):
        assert service.request("GET", "/api/v1/projects")[0] == 200
        time.sleep(0.2)
    late = {name: c.took for name, c in running.items() if c.took > STATED + LOOKS}
    assert late == {}
    early = {name: c.took for name, c in running.items() if c.took < 9}
    assert early == {}
    for name, client in running.items():
        if name.startswith(("body", "chunks")):
            status = b" 404 " if "nothing" in name else b" 408 "
            assert status in client.answer[:20], (name, client.answer)
        if name.startswith("unread"):
            assert client.answer.startswith(b"HTTP/1.1 200 ")
            assert len(client.answer) < PAGE / 2
    files = list(Path(f"/proc/{service.process.pid}/fd").iterdir())
    assert len(files) < len(running)
