"""SQL, keys and bodies at the insert door: it takes what the writer sends and nothing else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
import zstandard
from support.hostile_texts import HOSTILE
from support.serving import Service, serving

from caribou.schema import insert_statement

pytest.importorskip("chdb", reason="the embedded engine is not installed")

KEY = "correct horse"
INSERT = insert_statement("caribou", "trace_tags", "batch")
STATEMENTS = [
    "SELECT 1",
    "SELECT * FROM traces",
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM url('http://127.0.0.1/', 'LineAsString')",
    "SELECT * FROM remote('127.0.0.1', system.users)",
    "SELECT * FROM executable('id', 'TSV', 'x String')",
    "SELECT version() INTO OUTFILE '/tmp/x' FORMAT TSV",
    "SELECT version() FORMAT TSV SETTINGS readonly = 0",
    "SELECT version() FORMAT TSV; DROP TABLE traces_rows",
    "select version() format tsv",
    " SELECT version() FORMAT TSV",
    "SELECT version()/**/ FORMAT TSV",
    "SELECT max(version) FROM `other`.schema_migrations FORMAT TSV",
    "SELECT max(version) FROM `caribou`.schema_migrations FORMAT JSON",
    "SELECT count() FROM system.processes FORMAT TSV",
    "SELECT count() FROM system.processes WHERE startsWith(query_id, '') OR 1 FORMAT TSV",
    "SELECT count() FROM system.processes WHERE startsWith(query_id, 'a\\'') FORMAT TSV",
    "SELECT uniqExact(a) FROM `caribou`.trace_tags_rows WHERE batch_id = 'b' FORMAT TSV",
    "SELECT uniqExact(tag, run_id, trace_id) FROM `caribou`.trace_tags_rows"
    " WHERE batch_id = 'b' OR 1=1 FORMAT TSV",
    "DROP TABLE caribou.traces_rows",
    "TRUNCATE TABLE caribou.traces_rows",
    "ALTER TABLE caribou.traces_rows DELETE WHERE 1",
    "CREATE TABLE x (a String) ENGINE = Memory",
    "CREATE USER x",
    "SET readonly = 0",
    "SYSTEM SHUTDOWN",
    "KILL QUERY WHERE 1",
    "ATTACH TABLE x",
    "EXPLAIN SELECT 1",
    "SHOW TABLES",
    "BACKUP DATABASE caribou TO File('/tmp/x')",
    INSERT,
    "INSERT INTO FUNCTION file('/tmp/x', 'CSV') SELECT 1",
    "INSERT INTO `caribou`.trace_tags_rows (tag) VALUES ('x')",
    INSERT.replace("trace_tags_rows", "runs_rows"),
    INSERT.replace("'batch'", "'local:x'"),
    INSERT.replace("'batch'", "'b', (SELECT 1)"),
    INSERT.replace("'batch'", "'b\\''"),
    INSERT.replace("'batch'", "file('/etc/passwd')"),
    INSERT.replace("input(", "file('/etc/passwd', JSONEachRow, "),
    INSERT.replace("input(", "url('http://127.0.0.1/', JSONEachRow, "),
    INSERT.replace("JSONEachRow", "Native"),
    INSERT.replace(" FORMAT JSONEachRow", " SETTINGS async_insert = 1 FORMAT JSONEachRow"),
    INSERT + "; DROP TABLE traces_rows",
    INSERT + "\n; DROP TABLE traces_rows",
    INSERT + " -- ",
    INSERT.replace("SELECT", "select"),
    INSERT.replace("`caribou`", "`caribou`.`x`"),
    INSERT.replace("`caribou`", "system"),
    "",
    "\0",
    "'" * 10_000,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, "--clickhouse-port", "0", KESTREL_API_KEY=KEY) as service:
        yield service


@pytest.fixture(scope="module")
def door(service: Service) -> Service:
    """The same service by its other port."""
    assert service.process.stdout is not None
    found = re.search(r":(\d+)\n", service.process.stdout.readline())
    assert found is not None
    at_door = object.__new__(Service)
    at_door.port = int(found[1])
    return at_door


def tell(door: Service, body: bytes, query: dict[str, str], **headers: str) -> tuple[int, str, str]:
    """The status, ClickHouse's code and the text of the door's answer."""
    connection = door.connection()
    headers = {"X-ClickHouse-Key": KEY, **headers}
    connection.request("POST", "/?" + urlencode(query), body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.status != 200:
        assert response.headers["Content-Type"].startswith("text/plain")
    return response.status, response.headers["X-ClickHouse-Exception-Code"] or "", text


@pytest.mark.parametrize("sql", STATEMENTS, ids=lambda sql: ascii(sql[:60]))
def test_the_door_takes_its_statements_and_no_others(
    door: Service, service: Service, sql: str
) -> None:
    assert tell(door, sql.encode(), {})[0] in (403, 404)
    if sql != INSERT:
        status, code, _ = tell(door, b'{"tag":"x"}\n', {"query": sql})
        assert (status, code) in ((403, "497"), (404, "81"))
    settings = {"readonly": "0", "param_x": "1", "database": "system", "session_id": "s"}
    status, _, text = tell(door, b"SELECT version() FORMAT TSV", settings)
    assert (status, text.count("\n")) == (200, 1)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-ClickHouse-Key": ""}, {}),
        ({"X-ClickHouse-Key": KEY + " "}, {}),  # a header's own spaces do not count
        ({"X-ClickHouse-Key": KEY.upper()}, {}),
        ({"X-ClickHouse-Key": KEY[:-1]}, {}),
        ({"X-ClickHouse-Key": "", "Authorization": f"Bearer {KEY}"}, {}),
        (
            {
                "X-ClickHouse-Key": "",
                "Authorization": "Basic " + base64.b64encode(f"default:{KEY}".encode()).decode(),
            },
            {},
        ),
        ({"X-ClickHouse-Key": ""}, {"password": KEY, "user": "default"}),
        ({"X-ClickHouse-Key": "", "X-ClickHouse-User": KEY}, {}),
    ],
)
def test_the_door_has_one_place_for_its_key(
    door: Service, headers: dict[str, str], query: dict[str, str]
) -> None:
    sql = b"SELECT version() FORMAT TSV"
    status, code, text = tell(door, sql, query, **headers)
    same = headers["X-ClickHouse-Key"].strip() == KEY
    assert (status, code) == ((200, "") if same else (403, "516"))
    assert KEY not in text


ROWS = b'{"tag":"x","run_id":"at-door","trace_id":"a"}\n' * 50


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(zstandard.compress(ROWS), 200, id="whole"),
        pytest.param(zstandard.compress(ROWS)[:-8], 400, id="cut"),
        pytest.param(zstandard.compress(ROWS) * 2, 400, id="two frames"),
        pytest.param(zstandard.compress(ROWS) + b"junk", 400, id="more"),
        pytest.param(zstandard.compress(b" " * (65 << 20)), 400, id="bomb"),
        pytest.param(b"junk", 400, id="junk"),
        pytest.param(b"", 400, id="nothing"),
    ],
)
def test_the_door_takes_whole_bodies(door: Service, body: bytes, status: int) -> None:
    answer = tell(door, body, {"query": INSERT}, **{"Content-Encoding": "zstd"})
    assert answer[:2] == (status, "" if status == 200 else "117")


def test_the_door_stores_what_lines_hold_as_it_is(service: Service, door: Service) -> None:
    rows = [
        {"tag": text, "run_id": "hostile", "trace_id": f"{n}"} for n, text in enumerate(HOSTILE)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert tell(door, lines, {"query": INSERT})[0] == 200
    question = (
        "SELECT uniqExact(tag, run_id, trace_id) FROM `caribou`.trace_tags_rows"
        " WHERE batch_id = 'batch' FORMAT TSV"
    )
    status, _, text = tell(door, question.encode(), {})
    assert (status, int(text)) >= (200, len(HOSTILE))
