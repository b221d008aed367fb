"""One connection of ClickHouse's native protocol, spoken by asynch.

asynch shakes hands, sends statements and takes packets apart. Its own ``execute`` is not used: it
takes any packet for an insert's acknowledgement, progress and logs included, and encodes a whole
column without a pause. Here an insert is stored when the server said end of stream, and blocks are
written in pieces.

This module imports asynch: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import ssl
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asynch.errors import ServerException, UnexpectedPacketFromServerError
from asynch.proto import connection as protocol
from asynch.proto import constants
from asynch.proto.block import BlockInfo
from asynch.proto.protocol import ClientPacket, ServerPacket
from asynch.proto.result import QueryInfo
from asynch.proto.streams.block import BlockReader
from asynch.proto.streams.buffered import BufferedReader, BufferedWriter

from caribou._pace import Pace
from caribou.sinks._answers import NoAnswer, clean
from caribou.sinks._clickhouse_endpoint import Endpoint
from caribou.sinks._clickhouse_errors import server_error
from caribou.sinks._clickhouse_native_blocks import Block
from caribou.sinks._resolve import look_up

__all__ = ["IS_IT_THE_PORT", "Answer", "Connection", "can_compress"]

_logger = logging.getLogger("caribou")

IS_IT_THE_PORT = "is it the native port (9000, or 9440 with TLS)?"
"""What to look at where nothing answers as a native port does."""

# Bytes of a block between two pauses, and in one compressed frame: a millisecond's work.
_PIECE = 256 * 1024
# The only settings that may go to servers which take them by type: asynch knows these types.
_BINARY_SETTINGS = frozenset({"readonly", "max_execution_time"})

Columns = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Answer:
    """What a statement answered: names and types of its columns, and their values in blocks."""

    columns: Columns = ()
    blocks: list[Sequence[Sequence[Any]]] = field(default_factory=list[Sequence[Sequence[Any]]])


def can_compress() -> bool:
    """Whether the packages are there that LZ4 takes, which servers answer with as well."""
    return all(importlib.util.find_spec(name) for name in ("lz4", "clickhouse_cityhash"))


class Connection:
    """Runs one statement at a time. After any exception, a cancellation included, ``abort`` it."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        database: str,
        compress: bool,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is sent before :meth:`open`. ``database`` is where plain names are looked up;
        ``tls`` is what a server with TLS is checked by."""
        self._endpoint = endpoint
        self._tls = tls
        self._compress = compress
        # Of its types some say less than they take, and some nothing.
        make: Any = protocol.Connection
        self._wire = make(
            user=endpoint.user or constants.DEFAULT_USER,
            password=endpoint.password,
            host=endpoint.host,
            port=endpoint.port,
            database=database,
            client_name="caribou",
            compression="lz4" if compress else False,
            # Bytes: what agents wrote need not be text when it comes back.
            settings={"strings_as_bytes": True},
        )
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None
        self.sent = False

    @property
    def is_idle(self) -> bool:
        """Whether the next statement can go out: as far as is known the server has not hung up,
        and it has said nothing since the end of its last answer. Whatever it said would be taken
        for the answer to that statement."""
        reader = self._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            return False
        taken: Any = self._wire.reader
        return taken.position == taken.current_buffer_size and not taken.reader._buffer

    @property
    def is_legacy(self) -> bool:
        """Whether the server takes settings by type only, as those before 20.1 do."""
        revision = self._wire.server_info.revision
        return revision < constants.DBMS_MIN_REVISION_WITH_SETTINGS_SERIALIZED_AS_STRINGS

    async def open(self) -> None:
        """Connect and shake hands.

        Raises:
            ServerError: the server refused the user.
            NoAnswer: it could not be reached, or is no ClickHouse.
        """
        with _failures(self):
            reader, writer = await self._connect()
            self._reader, self._writer = reader, writer
            wire = self._wire
            wire.host, wire.port = self._endpoint.host, self._endpoint.port
            wire.reader, wire.writer = BufferedReader(reader), BufferedWriter(writer)
            wire.block_reader_raw = BlockReader(wire.reader, wire.writer, wire.context)
            if self._compress:
                from ._clickhouse_native_frames import FrameReader, FrameWriter

                compressor = wire.compressor_cls(BufferedWriter())
                size = wire.compress_block_size
                streams = wire.reader, wire.writer, wire.context
                wire.block_reader = FrameReader(*streams)
                wire.block_writer = FrameWriter(*streams, compressor, size)
            else:
                wire.block_reader = wire.get_block_reader()
                wire.block_writer = wire.get_block_writer()
            await wire.send_hello()
            await wire.receive_hello()

    async def ask(self, sql: str, settings: Mapping[str, str]) -> Answer:
        """Run a statement; its answer, once the server has said that this was all.

        Raises:
            ServerError: the server said that it failed.
            NoAnswer: no whole answer came.
        """
        answer = Answer()
        with _failures(self):
            await self._begin(sql, settings)
            while packet := await self._wire.receive_packet():
                if packet is not True and packet.type == ServerPacket.DATA:
                    answer.columns = answer.columns or packet.block.columns_with_types
                    if packet.block.num_rows:
                        answer.blocks.append(packet.block.get_columns())
        return answer

    async def insert(
        self,
        sql: str,
        settings: Mapping[str, str],
        query_id: str,
        fill: Callable[[Columns], Awaitable[Block | None]],
    ) -> None:
        """Run ``INSERT INTO ...`` with one block of rows; return when the server has stored it.

        ``fill`` is given the columns that the server expects, and makes the block; None inserts
        nothing. Rows have only left, and ``sent`` is only true, once it has returned.

        Raises:
            ServerError: the server said that it failed.
            NoAnswer: the end of the stream did not come.
            Exception: whatever ``fill`` raises.
        """
        with _failures(self):
            await self._begin(sql, settings, query_id)
            while True:
                packet = await self._wire.receive_packet()
                if packet is False:
                    raise UnexpectedPacketFromServerError("the insert ended before it began")
                if packet is not True and packet.type == ServerPacket.DATA:
                    break
        block = await fill(packet.block.columns_with_types)
        with _failures(self):
            self.sent = True
            if block is not None:
                await self._send(block)
            await self._wire.send_external_tables(None)  # an empty block: that was all
            while await self._wire.receive_packet():
                pass

    def abort(self) -> None:
        """Close the socket at once, whatever is under way on it."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _begin(self, sql: str, settings: Mapping[str, str], query_id: str = "") -> None:
        self.sent = False
        wire = self._wire
        if self.is_legacy:
            settings = {name: settings[name] for name in _BINARY_SETTINGS & settings.keys()}
        wire.make_query_settings(settings)
        wire.last_query = QueryInfo(wire.reader)
        await wire.send_query(sql, query_id=query_id)
        await wire.send_external_tables(None)

    async def _send(self, block: Block) -> None:
        raw = self._wire.writer
        blocks = self._wire.block_writer
        columns = list(block.columns())
        await raw.write_varint(ClientPacket.DATA)
        await raw.write_str("")  # the name of a temporary table, which this is not
        writer = blocks.writer
        info: Any = BlockInfo()
        await info.write(writer)
        await writer.write_varint(len(columns))
        await writer.write_varint(block.rows)
        waiting, pace = 1, Pace()
        for name, kind, parts in columns:
            await writer.write_str(name)
            await writer.write_str(kind)
            waiting += 1
            for part in parts:
                await writer.write_bytes(part)
                waiting += len(part)
                if waiting >= _PIECE:
                    await blocks.finalize()  # what was written so far, as a frame of its own
                    waiting = 0
                pace.pause()
            await asyncio.sleep(0)
        if waiting:
            # Never a frame of nothing: a block ends with its last byte, and whatever follows is
            # taken for the next packet.
            await blocks.finalize()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first of the host's addresses that answers."""
        endpoint = self._endpoint
        failure: OSError | None = None
        for family, _, _, _, address in await look_up(endpoint.host, endpoint.port):
            try:
                return await asyncio.open_connection(
                    address[0],
                    address[1],
                    family=family,
                    limit=constants.BUFFER_SIZE,
                    ssl=self._tls,
                    server_hostname=endpoint.host if self._tls else None,
                )
            except ssl.SSLCertVerificationError:
                raise
            except OSError as error:
                failure = error
        raise failure or OSError("the host has no address")


