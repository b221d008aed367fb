"""What README and docs show is run: examples, commands, links, names of settings."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest
from support.serving import serving

import caribou

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTING = re.compile(r"\b(?:CARIBOU|CLICKHOUSE|KESTREL|LANGFUSE|OTEL)_[A-Z_]+\b")


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block in ``language``, with a name for the test's report."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        pattern = rf"^```{language}\n(.*?)^```$"
        for match in re.finditer(pattern, page.read_text(), re.DOTALL | re.MULTILINE):
            line = page.read_text().count("\n", 0, match.start()) + 1
            found.append((f"{page.name}:{line}", match[1]))
    return found


def environment(home: Path) -> dict[str, str]:
    """This process's variables without any setting of ours, and a store of its own."""
    kept = {name: value for name, value in os.environ.items() if not SETTING.fullmatch(name)}
    return kept | {"CARIBOU_HOME": str(home)}


def commands() -> list[str]:
    """Every command line of ours in the shell blocks, continued lines joined."""
    text = "\n".join(block for _, block in blocks("bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("caribou ")]


def jq_commands() -> list[str]:
    """Every line of the shell blocks that looks into the journal with jq."""
    text = "\n".join(block for _, block in blocks("bash"))
    return [line for line in text.splitlines() if re.search(r"\bjq\b", line)]


@cache
def help_text(command: str) -> str:
    """What a command says about itself."""
    arguments = [sys.executable, "-m", "caribou", command, "--help"]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def kestrel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of a program that has a Kestrel service."""
    with serving(tmp_path_factory.mktemp("kestrel")) as service:
        yield {"KESTREL_API_URL": service.url}


@pytest.mark.parametrize(("name", "source"), blocks("python"), ids=lambda value: value[:40])
def test_python_example_runs(
    name: str, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with_kestrel = name.startswith("kestrel-")
    more = request.getfixturevalue("kestrel") if with_kestrel else {}
    script = tmp_path / "example.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=environment(tmp_path / "home") | more,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), name


@pytest.mark.parametrize("line", commands())
def test_shell_example_uses_options_that_exist(line: str) -> None:
    _, command, *arguments = shlex.split(line, comments=True)
    options = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    known = set(re.findall(r"--[a-z][a-z-]*", help_text(command)))
    assert options <= known


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize("line", jq_commands())
def test_jq_example_works_where_nothing_went_wrong(line: str, tmp_path: Path) -> None:
    home = tmp_path / ".caribou"
    program = (
        "import caribou.sync as c\n"
        "with c.trace_run({'datapoint_id': 'd', 'phase': 'eval'}):\n"
        "    c.log(c.Message(role='user', content='Hello'))\n"
    )
    run = partial(subprocess.run, cwd=tmp_path, env=environment(home), check=True, text=True)
    run([sys.executable, "-c", program])
    done = run(["sh", "-c", line], capture_output=True)
    assert done.stderr == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_reference_names_every_public_name_and_setting() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    wanted = {*caribou.__all__, *SETTING.findall(sources)}
    assert {name for name in wanted if not re.search(rf"\b{name}\b", reference)} == set()
