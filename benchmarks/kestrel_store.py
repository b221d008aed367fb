"""How long Kestrel's queries take over a store of many traces.

    python benchmarks/kestrel_store.py --traces 1000000 --store DIR

Fills DIR (kept, and used again when it is there) through the embedded engine: runs of 5,000 traces
over six months, every seventh of them production, 20 records a trace, tags, metadata, scores. Every
tenth trace is there as it began and as it ended. All months but the last are merged into one part
each, as the engine does by itself an hour after a month is over. Then every query of the API is
made ``--times`` times over, as the service makes it, and its 50th and 95th percentiles are printed
in milliseconds, with the peak of what the process needs for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec
from harness import PeakMemory, quantile, table

from caribou.server import aggregates
from caribou.server.backend import Parameters, Row
from caribou.server.selection import Selection
from caribou.server.traces import find_spans, find_trace, find_traces
from caribou.store._engine import Engine

SPANS = 20
DATABASE = "caribou"
BLOCK = 25_000  # traces an insert of spans

_TRACES = """
SELECT
    number AS n, intDiv(n, 5000) AS block, block % 7 = 6 AS prod,
    lower(hex(sipHash128(n))) AS trace_id, lower(hex(sipHash64(n, 'root'))) AS root_span_id,
    if(prod, concat('project-', toString(intDiv(block, 7) % 10)),
        lower(hex(sipHash128(block, 'run')))) AS run_id,
    multiIf(prod, 'prod', block % 7 = 5, 'eval', 'train') AS phase,
    if(prod, -1, intDiv(n % 5000, 64)) AS step_number,
    concat('task-', toString(sipHash64(n, 'datapoint') % 800)) AS datapoint_id,
    concat('env-', toString(block % 12)) AS env_name,
    concat('model-', toString(intDiv(block, 3) % 30)) AS model_name,
    if(prod, '', concat('grader-', toString(block % 5))) AS grader_name,
    sipHash64(n, 'status') % 1000 AS chance,
    multiIf(n + 1000 > {total} AND chance % 3 = 0, 'PENDING', chance < 900, 'COMPLETED',
        chance < 930, 'TRUNCATED', chance < 960, 'STEP_ERROR', chance < 980, 'TOOL_ERROR',
        chance < 990, 'GRADER_TIMEOUT', 'ERROR') AS status,
    if(status = 'ERROR', 'ValueError', '') AS error_type,
    toDateTime64('2026-05-01 00:00:00', 9, 'UTC') + toIntervalNanosecond(
        toInt64(n * (15552000000000000 / {total})) + toInt64(sipHash64(n, 'start') % 3600000000000)
    ) AS start_time,
    1000 + pow((sipHash64(n, 'duration') % 10000) / 10000, 4) * 200000 AS duration,
    if(status = 'PENDING', NULL, duration) AS duration_ms,
    6 AS turns, 13 AS messages, 6 AS tool_calls,
    if(status = 'PENDING', 0, sipHash64(n, 'in') % 20000) AS input_tokens,
    if(status = 'PENDING', 0, sipHash64(n, 'out') % 4000) AS output_tokens,
    (input_tokens * 2 + output_tokens * 8) / 1e6 AS cost_usd,
    map(model_name, map('input_tokens', toFloat64(input_tokens),
        'output_tokens', toFloat64(output_tokens), 'cost_usd', cost_usd)) AS usage,
    if(prod OR status != 'COMPLETED', NULL, if(block % 2 = 1, toFloat64(sipHash64(n, 'score') % 2),
        (sipHash64(n, 'score') % 11) / 10)) AS score,
    if(sipHash64(n, 'tag') % 3 = 0, [concat('tag-', toString(sipHash64(n, 'which') % 40))], [])
        AS tags,
    map('trial', toString(n % 4), 'difficulty', toString((sipHash64(n, 'hard') % 1000) / 1000),
        'customer', concat('customer-', toString(sipHash64(n, 'customer') % 5000))) AS metadata,
    toUInt64(1) AS version
