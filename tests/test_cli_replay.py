"""While the server is away: what ``replay`` and ``demo`` tell, and what they leave behind."""

from __future__ import annotations

import http.server
import signal
import socket
import subprocess
import threading
from pathlib import Path

from commandline import caribou, open_journal, running, write_rows

SINKS = {"clickhouse": "http://elsewhere:8123/caribou"}


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def leave_rows(home: Path, *, processes: int = 1) -> None:
    """Two rows of each of so many ended processes."""
    for number in range(processes):
        with open_journal(home, SINKS) as journal:
            write_rows(journal, "spans", {"seq": 2 * number}, {"seq": 2 * number + 1})


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_it_says_what_it_tries_and_when_interrupted_what_is_left(tmp_path: Path) -> None:
    leave_rows(tmp_path, processes=3)
    url = f"http://127.0.0.1:{closed_port()}"
    with running("replay", home=tmp_path, CLICKHOUSE_URL=url) as replay:
        assert next_line(replay) == (
            f"Delivering 6 rows of 3 ended processes to {url}, database caribou\n"
        )
        assert "cannot be reached" in next_line(replay)
        assert next_line(replay) == "0 rows delivered, 6 rows left\n"
        replay.send_signal(signal.SIGINT)
        out, err = replay.communicate(timeout=30)
    assert (replay.returncode, out) == (130, "")
    assert err.count("\n") == 1
    assert err.startswith("Interrupted: 0 rows delivered, 6 rows left, safe in the journal")
    assert "The last error: " in err
    # Nobody was told that they are delivered, and they are not.
    assert "6 rows" in caribou("doctor", home=tmp_path).out


def test_what_the_demo_cannot_deliver_is_safe(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    answer = caribou("demo", "--json", home=tmp_path, CLICKHOUSE_URL=url)
    assert (answer.code, answer.objects) == (1, [])
    assert "Traceback" not in answer.err
    last = answer.err.splitlines()[-1]
    assert "rows are safe in the journal" in last
    assert "`caribou replay` delivers them" in last
    count = last.split()[0]
    assert int(count.replace(",", "")) > 320
    assert f"{count} rows" in caribou("doctor", home=tmp_path).out


def test_rows_of_processes_it_never_came_to_are_counted(tmp_path: Path) -> None:
    leave_rows(tmp_path, processes=11)
    url = f"http://127.0.0.1:{closed_port()}"
    answer = caribou("replay", "--timeout", "0.5", "--json", home=tmp_path, CLICKHOUSE_URL=url)
    assert answer.code == 1
    assert answer.objects == [
        {"owners": 11, "rows": 22, "delivered": 0, "pending": 22, "dead": 0},
    ]
    assert "Stopped after 0.5 s: 0 rows delivered, 22 rows left, safe in the journal" in answer.err


def test_an_error_that_changes_is_told(tmp_path: Path) -> None:
    leave_rows(tmp_path)
    port = closed_port()
    with running("replay", home=tmp_path, CLICKHOUSE_URL=f"http://127.0.0.1:{port}") as replay:
        assert next_line(replay).startswith("Delivering 2 rows of 1 ended process to")
        assert "refused" in next_line(replay)
        server = http.server.HTTPServer(("127.0.0.1", port), _Unavailable)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            assert "503" in next_line(replay)
        finally:
            server.shutdown()
            server.server_close()


def test_a_server_that_never_answers_is_told_of(tmp_path: Path) -> None:
    leave_rows(tmp_path)
    # Connections are made, and nobody takes them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = caribou("replay", "--timeout", "0.5", home=tmp_path, CLICKHOUSE_URL=url)
    assert answer.code == 1
    assert f"safe in the journal. No answer came from {url}, database caribou\n" in answer.err


class _Unavailable(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(503)

    def log_message(self, format: str, *args: object) -> None:
        pass
