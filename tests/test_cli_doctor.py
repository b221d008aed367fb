"""``caribou doctor``: each thing that can be wrong is named, with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commandline import caribou, on_terminal, open_journal, without_engine, write_rows

SINKS = {"clickhouse": "http://db:8123/caribou"}


def checks(home: Path, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    answer = caribou("doctor", "--json", home=home, **env)
    assert answer.err == ""
    return answer.code, {row["check"]: row for row in answer.objects}


def test_a_fresh_start_is_well(tmp_path: Path) -> None:
    code, found = checks(tmp_path, CARIBOU_DISABLED="0")
    assert code == 0
    assert {row["status"] for row in found.values()} <= {"ok"}
    # It only looks.
    assert list(tmp_path.iterdir()) == []


def test_processes_that_record_are_counted_with_what_is_pending(tmp_path: Path) -> None:
    with open_journal(tmp_path, SINKS) as journal:
        write_rows(journal, "spans", *({"seq": i} for i in range(5)))
        code, found = checks(tmp_path)
        assert code == 0
        assert found["running processes"]["detail"].startswith("1 process is recording now;")
        assert (
            "clickhouse at http://db:8123/caribou: 5 rows" in found["running processes"]["detail"]
        )


def test_rows_of_ended_processes_are_a_problem(tmp_path: Path) -> None:
    with open_journal(tmp_path, SINKS) as journal:
        write_rows(journal, "spans", *({"seq": i} for i in range(5)))
        write_rows(journal, "traces", {"version": 0})
    code, found = checks(tmp_path)
    assert code == 1
    assert found["ended processes"]["detail"].startswith(
        "1 process left rows to deliver; for clickhouse at http://db:8123/caribou: 6 rows"
    )
    assert "caribou replay" in found["ended processes"]["advice"]


def test_rows_for_a_program_s_exporter_are_left_to_such_a_program(tmp_path: Path) -> None:
    exporter = {"exporter-own": "program.Own"}
    theirs = "start a program with such an exporter in configure(exporters=[...])"
    with open_journal(tmp_path, exporter) as journal:
        write_rows(journal, "spans", {"seq": 1})
    assert checks(tmp_path)[1]["ended processes"]["advice"] == theirs
    with open_journal(tmp_path, SINKS) as journal:
        write_rows(journal, "spans", {"seq": 1})
    advice = checks(tmp_path)[1]["ended processes"]["advice"]
    assert advice.endswith(f"run: caribou replay; {theirs}")


def test_processes_whose_journal_is_the_store_left_nothing_to_deliver(tmp_path: Path) -> None:
    for sinks in ({}, {}, SINKS, SINKS):
        with open_journal(tmp_path, sinks) as journal:
            write_rows(journal, "spans", {"seq": 1})
    _, found = checks(tmp_path)
    assert found["ended processes"]["detail"].startswith("2 processes left rows to deliver; ")
    assert "2 rows" in found["ended processes"]["detail"]
    assert found["running processes"]["detail"] == "0 processes are recording now"
    assert found["journal"]["status"] == "ok"


def test_an_owner_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        write_rows(journal, "spans", {"seq": 1})
        assert journal.folder is not None
        (journal.folder / "owner.json").write_text("{")
        code, found = checks(tmp_path)
    assert code == 1
    assert "owner.json" in found["journal"]["detail"]


def test_dead_letters_are_counted_and_found(tmp_path: Path) -> None:
    from caribou.delivery.dead_letters import DeadLetters

    letters = DeadLetters(tmp_path / "journal")
    (tmp_path / "journal").mkdir()
    for seq in (1, 2):
        letters.add("host-1-ab", "spans", "clickhouse", 27, f"no \x1b[31mgood {seq}", b'{"seq":1}')
    letters.add_torn("host-1-ab", "spans", 3, b'{"seq":')
    code, found = checks(tmp_path)
    assert code == 1
    assert found["dead letters"]["detail"].startswith("2 rows of spans were refused by clickhouse")
    assert "good 2" in found["dead letters"]["detail"]
    pattern = found["dead letters"]["advice"].split()[1].rstrip(";")
    assert len(list(Path("/").glob(pattern[1:]))) == 1
    assert found["torn rows"]["status"] == "ok"
    assert "\x1b[31m" not in caribou("doctor", home=tmp_path).out


def test_a_journal_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, found = checks(tmp_path, CARIBOU_JOURNAL_DIR=str(tmp_path / "file" / "journal"))
    assert code == 1
    assert found["journal folder"]["status"] == "problem"
    assert "CARIBOU_JOURNAL_DIR" in found["journal folder"]["advice"]


def test_a_switched_off_library_is_a_problem(tmp_path: Path) -> None:
    code, found = checks(tmp_path, CARIBOU_DISABLED="1")
    assert code == 1
    assert "CARIBOU_DISABLED" in found["recording"]["detail"]


def test_the_missing_engine_is_a_warning(tmp_path: Path) -> None:
    code, found = checks(tmp_path / "home", **without_engine(tmp_path))
    assert code == 0
    assert found["extra local"]["status"] == "warning"
    assert "pip install 'caribou-trace[local]'" in found["extra local"]["advice"]


def test_a_terminal_shows_marks_and_advice(tmp_path: Path) -> None:
    with open_journal(tmp_path, SINKS) as journal:
        write_rows(journal, "spans", {"seq": 1})
    code, shown = on_terminal("doctor", home=tmp_path)
    assert code == 1
    assert "✗" in shown
    assert "✓" in shown
    assert "→ set CLICKHOUSE_URL to that server and run: caribou replay" in shown