FROM numbers({first}, {count})
"""
_COLUMNS = (
    "run_id, step_number, trace_id, root_span_id, phase, datapoint_id, env_name, model_name,"
    " grader_name, error_type, start_time, turns, messages, tool_calls, status, duration_ms,"
    " input_tokens, output_tokens, cost_usd, usage, score, tags, metadata, version"
)
_INSERTS = (
    # As they began: of every tenth it is still there.
    """INSERT INTO traces_rows (run_id, step_number, trace_id, root_span_id, phase, datapoint_id,
        env_name, model_name, grader_name, start_time, status)
    SELECT run_id, step_number, trace_id, root_span_id, phase, datapoint_id, env_name, model_name,
        grader_name, start_time, 'PENDING' FROM ({traces}) WHERE n % 10 = 0""",
    f"INSERT INTO traces_rows ({_COLUMNS}) SELECT {_COLUMNS} FROM ({{traces}})",
    """INSERT INTO trace_tags_rows (tag, run_id, trace_id)
    SELECT arrayJoin(tags), run_id, trace_id FROM ({traces})""",
    """INSERT INTO entity_metadata_rows
        (entity_type, key, run_id, entity_id, value, value_number, version)
    SELECT 'trace', key, run_id, trace_id, value, toFloat64OrNull(value), 1 FROM ({traces})
    ARRAY JOIN mapKeys(metadata) AS key, mapValues(metadata) AS value""",
)
_WORDS = (
    "splitByChar(' ', 'the a to of and is you your please order flight refund account number"
    " confirm cancel baggage reservation user agent policy payment card date"
    " change seat upgrade city airport time')"
)
# Of 20: a question, an answer and what a tool said in turn, and the grade. The word `zebra` is in
# one of 200,000 messages, `marmalade` in one of 1,500.
_SPANS = f"""
INSERT INTO spans_rows (run_id, trace_id, seq, span_id, parent_span_id, phase, step_number,
    datapoint_id, env_name, model_name, kind, name, status, start_time, duration_ms, turn_index,
    intra_index, role, content, tool_name, tool_call_id, arguments, result, model, input_tokens,
    output_tokens, cost_usd, score, grader_name, version)
SELECT run_id, trace_id, i, lower(hex(cityHash64(n, i))), root_span_id, phase, step_number,
    datapoint_id, env_name, model_name,
    multiIf(i = 19, 'grade', i % 3 = 2, 'tool', 'message') AS kind,
    multiIf(kind = 'grade', 'grade.reward', kind = 'tool', concat('tool.', tool), i % 3 = 0,
        'message.user', 'message.assistant'),
    if(kind = 'tool' AND h % 20 = 0, 'ERROR', ''),
    start_time + toIntervalMillisecond(i * duration / 20),
    if(kind = 'tool', toFloat64(h % 3000), NULL),
    intDiv(i, 3), i % 3,
    if(kind = 'message', if(i % 3 = 0, 'user', 'assistant'), ''),
    if(kind = 'message', concat(
        arrayStringConcat(arrayMap(j -> {_WORDS}[1 + toUInt64(29 * pow((cityHash64(h, j) % 1000)
            / 1000, 2))], range(toUInt32(20 + h % 50))), ' '),
        ' w', toString(h % 20000), if(h % 1500 = 3, ' marmalade', ''),
        if(h % 200000 = 7, ' zebra', '')
    ), NULL),
    if(kind = 'tool', tool, ''), if(kind = 'tool', toString(h), ''),
    if(kind = 'tool', concat('{{"id":', toString(h), '}}'), ''),
    if(kind = 'tool', arrayStringConcat(
        arrayMap(j -> {_WORDS}[1 + toUInt64(cityHash64(h, j) % 29)], range(20)), ' '), NULL),
    if(i % 3 = 1, model_name, ''), if(i % 3 = 1, h % 3000, NULL), if(i % 3 = 1, h % 600, NULL),
    if(i % 3 = 1, (h % 3000) / 1e6, NULL), if(kind = 'grade', score, NULL),
    if(kind = 'grade', grader_name, ''), 1
