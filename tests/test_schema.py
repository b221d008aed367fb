"""The tables, as the current engine makes them."""

from __future__ import annotations

import re

import pytest
from support.rows import span_lines
from support.servers import DoorServer

from caribou.errors import ConfigurationError
from caribou.schema import TABLES, insert_statement, migrate, migrate_sync, parameter, render


def execute(door: DoorServer, sql: str) -> bytes:
    return door.sql(sql).encode()


@pytest.fixture
def made(door: DoorServer, database: str) -> str:
    """A database that holds the schema."""
    migrate_sync(lambda sql: execute(door, sql), database=database)
    return database


def store(door: DoorServer, database: str, table: str, lines: bytes, batch_id: str = "b") -> None:
    from urllib.parse import urlencode

    sql = insert_statement(database, table, batch_id)
    status, answer = door.post("/?" + urlencode({"query": sql}), lines)
    assert status == 200, answer


def test_migrating_again_does_nothing(door: DoorServer, database: str) -> None:
    done = migrate_sync(lambda sql: execute(door, sql), database=database)
    assert done == sorted(done)
    assert len(done) >= 2
    assert migrate_sync(lambda sql: execute(door, sql), database=database) == []
    rows = door.rows(f"SELECT DISTINCT name FROM {database}.schema_migrations ORDER BY version")
    assert [row["name"] for row in rows] == done


@pytest.mark.asyncio
async def test_the_two_ways_to_migrate_agree(door: DoorServer, database: str) -> None:
    async def run(sql: str) -> bytes:
        return execute(door, sql)

    assert await migrate(run, database=database) != []
    assert migrate_sync(lambda sql: execute(door, sql), database=database) == []


def test_a_table_that_was_dropped_is_made_again(door: DoorServer, made: str) -> None:
    door.sql(f"DROP TABLE {made}.scores_rows")
    migrate_sync(lambda sql: execute(door, sql), database=made)
    assert door.rows(f"SELECT * FROM {made}.scores") == []


@pytest.mark.parametrize(
    ("release", "kind"),
    [("24.8.14.39", "tokenbf_v1"), ("26.1.3.52", "tokenbf_v1"), ("26.2.1.1", "text"), ("", "text")],
)
def test_the_index_of_words_is_the_best_the_server_has(
    door: DoorServer, database: str, release: str, kind: str
) -> None:
    def answer(sql: str) -> bytes:
        told = release and "version()" in sql
        return release.encode() if told else execute(door, sql)

    migrate_sync(answer, database=database)
    [row] = door.rows(
        "SELECT type FROM system.data_skipping_indices"
        f" WHERE database = '{database}' AND name = 'content_tokens'"
    )
    assert row["type"] == kind


def test_what_is_printed_makes_the_same_schema(door: DoorServer, database: str) -> None:
    for statement in render(database):
        door.sql(statement)
    assert migrate_sync(lambda sql: execute(door, sql), database=database) == []


def test_names_are_quoted(door: DoorServer) -> None:
    strange = "odd `name` \\ here"
    migrate_sync(lambda sql: execute(door, sql), database=strange)
    found = door.rows("SELECT DISTINCT database AS d FROM system.tables WHERE name = 'spans_rows'")
    assert strange in [row["d"] for row in found]
    door.sql("DROP DATABASE `odd \\`name\\` \\\\ here`")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        render(name)


def test_cluster_variants_are_valid_sql(door: DoorServer) -> None:
    statements = render("caribou", cluster="{cluster}", replicated=True)
    for statement in statements:
        door.sql("EXPLAIN AST " + statement)
    made = [statement for statement in statements if "CREATE" in statement]
    assert all("ON CLUSTER '{cluster}'" in statement for statement in made)
    engines = [line for line in "\n".join(made).splitlines() if line.startswith("ENGINE")]
    assert engines
    assert all("ENGINE = ReplicatedReplacingMergeTree" in line for line in engines)


def test_the_parsed_columns_are_the_tables_columns(door: DoorServer, made: str) -> None:
    for name, table in TABLES.items():
        rows = door.rows(
            "SELECT name, type, default_expression AS d FROM system.columns "
            f"WHERE database = '{made}' AND table = '{name}_rows' ORDER BY position"
        )
        actual = [(row["name"], row["type"], row["d"]) for row in rows]
        assert [(column.name, column.type, column.default) for column in table.columns] == [
            column for column in actual if column[0] not in ("batch_id", "ingested_at")
        ]
        [row] = door.rows(
            "SELECT sorting_key FROM system.tables "
            f"WHERE database = '{made}' AND name = '{name}_rows'"
        )
        assert ", ".join(table.key) == row["sorting_key"]


