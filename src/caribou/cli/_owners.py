"""What owners below the journal, alive or dead, still hold for servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .._settings import Settings
from ..errors import JournalError
from ..journal.cursor import Cursor
from ..journal.owner import OwnerInfo, owner_folders, read_info, stores, takes
from ..journal.reader import SegmentFile, segment_files

__all__ = ["destinations", "servers_waited_for", "undelivered"]


def destinations(settings: Settings) -> str:
    """Where rows are delivered to, for a person."""
    found: list[str] = []
    if settings.clickhouse_url is not None:
        found.append(f"{settings.clickhouse_url}, database {settings.clickhouse_database}")
    if settings.kestrel_api_url is not None:
        found.append(f"Kestrel at {settings.kestrel_api_url}")
    if settings.langfuse_public_key is not None:
        found.append(f"Langfuse at {settings.langfuse_host}")
    if settings.otlp_endpoint is not None:
        found.append(settings.otlp_endpoint)
    return " and ".join(found)


def undelivered(folder: Path, info: OwnerInfo) -> Iterator[tuple[str, str, SegmentFile, int]]:
    """Segments of an owner with rows that a sink has not acknowledged: the sink, its target, the
    segment, and the byte at which they begin."""
    segments = segment_files(folder)
    for sink, target in info.sinks.items():
        cursor = Cursor(folder, sink)
        for segment in segments:
            if not takes(sink, segment.table):
                continue
            start = cursor.acknowledged(segment.table, segment.number)
            if segment.committed() > start:
                yield sink, target, segment, start


def servers_waited_for(journal: Path) -> dict[str, int]:
    """For each target that traces wait for, how many owners hold some. Reads no rows."""
    found: dict[str, int] = {}
    for folder in owner_folders(journal):
        try:
            info = read_info(folder)
        except JournalError:
            # `caribou doctor` tells of it.
            continue
        if info.local:
            continue
        waiting = undelivered(folder, info)
        for target in {target for sink, target, _, _ in waiting if stores(sink, "spans")}:
            found[target] = found.get(target, 0) + 1
    return found