@contextlib.contextmanager
def _failures(connection: Connection) -> Generator[None]:
    """Turn asynch's and the system's failures into the two that delivery knows."""
    try:
        yield
    except ServerException as error:
        code = error.code or 0
        raise server_error(f"Code: {code}. {error.message}", code=code) from None
    except ssl.SSLCertVerificationError as error:
        raise NoAnswer(
            "the server's certificate is not trusted; "
            f"SSL_CERT_FILE names the file of authorities to trust ({clean(str(error))})",
            sent=False,
            permanent=True,
        ) from None
    except ssl.SSLError as error:
        raise NoAnswer(
            f"TLS failed; {IS_IT_THE_PORT} ({clean(str(error))})", sent=connection.sent
        ) from None
    except OSError as error:
        raise NoAnswer(clean(error.strerror or str(error)), sent=connection.sent) from None
    except UnexpectedPacketFromServerError:
        raise NoAnswer(
            f"no ClickHouse answers there in its native protocol; {IS_IT_THE_PORT}",
            sent=connection.sent,
            permanent=not connection.sent,
        ) from None
    except Exception:
        # The end of the stream in the middle of anything is whatever asynch stumbles over.
        _logger.debug("an answer broke off", exc_info=True)
        raise NoAnswer("the connection ended before the answer did", sent=connection.sent) from None
