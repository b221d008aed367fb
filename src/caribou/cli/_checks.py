"""What ``caribou doctor`` looks at. A check only reads, and says what to do about a finding."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from .._otel_settings import why_otlp_is_left_alone
from .._otlp_transport import found
from .._settings import Settings
from ..delivery.dead_letters import read_dead_letters
from ..errors import CaribouError, JournalError, StoreError
from ..journal.owner import (
    EXPORTER,
    OwnerInfo,
    is_alive,
    network_file_system,
    owner_folders,
    read_info,
)
from ..journal.reader import read_rows, segment_files
from ..schema import OLDEST_SERVER, SERVER_NEEDED, release_of
from ..sinks._clickhouse_errors import MISSING_SCHEMA
from ..sinks.base import SinkError
from ._format import counted
from ._owners import undelivered

__all__ = ["Check", "all_checks"]

_SERVER_SECONDS = 5.0
_LITTLE_SPACE = 256 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``advice`` says what to do when ``status`` is not ``ok``."""

    check: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    advice: str = ""


@dataclass(slots=True)
class _Owners:
    """Owners below the journal that live, or that died, and what they hold."""

    count: int = 0
    # Of these, those with rows that a server is to get.
    waiting: int = 0
    stored: int = 0
    # sink and its target -> rows and bytes not acknowledged
    rows: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])


def all_checks(settings: Settings) -> Iterator[Check]:
    """Run every check, cheap ones first."""
    yield from _configuration(settings)
    yield from _engine(settings)
    if settings.clickhouse_url is not None:
        yield from _server(settings)
    yield from _span_backends(settings)
    yield from _journal_folder(settings.journal_dir)
    yield from _owners(settings)
    yield from _dead_letters(settings.journal_dir)


def _configuration(settings: Settings) -> Iterator[Check]:
    if settings.disabled:
        yield Check(
            "recording", "problem", "CARIBOU_DISABLED is set: nothing is recorded", "unset it"
        )
    if settings.clickhouse_url is None:
        yield Check("mode", "ok", f"local: CLICKHOUSE_URL is not set, the store is {settings.home}")
    else:
        password = "set" if settings.clickhouse_password else "not set"
        yield Check(
            "mode",
            "ok",
            f"server: {settings.clickhouse_url}, database {settings.clickhouse_database},"
            f" user {settings.clickhouse_user or 'default'}, password {password}",
        )


def _engine(settings: Settings) -> Iterator[Check]:
    if importlib.util.find_spec("chdb") is not None:
        yield Check("extra local", "ok", "the embedded engine is installed")
    elif settings.clickhouse_url is None:
        yield Check(
            "extra local",
            "warning",
            "the embedded engine is missing: rollouts are recorded but cannot be read here",
            "pip install 'caribou-trace[local]'",
        )
    else:
        yield Check("extra local", "ok", "not installed, and not needed with a server")


def _server(settings: Settings) -> Iterator[Check]:
    # Late: it imports the network library.
    from ..store.server import ServerStore

    with ServerStore(settings, timeout=_SERVER_SECONDS) as store:
        try:
            version = store.version()
        except CaribouError as error:
            yield Check(
                "server",
                "problem",
                str(error),
                "check CLICKHOUSE_URL, CLICKHOUSE_USER and CLICKHOUSE_PASSWORD;"
                " what is recorded waits in the journal",
            )
            return
        answers = f"ClickHouse {version} answers"
        if release_of(version) < OLDEST_SERVER:
            advice = f"{SERVER_NEEDED}; what is recorded waits in the journal"
            yield Check("server", "problem", answers, advice)
            return
        yield Check("server", "ok", answers)
        try:
            store.rows("SELECT trace_id FROM traces LIMIT 1")
        except CaribouError as error:
            # A right that is lacking needs somebody else.
            missing = isinstance(error, StoreError) and error.code in MISSING_SCHEMA
            advice = "run: caribou migrate" if missing else ""
            yield Check("schema", "problem", str(error), advice)
        else:
            yield Check("schema", "ok", f"database {settings.clickhouse_database} has the tables")


def _span_backends(settings: Settings) -> Iterator[Check]:
    # Late: it imports the network library.
    import asyncio

    from ..sinks.langfuse import Langfuse
    from ..sinks.otlp import OTLP

    sinks: list[tuple[str, Langfuse | OTLP, str]] = []
    if settings.langfuse_public_key is not None:
        host, key = settings.langfuse_host, settings.langfuse_public_key
        secret = settings.langfuse_secret_key or ""
        sink = Langfuse(
            host, public_key=key, secret_key=secret, timeout=_SERVER_SECONDS,
            connect_timeout=_SERVER_SECONDS,
        )  # fmt: skip
        settled = "LANGFUSE_HOST, LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY"
        sinks.append((settled, sink, f"Langfuse at {host} takes spans, project key {key}"))
    if settings.otlp_endpoint is not None:
        endpoint, headers = settings.otlp_endpoint, dict(settings.otlp_headers)
        options = msgspec.structs.asdict(settings.otlp_transport)
        options["timeout"] = min(_SERVER_SECONDS, options["timeout"])
        sink = OTLP(endpoint, headers=headers, connect_timeout=_SERVER_SECONDS, **options)
        settled = "OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS"
        shown = f", headers {', '.join(headers)}" if headers else ""
        sinks.append((settled, sink, f"{endpoint} takes spans{shown}"))
    else:
        yield from _unused_endpoint()
    for variables, sink, detail in sinks:
        try:
            asyncio.run(sink.check())
        except SinkError as error:
            yield Check(
                sink.name,
                "problem",
                error.reason,
                f"check {variables}; what is recorded waits in the journal",
            )
        else:
            yield Check(sink.name, "ok", detail)


