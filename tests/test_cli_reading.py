"""What the commands that read say about recorded rollouts: to a person, to a pipe, as JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import Answer, caribou, environment, on_terminal, open_journal, record, refused

pytest.importorskip("chdb", reason="the embedded engine is not installed")

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnihton \x9b31m [bold]x[/bold]\x7f"

PROGRAM = f"""
import asyncio
import caribou
from caribou import Event, Grade, Message, RolloutStatus, ToolExecution

HOSTILE = {HOSTILE!r}
FUNCTION = {{"name": "search", "arguments": '{{"q": "deer"}}'}}
CALL = [{{"id": "c1", "type": "function", "function": FUNCTION}}]

async def one(number):
    async with caribou.trace_run({{
        "run_id": "run-b" if number == 4 else "run-a", "phase": "train", "step_number": number % 2,
        "datapoint_id": f"task-{{number}}", "env_name": "zoo", "model_name": "m-1",
        "trace_id": f"{{number}}" * 32,
    }}):
        caribou.add_meta({{"trial": number, "who": "50%_of\\\\us"}})
        if number == 1:
            caribou.add_tags("first", "50%")
        caribou.log(Message(role="system", content="Be kind."))
        caribou.log(Message(role="user", content=HOSTILE if number == 1 else f"Hello {{number}}"))
        caribou.log(Message(role="assistant", tool_calls=CALL, input_tokens=1200, output_tokens=7,
                            cache_read_tokens=3400, cache_write_tokens=56, reasoning_tokens=89,
                            cost_usd=0.5, duration_ms=1500.0))
        caribou.log(ToolExecution(name="search", call_id="c1", arguments={{"q": "deer"}},
                                  result="Caribou, Rangifer tarandus", duration_ms=12.0))
        caribou.log(Message(role="tool", tool_call_id="c1", name="search",
                            content="Caribou, Rangifer tarandus"))
        caribou.log(Message(role="assistant", content=[{{"type": "text", "text": "A caribou."}}]))
        if number == 2:
            raise ValueError("no more deer")
        if number == 3:
            caribou.set_status(RolloutStatus.TRUNCATED)
            return
        async with caribou.span("grading"):
            caribou.log(Grade(score=number / 4, grader_name="exact", reasoning="looked right"))
        caribou.log(Event(name="done", data={{"n": number}}))

