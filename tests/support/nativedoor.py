"""The door's native port: enough of ClickHouse's protocol, as servers of today speak it to asynch.

It is no server: the engine answers, as behind the door's HTTP port, and what is stood in for there
is here too. A query's answer may hold numbers and texts only.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from asynch.errors import OperationalError
from asynch.proto.block import BlockInfo, ColumnOrientedBlock
from asynch.proto.compression import get_compressor_cls
from asynch.proto.context import Context
from asynch.proto.cs import ServerInfo
from asynch.proto.streams.block import BlockReader, BlockWriter
from asynch.proto.streams.buffered import (
    BufferedReader,
    BufferedWriter,
    CompressedBufferedReader,
)
from asynch.proto.streams.compressed import CompressedBlockWriter

_REVISION = 54478  # of a server of 2026; the client's, 54453, is what both go by
_BLOCK_INFO = 8  # bytes
_INSERT = re.compile(r"INSERT INTO ((?:\S|` `)+) \(([^)]*)\) VALUES\s*$")
_FORMAT = re.compile(r"\sFORMAT\s+\w+\s*$", re.IGNORECASE)
_SET = re.compile(r"SET (?:param_)(\w+) = ('.*')$", re.DOTALL)


class Door(Protocol):
    """What is shared with the HTTP port."""

    def check_user(self, user: str, password: str) -> None: ...

    async def statement(
        self,
        sql: str,
        *,
        data: bytes | None,
        query_id: str,
        readonly: bool,
        database: str,
        output: str,
        settings: Mapping[str, str],
        parameters: Mapping[str, str],
    ) -> tuple[bytes, int]: ...


@dataclass
class Query:
    """One statement as it came."""

    id: str
    sql: str
    settings: dict[str, str] = field(default_factory=dict[str, str])
    compressed: bool = False


def _teed(base: Any) -> Any:
    """A buffered reader that keeps all it was given."""

    class Teed(base):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.kept = bytearray()

        async def _read_into_buffer(self) -> None:
            await super()._read_into_buffer()
            self.kept += self.buffer

        def take(self) -> bytes:
            """What was read since the last time; the rest is still to be read."""
            end = len(self.kept) - (self.current_buffer_size - self.position)
            taken = bytes(self.kept[:end])
            del self.kept[:end]
            return taken

    return Teed


TeedReader = _teed(BufferedReader)
TeedCompressedReader = _teed(CompressedBufferedReader)


class Conversation:
    """One client's connection."""

    def __init__(
        self,
        door: Door,
        refusal: type[Exception],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._door = door
        self._refusal: Any = refusal
        self._in = TeedReader(reader)
        self._out = BufferedWriter(writer)
        self._context = Context()
        self._context.client_settings = {"strings_as_bytes": False}
        self._context.server_info = ServerInfo("d", 26, 9, 1, _REVISION, "UTC", "door")
        self._compressed_in = TeedCompressedReader(self._in, reader)
        self._parameters: dict[str, str] = {}
        self._database = ""

    async def run(self) -> None:
        """Answer until the client hangs up."""
        try:
            await self._hello()
            while True:
                if await self._in.read_varint() != 1:
                    raise ConnectionError("not a query")
                query = await self._query()
                try:
                    await self._answer(query)
                except self._refusal as refusal:
                    await self._exception(refusal.code, str(refusal))
                    return
        except self._refusal as refusal:
            await self._exception(refusal.code, str(refusal))
        except (OSError, OperationalError, EOFError, IndexError, ValueError, struct.error):
            pass

    async def _hello(self) -> None:
        await self._in.read_varint()
        await self._in.read_str()
        for _ in range(3):
            await self._in.read_varint()
        self._database = await self._in.read_str()
        user = await self._in.read_str()
        self._door.check_user(user, await self._in.read_str())
        if self._database:
            there = await self._ask(f"EXISTS DATABASE `{self._database}`", database="")
            if there != [[1]]:
                raise self._refusal(
                    f"Code: 81. DB::Exception: Database {self._database} does not exist."
                )
        await self._out.write_varint(0)
        await self._out.write_str("ClickHouse")
        for number in (26, 9, _REVISION):
            await self._out.write_varint(number)
        await self._out.write_str("UTC")
        await self._out.write_str("door")
        await self._out.write_varint(1)
        await self._out.flush()

    async def _query(self) -> Query:
        read = self._in
        query = Query(await read.read_str(), "")
        await read.read_uint8()
        for _ in range(3):
            await read.read_str()
        await read.read_uint64()
        await read.read_uint8()
        for _ in range(3):
            await read.read_str()
        for _ in range(3):
            await read.read_varint()
        await read.read_str()
        for _ in range(2):
            await read.read_varint()
        assert await read.read_uint8() == 0
        for _ in range(3):
            await read.read_varint()
        while name := await read.read_str():
            await read.read_uint8()
            query.settings[name] = await read.read_str()
        await read.read_str()
        await read.read_varint()
        query.compressed = bool(await read.read_varint())
        query.sql = await read.read_str()
        await self._data(query)  # no temporary table, so it is empty
        return query

    async def _data(self, query: Query) -> bytes:
        """One block as it came, without what only the protocol has; empty at the end."""
        if await self._in.read_varint() != 2:
            raise ConnectionError("not data")
        await self._in.read_str()
        reader = self._compressed_in if query.compressed else self._in
        reader.take()
        block = await BlockReader(reader, None, self._context).read()
        taken = reader.take()
        return taken[_BLOCK_INFO:] if block.num_rows else b""

    async def _answer(self, query: Query) -> None:
        kept = _SET.match(query.sql)
        insert = _INSERT.match(query.sql)
        if kept is not None:
            [[value]] = await self._ask(f"SELECT {kept[2]}", database="", settings=query.settings)
            self._parameters[kept[1]] = value
        elif insert is not None:
            await self._insert(query, insert[1], insert[2])
        else:
            output = "JSONCompactEachRowWithNamesAndTypes"
            # Servers leave formats to clients here, whatever the statement says.
            text = await self._run(query, _FORMAT.sub("", query.sql), output=output)
            if text:
                await self._rows(query, [json.loads(line) for line in text.splitlines()])
        await self._progress()
        await self._out.write_varint(5)
        await self._out.flush()

    async def _insert(self, query: Query, table: str, columns: str) -> None:
        names = [name.strip().strip("`") for name in columns.split(",")]
        described = await self._run(
            query, f"DESCRIBE TABLE {table}", output="JSONCompactEachRow", inner=True
        )
        types = {row[0]: row[1] for row in map(json.loads, described.splitlines())}
        for name in names:
            if name not in types:
                raise self._refusal(f"Code: 16. DB::Exception: No such column {name} in {table}")
        await self._header(query, [(name, types[name]) for name in names])
        blocks: list[bytes] = []
        while block := await self._data(query):
            blocks.append(block)
        # A packet that is no acknowledgement, as servers send it while they write.
        await self._progress()
        await self._out.flush()
        sql = f"INSERT INTO {table} ({columns}) FORMAT Native"
        await self._run(query, sql, data=b"".join(blocks))

    async def _run(
        self,
        query: Query,
        sql: str,
        *,
        data: bytes | None = None,
        output: str = "TSV",
        inner: bool = False,
    ) -> bytes:
        answer, _ = await self._door.statement(
            sql,
            data=data,
            query_id="" if inner else query.id,
            readonly=query.settings.get("readonly", "0") != "0",
            database=self._database,
            output=output,
            settings={} if inner else query.settings,
            parameters=self._parameters,
        )
        return answer

    async def _ask(
        self, sql: str, *, database: str, settings: Mapping[str, str] | None = None
    ) -> list[list[Any]]:
        text, _ = await self._door.statement(
            sql,
            data=None,
            query_id="",
            readonly=False,
            database=database,
            output="JSONCompactEachRow",
            settings=settings or {},
            parameters={},
        )
        return [json.loads(line) for line in text.splitlines()]

    def _blocks(self, query: Query) -> BlockWriter:
        if not query.compressed:
            return BlockWriter(None, self._out, self._context)
        compressor = get_compressor_cls("lz4")(BufferedWriter())
        return CompressedBlockWriter(None, self._out, self._context, compressor, 1 << 20)

    async def _header(self, query: Query, columns: list[tuple[str, str]]) -> None:
        """A block of no rows, which names the columns."""
        await self._out.write_varint(1)
        await self._out.write_str("")
        blocks: Any = self._blocks(query)
        info: Any = BlockInfo()
        await info.write(blocks.writer)
        await blocks.writer.write_varint(len(columns))
        await blocks.writer.write_varint(0)
        for name, kind in columns:
            await blocks.writer.write_str(name)
            await blocks.writer.write_str(kind)
        await blocks.finalize()

    async def _rows(self, query: Query, lines: list[list[Any]]) -> None:
        names, types, *rows = lines
        columns = list(zip(names, types, strict=True))
        await self._header(query, columns)
        if rows:
            await self._out.write_varint(1)
            await self._out.write_str("")
            data = [list(column) for column in zip(*rows, strict=True)]
            for column, kind in zip(data, types, strict=True):
                if "Int" in kind:
                    column[:] = [None if value is None else int(value) for value in column]
            block = ColumnOrientedBlock(columns_with_types=columns, data=data)
            await self._blocks(query).write(block)

    async def _progress(self) -> None:
        await self._out.write_varint(3)
        for number in (1, 1, 0, 1, 1):
            await self._out.write_varint(number)

    async def _exception(self, code: int, message: str) -> None:
        await self._out.write_varint(2)
        await self._out.write_int32(code)
        for text in ("DB::Exception", re.sub(r"^Code: \d+\. ", "", message), ""):
            await self._out.write_str(text)
        await self._out.write_uint8(0)
        await self._out.flush()


async def listen(door: Door, refusal: type[Exception], port: int) -> asyncio.Server:
    """Start to listen on loopback."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await Conversation(door, refusal, reader, writer).run()
        finally:
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port, limit=1 << 20)
