"""``caribou serve`` as a process of its own, and readers of its live stream."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commandline import environment

_LIMIT = 30.0


class Service:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.announcement = process.stdout.readline()
        found = re.match(r"Kestrel listens on http://\S+:(\d+) \(", self.announcement)
        assert found is not None, (self.announcement, process.communicate())
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        with contextlib.closing(self.connection()) as connection:
            data = None if body is None else json.dumps(body)
            if data is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def get(self, path: str, **headers: str) -> Any:
        """The JSON of a GET that succeeds."""
        status, body = self.request("GET", path, **headers)
        assert status == 200, (status, body)
        return json.loads(body)

    def metric(self, name: str) -> float:
        """One metric without labels."""
        status, text = self.request("GET", "/metrics")
        assert status == 200
        found = re.search(rf"^{name} (\S+)$", text.decode(), re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LIMIT)

    def send(self, data: bytes, *, end: bool = False) -> bytes:
        """Whatever comes back for these very bytes until the connection is closed.

        Args:
            data: sent as they are.
            end: whether to say then that nothing more will come.
        """
        with socket.create_connection(("127.0.0.1", self.port), _LIMIT) as client:
            answer = b""
            # It may be refused, and the connection closed, while it is being sent.
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
                if end:
                    client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while chunk := client.recv(1 << 16):
                    answer += chunk
            return answer

    @contextlib.contextmanager
    def live(self, query: str = "", last_event_id: int | None = None) -> Iterator[Events]:
        """The live stream, from when this is entered."""
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", f"/api/v1/live{query}", headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"].startswith("text/event-stream")
            yield Events(response)

    def end(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> tuple[int, str]:
        """Have it end by a signal; its exit code and what it said on standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, err


class Events:
    """Server-sent events as they come, read as the HTML standard says."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.last_id: int | None = None

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name, data = "message", ""
        while line := self._response.readline().decode():
            field, _, value = line.rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                self.last_id = int(value)
            elif field == "event":
                name = value
            elif field == "data":
                data += value
            elif line == "\n":
                if data:
                    yield name, json.loads(data)
                name, data = "message", ""

    def until(self, name: str, **wanted: Any) -> list[tuple[str, dict[str, Any]]]:
        """The events up to the first of this name with these values."""
        seen: list[tuple[str, dict[str, Any]]] = []
        for event in self:
            seen.append(event)
            if event[0] == name and wanted.items() <= event[1].items():
                return seen
        raise AssertionError(f"the stream ended: {seen}")

    def wait_for_id(self) -> int:
        """The first id, which a new stream begins with."""
        while self.last_id is None:
            line = self._response.readline()
            assert line, "the stream ended"
            if line.startswith(b"id:"):
                self.last_id = int(line[3:])
        return self.last_id


@contextlib.contextmanager
def serving(home: Path, *arguments: str, **env: str) -> Iterator[Service]:
    """A service on a port of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "caribou", "serve", "--port", "0", *arguments],
        env=environment(home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Service(process)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def rollout(home: Path, trace_id: str, run_id: str = "r") -> Iterator[Rollout]:
    """A process with a rollout under way, which goes on when told."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, trace_id, run_id],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Rollout(process)
        finally:
            process.kill()


class Rollout:
    """One rollout of a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._answer()

    def say(self, text: str) -> None:
        """Log a message."""
        self._tell(text)
        self._answer()

    def finish(self) -> None:
        """Grade the rollout and end it, and the process."""
        self._tell("")
        assert self.process.wait(_LIMIT) == 0

    def _tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def _answer(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"


_PROGRAM = """
import sys
import caribou.sync as caribou
from caribou import Grade, Message
about = {"datapoint_id": "d", "phase": "eval", "run_id": sys.argv[2], "trace_id": sys.argv[1]}
with caribou.trace_run(about):
    print("done", flush=True)
    for line in sys.stdin:
        if line == "\\n":
            break
        caribou.log(Message(role="user", content=line.strip()))
        print("done", flush=True)
    caribou.log(Grade(score=1.0, grader_name="g"))
"""
