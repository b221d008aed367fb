"""The commands' common frame: finding them, and turning what goes wrong into one sentence."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click
from click.exceptions import NoSuchCommand

from .._version import __version__
from ..errors import CaribouError
from ._text import one_line

__all__ = ["run"]

_COMMANDS = (
    "demo",
    "runs",
    "traces",
    "show",
    "sql",
    "tail",
    "import",
    "export",
    "serve",
    "replay",
    "migrate",
    "doctor",
)
_SIGINT, _SIGPIPE = 130, 141


class _Commands(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"._{cmd_name}_command", __package__)
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            found = super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # Click knows only commands that were imported.
            raise NoSuchCommand(error.command_name, possibilities=_COMMANDS, ctx=ctx) from None
        if found[1] is not None:
            _require_text(found[1], found[2])
        return found


def _require_text(command: click.Command, arguments: Sequence[str]) -> None:
    """Refuse bytes that are no UTF-8 anywhere but in the name of a file: neither rows nor
    statements can hold them."""
    options = [p for p in command.params if isinstance(p, click.Option) and not p.is_flag]
    named = {name: option for option in options for name in option.opts}
    positional = next((p for p in command.params if isinstance(p, click.Argument)), None)
    before = ""
    for argument in arguments:
        name = argument.partition("=")[0]
        name = name if name in named else before if before in named else ""
        before = argument
        param = named.get(name, positional)
        if _has_surrogate(argument) and not (param and isinstance(param.type, click.Path)):
            raise click.UsageError(f"{name or 'an argument'} is not valid UTF-8: {argument!a}")


def _has_surrogate(text: str) -> bool:
    """Whether ``text`` stands for bytes that are no UTF-8."""
    return any("\ud800" <= char <= "\udfff" for char in text)


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="caribou", message="%(prog)s %(version)s")
@click.pass_context
def _caribou(ctx: click.Context) -> None:
    """Traces of agent rollouts: record, read and move them.

    Reads the ClickHouse server in CLICKHOUSE_URL, or else the local store in CARIBOU_HOME. Every
    command takes --json: an array of objects on standard output, and nothing else (tail, which
    has no end, prints one object a line).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code and never raises."""
    _prepare_output()
    try:
        if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
            # Files that are opened would take its place, and get what is printed.
            return _fail("cannot write the output: standard output is closed", 1)
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit):
        # Whoever read has gone, which click makes an exit of its own of.
        _discard(sys.stdout)
        return _SIGPIPE
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None:
            return _fail(f"{error.filename}: {reason}")
        # Whatever else can fail without a name says so itself, in an error of Caribou's.
        _discard(sys.stdout)
        return _fail(f"cannot write the output: {reason}", 1)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code: Any = _caribou.main(
            args=None if arguments is None else list(arguments),
            prog_name="caribou",
            standalone_mode=False,
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _fail(_with_pointer(error))
    except CaribouError as error:
        return _fail(str(error))
    except ExceptionGroup as group:
        # Many rollouts at a time meet the same mistake; one sentence says it.
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        return _fail(str(first))
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _SIGINT


def _with_pointer(error: click.ClickException) -> str:
    """What ``error`` says, and for a mistake in the usage where that is explained."""
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    stop = "" if message.endswith((".", "?", "?)")) else "."
    return f"{message}{stop} Try '{error.ctx.command_path} --help'."


def _fail(message: str, code: int = 2) -> int:
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout.flush()
    try:
        print(f"caribou: {one_line(message, 1000)}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO | None) -> None:
    """The interpreter must not complain when it flushes at the end, nor give a code of its own."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_output() -> None:
    """An ASCII-only terminal shows what it cannot print as an escape, and is no error; nor is a
    standard error that is closed."""
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