async def main():
    await asyncio.gather(*(one(n) for n in range(1, 5)), return_exceptions=True)
    result = await caribou.shutdown()
    assert result.complete

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recorded rollouts, 1 to 4; their trace ids are their number, 32 times."""
    home = tmp_path_factory.mktemp("recorded")
    record(home, PROGRAM)
    return home


def numbers(answer: Answer) -> list[int]:
    assert answer.code == 0, answer.err
    return sorted(int(row["trace_id"][0]) for row in answer.objects)


def test_runs_are_summed_up(home: Path) -> None:
    answer = caribou("runs", "--json", home=home)
    assert answer.code == 0
    runs = {row["run_id"]: row for row in answer.objects}
    assert set(runs) == {"run-a", "run-b"}
    a = runs["run-a"]
    assert (a["traces"], a["completed"], a["failed"], a["pending"]) == (3, 1, 2, 0)
    assert (a["datapoints"], a["steps"], a["mean_score"]) == (3, 2, 0.25)
    assert (a["total_input_tokens"], a["total_output_tokens"]) == (3600, 21)
    assert a["total_cost_usd"] == pytest.approx(1.5)


def test_a_pipe_gets_tabs_and_names_and_no_colour(home: Path) -> None:
    answer = caribou("traces", home=home)
    assert answer.err == ""
    assert "\x1b" not in answer.out
    assert {row["trace_id"] for row in answer.table} == {str(n) * 32 for n in (1, 2, 3, 4)}
    assert {row["score"] for row in answer.table} == {"0.25", "1", ""}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ((), [1, 2, 3, 4]),
        (("--run", "run-a"), [1, 2, 3]),
        (("--step", "0"), [2, 4]),
        (("--status", "error"), [2]),
        (("--status", "ERROR", "--status", "TRUNCATED"), [2, 3]),
        (("--tag", "first"), [1]),
        (("--tag", "first", "--tag", "50%"), [1]),
        (("--tag", "first", "--tag", "absent"), []),
        (("--meta", "trial=3"), [3]),
        (("--meta", "who=50%_of\\us"), [1, 2, 3, 4]),
        (("--meta", "who=50%"), []),
        (("--score", "0.5.."), [4]),
        (("--score", "..0.3"), [1]),
        (("--score", "0.2..0.9"), [1]),
        (("--score", "1"), [4]),
        (("--text", "hello 3"), [3]),
        (("--text", "RANGIFER"), [1, 2, 3, 4]),
        (("--text", "%"), []),
        (("--text", "' OR 1=1 --"), []),
        (("--run", "' OR '1'='1"), []),
        (("--run", "run-a", "--step", "1", "--text", "hello"), [3]),
    ],
)
def test_filters(home: Path, filters: tuple[str, ...], found: list[int]) -> None:
    assert numbers(caribou("traces", *filters, "--json", home=home)) == found


def test_limit_gives_the_latest(home: Path) -> None:
    every = caribou("traces", "--json", home=home).objects
    assert caribou("traces", "--limit", "2", "--json", home=home).objects == every[:2]
    assert [row["start_time"] for row in every] == sorted(
        (row["start_time"] for row in every), reverse=True
    )


def test_show_tells_the_conversation(home: Path) -> None:
    answer = caribou("show", "4444", home=home)
    assert answer.code == 0
    out = answer.out
    for expected in (
        "4" * 32,
        "COMPLETED",
        "score 1.000",
        "run run-b (train)",
        "step 0",
        "datapoint task-4",
        "tokens in 1,200",
        "cost $0.50",
        "trial=4",
        "--- turn 0 ---",
        "--- turn 1 ---",
        "Be kind.",
        'search {"q": "deer"}',
        "1,200 in · 3,400 read from cache · 56 written to cache · 7 out · 89 of reasoning",
        "1.5 s",
        "tool search",
        "Caribou, Rangifer tarandus",
        "the result above",
        "A caribou.",
        "grade exact",
        "looked right",
        "event done",
    ):
        assert expected in out, expected
    # In order, and the tool's answer once.
    assert out.index("Hello 4") < out.index("Rangifer") < out.index("A caribou.")
    assert out.count("Rangifer") == 1


def test_show_tells_what_went_wrong(home: Path) -> None:
    out = caribou("show", "2222", home=home).out
    assert "ValueError: no more deer" in out
    assert "Traceback" in out
    assert "not scored" in out


def test_show_as_json_has_the_records_in_order(home: Path) -> None:
    [trace] = caribou("show", "3" * 32, "--json", home=home).objects
    assert trace["status"] == "TRUNCATED"
    assert trace["metadata"]["trial"] == "3"
    spans = trace["spans"]
    assert [s["seq"] for s in spans] == sorted(s["seq"] for s in spans)
    assert [s["name"] for s in spans] == [
        "message.system",
        "message.user",
        "message.assistant",
        "tool.search",
        "message.tool",
        "message.assistant",
    ]


@pytest.mark.parametrize("arguments", [("show", "1111"), ("traces",), ("export",)])
def test_nothing_an_agent_wrote_acts_on_the_reader(home: Path, arguments: tuple[str, ...]) -> None:
    for out in (
        caribou(*arguments, home=home).out,
        caribou(*arguments, "--json", home=home).out,
    ):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out)
    code, shown = on_terminal(*arguments, home=home)
    assert code == 0
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert not re.search("[\x07\x7f-\x9f\u202a-\u202e]", shown)


def test_hostile_text_is_shown_for_what_it_is(home: Path) -> None:
    out = caribou("show", "1111", home=home).out
    assert r"\x1b]0;owned\x07\x1b[2J\u202egnihton \x9b31m [bold]x[/bold]\x7f" in out
    [trace] = caribou("show", "1111", "--json", home=home).objects
    assert trace["spans"][1]["content"] == HOSTILE


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_terminals_of_any_width_are_kept_to(home: Path, columns: int) -> None:
    for arguments in (("traces",), ("runs",), ("show", "4444")):
        code, shown = on_terminal(*arguments, home=home, columns=columns)
        assert code == 0
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
        assert max(map(len, plain.splitlines())) <= columns
        assert "\x1b[" in shown


def test_long_contents_are_cut_in_a_terminal_unless_asked_for(tmp_path: Path) -> None:
    record(
        tmp_path,
        """
import caribou.sync as caribou
with caribou.trace_run({"datapoint_id": "d", "phase": "eval", "trace_id": "a" * 32}):
    text = "\\n".join(f"line {i} ends" for i in range(500))
    caribou.log(caribou.Message(role="user", content=text))
