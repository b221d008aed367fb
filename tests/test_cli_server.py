"""The same commands against a ClickHouse server; and those that are about the server itself."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import caribou, environment, record, refused
from support.faultproxy import Answer, Fault, FaultProxy, Link, Request
from support.servers import DoorServer, OldServer, Server

PROGRAM = """
import caribou.sync as caribou
from caribou import Grade, Message
for number in range(3):
    with caribou.trace_run({"datapoint_id": f"d{number}", "phase": "eval", "run_id": "r",
                            "trace_id": "abc"[number] * 32}):
        caribou.add_tags("odd" if number % 2 else "even")
        caribou.add_meta({"number": number})
        caribou.log(Message(role="user", content=f"What is {number}?"))
        caribou.log(Grade(score=number / 2, grader_name="exact"))
print(caribou.shutdown(DEADLINE).complete)
"""


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def on(server: Server, database: str) -> dict[str, str]:
    return {"CLICKHOUSE_URL": server.url, "CLICKHOUSE_DATABASE": database}


def test_what_was_recorded_is_read_from_the_server(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    env = on(door, database)
    record(tmp_path, PROGRAM.replace("DEADLINE", "30"), **env)
    # Elsewhere: nothing of this machine's journal is needed.
    home = tmp_path / "elsewhere"
    [run] = caribou("runs", "--json", home=home, **env).objects
    assert (run["run_id"], run["traces"], run["mean_score"]) == ("r", 3, 0.5)
    for filters, found in (
        (("--tag", "odd"), ["b"]),
        (("--meta", "number=2"), ["c"]),
        (("--score", "0.4.."), ["b", "c"]),
        (("--text", "what IS 0"), ["a"]),
        (("--text", "'"), []),
    ):
        rows = caribou("traces", *filters, "--json", home=home, **env).objects
        assert sorted(row["trace_id"][0] for row in rows) == found
    assert "What is 2?" in caribou("show", "cc", home=home, **env).out
    lines = caribou("export", "--score", "1", home=home, **env).out.splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [
        [{"role": "user", "content": "What is 2?"}]
    ]
    sql = "SELECT count() AS n, max(score) AS best FROM scores"
    assert caribou("sql", sql, "--json", home=home, **env).objects == [{"n": 3, "best": 1}]
    assert not home.exists()


def test_sql_can_only_read_there_too(door: DoorServer, database: str, tmp_path: Path) -> None:
    env = on(door, database)
    assert caribou("migrate", home=tmp_path, **env).code == 0
    refused(caribou("sql", "DROP VIEW spans", home=tmp_path, **env))
    refused(caribou("sql", "SELECT nothing", home=tmp_path, **env))
    assert caribou("sql", "SELECT 1 AS one", "--json", home=tmp_path, **env).objects == [{"one": 1}]


@pytest.mark.parametrize("form", ["--json", "--format=table"])
def test_half_a_character_is_shown_as_unreadable(
    door: DoorServer, database: str, tmp_path: Path, form: str
) -> None:
    sql = "SELECT substring('é', 1, 1) AS half"
    servers = on(door, database), on(door, database) | {"CLICKHOUSE_URL": door.native_url}
    assert caribou("migrate", home=tmp_path, **servers[0]).code == 0
    for env in ({}, *servers):
        answer = caribou("sql", sql, form, home=tmp_path, **env)
        assert (answer.code, "\ufffd" in answer.out) == (0, True), answer.err


def test_a_server_that_is_too_old_is_told(
    old_server: OldServer, database: str, tmp_path: Path
) -> None:
    for url in (old_server.url, old_server.native_url):
        env = on(old_server, database) | {"CLICKHOUSE_URL": url}
        assert "too old" in refused(caribou("migrate", home=tmp_path, **env))
        told = caribou("doctor", "--json", home=tmp_path, **env)
        [problem] = [row for row in told.objects if row["status"] == "problem"]
        assert problem["check"] == "server"
        assert "ClickHouse 18.16.1 answers" in problem["detail"]
        assert "24.8 or newer" in problem["advice"]


class _NoRight(Fault):
    """A server whose user may not read the tables."""

    async def meet(self, request: Request, link: Link) -> None:
        if b"traces" in request.body:
            await Answer(
                403, {"X-ClickHouse-Exception-Code": "497"}, b"Code: 497. Not enough privileges"
            ).meet(request, link)
        else:
            link.writer.write(await link.forward(request.head + request.body))
            await link.writer.drain()


def test_doctor_advises_to_migrate_where_that_helps(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    def advice(url: str) -> str:
        env = on(door, database) | {"CLICKHOUSE_URL": url}
        told = caribou("doctor", "--json", home=tmp_path, **env).objects
        [problem] = [row for row in told if row["status"] == "problem"]
        assert problem["check"] == "schema"
        return str(problem["advice"])

    assert advice(door.url) == "run: caribou migrate"
    with FaultProxy(door.port) as proxy:
        proxy.fault(_NoRight(), every=True)
        assert advice(proxy.url) == ""


def test_a_user_who_may_set_nothing_can_read(old_server: OldServer, tmp_path: Path) -> None:
    env = on(old_server, "default") | {"CLICKHOUSE_USER": "reader", "CLICKHOUSE_PASSWORD": "r"}
    answer = caribou("sql", "SELECT 'deer' AS animal", "--json", home=tmp_path, **env)
    assert answer.objects == [{"animal": "deer"}]


def test_migrate_makes_the_tables_once(door: DoorServer, database: str, tmp_path: Path) -> None:
    env = on(door, database)
    first = caribou("migrate", "--json", home=tmp_path, **env).objects
    assert first
    assert all(set(row) == {"migration"} for row in first)
    assert caribou("migrate", "--json", home=tmp_path, **env).objects == []
    assert "up to date" in caribou("migrate", home=tmp_path, **env).out
    assert "no traces yet" in caribou("runs", home=tmp_path, **env).err


def test_migrate_can_be_printed_without_a_server(tmp_path: Path) -> None:
    out = caribou(
        *("migrate", "--print", "--cluster", "my 'cluster'", "--replicated"),
        home=tmp_path,
        CLICKHOUSE_DATABASE="elk",
    ).out
    assert "ReplicatedReplacingMergeTree" in out
    assert "ON CLUSTER 'my \\'cluster\\''" in out
    assert "`elk`.spans_rows" in out
    assert sqlite3.complete_statement(out)
    plain = caribou("migrate", "--print", "--json", home=tmp_path).objects
    assert not any("Replicated" in row["statement"] for row in plain)


def test_migrate_needs_a_server(tmp_path: Path) -> None:
    assert "CLICKHOUSE_URL" in refused(caribou("migrate", home=tmp_path))


def test_replay_needs_a_server(tmp_path: Path) -> None:
    assert "CLICKHOUSE_URL" in refused(caribou("replay", home=tmp_path))


def test_replay_delivers_what_was_left(door: DoorServer, database: str, tmp_path: Path) -> None:
    away = {
        "CLICKHOUSE_URL": f"http://127.0.0.1:{closed_port()}",
        "CLICKHOUSE_DATABASE": database,
    }
    left = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("DEADLINE", "0.2")],
        env=environment(tmp_path, **away),
        capture_output=True,
        text=True,
        check=True,
    )
    assert left.stdout == "False\n"
    unwell = caribou("doctor", "--json", home=tmp_path, **away)
    assert unwell.code == 1
    problems = {row["check"]: row for row in unwell.objects if row["status"] == "problem"}
    assert set(problems) == {"server", "ended processes"}
    assert "rows" in problems["ended processes"]["detail"]
    assert "caribou replay" in problems["ended processes"]["advice"]

    still = caribou("replay", "--timeout", "0.5", "--json", home=tmp_path, **away)
    assert still.code == 1
    [counts] = still.objects
    assert counts["delivered"] == counts["dead"] == 0
    assert counts["pending"] == counts["rows"] > 0

    env = on(door, database)
    done = caribou("replay", "--json", home=tmp_path, **env)
    assert done.code == 0, done
    assert done.objects == [
        {
            "owners": 1,
            "rows": counts["rows"],
            "delivered": counts["rows"],
            "pending": 0,
            "dead": 0,
        }
    ]
    assert len(caribou("traces", "--json", home=tmp_path, **env).objects) == 3
    assert "Nothing to replay" in caribou("replay", home=tmp_path, **env).out
    assert caribou("doctor", home=tmp_path, **env).code == 0


def test_what_was_recorded_without_a_server_can_be_moved_to_one(
    door: DoorServer, database: str, tmp_path: Path
) -> None:
    record(tmp_path, PROGRAM.replace("DEADLINE", "5"))
    env = on(door, database)
    assert caribou("migrate", home=tmp_path, **env).code == 0
    assert "caribou replay" in caribou("doctor", home=tmp_path, **env).out
    assert caribou("replay", home=tmp_path, **env).code == 0
    assert len(caribou("traces", "--json", home=tmp_path, **env).objects) == 3


def test_a_server_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    sentence = refused(caribou("runs", home=tmp_path, CLICKHOUSE_URL=url))
    assert "127.0.0.1" in sentence


def test_no_password_is_ever_shown(locked_door: DoorServer, tmp_path: Path) -> None:
    secret = "swordfish 7"
    by_variable = {
        "CLICKHOUSE_URL": locked_door.url,
        "CLICKHOUSE_USER": "agent",
        "CLICKHOUSE_PASSWORD": secret,
    }
    by_url = {"CLICKHOUSE_URL": locked_door.url.replace("//", "//agent:swordfish%207@")}
    for env in (by_variable, by_url):
        answers = [
            caribou(*arguments, home=tmp_path, **env)
            for arguments in (("runs",), ("doctor",), ("doctor", "--json"), ("migrate",))
        ]
        assert [answer.code for answer in answers] == [2, 1, 1, 2]
        for answer in answers:
            assert "swordfish" not in answer.out + answer.err
            assert "CLICKHOUSE_PASSWORD" in answer.out + answer.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLICKHOUSE_URL", "localhost:8123"),
        ("CLICKHOUSE_URL", "ftp://localhost"),
        ("CLICKHOUSE_DATABASE", "two words"),
        ("CARIBOU_DISABLED", "perhaps"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, name: str, value: str) -> None:
    for command in ("runs", "doctor", "demo", "tail"):
        assert name in refused(caribou(command, home=tmp_path, **{name: value}))
