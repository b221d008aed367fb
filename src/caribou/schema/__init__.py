"""The ClickHouse tables: their DDL as ``.sql`` files, its migrations, and how rows are put in."""

from __future__ import annotations

from caribou.schema.migrate import (
    OLDEST_SERVER,
    SERVER_NEEDED,
    migrate,
    migrate_sync,
    release_of,
    render,
)
from caribou.schema.tables import (
    TABLES,
    Table,
    insert_statement,
    parameter,
    quote,
    quote_text,
    scripts,
)

__all__ = [
    "OLDEST_SERVER",
    "SERVER_NEEDED",
    "TABLES",
    "Table",
    "insert_statement",
    "migrate",
    "migrate_sync",
    "parameter",
    "quote",
    "quote_text",
    "release_of",
    "render",
    "scripts",
]
