"""``caribou serve``."""

from __future__ import annotations

import functools
import logging
import sys

import click

from .._settings import from_environment
from ..errors import StoreError
from ._text import one_line, safe

__all__ = ["command"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8420,
    show_default=True,
    help="Port to listen on; 0 for any that is free.",
)
@click.option(
    "--clickhouse-port",
    type=click.IntRange(0, 65535),
    help="Let tracers of other machines deliver here, as to a ClickHouse server.",
)
def command(host: str, port: int, clickhouse_port: int | None) -> int:
    """Run Kestrel: the API and pages over the recorded rollouts, until SIGTERM or Ctrl-C.

    Without CLICKHOUSE_URL it keeps the rows in CARIBOU_HOME and takes in what every process on this
    machine records, as it is recorded. With KESTREL_API_KEY set, callers must have that key; other
    machines can be let in (--host) only then.
    """
    # Late: the other commands need no server.
    from ..server.service import run

    _log_to_stderr()
    try:
        announce = functools.partial(print, flush=True)
        run(from_environment(), host, port, announce, clickhouse_port=clickhouse_port)
    except StoreError as error:
        return _fail(str(error))
    except OSError as error:
        ports = f"{port}" if clickhouse_port is None else f"{port} and {clickhouse_port}"
        return _fail(f"cannot listen on {host} port {ports}: {_reason(error)}")
    return 0


def _fail(message: str) -> int:
    """The command was right and something is in the way: another exit code than for mistakes."""
    print(f"caribou: {one_line(message, 1000)}", file=sys.stderr)
    return 1


def _reason(error: OSError) -> str:
    # The socket module adds the address, which is said already.
    return (error.strerror or str(error)).partition(" (while")[0]


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Paths and errors hold what callers sent.
        record.msg, record.args = one_line(record.getMessage(), 2000), None
        return safe(super().format(record))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
