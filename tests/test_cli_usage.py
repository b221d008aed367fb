"""How a mistake in a command line is answered, and what may stand where a value is wanted."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ONE_ROLLOUT, caribou, environment, record, refused
from support.servers import DoorServer

pytest.importorskip("chdb", reason="the embedded engine is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recorded rollout."""
    home = tmp_path_factory.mktemp("recorded")
    record(home, ONE_ROLLOUT)
    return home


def sql_from(text: bytes, home: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "caribou", "sql", "-", "--json"]
    return subprocess.run(command, env=environment(home), input=text, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("runs", "--fast"), "No such option '--fast'. Try 'caribou runs --help'."),
        (("show",), "Missing argument 'TRACE_ID'. Try 'caribou show --help'."),
        (("import", "x.json"), "Missing option '--messages'. Try 'caribou import --help'."),
        (("runs", "a"), "Got unexpected extra argument (a). Try 'caribou runs --help'."),
        (("export", "--json", "-o", "x"), "leave out -o. Try 'caribou export --help'."),
        (("fly",), "No such command 'fly'. Try 'caribou --help'."),
        (("exprot",), "Did you mean 'export'"),
        (("traces", "--limt", "3"), "--limit"),
        (("traces", "--score", "0.8..0.2"), "write 0.2..0.8"),
        (("traces", "--score", "2"), "'2' is outside 0..1"),
        (("traces", "--score", "-1..0.5"), "is outside 0..1"),
        (("traces", "--status", "interrupted"), "stored as PENDING"),
        (("show", ""), "TRACE_ID: it must not be empty"),
        (("sql", "SELECT 1", "--format", "parquet", "--json"), "--json and --format parquet"),
        (("sql", "SELECT 1", "--format", "csv", "--json"), "--json and --format csv"),
    ],
)
def test_a_mistake_says_where_to_look(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    sentence = refused(caribou(*arguments, home=tmp_path))
    assert says in sentence
    assert sentence.endswith("--help'.\n")


def test_what_is_no_mistake_in_the_usage_points_nowhere(home: Path) -> None:
    assert "--help" not in refused(caribou("show", "ffff", home=home))


def test_a_statement_may_begin_with_a_comment(home: Path) -> None:
    for statement in ("-- why\nSELECT 1 AS one", "--why\nSELECT 1 AS one", "SELECT 1 AS one --why"):
        for arguments in (("sql", statement, "--json"), ("sql", "--format", "json", statement)):
            assert caribou(*arguments, home=home).objects == [{"one": 1}]
    assert "is empty" in refused(caribou("sql", "-- why", home=home))
    assert "No such option" in refused(caribou("sql", "--why", home=home))


def test_a_statement_comes_through_a_pipe(home: Path) -> None:
    answer = sql_from("-- why\nSELECT 'ö' AS o;\n".encode(), home)
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert answer.stdout.decode() == '[\n{"o":"ö"}\n]\n'
    for text, says in (
        (b"", "is empty"),
        (b"SELECT '\xff'", "cannot be read"),
        (b"DROP x", "DROP"),
    ):
        answer = sql_from(text, home)
        assert (answer.returncode, answer.stdout) == (2, b"")
        assert says in answer.stderr.decode()
        assert answer.stderr.count(b"\n") == 1


@pytest.mark.parametrize("more", [("--json",), ("--format", "json", "-o", "absent.json")])
def test_columns_of_one_name_are_no_object(home: Path, more: tuple[str, ...]) -> None:
    sentence = refused(caribou("sql", "SELECT 1 AS n, 2 AS m, 1 AS n", *more, home=home))
    assert "several columns are named 'n'" in sentence
    # What is in a value may be anything.
    sql = """SELECT '{"a":1,"a":2}' AS text, map('b', 1, 'b', 2) AS m"""
    assert caribou("sql", sql, "--json", home=home).objects[0]["text"] == '{"a":1,"a":2}'


def test_what_the_engine_says_of_bytes_is_told(home: Path) -> None:
    sentence = refused(caribou("sql", "SELECT toInt64(unhex('ff41'))", home=home))
    # Which of them depends on the version of Python.
    assert "Cannot parse string '\\xffA'" in sentence or "is not valid text" in sentence


def test_a_file_is_written_with_an_option(home: Path) -> None:
    sentence = refused(caribou("sql", "SELECT 1 INTO OUTFILE 'x'", home=home))
    assert sentence == "caribou: INTO OUTFILE writes a file, which -o FILE does\n"


def test_an_export_without_a_match_writes_nothing_in_any_format(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "chats"
    for form in ("jsonl", "parquet"):
        arguments = ("export", "--format", form, "-o", str(file))
        assert "no trace matches" in refused(caribou(*arguments, "--run", "absent", home=home))
        assert not file.exists()
        # The same, in a store that holds nothing.
        assert "caribou demo" in refused(caribou(*arguments, home=tmp_path / "empty"))
    answer = caribou("export", "--format", "parquet", "-o", str(file), home=home)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"1 trace written to {file}\n"


@pytest.mark.parametrize("command", ["runs", "migrate"])
def test_a_server_that_refuses_the_connection_is_one_plain_sentence(
    tmp_path: Path, command: str
) -> None:
    with socket.socket() as taken:
        # Bound and not listening: nobody else gets the port, and connections are refused.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        sentence = refused(caribou(command, home=tmp_path, CLICKHOUSE_URL=url))
    assert sentence == f"caribou: {url}/caribou: cannot be reached: connection refused\n"


def test_a_server_that_never_answers_is_one_plain_sentence(tmp_path: Path) -> None:
    # Connections are made, and nobody takes them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sentence = refused(caribou("runs", home=tmp_path, CLICKHOUSE_URL=url))
    assert sentence.startswith(f"caribou: {url}/caribou: connected, but no answer within 10 s")


def test_a_database_that_is_not_there_is_one_plain_sentence(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    settings = {"CLICKHOUSE_URL": door.url, "CLICKHOUSE_DATABASE": database}
    sentence = refused(caribou("runs", home=tmp_path, **settings))
    assert f"the server has no database {database}" in sentence
    assert "`caribou migrate`" in sentence
    assert "Exception" not in sentence