FROM
(
    SELECT *, i, cityHash64(n, i) AS h, concat('tool_', toString(h % 25)) AS tool
    FROM (@traces) ARRAY JOIN range({SPANS}) AS i
)
"""


class StoreBackend:
    """The service's backend without the intake of journals."""

    description = "benchmark"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def rows(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """See ``caribou.server.backend.Backend``."""
        future = self._engine.submit(sql, parameters, "JSONEachRow")
        answer = await asyncio.wrap_future(future)
        return [msgspec.json.decode(line) for line in answer.splitlines()]

    async def insert(self, table: str, rows: Sequence[Row]) -> None:
        """Nothing here is inserted by the service."""
        raise NotImplementedError

    async def interrupted(self) -> Set[str]:
        """All processes live."""
        return frozenset()

    async def aclose(self) -> None:
        """The engine is closed by who opened it."""


def fill(folder: Path, total: int) -> None:
    """Store ``total`` traces unless they are there."""
    engine = Engine(folder, wait=1.0)
    try:
        engine.prepare(DATABASE)
        if int(engine.run("SELECT count() FROM traces_rows")) >= total:
            return
        for first in range(0, total, BLOCK):
            count = min(BLOCK, total - first)
            traces = _TRACES.format(total=total, first=first, count=count)
            for insert in _INSERTS:
                engine.run(insert.format(traces=traces))
            engine.run(_SPANS.replace("@traces", traces))
            print(f"\r{first + count:,} traces", end="", flush=True)
        print()
        for name in ("traces_rows", "spans_rows"):
            months = engine.run(
                "SELECT DISTINCT partition FROM system.parts WHERE active AND"
                f" database = currentDatabase() AND table = '{name}' ORDER BY partition"
            )
            for month in months.decode().split()[:-1]:
                engine.run(f"OPTIMIZE TABLE {name} PARTITION '{month}' FINAL")
    finally:
        engine.close()


NOTHING: dict[str, Any] = {"status": [], "tag": [], "meta.": {}, "text": ""}
FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "run_id": {"run_id": "@run"},
    "run_id, step range": {"run_id": "@run", "step_min": 3, "step_max": 9},
    "project (production)": {"project": "project-3"},
    "step_number": {"step_number": 7},
    "phase": {"phase": "eval"},
    "status ERROR": {"status": ["ERROR"]},
    "status PENDING": {"status": ["PENDING"]},
    "tag": {"tag": ["tag-3"]},
    "metadata, a quarter": {"meta.": {"trial": "2"}},
    "metadata, 1 in 5,000": {"meta.": {"customer": "customer-17"}},
    "metadata range": {"meta.": {"difficulty.min": "0.1", "difficulty.max": "0.2"}},
    "score range": {"score_min": 0.2, "score_max": 0.4},
    "grader_name": {"grader_name": "grader-2"},
    "model_name": {"model_name": "model-4"},
    "env_name": {"env_name": "env-5"},
    "datapoint_id": {"datapoint_id": "task-77"},
    "text, frequent": {"text": "refund"},
    "text, 1 in 1,500 messages": {"text": "marmalade"},
    "text, 1 in 200,000 messages": {"text": "zebra"},
    "text in a run": {"run_id": "@run", "text": "marmalade"},
    "a day": {"start_min": "2026-07-01 00:00:00", "start_max": "2026-07-02 00:00:00"},
}