def test_views_have_the_columns_people_are_promised(door: DoorServer, made: str) -> None:
    promised = {
        "spans": """trace_id, span_id, parent_span_id, seq, run_id, phase, step_number,
            datapoint_id, env_name, model_name, kind, name, status, status_message, start_time,
            end_time,
            duration_ms, turn_index, intra_index, role, content, tool_calls, tool_call_id,
            tool_name, arguments, result, error, requestor, model, provider, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd,
            grader_name, grader_type, score, reasoning, criteria, passed_count, total_count, prompt,
            data, attributes, late, sanitized, batch_id, ingested_at""",
        "traces": """trace_id, root_span_id, run_id, phase, step_number, datapoint_id, env_name,
            model_name, grader_name, status, error_type, error_message, traceback, start_time,
            end_time, duration_ms, turns, messages, tool_calls, tool_errors, input_tokens,
            output_tokens, cost_usd, usage, score, tags, metadata, version""",
        "scores": """run_id, grader_name, step_number, trace_id, span_id, datapoint_id, score,
            reasoning""",
        "entity_metadata": "entity_type, entity_id, run_id, key, value, value_number",
        "trace_tags": "tag, run_id, trace_id",
    }
    assert set(promised) == set(TABLES)
    for view, names in promised.items():
        rows = door.rows(
            f"SELECT name FROM system.columns WHERE database = '{made}' AND table = '{view}'"
        )
        assert set(re.split(r",\s+", names)) <= {row["name"] for row in rows}


def test_what_is_registered_is_no_table_of_the_journal(door: DoorServer, made: str) -> None:
    promised = {
        "projects": "project_id, name, created_at",
        "runs": """run_id, project_id, name, phase, status, config, tags, created_at, updated_at,
            finished_at, archived""",
        "run_steps": "run_id, step_number, data, created_at, updated_at",
        "datapoints": "project_id, datapoint_id, data, tags, created_at, updated_at",
    }
    assert not set(promised) & set(TABLES)
    for view, names in promised.items():
        rows = door.rows(
            f"SELECT name FROM system.columns WHERE database = '{made}' AND table = '{view}' "
            "ORDER BY position"
        )
        assert re.split(r",\s+", names) == [row["name"] for row in rows]
    door.sql(f"DROP TABLE {made}.runs_rows")
    migrate_sync(lambda sql: execute(door, sql), database=made)
    assert door.rows(f"SELECT * FROM {made}.runs") == []


def test_omitted_keys_are_defaults(door: DoorServer, made: str) -> None:
    store(door, made, "spans", b'{"start_time":"1790000000.408435526"}\n')
    [row] = door.rows(f"SELECT * FROM {made}.spans")
    assert row["start_time"] == "2026-09-21 14:13:20.408435526"
    for name in ("step_number", "content", "result", "score", "input_tokens", "end_time"):
        assert row[name] is None, name
    for name in ("role", "tool_calls", "sanitized", "arguments"):
        assert row[name] == "", name
    assert (row["attributes"], row["structured"], row["late"]) == ({}, [], False)
    [raw] = door.rows(f"SELECT step_number, batch_id FROM {made}.spans_rows")
    assert raw == {"step_number": -1, "batch_id": "b"}


def test_a_step_of_zero_is_not_none(door: DoorServer, made: str) -> None:
    store(door, made, "spans", b'{"span_id":"a","step_number":0}\n{"span_id":"b"}\n')
    rows = door.rows(f"SELECT step_number AS s FROM {made}.spans ORDER BY span_id")
    assert [row["s"] for row in rows] == [0, None]


def test_nested_json_is_kept_as_text(door: DoorServer, made: str) -> None:
    line = (
        b'{"content":[{"type":"text","text":"a\\nb"}],"arguments":{"n":1.50,"deep":[{}]},'
        b'"result":null,"criteria":[],"data":{"t":true},"attributes":{"n":1,"o":{"k":[2]},"b":true}}'
    )
    store(door, made, "spans", line + b"\n")
    [row] = door.rows(f"SELECT * FROM {made}.spans")
    assert row["content"] == '[{"type":"text","text":"a\\nb"}]'
    assert row["arguments"] == '{"n":1.50,"deep":[{}]}'
    assert (row["result"], row["criteria"], row["data"]) == (None, "[]", '{"t":true}')
    assert row["attributes"] == {"n": "1", "o": '{"k":[2]}', "b": "true"}


def test_padding_newlines_are_no_rows(door: DoorServer, made: str) -> None:
    store(door, made, "spans", b'{"span_id":"a"}\n' + b"\n" * 100_000)
    assert len(door.rows(f"SELECT span_id FROM {made}.spans")) == 1


