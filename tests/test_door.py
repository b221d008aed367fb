"""The door itself: what tests lean on must be what a server would do."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
from pathlib import Path
from urllib.parse import urlencode

import pytest
import zstandard
from support.servers import DoorServer


def ask(
    door: DoorServer,
    sql: str = "",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    **url: str,
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=30)
    parameters = urlencode({"query": sql, **url} if sql else url)
    connection.request("POST", f"/?{parameters}", body, headers or {})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, dict(response.headers), answer


@pytest.fixture
def table(door: DoorServer, database: str) -> str:
    door.sql(f"CREATE DATABASE {database}")
    door.sql(
        f"CREATE TABLE {database}.t (k Int64, s String DEFAULT 'd') ENGINE = MergeTree ORDER BY k"
    )
    return f"{database}.t"


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
def test_bodies_may_be_compressed(door: DoorServer, table: str, encoding: str) -> None:
    plain = b'{"k":1,"s":"a"}\n{"k":2}\n'
    pack = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}[encoding]
    headers = {"Content-Encoding": encoding} if encoding else {}
    status, told, _ = ask(
        door, f"INSERT INTO {table} FORMAT JSONEachRow", pack(plain), headers, async_insert="0"
    )
    assert status == 200
    assert json.loads(told["X-ClickHouse-Summary"]) == {"written_rows": "2"}
    assert door.rows(f"SELECT * FROM {table} ORDER BY k") == [
        {"k": 1, "s": "a"},
        {"k": 2, "s": "d"},
    ]


def test_input_converts_on_the_way(door: DoorServer, table: str) -> None:
    sql = (
        f"INSERT INTO {table} (k, s) SELECT number * 2, 'it\\'s' "
        "FROM input('number Int64, x Array(String)') FORMAT JSONEachRow"
    )
    assert ask(door, sql, b'{"number":21}\n')[0] == 200
    assert door.rows(f"SELECT * FROM {table}") == [{"k": 42, "s": "it's"}]


def test_settings_last_for_one_request(door: DoorServer, table: str) -> None:
    sql, line = f"INSERT INTO {table} FORMAT JSONEachRow", b'{"k":1,"unknown":2}\n'
    assert ask(door, sql, line, input_format_skip_unknown_fields="0")[0] == 400
    assert ask(door, sql, line)[0] == 200
    status, headers, body = ask(door, "SELECT 1", no_such_setting="1")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (404, "115")
    assert b"no_such_setting" in body


def test_parameters_database_and_format(door: DoorServer, table: str) -> None:
    database = table.removesuffix(".t")
    door.sql(f"INSERT INTO {table} VALUES (1, 'x'), (2, 'y')")
    answer = ask(
        door,
        body=b"SELECT k FROM t WHERE s = {wanted:String}",
        database=database,
        param_wanted="y",
        default_format="JSONEachRow",
    )
    assert answer[2] == b'{"k":2}\n'
    assert ask(door, "SELECT 1 FORMAT CSV", default_format="JSONEachRow")[2] == b"1\n"
    assert ask(door, "SELECT 1 FROM t")[1]["X-ClickHouse-Exception-Code"] == "60"
    assert ask(door, "SELECT 1", database="nowhere")[1]["X-ClickHouse-Exception-Code"] == "81"


def test_credentials(locked_door: DoorServer) -> None:
    user, password = "agent", "correct horse"
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    right = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password}
    assert ask(locked_door, "SELECT 1", headers=right)[0] == 200
    assert ask(locked_door, "SELECT 1", headers={"Authorization": f"Basic {basic}"})[0] == 200
    status, headers, _ = ask(locked_door, "SELECT 1", headers=right | {"X-ClickHouse-Key": "no"})
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (403, "516")
    assert ask(locked_door, "SELECT 1")[0] == 403


def test_readonly_only_reads(door: DoorServer, table: str) -> None:
    assert ask(door, f"SELECT * FROM {table}", readonly="2")[0] == 200
    status, headers, _ = ask(door, f"DROP TABLE {table}", readonly="2")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (403, "164")
    assert ask(door, f"DROP TABLE {table}")[0] == 200


def test_a_restart_keeps_the_rows_and_the_port(tmp_path: Path) -> None:
    door = DoorServer(tmp_path / "engine")
    door.start()
    try:
        door.sql("CREATE TABLE default.t (k Int64) ENGINE = MergeTree ORDER BY k")
        door.sql("INSERT INTO default.t VALUES (7)")
        port = door.port
        door.stop()
        with pytest.raises(ConnectionRefusedError):
            door.sql("SELECT 1")
        door.start()
        assert (door.port, door.rows("SELECT k FROM default.t")) == (port, [{"k": 7}])
    finally:
        door.stop()
