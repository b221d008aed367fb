"""``caribou import``: rollouts of other tools' files, through the public API, into the store."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import caribou, environment, refused, running

pytest.importorskip("chdb", reason="the embedded engine is not installed")

CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}},
    {"id": "c2", "type": "function", "function": {"name": "walk", "arguments": '{"to": "hut"}'}},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be an elk."},
    {"role": "user", "content": "Where are you?"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c2", "name": "walk", "content": "arrived"},
    {"role": "tool", "tool_call_id": "c1", "content": "blue"},
    {"role": "assistant", "content": [{"type": "text", "text": "In the hut."}], "refusal": None},
    {"role": "user", "content": "Still?", "mood": "curious"},
    {"role": "assistant", "content": "Yes. \u2028 \U0001f98c"},
]


def item(number: int, **more: Any) -> dict[str, Any]:
    return {"task": {"id": number}, "log": MESSAGES, "reward": number % 2, "try": 3, **more}


def options(run: str = "r") -> tuple[str, ...]:
    return (
        *("--messages", "log", "--datapoint", "task.id"),
        *("--run", run, "--env", "tundra", "--model", "elk-1"),
    )


def write(path: Path, *items: Any, lines: bool = False) -> str:
    text = "\n".join(json.dumps(i) for i in items) if lines else json.dumps(list(items), indent=2)
    path.write_text(text)
    return str(path)


def spans(home: Path, columns: str, condition: str = "1") -> list[dict[str, Any]]:
    sql = f"SELECT {columns} FROM spans WHERE {condition} ORDER BY datapoint_id, seq"
    return caribou("sql", sql, "--json", home=home).objects


def test_every_message_arrives_as_it_was(tmp_path: Path) -> None:
    source = write(tmp_path / "one.json", item(7))
    answer = caribou("import", source, *options(), home=tmp_path)
    assert answer.code == 0, answer.err
    assert "1 rollout (8 messages, 2 tool executions, 0 grades)" in answer.out
    exported = json.loads(caribou("export", home=tmp_path).out)
    expected = [{k: v for k, v in m.items() if k in _KEPT} for m in MESSAGES]
    assert exported["messages"] == expected
    assert (exported["datapoint_id"], exported["run_id"]) == ("7", "r")
    assert (exported["env_name"], exported["model_name"]) == ("tundra", "elk-1")
    assert (exported["phase"], exported["status"]) == ("eval", "COMPLETED")
    [kept] = spans(tmp_path, "attributes", "content = 'Still?'")
    assert kept == {"attributes": {"mood": "curious"}}


_KEPT = {"role", "content", "tool_calls", "tool_call_id", "name"}


def test_a_tool_message_is_the_execution_of_its_call_too(tmp_path: Path) -> None:
    source = write(tmp_path / "one.json", item(7))
    assert caribou("import", source, *options(), home=tmp_path).code == 0
    rows = spans(tmp_path, "kind, tool_name, tool_call_id, arguments, result, turn_index")
    assert [row["kind"] for row in rows] == [
        *("message", "message", "message", "tool", "message", "tool", "message"),
        *("message", "message", "message"),
    ]
    assert rows[3] == {
        "kind": "tool",
        "tool_name": "walk",
        "tool_call_id": "c2",
        "arguments": '{"to": "hut"}',
        "result": "arrived",
        "turn_index": 0,
    }
    # The second tool message does not name its tool: the call does.
    assert (rows[5]["tool_name"], rows[5]["arguments"]) == ("look", '{"at": "sky"}')
    assert [row["turn_index"] for row in rows] == [0, 0, 0, 0, 0, 0, 0, 1, 2, 2]


def test_scores_trials_and_metadata(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.json",
        item(1, reward=0.25),
        item(2, reward=None),
        item(3, sometimes=None),
        item(4, reward=math.nan, sometimes="now"),
    )
    answer = caribou(
        *("import", source, *options(), "--score", "reward", "--trial", "try"),
        *("--meta", "kind=log[0].role", "--meta", "absent=sometimes", "--json"),
        home=tmp_path,
    )
    [summary] = answer.objects
    assert (summary["rollouts"], summary["grades"], summary["pending"]) == (4, 2, 0)
    sql = "SELECT score, metadata FROM traces ORDER BY datapoint_id"
    rows = caribou("sql", sql, "--json", home=tmp_path).objects
    assert [row["score"] for row in rows] == [0.25, None, 1, None]
    assert rows[0]["metadata"] == {"kind": "system", "trial": "3"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--score", "rewrad"), "--score 'rewrad' gives nothing in any of 2 items"),
        (("--trial", "trail"), "--trial 'trail' gives nothing in any of 2 items"),
        (("--meta", "x=nope"), "--meta x 'nope' gives nothing in any of 2 items"),
        (("--score", "absent"), "--score 'absent' gives nothing in any of 2 items"),
    ],
)
def test_an_expression_that_finds_nothing_at_all_is_refused(
    tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    source = write(tmp_path / "a.json", item(1, absent=math.nan), item(2, absent=None))
    home = tmp_path / "home"
    sentence = refused(caribou("import", source, *options(), *more, home=home))
    assert sentence == f"caribou: {says}\n"
    assert not list(home.rglob("*.ndjson"))


def test_jsonl_arrays_and_single_objects_alike(tmp_path: Path) -> None:
    array = write(tmp_path / "array.json", item(1), item(2))
    lines = write(tmp_path / "lines.jsonl", item(3), item(4), lines=True)
    single = tmp_path / "single.json"
    single.write_text(json.dumps(item(5), indent=1))
    answer = caribou("import", array, lines, str(single), *options(), "--json", home=tmp_path)
    assert answer.objects[0]["rollouts"] == 5
    found = spans(tmp_path, "DISTINCT datapoint_id")
    assert {row["datapoint_id"] for row in found} == {"1", "2", "3", "4", "5"}


def test_importing_again_makes_new_traces(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", item(1), item(2))
    for _ in range(2):
        assert caribou("import", source, *options(), home=tmp_path).code == 0
    assert len(caribou("traces", "--json", home=tmp_path).objects) == 4


def test_many_rollouts_at_once(tmp_path: Path) -> None:
    source = write(tmp_path / "many.json", *(item(n) for n in range(300)))
    answer = caribou("import", source, *options(), "--score", "reward", "--json", home=tmp_path)
    assert answer.objects[0]["messages"] == 300 * len(MESSAGES)
    sql = "SELECT count() AS n, uniqExact(trace_id) AS traces FROM spans WHERE kind = 'message'"
    assert caribou("sql", sql, "--json", home=tmp_path).objects == [
        {"n": 300 * len(MESSAGES), "traces": 300}
    ]


@pytest.mark.parametrize(
    ("content", "more", "says"),
    [
        (None, (), "missing.json"),
        ("", (), "holds no rollouts"),
        ("  \n ", (), "holds no rollouts"),
        ("[]", (), "holds no rollouts"),
        ("[{]", (), "not JSON"),
        ('{"task": {"id": 1}, "log": [{"role": "user"}]}\nnonsense', (), "line 2 is not JSON"),
        ("[5]", (), "item 1"),
        ('[{"task": {"id": 1}}]', (), "--messages 'log'"),
        ('[{"task": {"id": 1}, "log": []}]', (), "--messages 'log'"),
        ('[{"task": {"id": 1}, "log": ["hi"]}]', (), "no role"),
        ('[{"log": [{"role": "user"}]}]', (), "--datapoint 'task.id'"),
        ("OK", ("--messages", "log[?"), "--messages 'log[?'"),
        ("OK", ("--score", "length(reward)"), "--score"),
        ("OK", ("--score", "log"), "not a number from 0 to 1"),
        ("OK", ("--score", "task.id"), "not a number from 0 to 1"),
        ("OK", ("--meta", "oops"), "NAME=EXPR"),
        ("OK", ("--phase", "night"), "night"),
        ("OK", ("--run", ""), "--run"),
        ("OK", ("--env", " "), "--env"),
        ("OK", ("--model", ""), "--model"),
        ("OK", ("--run", "r" * 100_000), "run_id"),
        ("OK", ("--datapoint", "'" + "d" * 100_000 + "'"), "item 1: --datapoint"),
    ],
)
def test_bad_input_is_one_sentence_and_records_nothing(
    tmp_path: Path, content: str | None, more: tuple[str, ...], says: str
) -> None:
    path = tmp_path / "missing.json"
    if content is not None:
        # The last item is the bad one: those before it must not be recorded either.
        path.write_text(json.dumps([item(0), item(7)]) if content == "OK" else content)
    home = tmp_path / "home"
    sentence = refused(caribou("import", str(path), *options(), *more, home=home))
    assert says in sentence
    assert not list(home.rglob("*.ndjson"))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": 5}, "5 as role"),
        ({"role": ""}, "no role"),
        ({"role": "assistant", "tool_calls": 5}, "5 as tool_calls"),
        ({"role": "assistant", "tool_calls": {"id": "c1"}}, "an object as tool_calls"),
        ({"role": "assistant", "tool_calls": ["look"]}, '"look" as tool_calls[0]'),
        ({"role": "assistant", "tool_calls": [*CALLS, {"function": "look"}]}, "tool_calls[2]"),
    ],
)
@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_a_malformed_message_is_found_before_anything_is_recorded(
    tmp_path: Path, message: dict[str, Any], says: str, lines: bool
) -> None:
    bad = item(2, log=[*MESSAGES, message])
    source = write(tmp_path / "a.json", item(1), bad, lines=lines)
    sentence = refused(caribou("import", source, *options(), home=tmp_path / "home"))
    assert f"{source}, item 2: --messages 'log': message 8 has " in sentence
    assert says in sentence
    assert not list(tmp_path.rglob("*.ndjson"))


def test_odd_but_storable_messages_are_imported(tmp_path: Path) -> None:
    odd = [
        {"role": "user", "content": 5},
        {"role": "assistant", "tool_calls": None},
        {"role": "assistant", "tool_calls": [{"id": 1}, {"id": "c", "function": None}]},
        {"role": "assistant", "tool_calls": [{"id": "n", "function": {"name": 1}}]},
        {"role": "tool", "tool_call_id": "n", "content": [1]},
        {"role": "tool", "tool_call_id": 1, "name": 2, "content": {"a": 1}},
        {"role": "tool"},
    ]
    source = write(tmp_path / "a.json", item(1, log=odd))
    answer = caribou("import", source, *options(), home=tmp_path)
    assert (answer.code, "Traceback" in answer.err) == (0, False), answer
    assert "7 messages, 3 tool executions" in answer.out


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_rollouts_come_through_a_pipe(tmp_path: Path, name: str, lines: bool) -> None:
    source = Path(write(tmp_path / "a.json", item(1), item(2), lines=lines))
    answer = subprocess.run(
        [sys.executable, "-m", "caribou", "import", name, *options(), "--json"],
        env=environment(tmp_path),
        input=source.read_bytes(),
        capture_output=True,
        check=True,
    )
    [summary] = json.loads(answer.stdout)
    assert (summary["rollouts"], summary["messages"]) == (2, 2 * len(MESSAGES))


def test_standard_input_is_named_in_complaints(tmp_path: Path) -> None:
    # The tests' commands get nothing there.
    assert "standard input holds no rollouts" in refused(
        caribou("import", "-", *options(), home=tmp_path)
    )


def test_an_import_interrupted_while_it_reads_says_so(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Opening a pipe waits for the other end, so it is reading.
    with (
        running("import", str(pipe), *options(), home=tmp_path / "home") as process,
        pipe.open("w"),
    ):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "caribou: interrupted while reading; nothing was recorded.\n"


def test_an_interrupted_import_says_how_far_it_came(tmp_path: Path) -> None:
    source = write(tmp_path / "many.json", *(item(n) for n in range(3000)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        home = tmp_path / "home"
        with running("import", source, *options(), home=home, CLICKHOUSE_URL=url) as process:
            # The first rows are on their way, and there will be no answer.
            connection, _ = listener.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    said = re.search(r"interrupted; ([\d,]+) of 3,000 rollouts were recorded in full", err)
    assert said, err
    assert "Traceback" not in err
    ends = 0
    for path in (home / "journal").glob("*/traces-*.ndjson"):
        ends += path.read_bytes().count(b'"status":"COMPLETED"')
    assert int(said[1].replace(",", "")) == ends


def test_it_says_what_it_waits_for(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", item(1))
    with socket.socket() as taken:
        # Bound and not listening: connections are refused.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        home = tmp_path / "home"
        with running("import", source, *options(), home=home, CLICKHOUSE_URL=url) as process:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert f"Waiting up to 60 s for {url}, database caribou to take the rows.\n" in lines
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "interrupted; 1 of 1 rollouts were recorded in full" in err
    assert "safe in the journal; `caribou replay` delivers them" in err


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in refused(caribou("import", str(tmp_path), *options(), home=tmp_path))


def test_nothing_is_imported_where_nothing_is_recorded(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", item(1))
    answer = caribou("import", source, *options(), home=tmp_path, CARIBOU_DISABLED="1")
    assert "CARIBOU_DISABLED" in refused(answer)


def test_nothing_is_imported_where_nothing_can_be_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", item(1))
    (tmp_path / "file").touch()
    sentence = refused(caribou("import", source, *options(), home=tmp_path / "file"))
    assert "Not a directory" in sentence or "File exists" in sentence
    assert "CARIBOU_HOME" in sentence
