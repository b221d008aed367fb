"""Start and stop the servers that tests run against: the door, and Debian's ClickHouse of 2018."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

_TESTS = Path(__file__).parent.parent
_START_LIMIT = 60.0  # seconds; importing the engine for the first time reads some 500 MB


class Server:
    """What both have in common: an HTTP port on loopback that takes SQL."""

    port: int
    native_port: int
    credentials: dict[str, str]

    def __init__(self) -> None:
        self.port = self.native_port = 0
        self.credentials = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def native_url(self) -> str:
        """Where it speaks its native protocol; skips the test where nothing speaks it to it."""
        if importlib.util.find_spec("asynch") is None:
            import pytest

            pytest.skip("asynch is not installed: pip install 'caribou-trace[native]'")
        return f"clickhouse://127.0.0.1:{self.native_port}"

    def sql(self, statement: str, **parameters: str) -> str:
        """Run one statement; its output as text. Raises RuntimeError with the server's message."""
        status, body = self.post("/?" + urlencode(parameters), statement.encode())
        if status != 200:
            raise RuntimeError(body.decode(errors="replace"))
        return body.decode()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """The rows of one query as objects."""
        text = self.sql(query + " FORMAT JSONEachRow")
        return [json.loads(line) for line in text.splitlines()]

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", path, body, self.credentials)
            response = connection.getresponse()
            return response.status, response.read()

    def stop(self) -> None:
        """End the server by SIGTERM and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
        self.stop()


class DoorServer(Server):
    """The current engine over HTTP; its tables are kept in ``path`` from start to start."""

    def __init__(self, path: Path, *, user: str = "", password: str = "") -> None:
        super().__init__()
        self._path = path
        self._user, self._password = user, password
        if password:
            self.credentials = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}

    def start(self) -> None:
        """Start it, after the first time on the port it had."""
        command = [
            sys.executable, "-m", "support.door",
            "--port", str(self.port), "--native-port", str(self.native_port),
            "--path", str(self._path),
            "--user", self._user, "--password", self._password,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(_TESTS)}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the door did not open: exit {self._process.wait()}")
        self.port, self.native_port = map(int, line.split())

    def control(self, **order: Any) -> None:
        """Change its behaviour; see ``support.door``."""
        status, body = self.post("/_door", json.dumps(order).encode())
        assert status == 200, body


class OldServer(Server):
    """Debian's ``clickhouse-server`` 18.16 with a folder of its own.

    It has no DateTime64, Map, LowCardinality or codecs, so its tables are reduced ones: see
    ``create_tables``. The user ``reader`` (password ``r``) may only read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @staticmethod
    def available() -> bool:
        return shutil.which("clickhouse-server") is not None

    def start(self) -> None:
        """Start it, after the first time on the ports it had."""
        if not self.port:
            self.port, self.native_port = _free_ports(2)
            self._write_configuration()
        with open(self._path / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["clickhouse-server", f"--config-file={self._path}/config.xml"],
                stdout=log,
                stderr=log,
                text=True,
                cwd=self._path,
            )
        deadline = time.monotonic() + _START_LIMIT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._path / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def create_tables(self, database: str) -> None:
        """The columns this server has types for."""
        self.sql(f"CREATE DATABASE IF NOT EXISTS {database}")
        self.sql(
            f"CREATE TABLE {database}.spans_rows (run_id String, trace_id String, seq Int64, "
            "span_id String, kind String, name String, role String, content Nullable(String), "
            "turn_index Int64, version UInt64, batch_id String) "
            "ENGINE = ReplacingMergeTree(version) ORDER BY (run_id, trace_id, seq, span_id)"
        )
        self.sql(
            f"CREATE TABLE {database}.traces_rows (run_id String, step_number Int64 DEFAULT -1, "
            "trace_id String, root_span_id String, status String, messages Int64, version UInt64, "
            "batch_id String) ENGINE = ReplacingMergeTree(version) "
            "ORDER BY (run_id, step_number, trace_id, root_span_id)"
        )
        self.sql(
            f"CREATE TABLE {database}.entity_metadata_rows (entity_type String, key String, "
            "run_id String, entity_id String, value String, version UInt64, batch_id String) "
            "ENGINE = ReplacingMergeTree(version) ORDER BY (entity_type, key, run_id, entity_id)"
        )
        self.sql(
            f"CREATE TABLE {database}.trace_tags_rows (tag String, run_id String, "
            "trace_id String, batch_id String) "
            "ENGINE = ReplacingMergeTree ORDER BY (tag, run_id, trace_id)"
        )
        self.sql(
            f"CREATE TABLE {database}.scores_rows (run_id String, grader_name String, "
            "step_number Int64 DEFAULT -1, trace_id String, span_id String, "
            "score Nullable(Float64), batch_id String) ENGINE = ReplacingMergeTree "
            "ORDER BY (run_id, grader_name, step_number, trace_id, span_id)"
        )

    def _answers(self) -> bool:
        try:
            return self.post("/?query=SELECT+1", b"")[0] == 200
        except OSError:
            return False

    def _write_configuration(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        (self._path / "config.xml").write_text(
            f"""<yandex>
  <logger><level>warning</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{self.port}</http_port>
  <tcp_port>{self.native_port}</tcp_port>
  <path>{self._path}/data/</path>
  <tmp_path>{self._path}/tmp/</tmp_path>
  <users_config>users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <mark_cache_size>5242880</mark_cache_size>
  <mlock_executable>false</mlock_executable>
</yandex>
"""
        )
        networks = "<networks><ip>127.0.0.1</ip></networks><quota>default</quota>"
        (self._path / "users.xml").write_text(
            f"""<yandex>
  <profiles><default/><readonly><readonly>1</readonly></readonly></profiles>
  <users>
    <default><password></password><profile>default</profile>{networks}</default>
    <reader><password>r</password><profile>readonly</profile>{networks}</reader>
  </users>
  <quotas><default/></quotas>
</yandex>
"""
        )


def _free_ports(count: int) -> Sequence[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
