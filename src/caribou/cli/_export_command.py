"""``caribou export``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from ..errors import StoreError
from ..store import Row, Store
from ._conversation import parsed
from ._format import counted
from ._options import Filters, filter_options, json_option
from ._output import note, print_json, progress, without_noise
from ._show_command import by_root
from ._sql_command import binary_output
from ._store import no_traces, note_empty, opened_store
from ._text import json_text

__all__ = ["command"]

_CHUNK = 200
_TRACE_COLUMNS = (
    "trace_id, root_span_id, run_id, phase, step_number, datapoint_id, env_name, model_name,"
    " status, score, turns, input_tokens, output_tokens, cost_usd, duration_ms, start_time, tags,"
    " metadata"
)
_TRACES = (
    f"SELECT {_TRACE_COLUMNS} FROM traces WHERE {{where}} ORDER BY run_id, start_time, trace_id"
)
_COUNT = "SELECT count() AS traces FROM traces WHERE {where}"
# Messages, and the scopes that they may lie in.
_MESSAGES = """
SELECT span_id, parent_span_id, kind, role, content, structured, tool_calls, tool_call_id, tool_name
FROM spans
WHERE run_id = {run:String} AND trace_id IN {ids:Array(String)}
    AND kind NOT IN ('tool', 'grade', 'event')
ORDER BY seq
"""
# A message belongs to the rollout of its trace that had begun last when it was logged.
_PARQUET = f"""
SELECT {_TRACE_COLUMNS}, chat AS messages
FROM traces
LEFT JOIN (
    SELECT trace_id, root_span_id, arrayMap(m -> m.2, arraySort(m -> m.1, groupArray((seq, CAST(
        (role, content, tool_calls, tool_call_id, tool_name),
        'Tuple(role String, content Nullable(String), tool_calls String, tool_call_id String,
         name String)'))))) AS chat
    FROM (
        SELECT *, ifNull(end_time, start_time) AS logged FROM spans
        WHERE kind = 'message' AND trace_id IN (SELECT trace_id FROM traces WHERE {{where}})
    ) AS records
    ASOF JOIN (SELECT trace_id, root_span_id, start_time AS began FROM traces) AS rollouts
    ON records.trace_id = rollouts.trace_id AND records.logged >= rollouts.began
    GROUP BY trace_id, root_span_id
) AS conversations USING (trace_id, root_span_id)
WHERE {{where}}
ORDER BY run_id, start_time, trace_id
"""


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "parquet")),
    default="jsonl",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@filter_options
@json_option
def command(form: str, output: Path | None, filters: Filters, as_json: bool) -> None:
    """Write traces as chat messages with scores.

    One trace a line (or row, in Parquet): trace_id, run_id, datapoint_id, messages in OpenAI's
    chat form, score, metadata and more. --json prints the same objects as one array. Where no
    trace matches, no FILE is written.
    """
    if form == "parquet" and (as_json or output is None):
        raise click.UsageError("Parquet is binary: give a file with -o FILE, without --json")
    if as_json and output is not None:
        raise click.UsageError("--json prints to standard output; leave out -o")
    where, parameters = filters.where()
    with opened_store() as store:
        if form == "parquet":
            [found] = store.rows(_COUNT.format(where=where), parameters)
            count = found["traces"]
            _require_some(count, store)
            answer = store.query(_PARQUET.format(where=where), parameters, format="Parquet")
            with binary_output(output) as file:
                file.write(answer)
        else:
            traces = store.rows(_TRACES.format(where=where), parameters)
            count = len(traces)
            if output is not None:
                _require_some(count, store)
            elif not count:
                note_empty(store)
            if as_json:
                print_json(_conversations(store, traces))
                return
            with binary_output(output) as file, progress("Exporting") as update:
                for done, line in enumerate(_conversations(store, traces), 1):
                    file.write(json_text(line).encode() + b"\n")
                    update(done, count)
    if output is not None:
        note(f"{counted(count, 'trace')} written to {output}")


def _require_some(count: int, store: Store) -> None:
    """Raises StoreError if there is nothing to write a file of."""
    if count:
        return
    if not store.rows("SELECT 1 FROM traces LIMIT 1"):
        raise no_traces(store)
    raise StoreError("no trace matches, so there is nothing to export")


def _conversations(store: Store, traces: list[Row]) -> Iterator[Row]:
    """One object a trace, read some traces at a time so that memory stays flat."""
    start = 0
    while start < len(traces):
        run = traces[start]["run_id"]
        end = start
        while end < len(traces) and end - start < _CHUNK and traces[end]["run_id"] == run:
            end += 1
        chunk = traces[start:end]
        ids = [trace["trace_id"] for trace in chunk]
        groups = by_root(store.rows(_MESSAGES, {"run": run, "ids": ids}))
        for trace in chunk:
            spans = groups.get(trace["root_span_id"], [])
            messages = [_message(span) for span in spans if span["kind"] == "message"]
            yield without_noise(trace) | {"messages": messages}
        start = end


def _message(row: Row) -> Row:
    """A message in OpenAI's chat form."""
    content = row["content"]
    if "content" in row["structured"]:
        content = parsed(content)
    message: Row = {"role": row["role"], "content": content}
    if row["tool_calls"]:
        message["tool_calls"] = parsed(row["tool_calls"])
    if row["tool_call_id"]:
        message["tool_call_id"] = row["tool_call_id"]
    if row["tool_name"]:
        message["name"] = row["tool_name"]
    return message
