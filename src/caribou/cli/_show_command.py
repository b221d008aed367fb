"""``caribou show``."""

from __future__ import annotations

import click

from ..errors import StoreError
from ..store import Row, Store
from ._conversation import print_conversation
from ._options import json_option
from ._output import print_json
from ._store import no_traces, opened_store

__all__ = ["command", "find_trace", "trace_spans"]


def find_trace(store: Store, prefix: str) -> Row:
    """The one trace whose id begins with ``prefix``, or that was given it as its ``trace_id``.

    Raises:
        StoreError: there is none, or more than one.
    """
    wanted = prefix.strip().lower()
    found = store.rows(
        "SELECT DISTINCT trace_id FROM traces WHERE startsWith(trace_id, {prefix:String})"
        " ORDER BY trace_id LIMIT 6",
        {"prefix": wanted},
    )
    if not found:
        found = store.rows(
            "SELECT DISTINCT entity_id AS trace_id FROM entity_metadata WHERE entity_type = 'trace'"
            " AND key = 'given_trace_id' AND value = {given:String} LIMIT 2",
            {"given": prefix},
        )
    if not found:
        if not store.rows("SELECT 1 FROM traces LIMIT 1"):
            raise no_traces(store)
        raise StoreError(f"no trace begins with {prefix!r}; `caribou traces` lists them")
    if len(found) > 1:
        some = ", ".join(row["trace_id"][: len(wanted) + 6] for row in found[:5])
        raise StoreError(f"several traces begin with {prefix!r}: {some}; give more of the id")
    return store.rows(
        "SELECT * FROM traces WHERE trace_id = {id:String} ORDER BY start_time DESC LIMIT 1",
        {"id": found[0]["trace_id"]},
    )[0]


def trace_spans(store: Store, trace: Row) -> list[Row]:
    """The spans of ``trace`` in the order they were logged."""
    return store.rows(
        "SELECT * FROM spans WHERE run_id = {run:String} AND trace_id = {id:String} ORDER BY seq",
        {"run": trace["run_id"], "id": trace["trace_id"]},
    )


@click.command()
@click.argument("trace_id", metavar="TRACE_ID")
@click.option("--full", is_flag=True, help="Show long contents whole in a terminal, too.")
@json_option
def command(trace_id: str, full: bool, as_json: bool) -> None:
    """Show one trace as a conversation.

    The beginning of the id is enough. With --json it is an array of one object, the trace, with
    its records under "spans".
    """
    with opened_store() as store:
        trace = find_trace(store, trace_id)
        spans = trace_spans(store, trace)
    if as_json:
        print_json([{**trace, "spans": spans}])
    else:
        print_conversation(trace, spans, full=full)
