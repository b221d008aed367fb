"""``caribou replay``."""

from __future__ import annotations

import asyncio

import click

from .._settings import from_environment
from ._options import json_option
from ._output import note, print_json

__all__ = ["command"]


@click.command()
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop by then; what is left stays in the journal.",
)
@json_option
def command(timeout: float, as_json: bool) -> int:
    """Deliver what ended processes left behind.

    It goes from the journal to the ClickHouse server, also what was recorded while CLICKHOUSE_URL
    was not set. Exits with 1 when rows are
    still undelivered or were refused.
    """
    settings = from_environment()
    # Late: it imports the network library.
    from .._runtime import replay

    result = asyncio.run(replay(settings, timeout))
    counts = {
        "owners": result.owners,
        "rows": result.rows,
        "delivered": result.delivered,
        "pending": result.pending,
        "dead": result.dead,
    }
    if as_json:
        print_json([counts])
    elif not result.owners:
        print("Nothing to replay: no ended process left rows in the journal.")
    else:
        print(
            f"Found {result.rows:,} rows of {result.owners:,} ended processes:"
            f" {result.delivered:,} delivered, {result.pending:,} pending, {result.dead:,} refused."
        )
    if result.pending:
        reason = f" The last error: {result.last_error}" if result.last_error else ""
        note(f"What is pending stays in the journal.{reason}")
    if result.dead:
        note("What was refused is kept in dead letters; `caribou doctor` shows them.")
    return 1 if result.pending or result.dead else 0
