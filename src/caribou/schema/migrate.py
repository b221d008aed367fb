"""Bring a database up to the schema this version writes; safe to run again and by many at once.

The steps are a generator of SQL statements that is sent each statement's result, so that one
implementation serves a server reached through asyncio and an engine that is called directly.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator

from caribou.errors import ConfigurationError
from caribou.schema.tables import ALL_TABLES, quote, quote_text, scripts

__all__ = ["OLDEST_SERVER", "SERVER_NEEDED", "migrate", "migrate_sync", "release_of", "render"]

OLDEST_SERVER = (24, 8)
"""The oldest release of ClickHouse that can hold the tables."""
SERVER_NEEDED = "ClickHouse {}.{} or newer is needed".format(*OLDEST_SERVER)

_APPLIED = """\
CREATE TABLE IF NOT EXISTS {database}.schema_migrations{on_cluster}
(
    version UInt32,
    name String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replicated}ReplacingMergeTree
ORDER BY version"""

# Finds words and parts of words; servers older than 26.2 have an index of whole words at most.
_TEXT_INDEX = "text(tokenizer = 'splitByNonAlpha')"
_OLDER_TEXT_INDEX = "tokenbf_v1(32768, 3, 0) GRANULARITY 1"
_HAS_TEXT_INDEX = (26, 2)


def _fill(
    sql: str,
    database: str,
    cluster: str | None,
    replicated: bool,
    text_index: str = _TEXT_INDEX,
) -> str:
    if not database or "\0" in database:
        raise ConfigurationError("the database name must be a non-empty string")
    return (
        sql.replace("{database}", quote(database))
        .replace("{on_cluster}", f" ON CLUSTER {quote_text(cluster)}" if cluster else "")
        .replace("{replicated}", "Replicated" if replicated else "")
        .replace("{text_index}", text_index)
    )


def _statements(sql: str) -> list[str]:
    """Split a script at the semicolons that end a line; comments stay with what they precede."""
    return [part.strip() for part in sql.split(";\n") if part.strip()]


def _steps(
    database: str, cluster: str | None, replicated: bool
) -> Generator[str, bytes, list[str]]:
    def fill(sql: str, text_index: str = _TEXT_INDEX) -> str:
        return _fill(sql, database, cluster, replicated, text_index)

    # Asked first: the statement that creates it needs a right that the owner of one database,
    # made for it by somebody else, may well not have.
    known = yield (
        f"SELECT count() FROM system.databases WHERE name = {quote_text(database)} FORMAT TSV"
    )
    if int(known) == 0:
        yield fill("CREATE DATABASE IF NOT EXISTS {database}{on_cluster}")
    yield fill(_APPLIED)
    answer = yield fill("SELECT DISTINCT version FROM {database}.schema_migrations FORMAT TSV")
    applied = {int(line) for line in answer.split()}
    answer = yield (
        f"SELECT name FROM system.tables WHERE database = {quote_text(database)} FORMAT TSV"
    )
    if not set(ALL_TABLES).issubset(answer.decode().split()):
        applied.clear()  # somebody dropped a table; every statement may be run again
    answer = yield "SELECT version() FORMAT TSV"
    has_text_index = release_of(answer.decode()) >= _HAS_TEXT_INDEX
    text_index = _TEXT_INDEX if has_text_index else _OLDER_TEXT_INDEX
    done: list[str] = []
    for number, name, sql in scripts():
        if number in applied:
            continue
        # Not "yield from": a list cannot be sent the results.
        for statement in _statements(fill(sql, text_index)):  # noqa: UP028
            yield statement
        yield fill(_record(number, name))
        done.append(name)
    return done


def _record(number: int, name: str) -> str:
    return (
        "INSERT INTO {database}.schema_migrations (version, name) "
        # Not VALUES: over the native protocol their data would have to come apart.
        f"SELECT {number}, {quote_text(name)}"
    )


def release_of(version: str) -> tuple[int, ...]:
    """Year and number of the release that a server's ``version()`` tells; empty where none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()


async def migrate(
    execute: Callable[[str], Awaitable[bytes]],
    *,
    database: str,
    cluster: str | None = None,
    replicated: bool = False,
) -> list[str]:
    """Create or update the tables and views.

    Args:
        execute: runs one SQL statement and returns what the server answered.
        database: the database to hold them; created when it is missing.
        cluster: run every statement ``ON CLUSTER`` this one.
        replicated: use the replicated engines, whose paths the server's defaults give.

    Returns:
        The names of the migrations applied now; empty when there was nothing to do.

    Raises:
        ConfigurationError: the database name cannot be one.
        Exception: whatever ``execute`` raises.
    """
    steps = _steps(database, cluster, replicated)
    try:
        statement = next(steps)
        while True:
            statement = steps.send(await execute(statement))
    except StopIteration as end:
        return end.value


def migrate_sync(execute: Callable[[str], bytes], *, database: str) -> list[str]:
    """The same for an engine that is called directly: the embedded one.

    Returns:
        The names of the migrations applied now; empty when there was nothing to do.

    Raises:
        ConfigurationError: the database name cannot be one.
        Exception: whatever ``execute`` raises.
    """
    steps = _steps(database, None, False)
    try:
        statement = next(steps)
        while True:
            statement = steps.send(execute(statement))
    except StopIteration as end:
        return end.value


def render(database: str, cluster: str | None = None, replicated: bool = False) -> list[str]:
    """Every statement that makes the schema from nothing, in order, for people to run themselves.

    They are for ClickHouse 26.2 and newer; see docs/deployment.md for the index of older ones.

    Raises:
        ConfigurationError: the database name cannot be one.
    """
    parts = ["CREATE DATABASE IF NOT EXISTS {database}{on_cluster}", _APPLIED]
    for number, name, sql in scripts():
        parts += [*_statements(sql), _record(number, name)]
    return [_fill(part, database, cluster, replicated) for part in parts]
