"""``--text``: found by the index where that can help, and always the same as without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import caribou, environment, open_journal, write_rows

pytest.importorskip("chdb", reason="the embedded engine is not installed")

CONTENTS = {
    "a": "Say: the blue  deer, please!",
    "b": "Othello the blueness of deerskin",
    "c": "At 300 \u212a the ice BLUE sky; Ünder the snow",
    "d": "nothing of the sort",
}
SEARCHES = {
    "the blue": "ab",
    "SAY: THE BLUE  DEER, P": "a",
    "hello the blue": "b",
    "o the blueness of d": "b",
    "300 k the ICE blue": "c",
    "; ünder the": "c",
    "; under the": "",
    " the ": "abcde",
    "the_sort": "",
    "  ": "a",
    "needle, in the result": "e",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace for each content, whose id is its letter 32 times, and one with a tool's result."""
    home = tmp_path_factory.mktemp("texts")
    texts = {letter: {"content": content} for letter, content in CONTENTS.items()}
    texts["e"] = {"result": "A needle, in the result"}
    with open_journal(home) as journal:
        for letter, text in texts.items():
            about = {"run_id": "r", "trace_id": letter * 32, "start_time": "1790000000.000000000"}
            write_rows(journal, "spans", {**about, "seq": 1, **text})
            write_rows(journal, "traces", {**about, "root_span_id": letter * 16})
    return home


@pytest.mark.parametrize(("text", "found"), SEARCHES.items())
def test_the_text_is_found_wherever_it_stands(home: Path, text: str, found: str) -> None:
    rows = caribou("traces", "--text", text, "--json", home=home).objects
    assert "".join(sorted(row["trace_id"][0] for row in rows)) == found


EXPLAIN = """
import sys
from pathlib import Path
from caribou.cli._options import Filters
from caribou.store import LocalStore
home = Path(sys.argv[1])
with LocalStore(home / "store", home / "journal", "caribou") as store:
    where, values = Filters(run="r", text=sys.argv[2]).where()
    sql = f"EXPLAIN indexes = 1 SELECT trace_id FROM traces WHERE {where}"
    # Otherwise the sets are made, and their plans gone, before there is anything to explain.
    sql += " SETTINGS use_index_for_in_with_subqueries = 0"
    print(store.query(sql, values, format="TabSeparatedRaw").decode())
"""


@pytest.mark.parametrize(
    ("text", "granules"),
    [("o the blueness of", "1/1"), ("o the absent of", "0/1"), ("absent", None)],
)
def test_whole_words_are_looked_up_in_the_index(
    home: Path, text: str, granules: str | None
) -> None:
    # In a process of its own: the engine does not survive that other tests fork.
    plan = subprocess.run(
        [sys.executable, "-c", EXPLAIN, str(home), text],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    _, index, used = plan.partition("Name: content_tokens")
    assert bool(index) == (granules is not None), plan
    if granules is not None:
        assert f"Granules: {granules}" in used.partition("Skip\n")[0], plan
