"""``caribou replay``."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from .._settings import from_environment
from ._format import counted
from ._options import json_option
from ._output import Update, note, print_json, progress
from ._owners import destinations

if TYPE_CHECKING:
    from ..delivery.replay import ReplayResult

__all__ = ["command"]

_COUNTS = ("owners", "rows", "delivered", "pending", "dead")
# Where no bar can be drawn.
_LINE_SECONDS = 5.0


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

    It goes from the journal to the ClickHouse server, to Langfuse and to the OTLP backend, as far
    as they are set, also what was recorded while they were not, and registrations to Kestrel. Exits
    with 1 when rows are still undelivered or were refused.
    """
    settings = from_environment()
    # Late: it imports the network library.
    from .._runtime import replay

    target = destinations(settings)
    with progress("Delivering") as update:
        shown = _Shown(target, update)
        try:
            result = asyncio.run(replay(settings, timeout, shown.show))
        except KeyboardInterrupt:
            result = None
    if result is None:
        if shown.latest is not None:
            note(_stopped("Interrupted", shown.latest, target))
        return 130
    if as_json:
        print_json([{name: getattr(result, name) for name in _COUNTS}])
    elif not result.owners:
        print("Nothing to replay: no ended process left rows in the journal.")
    else:
        print(
            f"Found {counted(result.rows, 'row')} of {counted(result.owners, 'ended process')}:"
            f" {result.delivered:,} delivered, {result.pending:,} pending, {result.dead:,} refused."
        )
    if result.pending:
        note(_stopped(f"Stopped after {timeout:g} s", result, target))
    if result.dead:
        note("What was refused is kept in dead letters; `caribou doctor` shows them.")
    return 1 if result.pending or result.dead else 0


@dataclass(slots=True)
class _Shown:
    """Tells a person how it goes, on standard error."""

    target: str
    update: Update
    latest: ReplayResult | None = None
    line_at: float = 0.0

    def show(self, state: ReplayResult) -> None:
        before, self.latest = self.latest, state
        if before is None:
            self.line_at = time.monotonic()
            if state.rows:
                rows, owners = counted(state.rows, "row"), counted(state.owners, "ended process")
                note(f"Delivering {rows} of {owners} to {self.target}")
            return
        if state.rows:
            self.update(state.delivered + state.dead, state.rows)
        # The first is told by the logger, and so is one that comes after a success.
        if before.last_error and state.last_error not in (None, before.last_error):
            note(f"Still trying: {state.last_error}")
        if not sys.stderr.isatty() and time.monotonic() - self.line_at >= _LINE_SECONDS:
            self.line_at = time.monotonic()
            note(_how_far(state))


def _stopped(why: str, state: ReplayResult, target: str) -> str:
    reason = ""
    if state.last_error:
        reason = f". The last error: {state.last_error}"
    elif not state.delivered:
        reason = f". No answer came from {target}"
    return f"{why}: {_how_far(state)}, safe in the journal{reason}"


def _how_far(state: ReplayResult) -> str:
    return f"{counted(state.delivered, 'row')} delivered, {counted(state.pending, 'row')} left"