def test_the_newest_version_is_read(door: DoorServer, made: str) -> None:
    key = b'"run_id":"r","trace_id":"t","root_span_id":"s","start_time":"1790000000.0"'
    for version, status in ((2, b"ERROR"), (0, b"PENDING"), (1, b"COMPLETED")):
        line = b'{%b,"version":%d,"status":"%b"}\n' % (key, version, status)
        store(door, made, "traces", line, f"b{version}")
    rows = door.rows(f"SELECT status, version FROM {made}.traces")
    assert [row["status"] for row in rows] == ["ERROR"]


def plan(door: DoorServer, sql: str) -> list[tuple[int, int]]:
    """Granules chosen of granules seen, at each step of the index analysis."""
    text = door.sql(f"EXPLAIN indexes = 1 {sql}")
    return [(int(a), int(b)) for a, b in re.findall(r"Granules: (\d+)/(\d+)", text)]


def test_filters_on_the_views_skip_what_they_can(door: DoorServer, made: str) -> None:
    door.sql(
        f"INSERT INTO {made}.spans_rows (run_id, trace_id, seq, span_id, start_time, content) "
        "SELECT 'run' || toString(intDiv(number, 64) % 8) AS run, "
        "lower(hex(MD5(toString(intDiv(number, 64))))), number % 64, lower(hex(number)), "
        "toDateTime64(1790000000 + 86400 * (intDiv(number, 64) % 90), 9), "
        "'word' || toString(number) || ' and more' FROM numbers(120000)"
    )
    one = "'8f14e45fceea167a5a36dedd4bea2543'"  # of the eighth trace
    total = plan(door, f"SELECT * FROM {made}.spans")[0][1]
    assert total >= 12
    for condition, most in [
        (f"run_id = 'run7' AND trace_id = {one}", 4),
        (f"trace_id = {one}", total // 2),
        ("start_time > '2026-12-01 00:00:00'", total // 2),
        ("hasToken(lower(ifNull(content, '')), 'word77777')", total // 2),
        ("lower(ifNull(content, '')) LIKE '% word77777 %'", total // 2),
    ]:
        chosen = plan(door, f"SELECT * FROM {made}.spans WHERE {condition}")[-1][0]
        assert chosen <= most, condition
    [row] = door.rows(
        f"SELECT seq FROM {made}.spans WHERE hasToken(lower(ifNull(content, '')), 'word77777')"
    )
    assert int(row["seq"]) == 77777 % 64


def test_reading_a_batch_back_skips_other_batches(door: DoorServer, made: str) -> None:
    door.sql(
        f"INSERT INTO {made}.spans_rows (run_id, trace_id, seq, start_time, batch_id) "
        "SELECT 'run', toString(intDiv(number, 100)), number % 100, toDateTime64(1790000000, 9), "
        "'batch' || toString(intDiv(number, 1000)) FROM numbers(100000)"
    )
    steps = plan(door, f"SELECT count() FROM {made}.spans_rows WHERE batch_id = 'batch7'")
    assert steps[-1][0] < steps[0][1] / 2


@pytest.mark.parametrize(
    "value",
    ["", "plain", "tab\tnewline\nreturn\r", "back\\slash", "it's `quoted`", "é 漢 🦌", "\\N"],
)
def test_parameters_arrive_as_they_were(door: DoorServer, value: str) -> None:
    query = "SELECT hex({x:String}) AS one, hex({xs:Array(String)}[2]) AS two FORMAT TSV"
    answer = door.sql(query, param_x=parameter(value), param_xs=parameter(["a", value]))
    assert answer.split("\t") == [value.encode().hex().upper(), f"{value.encode().hex().upper()}\n"]


def test_null_and_numbers_as_parameters(door: DoorServer) -> None:
    answer = door.sql(
        "SELECT {n:Nullable(String)} IS NULL, {i:Int64}, {f:Float64} FORMAT TSV",
        param_n=parameter(None),
        param_i=parameter(-3),
        param_f=parameter(0.25),
    )
    assert answer == "1\t-3\t0.25\n"


def test_a_file_is_loaded_by_the_same_statement(
    door: DoorServer, made: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import json

    path = tmp_path_factory.mktemp("segment") / "it's.ndjson"
    lines = "".join(json.dumps(row) + "\n" for row in span_lines(3, step_number=2))
    path.write_text(lines + "\n" * 4096)
    door.sql(insert_statement(made, "spans", "local:1", path=str(path)))
    rows = door.rows(f"SELECT content, step_number AS s FROM {made}.spans ORDER BY seq")
    assert rows == [{"content": f"content {number}", "s": 2} for number in range(3)]