def _unused_endpoint() -> Iterator[Check]:
    variable, endpoint = found(os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT")
    reason = why_otlp_is_left_alone(os.environ) if endpoint else ""
    if reason:
        advice = "configure(otlp=...) names an endpoint for Caribou alone"
        yield Check("otlp", "warning", f"{variable} is not used: {reason}", advice)


def _journal_folder(folder: Path) -> Iterator[Check]:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Check(
            "journal folder",
            "problem",
            f"{folder} cannot be written: rows are kept in memory and lost if the process dies",
            "point CARIBOU_JOURNAL_DIR at a folder on a local disk",
        )
        return
    kind = network_file_system(existing)
    free = shutil.disk_usage(existing).free
    if kind is not None:
        yield Check(
            "journal folder",
            "warning",
            f"{folder} is on a network file system ({kind}): slow, and locks may not reach others",
            "point CARIBOU_JOURNAL_DIR at a folder on a local disk",
        )
    elif free < _LITTLE_SPACE:
        yield Check(
            "journal folder",
            "problem",
            f"{folder} has {_size(free)} left on its disk: new rollouts will run untraced",
            "make room, or point CARIBOU_JOURNAL_DIR at another disk",
        )
    else:
        yield Check("journal folder", "ok", f"{folder}, {_size(free)} free")


def _owners(settings: Settings) -> Iterator[Check]:
    alive, dead = _Owners(), _Owners()
    for folder in owner_folders(settings.journal_dir):
        try:
            info = read_info(folder)
        except JournalError as error:
            yield Check(
                "journal",
                "problem",
                str(error),
                f"look into {folder}; its rows are plain JSON lines",
            )
            continue
        _measure(folder, info, alive if is_alive(folder) else dead)
    kept = alive.stored + dead.stored
    if kept:
        detail = f"{_size(kept)} of rows are kept here for the local store"
        if settings.clickhouse_url is not None and dead.stored:
            detail += "; `caribou replay` moves those of ended processes to the server"
        yield Check("journal", "ok", detail)
    verb = "is" if alive.count == 1 else "are"
    recording = f"{counted(alive.count, 'process')} {verb} recording now"
    yield Check("running processes", "ok", recording + _pending(alive))
    if not dead.rows:
        yield Check("ended processes", "ok", "none left rows to deliver")
        return
    advice = "run: caribou replay"
    urls = {
        "clickhouse": ("CLICKHOUSE_URL", settings.clickhouse_url),
        "kestrel": ("KESTREL_API_URL", settings.kestrel_api_url),
        "langfuse": ("LANGFUSE_HOST and both keys", settings.langfuse_public_key),
        "otlp": ("OTEL_EXPORTER_OTLP_ENDPOINT", settings.otlp_endpoint),
    }
    sinks = {sink for sink, _ in dead.rows}
    for sink in sorted(sinks & urls.keys()):
        variable, url = urls[sink]
        if url is None:
            advice = f"set {variable} to that server and {advice}"
    exporters = {sink for sink in sinks if sink.startswith(EXPORTER)}
    if exporters:
        # No command has the objects of a program.
        theirs = "start a program with such an exporter in configure(exporters=[...])"
        advice = theirs if exporters == sinks else f"{advice}; {theirs}"
    left = f"{counted(dead.waiting, 'process')} left rows to deliver"
    yield Check("ended processes", "problem", left + _pending(dead), advice)


def _measure(folder: Path, info: OwnerInfo, owners: _Owners) -> None:
    owners.count += 1
    if info.local:
        owners.stored += sum(segment.committed() for segment in segment_files(folder))
    waits = False
    for sink, target, segment, start in undelivered(folder, info):
        waiting = read_rows(segment, start)
        if waiting:
            waits = True
            owners.bytes[sink, target] += len(waiting)
            owners.rows[sink, target] += waiting.count(b"\n")
    owners.waiting += waits


def _pending(owners: _Owners) -> str:
    return "".join(
        f"; for {sink} at {target}: {counted(rows, 'row')}"
        f" ({_size(owners.bytes[sink, target])}) pending"
        for (sink, target), rows in owners.rows.items()
    )


def _dead_letters(journal: Path) -> Iterator[Check]:
    letters = read_dead_letters(journal)
    folder = journal / "dead"
    if not letters:
        yield Check("dead letters", "ok", "no row was refused")
    by_sink = Counter((letter.sink, letter.table) for letter in letters)
    for (sink, table), count in by_sink.items():
        last = [letter for letter in letters if (letter.sink, letter.table) == (sink, table)][-1]
        yield Check(
            "dead letters",
            "problem",
            f"{count} rows of {table} were refused by {sink}, the last with: {last.reason[:200]}",
            f"see {folder}/{table}-{sink}-*.ndjson; delete the files when they are dealt with",
        )
    torn = list(folder.glob("*.torn"))
    if torn:
        yield Check(
            "torn rows",
            "ok",
            f"{len(torn)} half-written rows of killed processes are kept in {folder};"
            " nobody was told that they were logged",
        )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
