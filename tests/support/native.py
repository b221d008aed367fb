"""Blocks of the native protocol as files that the current engine reads, and servers to speak to."""

from __future__ import annotations

from urllib.parse import urlencode

from caribou._varint import varint
from caribou.schema import TABLES
from caribou.sinks._clickhouse_native_blocks import Block, Layout
from caribou.sinks.base import Batch
from support.servers import DoorServer


def layout(table: str) -> Layout:
    """The columns of a table as a server with the whole schema declares them."""
    columns = [(column.name, column.type) for column in TABLES[table].columns]
    fills = {c.name: int(c.default) for c in TABLES[table].columns if c.default}
    return Layout([*columns, ("batch_id", "String")], fills)


def native_file(block: Block) -> bytes:
    """The block as ``FORMAT Native`` has it."""
    columns = list(block.columns())
    parts = [varint(len(columns)), varint(block.rows)]
    for name, kind, content in columns:
        for text in (name.encode(), kind.encode()):
            parts += [varint(len(text)), text]
        parts += content
    return b"".join(parts)


def store_block(door: DoorServer, database: str, batch: Batch) -> None:
    """Insert the batch into the current engine as a native block, made in slices of a few rows."""
    block = Block(layout(batch.table), {"batch_id": batch.batch_id})
    lines = bytes(batch.data).splitlines(keepends=True)
    for start in range(0, len(lines), 7):
        block.add(b"".join(lines[start : start + 7]))
    assert block.rows == batch.rows
    names = ", ".join(name for name, _ in block.layout.columns)
    sql = f"INSERT INTO {database}.{batch.table}_rows ({names}) FORMAT Native"
    query = urlencode({"query": sql, "optimize_on_insert": "0"})
    status, answer = door.post(f"/?{query}", native_file(block))
    assert status == 200, answer
