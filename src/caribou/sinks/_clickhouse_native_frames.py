"""Compressed frames of ClickHouse's native protocol, checked without a leak.

clickhouse-cityhash (1.0.2.6) keeps a reference to every bytearray that it is given, and that is
what asynch gives it: all that was sent and all that was answered would stay in memory. What is
given here is bytes.

Layout: https://clickhouse.com/docs/development/architecture and ``CompressedReadBufferBase.cpp``
of the server: a checksum of 16 bytes over all that follows, the method, the size from the method
on, the size before compression, the data.

Needs the packages of :func:`can_compress`: import it late.
"""

from __future__ import annotations

import importlib
import struct
from typing import Any

from asynch.errors import ChecksumDoesntMatchError
from asynch.proto.streams.block import BlockReader
from asynch.proto.streams.buffered import BufferedWriter, CompressedBufferedReader
from asynch.proto.streams.compressed import CompressedBlockWriter

__all__ = ["FrameReader", "FrameWriter"]

# Of their types these say less than they take, or nothing.
_checksum: Any = importlib.import_module("clickhouse_cityhash.cityhash").CityHash128
_codec: Any = importlib.import_module("asynch.proto.compression").get_decompressor_cls

_HEAD = struct.Struct("<BII")


class FrameWriter(CompressedBlockWriter):
    """Writes blocks; ``finalize`` ends a frame."""

    async def get_compressed(self) -> bytes:
        """The frame but for its checksum."""
        asynch: Any = super()
        return bytes(await asynch.get_compressed())


class FrameReader(BlockReader):
    """Reads blocks."""

    def __init__(self, reader: Any, writer: Any, context: Any) -> None:
        blocks: Any = super()
        blocks.__init__(_Frames(reader), writer, context)


class _Frames(CompressedBufferedReader):
    def __init__(self, raw: Any) -> None:
        frames: Any = super()
        frames.__init__(raw, raw.reader)
        self._raw = raw

    async def _read_compressed_data(self) -> bytes:
        checksum: int = await self._raw.read_uint128()
        head = bytes(await self._raw.read_bytes(_HEAD.size))
        method, size, whole = _HEAD.unpack(head)
        data = bytes(await self._raw.read_bytes(size - _HEAD.size))
        if _checksum(head + data) != checksum:
            raise ChecksumDoesntMatchError
        return _codec(method)(self._raw, BufferedWriter()).decompress_data(data, whole)
