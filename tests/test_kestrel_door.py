"""``caribou serve --clickhouse-port``: tracers of other machines deliver, and do nothing else."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from commandline import caribou, record, refused
from support.serving import Service, serving
from support.waiting import wait_until

from caribou.schema import insert_statement

pytest.importorskip("chdb", reason="the embedded engine is not installed")

KEY = "correct horse"
PROGRAM = """
import caribou.sync as caribou
from caribou import Grade, Message
for number in range(20):
    with caribou.trace_run({"datapoint_id": str(number), "phase": "eval", "run_id": "sent"}):
        caribou.add_tags("tagged")
        caribou.log(Message(role="user", content="Hello"))
        caribou.log(Grade(score=1.0, grader_name="g"))
assert caribou.flush(20).complete
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, "--clickhouse-port", "0", KESTREL_API_KEY=KEY) as service:
        yield service


@pytest.fixture(scope="module")
def door(service: Service) -> str:
    assert service.process.stdout is not None
    found = re.fullmatch(
        r"Tracers deliver to CLICKHOUSE_URL=(http://\S+)\n", service.process.stdout.readline()
    )
    assert found is not None
    return found[1]


def test_a_tracer_elsewhere_delivers_as_to_a_server(
    service: Service, door: str, tmp_path: Path
) -> None:
    # Its journal is in a home that the service knows nothing of.
    record(tmp_path, PROGRAM, CLICKHOUSE_URL=door, CLICKHOUSE_PASSWORD=KEY)
    page = service.get("/api/v1/traces?run_id=sent&tag=tagged", Authorization=f"Bearer {KEY}")
    assert [trace["status"] for trace in page["items"]] == ["COMPLETED"] * 20
    assert {trace["score"] for trace in page["items"]} == {1.0}


def test_a_wrong_key_keeps_the_rows_where_they_are(door: str, tmp_path: Path) -> None:
    program = PROGRAM.replace("sent", "kept").replace(
        "assert caribou.flush(20).complete", "caribou.shutdown(2)"
    )
    program = "import logging; logging.disable()\n" + program
    record(tmp_path, program, CLICKHOUSE_URL=door, CLICKHOUSE_PASSWORD="wrong")
    env = {"CLICKHOUSE_URL": door, "CLICKHOUSE_PASSWORD": KEY}
    assert caribou("replay", home=tmp_path, **env).code == 0
    wait_until(lambda: not list((tmp_path / "journal").glob("*/lock")))


INSERT = insert_statement("caribou", "trace_tags", "batch")


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        (None, "SELECT * FROM spans", "497"),
        (None, "SELECT version() FORMAT TSV; DROP TABLE spans_rows", "497"),
        (None, "SELECT * FROM file('/etc/passwd', 'LineAsString')", "497"),
        ("DROP TABLE caribou.spans_rows", "", "497"),
        ("INSERT INTO FUNCTION file('/tmp/x', 'CSV') SELECT 1", "", "497"),
        (INSERT.replace("trace_tags", "runs"), "", "497"),
        (INSERT.replace("'batch'", "'local:x'"), "", "497"),
        (INSERT.replace("input(", "url('http://localhost/', "), "", "81"),
        (INSERT.replace("`caribou`", "`other`"), "", "81"),
        (INSERT, "{no json", "26"),
    ],
)
def test_whatever_else_is_asked_is_refused(
    door: str, service: Service, query: str | None, body: str, code: str
) -> None:
    status, text, told = ask(door, query, body)
    assert status >= 400, text
    assert told == code, text


def test_pages_and_strangers_are_refused(door: str, service: Service) -> None:
    question = "SELECT version() FORMAT TSV"
    assert ask(door, None, question)[0] == 200
    assert ask(door, None, question, key="wrong")[2] == "516"
    assert ask(door, None, question, Origin="https://attacker.example")[2] == "497"


def ask(
    door: str, query: str | None, body: str, key: str = KEY, **headers: str
) -> tuple[int, str, str | None]:
    path = "/" if query is None else "/?" + urlencode({"query": query})
    connection = http.client.HTTPConnection(door.removeprefix("http://"), timeout=20)
    connection.request("POST", path, body, {"X-ClickHouse-Key": key, **headers})
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return *answer, response.headers["X-ClickHouse-Exception-Code"]


def test_there_is_none_in_front_of_a_server(tmp_path: Path) -> None:
    env = {"CLICKHOUSE_URL": "http://127.0.0.1:1"}
    arguments = ("serve", "--port", "0", "--clickhouse-port", "0")
    assert "CLICKHOUSE_URL" in refused(caribou(*arguments, home=tmp_path, **env))
