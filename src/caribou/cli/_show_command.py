"""``caribou show``."""

from __future__ import annotations

import click

from ..errors import StoreError
from ..store import Row, Store
from ._conversation import print_conversation
from ._options import json_option
from ._output import print_json, without_noise
from ._store import no_traces, opened_store, with_interrupted

__all__ = ["by_root", "command", "read_trace"]


def find_trace(store: Store, prefix: str) -> str:
    """The one trace id that begins with ``prefix``, or that was made of it as a given id.

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
    return found[0]["trace_id"]


def read_trace(store: Store, trace_id: str) -> list[tuple[Row, list[Row]]]:
    """The rollouts of a trace, the oldest first, each with its records in order.

    There is one, unless several were opened with the same ``trace_id``.
    """
    values = {"id": trace_id}
    traces = store.rows(
        "SELECT * FROM traces WHERE trace_id = {id:String} ORDER BY start_time", values
    )
    spans = store.rows("SELECT * FROM spans WHERE trace_id = {id:String} ORDER BY seq", values)
    groups = by_root(spans)
    rollouts = [(trace, groups.pop(trace["root_span_id"], [])) for trace in traces]
    for rest in groups.values():
        # Their summary is not stored yet.
        rollouts[-1][1].extend(rest)
    return rollouts


def by_root(spans: list[Row]) -> dict[str, list[Row]]:
    """Records by the root span of their rollout.

    Args:
        spans: rows of the view ``spans`` in order of ``seq``, all scopes among them.
    """
    groups: dict[str, list[Row]] = {}
    roots: dict[str, str] = {}
    for span in spans:
        parent: str = span["parent_span_id"]
        # A scope comes before what is in it.
        root = roots[span["span_id"]] = roots.get(parent, parent)
        groups.setdefault(root, []).append(span)
    return groups


@click.command()
@click.argument("trace_id", metavar="TRACE_ID")
@click.option("--full", is_flag=True, help="Show long contents whole in a terminal, too.")
@json_option
def command(trace_id: str, full: bool, as_json: bool) -> None:
    """Show one trace as a conversation.

    The beginning of the id is enough. With --json it is an array of the trace's rollouts (one,
    unless several were opened with the same id), each with its records under "spans".
    """
    if not trace_id.strip():
        raise click.BadParameter("it must not be empty", param_hint="TRACE_ID")
    with opened_store() as store:
        rollouts = read_trace(store, find_trace(store, trace_id))
        shown = with_interrupted(store, [trace for trace, _ in rollouts])
    if as_json:
        print_json({**without_noise(trace), "spans": spans} for trace, spans in rollouts)
        return
    for i, (trace, (_, spans)) in enumerate(zip(shown, rollouts, strict=True)):
        if i:
            print()
        print_conversation(trace, spans, full=full)
