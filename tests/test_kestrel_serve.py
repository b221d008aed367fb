"""``caribou serve`` as a process: what it takes in, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from aiohttp import web
from commandline import Answer, caribou, open_journal, refused, without_engine, write_rows
from support.servers import DoorServer
from support.serving import Service, rollout, serving
from support.waiting import wait_until

from caribou.server.connections import Connections

pytest.importorskip("chdb", reason="the embedded engine is not installed")

A = "a" * 32


def cannot(answer: Answer) -> str:
    """The one sentence of a service that something stood in the way of."""
    assert (answer.code, answer.out) == (1, ""), answer
    assert answer.err.startswith("caribou: ")
    assert answer.err.count("\n") == 1
    return answer.err


def test_a_rollout_is_seen_while_it_runs_and_interrupted_once_killed(
    service: Service, service_home: Path
) -> None:
    with rollout(service_home, A, "seen") as running:
        begun = time.monotonic()
        wait_until(lambda: traces(service, "seen") == [("PENDING", False)], timeout=2.0)
        assert time.monotonic() - begun < 2.0
        running.say("hello")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        wait_until(lambda: traces(service, "seen") == [("PENDING", True)])


def test_rollouts_killed_before_it_started_are_interrupted(tmp_path: Path) -> None:
    with rollout(tmp_path, A) as alive:
        with rollout(tmp_path, "b" * 32, "killed"):
            pass
        with serving(tmp_path) as service:
            wait_until(lambda: traces(service, "killed") == [("PENDING", True)])
            assert traces(service, "r") == [("PENDING", False)]
            alive.finish()
            wait_until(lambda: traces(service, "r") == [("COMPLETED", False)])


def traces(service: Service, run_id: str) -> list[tuple[str, bool]]:
    page = service.get(f"/api/v1/traces?run_id={run_id}")
    return [(trace["status"], trace["interrupted"]) for trace in page["items"]]


def test_a_growing_journal_is_taken_in_once_and_in_few_parts(tmp_path: Path) -> None:
    def tag(number: int) -> dict[str, str]:
        return {"tag": str(number), "run_id": "r", "trace_id": A}

    with serving(tmp_path) as service, open_journal(tmp_path) as journal:
        for number in range(4):
            write_rows(journal, "trace_tags", tag(number))
            wait_for_rows(service, number + 1)
        write_rows(journal, "trace_tags", *(tag(number) for number in range(4, 5000)))
        wait_for_rows(service, 5000)
        assert service.metric("kestrel_intake_lag_seconds") < 5
        assert service.end() == (0, "")
    sql = "SELECT count() AS rows, uniqExact(tag) AS tags, uniqExact(batch_id) AS inserts"
    [counted] = caribou("sql", f"{sql} FROM trace_tags_rows", "--json", home=tmp_path).objects
    assert (counted["rows"], counted["tags"]) == (5000, 5000)
    # The many came with one insert, or two if a look fell among them.
    assert 5 <= counted["inserts"] <= 6


def wait_for_rows(service: Service, count: int) -> None:
    wait_until(lambda: service.metric("kestrel_intake_rows_total") == count)


def test_it_ends_within_seconds_and_leaves_the_store_to_the_next(tmp_path: Path) -> None:
    with serving(tmp_path) as service, service.live() as events:
        events.wait_for_id()
        begun = time.monotonic()
        assert service.end(signal.SIGTERM) == (0, "")
        assert time.monotonic() - begun < 4
        # The reader sees an end and not a broken connection.
        assert list(events) == []
    answer = caribou("sql", "SELECT 1 AS one", "--json", home=tmp_path)
    assert answer.objects == [{"one": 1}]


def test_ctrl_c_ends_it_too(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        assert service.end(signal.SIGINT) == (0, "")


def test_a_taken_port_is_one_sentence(service: Service, tmp_path: Path) -> None:
    sentence = cannot(caribou("serve", "--port", str(service.port), home=tmp_path))
    assert f"port {service.port}: Address already in use" in sentence
    # Nothing was touched.
    assert list(tmp_path.iterdir()) == []


def test_a_taken_store_is_one_sentence(service: Service, service_home: Path) -> None:
    sentence = cannot(caribou("serve", "--port", "0", home=service_home))
    assert f"is in use by process {service.process.pid}" in sentence


def test_other_machines_are_let_in_only_with_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        sentence = refused(caribou("serve", "--host", host, "--port", "0", home=tmp_path))
        assert "KESTREL_API_KEY" in sentence
    assert list(tmp_path.iterdir()) == []


def test_with_a_key_it_listens_to_others_who_have_it(tmp_path: Path) -> None:
    env = {"KESTREL_API_KEY": "correct horse"}
    with serving(tmp_path, "--host", "0.0.0.0", **env) as service:
        url = "/api/v1/projects"
        asked = [
            service.request("GET", url, Host="kestrel.example", **headers)[0]
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Bearer correct horse"},
            )
        ]
        assert asked == [401, 401, 200]
        assert service.request("GET", "/healthz")[0] == 200
        assert "correct horse" not in service.announcement
        assert service.end() == (0, "")


def test_without_the_engine_it_says_what_to_install(tmp_path: Path) -> None:
    env = without_engine(tmp_path)
    sentence = refused(caribou("serve", "--port", "0", home=tmp_path / "home", **env))
    assert "pip install 'caribou-trace[local]'" in sentence


def test_another_sites_page_cannot_ask_by_a_name_of_its_own(service: Service) -> None:
    for host, status in (
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8420", 200),
        ("127.0.0.1.attacker.example", 421),
        ("attacker.example:8420", 421),
        ("[attacker", 421),
    ):
        assert service.request("GET", "/api/v1/projects", Host=host)[0] == status


def test_health_readiness_and_metrics(service: Service) -> None:
    assert service.get("/healthz") == {"status": "ok"}
    wait_until(lambda: service.request("GET", "/readyz")[0] == 200)
    for path in ("/api/v1/runs/never-heard-of", "/api/v1/runs/nor-of-this", "/no/such/path"):
        assert service.request("GET", path)[0] == 404
    status, text = service.request("GET", "/metrics")
    lines = text.decode().splitlines()
    assert status == 200
    route = '{route="/api/v1/runs/{run_id}",method="GET",status="404"}'
    assert f"kestrel_requests_total{route} 2" in lines
    assert 'kestrel_requests_total{route="none",method="GET",status="404"} 1' in lines
    assert 'kestrel_request_seconds_count{route="/api/v1/runs/{run_id}"} 2' in lines
    # Each is described, and is one name, labels, and one number.
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or re.fullmatch(
            r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+', line
        )


def test_a_server_instead_of_the_embedded_engine(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    env = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    with serving(tmp_path, **env) as first, serving(tmp_path, **env) as second:
        assert database in first.announcement
        assert first.get("/readyz") == {"status": "ready"}
        status, body = first.request("POST", "/api/v1/projects", {"name": "shared"})
        assert status == 200
        # Whatever one of them wrote the other has.
        project = json.loads(body)
        assert second.get(f"/api/v1/projects/{project['project_id']}") == project
    assert not (tmp_path / "store").exists()


def test_it_is_healthy_and_not_ready_while_the_server_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with serving(tmp_path, CLICKHOUSE_URL=f"http://127.0.0.1:{port}") as service:
        assert service.request("GET", "/healthz")[0] == 200
        status, body = service.request("GET", "/readyz")
        assert (status, json.loads(body)["status"]) == (503, "unavailable")


@pytest.mark.asyncio
async def test_connections_that_are_held_for_nothing_are_dropped() -> None:
    connections = Connections(0.3)
    busy = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await busy.wait()
        return web.Response(text="x" * (64 << 20 if request.path == "/large" else 1))

    app = web.Application(middlewares=[connections.middleware])
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    watch = asyncio.create_task(connections.watch(runner))

    head = " HTTP/1.1\r\nHost: localhost\r\n"
    requests = {
        "silent": "",
        "half": f"GET /small{head}X-Half: ",
        "done": f"GET /small{head}\r\n",
        "large": f"GET /large{head}\r\n",
        "slow": f"GET /slow{head}\r\n",
    }
    clients = {name: socket.create_connection(runner.addresses[0][:2], 20) for name in requests}
    with contextlib.ExitStack() as stack:
        for name, text in requests.items():
            stack.enter_context(clients[name]).sendall(text.encode())
        for name in ("silent", "half", "done"):
            await asyncio.to_thread(_everything, clients[name])
        # That one took nothing of its answer, and most of it is gone.
        assert await asyncio.to_thread(_everything, clients["large"]) < 64 << 20
        # Who waits for an answer that is being made is left alone.
        busy.set()
        assert (await asyncio.to_thread(clients["slow"].recv, 15)) == b"HTTP/1.1 200 OK"
    watch.cancel()
    await runner.cleanup()


def _everything(client: socket.socket) -> int:
    """Read until the other side is gone; how many bytes that were."""
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(1 << 20):
            received += len(chunk)
    return received


def test_a_service_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    with rollout(tmp_path, A) as running:
        with serving(tmp_path) as service:
            wait_until(lambda: traces(service, "r") == [("PENDING", False)])
            running.say("hello")
            service.process.kill()
            service.process.communicate()
        running.finish()
    with serving(tmp_path) as service:
        wait_until(lambda: traces(service, "r") == [("COMPLETED", False)])


def test_help_says_what_it_does(tmp_path: Path) -> None:
    answer = caribou("serve", "--help", home=tmp_path)
    assert answer.code == 0
    assert "KESTREL_API_KEY" in answer.out
    assert subprocess.list2cmdline(["caribou", "serve"]) in answer.out