async def measure(backend: StoreBackend, times: int) -> list[list[str]]:
    """Rows of a table: a query, its 50th and 95th percentile, and how much it found."""
    some = await backend.rows(
        "SELECT run_id, trace_id FROM traces_rows WHERE phase = 'train' LIMIT 1"
    )
    run, trace_id = some[0]["run_id"], some[0]["trace_id"]

    def selection(name: str) -> Selection:
        given = {key: run if value == "@run" else value for key, value in FILTERS[name].items()}
        return Selection.of({**NOTHING, **given})

    async def pages(count: int) -> Any:
        cursor, page = None, []
        for _ in range(count):
            page, cursor = await find_traces(backend, selection("all"), "-start_time", 100, cursor)
        return page

    def traces(name: str, sort: str = "-start_time", limit: int = 100) -> Callable[[], Any]:
        return lambda: find_traces(backend, selection(name), sort, limit, None)

    cases: dict[str, Callable[[], Awaitable[Any]]] = {
        **{f"list: {name}": traces(name) for name in FILTERS},
        **{
            f"list by {s}": traces("all", s) for s in ("start_time", "-score", "score", "-cost_usd")
        },
        "list by -duration_ms in a run": traces("run_id", "-duration_ms"),
        "list, 1000 a page": traces("all", limit=1000),
        "list, ten pages": lambda: pages(10),
        "one trace": lambda: find_trace(backend, trace_id),
        "its records": lambda: find_spans(backend, trace_id, 100, None),
    }
    for name in ("all", "run_id", "tag", "metadata, a quarter", "text, 1 in 1,500 messages"):
        chosen = selection(name)
        cases |= {
            f"steps: {name}": lambda c=chosen: aggregates.steps(backend, c),
            f"scores: {name}": lambda c=chosen: aggregates.scores(backend, c, 20),
            f"tools: {name}": lambda c=chosen: aggregates.tools(backend, c, 100),
            f"models: {name}": lambda c=chosen: aggregates.models(backend, c, 100),
            f"pass^k: {name}": lambda c=chosen: aggregates.pass_k(backend, c, 4),
        }
    lines: list[list[str]] = []
    for name, call in cases.items():
        taken: list[float] = []
        found: Any = None
        for _ in range(times):
            begun = time.perf_counter()
            found = await call()
            taken.append((time.perf_counter() - begun) * 1000)
        found = found[0] if isinstance(found, tuple) else found
        count = len(found) if isinstance(found, list) else 1
        lines.append(
            [name, f"{quantile(taken, 0.5):.0f}", f"{quantile(taken, 0.95):.0f}", f"{count}"]
        )
        print(*lines[-1], sep="\t", flush=True)
    return lines


def main() -> None:
    """Fill a store, measure, and print."""
    parser = argparse.ArgumentParser(description="Kestrel's queries over many traces.")
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=10, help="how often each query is made")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--store", type=Path, help="a folder to keep the store in")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.store or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="caribou-bench-"))
        )
        # Elsewhere, so that what filling needs is not counted.
        filling = multiprocessing.get_context("spawn").Process(
            target=fill, args=(folder, arguments.traces)
        )
        filling.start()
        filling.join()
        memory = PeakMemory()
        engine = Engine(folder, wait=1.0)
        stack.callback(engine.close)
        engine.prepare(DATABASE)
        engine.run(f"SET max_threads = {arguments.threads:d}")
        lines = asyncio.run(measure(StoreBackend(engine), arguments.times))
        parts = engine.run(
            "SELECT table, count(), sum(rows), formatReadableSize(sum(bytes_on_disk))"
            " FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table"
            " ORDER BY table"
        ).decode()
    title = f"{arguments.traces:,} traces, {arguments.threads} threads, {arguments.times} times"
    table(title, ["query", "p50 ms", "p95 ms", "found"], lines)
    stored = [line.split("\t") for line in parts.splitlines()]
    table("Stored", ["table", "parts", "rows", "size"], stored)
    print(f"\npeak memory: {memory.growth():,.0f} MiB")


if __name__ == "__main__":
    main()
