"""Numbers as ClickHouse's native protocol and protobuf both write them."""

from __future__ import annotations

__all__ = ["varint"]


def varint(number: int) -> bytes:
    """An unsigned number in as many bytes of seven bits as it takes, the lowest first."""
    if number <= 0x7F:
        return bytes((number,))
    if number <= 0x3FFF:
        return bytes((number & 0x7F | 0x80, number >> 7))
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
