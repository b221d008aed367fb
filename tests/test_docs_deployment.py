"""The layout over shards that the docs show, in an engine that has a cluster of one shard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "deployment.md"
CONFIGURATION = """
<clickhouse>
    <tcp_port>9000</tcp_port>
    <remote_servers><main><shard>
        <replica><host>127.0.0.1</host><port>9000</port></replica>
    </shard></main></remote_servers>
</clickhouse>
"""
# One engine a process, and none in the one that runs the tests.
PROGRAM = """
import json, sys
from chdb import session
from caribou.schema import render

folder, statements, settings = json.load(sys.stdin)
engine = session.Session(f"{folder}/engine?config-file={folder}/cluster.xml")
run = lambda sql: str(engine.query(sql, "JSONCompactColumns"))
[run(sql) for sql in render("caribou")]
[run(sql) for sql in statements]
[run(sql) for sql in render("caribou_all")[1:]]
run("SET " + ", ".join(settings))
row = "('r', 't', 's', '2026-01-01', {})"
for version in (0, 1):
    run("INSERT INTO caribou_all.traces_rows (run_id, trace_id, root_span_id, start_time, version)"
        " VALUES " + row.format(version))
run("INSERT INTO caribou_all.entity_metadata_rows (entity_type, entity_id, run_id, key, value)"
    " VALUES ('trace', 't', 'r', 'k', 'v')")
print(json.dumps([
    run("SELECT name, engine FROM system.tables WHERE database = 'caribou_all'"),
    run("SELECT trace_id, version FROM caribou_all.traces WHERE trace_id IN"
        " (SELECT entity_id FROM caribou_all.entity_metadata WHERE value = 'v')"),
]))
"""


def test_distributed_tables_stand_in_for_all_of_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="the embedded engine is not installed")
    text = PAGE.read_text()
    [sql] = re.findall(r"^```sql\n(CREATE DATABASE caribou_all.*?)^```$", text, re.DOTALL | re.M)
    # One shard has nobody to tell.
    statements = [part for part in sql.replace(" ON CLUSTER main", "").split(";\n") if part.strip()]
    settings = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, re.M)
    (tmp_path / "cluster.xml").write_text(CONFIGURATION)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([str(tmp_path), statements, [f"{k} = {v}" for k, v in settings]]),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    tables, found = map(json.loads, json.loads(done.stdout))
    engines = dict(zip(*tables, strict=True))
    stored = {name: engine for name, engine in engines.items() if name.endswith("_rows")}
    assert len(stored) == 9
    assert set(stored.values()) == {"Distributed"}
    assert {engines[name.removesuffix("_rows")] for name in stored} == {"View"}
    assert found == [["t"], [1]]
