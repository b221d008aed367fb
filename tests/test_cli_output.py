"""Output that cannot be written, answers that are empty, and text that is no UTF-8."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ONE_ROLLOUT, caribou, environment, record, refused

pytest.importorskip("chdb", reason="the embedded engine is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recorded rollout."""
    home = tmp_path_factory.mktemp("recorded")
    record(home, ONE_ROLLOUT)
    return home


def in_shell(line: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which ``$caribou`` is the command."""
    return subprocess.run(
        ["bash", "-c", line],
        # As it is for most people, whose interpreter keeps what could not be written.
        env=environment(home, caribou=f"{sys.executable} -m caribou", PYTHONUNBUFFERED=""),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    "command",
    [
        "runs",
        "runs --json",
        "sql 'SELECT 1'",
        "sql --format csv 'SELECT 1'",
        "export",
        "doctor",
        "--help",
        "migrate --print",
        # More than any buffer takes.
        "sql --format csv 'SELECT number FROM numbers(100000)'",
    ],
)
def test_a_full_disk_is_one_sentence(home: Path, command: str) -> None:
    answer = in_shell(f"$caribou {command} >/dev/full", home)
    assert answer.returncode == 1
    assert answer.stderr == "caribou: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("command", ["runs --json", "sql 'SELECT 1'", "--version"])
def test_a_closed_output_is_one_sentence(home: Path, command: str) -> None:
    answer = in_shell(f"$caribou {command} >&-", home)
    assert answer.returncode == 1
    assert answer.stderr == "caribou: cannot write the output: standard output is closed\n"


def test_a_closed_standard_error_is_no_error(home: Path) -> None:
    answer = in_shell("$caribou runs --json 2>&-", home)
    assert (answer.returncode, answer.stdout[:2]) == (0, "[\n")
    answer = in_shell("$caribou show ffff 2>&-", home)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert in_shell("$caribou show ffff 2>/dev/full", home).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("traces", "--run", "\udcff"), "--run"),
        (("traces", "--run=\udcff"), "--run"),
        (("traces", "--meta", "a=\udcff"), "--meta"),
        (("show", "\udcff"), "an argument"),
        (("sql", "SELECT '\udcff'"), "an argument"),
        (("sql", "--json", "-- a=\udcff\nSELECT 1"), "an argument"),
        (("tail", "--run", "\udcff"), "--run"),
        (("import", "x.json", "--messages", "log", "--run", "\udcff"), "--run"),
    ],
)
def test_bytes_that_are_no_text_are_refused_by_name(
    tmp_path: Path, arguments: tuple[str, ...], name: str
) -> None:
    sentence = refused(caribou(*arguments, home=tmp_path))
    assert sentence.startswith(f"caribou: {name} is not valid UTF-8: ")
    assert "\\udcff" in sentence


def test_a_file_may_have_any_name(home: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "\udcff.jsonl")
    assert caribou("export", "-o", path, home=home).code == 0
    assert Path(path).read_bytes().count(b"\n") == 1
    imported = caribou(
        *("import", path, "--messages", "messages", "--datapoint", "datapoint_id"),
        *("--run", "r", "--env", "e", "--model", "m"),
        home=tmp_path / "home",
    )
    assert imported.code == 0, imported