caribou.shutdown()
""",
    )
    assert "line 499 ends" not in on_terminal("show", "aa", home=tmp_path)[1]
    assert "line 499 ends" in on_terminal("show", "aa", "--full", home=tmp_path)[1]
    assert "line 499 ends" in caribou("show", "aa", home=tmp_path).out


def test_sql_formats(home: Path, tmp_path: Path) -> None:
    sql = (
        "SELECT step_number AS step, count() AS n, any('a\tb') AS t"
        " FROM traces GROUP BY step ORDER BY step"
    )
    assert caribou("sql", sql, home=home).table == [
        {"step": "0", "n": "2", "t": "a\\tb"},
        {"step": "1", "n": "2", "t": "a\\tb"},
    ]
    rows = [{"step": 0, "n": 2, "t": "a\tb"}, {"step": 1, "n": 2, "t": "a\tb"}]
    assert caribou("sql", sql, "--json", home=home).objects == rows
    assert caribou("sql", sql, "--format", "json", home=home).objects == rows
    out = caribou("sql", sql, "--format", "csv", home=home).out
    assert list(csv.reader(io.StringIO(out))) == [
        ["step", "n", "t"],
        ["0", "2", "a\tb"],
        ["1", "2", "a\tb"],
    ]
    file = tmp_path / "answer.json"
    assert caribou("sql", sql, "--format", "json", "-o", str(file), home=home).out == ""
    assert json.loads(file.read_text()) == rows
    parquet = tmp_path / "answer.parquet"
    assert caribou("sql", sql, "--format", "parquet", "-o", str(parquet), home=home).code == 0
    assert parquet.read_bytes()[:4] == b"PAR1"
    again = f"SELECT * FROM file('{parquet}') ORDER BY step"
    assert caribou("sql", again, "--json", home=home).objects == rows


def test_sql_without_rows_is_an_empty_array(home: Path) -> None:
    assert caribou("sql", "SELECT 1 AS a WHERE 0", "--json", home=home).objects == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("sql", "SELEC 1"),
        ("sql", "SELECT nothing FROM traces"),
        ("sql", "DROP TABLE traces_rows"),
        ("sql", "SELECT 1", "-o", "no/such/folder/file", "--format", "csv"),
        ("sql", "SELECT 1", "--format", "parquet", "--format", "sideways"),
        ("show", "ffff"),
        ("show", ""),
        ("traces", "--score", "high"),
        ("traces", "--score", ".."),
        ("traces", "--score", "nan"),
        ("traces", "--meta", "trial"),
        ("traces", "--status", "fine"),
        ("traces", "--step", "-1"),
        ("traces", "--limit", "0"),
        ("export", "--run", "absent", "-o", "no-file.jsonl"),
        ("export", "--format", "parquet"),
        ("export", "-o", "no/such/folder/file"),
        ("fly",),
        ("runs", "--fast"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(home: Path, arguments: tuple[str, ...]) -> None:
    refused(caribou(*arguments, home=home))


def test_a_prefix_that_fits_several_names_them(home: Path, tmp_path: Path) -> None:
    record(
        tmp_path,
        """
import caribou.sync as caribou
for last in "12":
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval", "trace_id": "a" * 31 + last}):
        pass
caribou.shutdown()
""",
    )
    sentence = refused(caribou("show", "a" * 31, home=tmp_path))
    assert "a" * 31 + "1" in sentence
    assert "a" * 31 + "2" in sentence


def test_a_trace_is_found_by_the_id_it_was_given(tmp_path: Path) -> None:
    record(
        tmp_path,
        """
import caribou.sync as caribou
with caribou.trace_run({"datapoint_id": "d", "phase": "prod", "run_id": "p", "trace_id": "chat/7"}):
    pass
caribou.shutdown()
""",
    )
    [trace] = caribou("show", "chat/7", "--json", home=tmp_path).objects
    assert trace["datapoint_id"] == "d"


def test_rollouts_that_continue_one_trace_stay_apart(tmp_path: Path) -> None:
    record(
        tmp_path,
        """
import caribou.sync as caribou
from caribou import Message
for turn in ("one", "two"):
    with caribou.trace_run(
        {"datapoint_id": turn, "phase": "prod", "run_id": "p", "trace_id": "b" * 32}
    ):
        with caribou.span("inner"), caribou.span("innermost"):
            caribou.log(Message(role="user", content=f"Hello {turn}", duration_ms=60_000.0))
        caribou.log(Message(role="assistant", content=f"Bye {turn}"))
