"""``caribou import``."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from .. import (
    FlushResult,
    Grade,
    Message,
    ToolExecution,
    add_meta,
    configure,
    flush,
    log,
    stats,
    trace_run,
)
from .._settings import Settings
from ..errors import InvalidValue
from ._format import counted
from ._options import json_option
from ._output import note, print_json, progress
from ._recording import deliver, recording_settings, report_unfinished
from ._rollout_files import Expressions, Rollout, Source, read_rollouts

__all__ = ["command"]

_CONCURRENCY = 64
_DELIVERY_SECONDS = 60.0
# How far the import may run ahead of the server.
_AHEAD_BYTES = 256 << 20
_MESSAGE_FIELDS = frozenset({"role", "content", "tool_calls", "tool_call_id", "name"})


def _not_empty(context: click.Context, option: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("it must not be empty")
    return value


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option("--messages", required=True, metavar="EXPR", help="The list of chat messages.")
@click.option("--datapoint", required=True, metavar="EXPR", help="The input's identifier.")
@click.option("--score", metavar="EXPR", help="A number from 0 to 1, logged as a grade.")
@click.option("--trial", metavar="EXPR", help="Kept as the metadata 'trial'.")
@click.option("--meta", multiple=True, metavar="NAME=EXPR", help="More metadata (repeatable).")
@click.option(
    "--run", required=True, callback=_not_empty, metavar="ID", help="The run to file them under."
)
@click.option(
    "--env", required=True, callback=_not_empty, metavar="NAME", help="The environment they ran in."
)
@click.option(
    "--model", required=True, callback=_not_empty, metavar="NAME", help="The model that acted."
)
@click.option(
    "--phase", type=click.Choice(("train", "eval", "prod")), default="eval", show_default=True
)
@json_option
def command(
    files: tuple[Path, ...],
    messages: str,
    datapoint: str,
    score: str | None,
    trial: str | None,
    meta: tuple[str, ...],
    run: str,
    env: str,
    model: str,
    phase: str,
    as_json: bool,
) -> int:
    """Import rollouts from JSON arrays or JSONL; FILE may be - for standard input.

    EXPR is a JMESPath expression that is applied to each item of a file, such as traj or
    info.task.id. Messages are OpenAI-style chat; each tool message is logged as the execution of
    the tool as well. Everything is checked before anything is recorded; a score or metadata may be
    missing from some items, not from all.
    """
    metadata = _metadata_expressions(trial, meta)
    expressions = Expressions(
        messages=messages, datapoint=datapoint, score=score, metadata=metadata
    )
    settings = recording_settings()
    about = {"run_id": run, "env_name": env, "model_name": model, "phase": phase}
    # Checks them; nothing is recorded before it is entered.
    trace_run({**about, "datapoint_id": "any"})
    sources = [Source(file) for file in files]
    counts = Counter(rollouts=0, messages=0, tool_executions=0, grades=0)
    try:
        total = sum(1 for _ in read_rollouts(sources, expressions))
        expressions.require_found(total)
    except KeyboardInterrupt:
        note("caribou: interrupted while reading; nothing was recorded.")
        raise click.Abort from None
    began = time.monotonic()
    try:
        with progress("Importing") as update:
            rollouts = read_rollouts(sources, expressions)
            shown = partial(update, total=total)
            result = asyncio.run(_import(settings, rollouts, about, counts, shown))
    except KeyboardInterrupt:
        done = counts["rollouts"]
        rest = ", those under way as ABORTED" if done < total else ""
        note(f"caribou: interrupted; {done:,} of {total:,} rollouts were recorded in full{rest}.")
        if settings.clickhouse_url is not None:
            note(
                "caribou: rows that are not delivered yet are safe in the journal;"
                " `caribou replay` delivers them."
            )
        raise click.Abort from None
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            [{"run_id": run, **counts, "seconds": round(seconds, 3), "pending": result.pending}]
        )
    else:
        print(
            f"Imported {counted(counts['rollouts'], 'rollout')}"
            f" ({counted(counts['messages'], 'message')},"
            f" {counted(counts['tool_executions'], 'tool execution')},"
            f" {counted(counts['grades'], 'grade')})"
            f" into run {run} in {seconds:.1f} s."
        )
        note(f"They are listed by: caribou traces --run {run}")
    return report_unfinished(result)


def _metadata_expressions(trial: str | None, meta: Sequence[str]) -> dict[str, str]:
    found = {} if trial is None else {"trial": trial}
    for pair in meta:
        name, equals, expression = pair.partition("=")
        if not (name and equals and expression):
            raise InvalidValue(f"--meta {pair!r} is not of the form NAME=EXPR")
        found[name] = expression
    return found


async def _import(
    settings: Settings,
    rollouts: Iterator[Rollout],
    about: Mapping[str, Any],
    counts: Counter[str],
    update: Callable[[int], None],
) -> FlushResult:
    # The journal's bound protects programs from their traces. Here the traces are the purpose:
    # instead of refusing rollouts, the import waits for a server that is slower than the disk.
    configure(max_journal_bytes=1 << 60)

    async def worker() -> None:
        for rollout in rollouts:
            await _log_rollout(rollout, about, counts)
            if stats().journal_bytes > _AHEAD_BYTES:
                await flush(_DELIVERY_SECONDS)
            update(counts["rollouts"])

    async with asyncio.TaskGroup() as group:
        for _ in range(_CONCURRENCY):
            group.create_task(worker())
    return await deliver(settings, _DELIVERY_SECONDS)


async def _log_rollout(rollout: Rollout, about: Mapping[str, Any], counts: Counter[str]) -> None:
    async with trace_run(cast("Any", {**about, "datapoint_id": rollout.datapoint_id})):
        if rollout.metadata:
            add_meta(rollout.metadata)
        calls: dict[str, Mapping[str, Any]] = {}
        for message in rollout.messages:
            if message["role"] == "tool":
                log(_tool_execution(message, calls))
                counts["tool_executions"] += 1
            log(_message(message, calls))
            counts["messages"] += 1
            # Rollouts take turns, as those of live agents do.
            await asyncio.sleep(0)
        if rollout.score is not None:
            log(Grade(score=rollout.score, grader_name="imported"))
            counts["grades"] += 1
    counts["rollouts"] += 1


def _message(message: Mapping[str, Any], calls: dict[str, Mapping[str, Any]]) -> Message:
    """The record of a chat message; the tool calls in it are remembered in ``calls``."""
    for call in cast("list[Any]", message.get("tool_calls") or []):
        if isinstance(call, dict):
            found = cast("dict[str, Any]", call)
            calls[str(found.get("id"))] = cast("dict[str, Any]", found.get("function") or {})
    more = {k: v for k, v in message.items() if k not in _MESSAGE_FIELDS and v is not None}
    return Message(
        role=message["role"],
        content=message.get("content"),
        tool_calls=message.get("tool_calls") or None,
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
        attributes=more or None,
    )


def _tool_execution(
    message: Mapping[str, Any], calls: Mapping[str, Mapping[str, Any]]
) -> ToolExecution:
    call_id = message.get("tool_call_id")
    call = calls.get(str(call_id), {})
    return ToolExecution(
        name=str(message.get("name") or call.get("name") or "unknown"),
        call_id=call_id,
        arguments=call.get("arguments"),
        result=message.get("content"),
    )
