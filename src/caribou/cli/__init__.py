"""The command line: ``caribou``, also ``python -m caribou``."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command in ``sys.argv`` and exit.

    Exit codes: 0 done; 1 done, and something is wrong that the output tells of, or the output could
    not be written; 2 it could not be done (one sentence on standard error says why); 130
    interrupted.
    """
    from ._app import run

    raise SystemExit(run())
