"""``caribou demo``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import click

from .. import FlushResult
from .._settings import Settings
from ..store import Store, require_engine
from ._conversation import print_conversation
from ._demo_agents import ROLLOUTS, run_training
from ._options import Filters, json_option
from ._output import in_terminal, print_json, print_table, progress
from ._recording import deliver, recording_settings, report_unfinished
from ._runs_command import COLUMNS, find_runs
from ._show_command import read_trace
from ._store import opened_store
from ._traces_command import find_traces, print_traces

__all__ = ["command"]

_DELIVERY_SECONDS = 10.0


@click.command()
@json_option
def command(as_json: bool) -> int:
    """Record simulated rollouts and show them.

    They go where real ones would: to CLICKHOUSE_URL, or to the local store. --json prints the
    traces.
    """
    settings = recording_settings()
    if settings.clickhouse_url is None:
        # It could record without, and show nothing.
        require_engine()
    run_id = time.strftime("demo-%Y%m%d-%H%M%S", time.gmtime())
    began = time.monotonic()
    with progress(f"{ROLLOUTS} rollouts") as update:
        result = asyncio.run(_record(settings, run_id, update))
    seconds = time.monotonic() - began
    if not result.complete:
        # The server cannot show what it does not have.
        if as_json:
            print_json([])
        return report_unfinished(result)
    with opened_store(settings) as store:
        if as_json:
            print_json(find_traces(store, Filters(run=run_id), ROLLOUTS))
        else:
            # The store has them all; other sinks have copies of some.
            rows = max(sink.delivered for sink in result.sinks.values())
            print(f"{ROLLOUTS} rollouts, {rows:,} rows, {seconds:.1f} s, run {run_id}\n")
            _print_tour(store, run_id)
    return report_unfinished(result)


async def _record(
    settings: Settings, run_id: str, update: Callable[[int, int], None]
) -> FlushResult:
    done = 0

    def one_done() -> None:
        nonlocal done
        done += 1
        update(done, ROLLOUTS)

    await run_training(run_id, one_done)
    return await deliver(settings, _DELIVERY_SECONDS)


def _print_tour(store: Store, run_id: str) -> None:
    print_table(COLUMNS, find_runs(store, 5), json=False)
    _say("\nMore: caribou runs\n")
    print_traces(find_traces(store, Filters(run=run_id), 10), json=False)
    _say(f"\nMore: caribou traces --run {run_id}   (filters: caribou traces --help)\n")
    perfect = find_traces(store, Filters(run=run_id, tag=("perfect",)), 1)
    [(trace, spans)] = read_trace(store, perfect[0]["trace_id"])
    print_conversation(trace, spans, full=False)
    _say(f"\nThis one again: caribou show {trace['trace_id'][:12]}")
    _say(
        'Its SQL tables: caribou sql "SELECT step_number, avg(score) FROM traces'
        f" WHERE run_id = '{run_id}' GROUP BY 1 ORDER BY 1\""
    )
    _say("All commands:   caribou --help")


def _say(text: str) -> None:
    if in_terminal():
        from ._output import console

        console().print(text, style="dim")
    else:
        print(text)
