"""``caribou migrate``."""

from __future__ import annotations

import asyncio

import click

from .._settings import Settings, from_environment
from ..errors import ConfigurationError
from ..schema import migrate, render
from ._options import json_option
from ._output import print_json

__all__ = ["command"]


@click.command()
@click.option("--cluster", metavar="NAME", help="Run every statement ON CLUSTER this one.")
@click.option("--replicated", is_flag=True, help="Use the Replicated table engines.")
@click.option("--print", "show", is_flag=True, help="Print the statements instead of running them.")
@json_option
def command(cluster: str | None, replicated: bool, show: bool, as_json: bool) -> None:
    """Create or update the tables on the server.

    Safe to run again, and by many at once.
    """
    settings = from_environment()
    database = settings.clickhouse_database
    if show:
        statements = render(database, cluster, replicated)
        if as_json:
            print_json({"statement": statement} for statement in statements)
        else:
            print(";\n\n".join(statements) + ";")
        return
    if settings.clickhouse_url is None:
        raise ConfigurationError(
            "CLICKHOUSE_URL is not set, and the local store creates its tables itself;"
            " --print shows them"
        )
    done = asyncio.run(_migrate(settings, cluster, replicated))
    if as_json:
        print_json({"migration": name} for name in done)
    elif done:
        print(f"Applied to database {database}: {', '.join(done)}.")
    else:
        print(f"Database {database} is up to date.")


async def _migrate(settings: Settings, cluster: str | None, replicated: bool) -> list[str]:
    # Late: --print needs no network library.
    from ..store.server import server_reader

    reader = server_reader(settings, read_only=False)
    try:
        await reader.ping()
        return await migrate(
            reader.execute,
            database=settings.clickhouse_database,
            cluster=cluster,
            replicated=replicated,
        )
    finally:
        await reader.aclose()