caribou.shutdown()
""",
    )
    shown = caribou("show", "bb", "--json", home=tmp_path).objects
    assert [part["datapoint_id"] for part in shown] == ["one", "two"]
    assert [[span["kind"] for span in part["spans"]] for part in shown] == [
        ["span", "span", "message", "message"]
    ] * 2
    out = caribou("show", "bb", home=tmp_path).out
    said = ("Hello one", "Bye one", "Hello two", "Bye two")
    assert sorted(said, key=out.index) == list(said)
    parquet = tmp_path / "chats.parquet"
    assert caribou("export", "--format", "parquet", "-o", str(parquet), home=tmp_path).code == 0
    sql = f"SELECT datapoint_id, messages.content AS said FROM file('{parquet}') ORDER BY said"
    for rows in (
        [
            {"datapoint_id": t["datapoint_id"], "said": [m["content"] for m in t["messages"]]}
            for t in caribou("export", "--json", home=tmp_path).objects
        ],
        caribou("sql", sql, "--json", home=tmp_path).objects,
    ):
        assert sorted(rows, key=lambda row: row["datapoint_id"]) == [
            {"datapoint_id": "one", "said": ["Hello one", "Bye one"]},
            {"datapoint_id": "two", "said": ["Hello two", "Bye two"]},
        ]


@pytest.mark.parametrize("command", ["runs", "traces", "export"])
def test_an_empty_store_says_how_to_begin(tmp_path: Path, command: str) -> None:
    with open_journal(tmp_path):
        for arguments in ((command,), (command, "--json")):
            answer = caribou(*arguments, home=tmp_path)
            assert answer.code == 0
            assert "caribou demo" in answer.err
            assert answer.err.count("\n") == 1
        assert answer.objects == []
        assert "caribou demo" in refused(caribou("show", "ab", "--json", home=tmp_path))


@pytest.mark.parametrize("command", ["traces", "export"])
def test_where_nothing_matches_the_answer_is_empty(home: Path, command: str) -> None:
    answer = caribou(command, "--run", "absent", "--json", home=home)
    assert (answer.code, answer.out, answer.err) == (0, "[]\n", "caribou: no trace matches\n")
    answer = caribou(command, "--run", "absent", home=home)
    assert (answer.code, answer.err) == (0, "caribou: no trace matches\n")
    assert answer.out.count("\n") == (1 if command == "traces" else 0)


def test_export_gives_chat_messages_back(home: Path) -> None:
    answer = caribou("export", "--run", "run-b", home=home)
    assert answer.err == ""
    [line] = [json.loads(line) for line in answer.out.splitlines()]
    assert (line["trace_id"], line["datapoint_id"], line["score"]) == ("4" * 32, "task-4", 1)
    assert line["metadata"]["trial"] == "4"
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "search", "arguments": '{"q": "deer"}'},
    }
    assert line["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello 4"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {
            "role": "tool",
            "content": "Caribou, Rangifer tarandus",
            "tool_call_id": "c1",
            "name": "search",
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A caribou."}]},
    ]
    assert caribou("export", "--run", "run-b", "--json", home=home).objects == [line]


def test_export_writes_files(home: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "all.jsonl"
    answer = caribou("export", "-o", str(jsonl), home=home)
    assert (answer.code, answer.out) == (0, "")
    assert "4 traces" in answer.err
    assert len(jsonl.read_text().splitlines()) == 4
    parquet = tmp_path / "all.parquet"
    assert caribou("export", "--format", "parquet", "-o", str(parquet), home=home).code == 0
    sql = (
        "SELECT trace_id, messages[4].tool_call_id AS id, messages[4].content AS content"
        f" FROM file('{parquet}') ORDER BY trace_id"
    )
    rows = caribou("sql", sql, "--json", home=home).objects
    assert [row["trace_id"][0] for row in rows] == ["1", "2", "3", "4"]
    assert {(row["id"], row["content"]) for row in rows} == {("c1", "Caribou, Rangifer tarandus")}


@pytest.mark.parametrize("rows", [10, 1_000_000])
def test_the_readers_end_of_a_pipe_may_close(home: Path, rows: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "caribou", "sql", f"SELECT number FROM numbers({rows})"],
        env=environment(home),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


def test_the_version_and_the_help(home: Path) -> None:
    assert re.fullmatch(r"caribou \d+\.\d+\S*\n", caribou("--version", home=home).out)
    assert "import" in caribou("--help", home=home).out
    assert caribou(home=home).out == caribou("--help", home=home).out


def test_the_documented_queries_run(home: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "queries.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(queries) >= 8
    for query in queries:
        answer = caribou("sql", query.replace("my-run", "run-a"), "--json", home=home)
        assert answer.code == 0, (query, answer.err)
