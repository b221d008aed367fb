"""``caribou doctor``."""

from __future__ import annotations

from dataclasses import asdict

import click

from .._settings import from_environment
from ._checks import Check, all_checks
from ._options import json_option
from ._output import console, in_terminal, print_json
from ._text import one_line

__all__ = ["command"]

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@click.command()
@json_option
def command(as_json: bool) -> int:
    """Check that all is well, and say what to do.

    It looks at the configuration, the server, the journal and dead letters.

    Exits with 1 when there is a problem.
    """
    checks = list(all_checks(from_environment()))
    if as_json:
        print_json(asdict(check) for check in checks)
    else:
        for check in checks:
            _print(check)
    return 1 if any(check.status == "problem" for check in checks) else 0


def _print(check: Check) -> None:
    # Paths and messages of a server are shown, and may hold anything.
    detail, advice = one_line(check.detail), one_line(check.advice)
    if not in_terminal():
        print("\t".join((check.status, check.check, detail, advice)))
        return
    from rich.text import Text

    mark, style = _MARKS[check.status]
    line = Text().append(f"{mark} ", style).append(f"{check.check}: ", "bold").append(detail)
    console().print(line, soft_wrap=True)
    if advice:
        console().print(Text(f"  → {advice}", style=style), soft_wrap=True)
