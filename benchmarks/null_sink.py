"""A process that accepts what tracers send, counts it and keeps nothing.

It speaks as much of three interfaces as the benchmarks need, and is cheap so that it does not take
the processor from what is measured:

- ClickHouse over HTTP: ``INSERT`` bodies (NDJSON, plain or zstd) are counted in lines by table;
  ``SELECT version()`` names a current server; every other question is answered with 0.
- Kestrel: what ``PUT /api/v1/...`` registers is counted as ``registrations``;
- OTLP over HTTP, Langfuse's as well: ``POST .../v1/traces`` bodies (protobuf) are counted in spans.

``GET /counts`` answers with the counts as JSON. Run as a program it listens on a free port of the
loopback interface, prints the port, and ends when its standard input closes.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import threading
from collections import Counter
from urllib.parse import parse_qs, urlsplit

import zstandard

VERSION = b"26.9.1.1\n"
INSERT_TABLE = re.compile(r"\s*INSERT\s+INTO\s+(?:TABLE\s+)?(?:[`\w]+\.)?`?(\w+)", re.IGNORECASE)

counts: Counter[str] = Counter()
lock = threading.Lock()


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode one protobuf varint: its value and the offset after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def messages(data: bytes, field: int, start: int, end: int) -> list[tuple[int, int]]:
    """The extents of the length-delimited ``field``s of the protobuf message in start..end."""
    found: list[tuple[int, int]] = []
    at = start
    while at < end:
        key, at = read_varint(data, at)
        wire = key & 7
        if wire == 2:
            length, at = read_varint(data, at)
            if key >> 3 == field:
                found.append((at, at + length))
            at += length
        elif wire == 0:
            _, at = read_varint(data, at)
        else:
            at += 8 if wire == 1 else 4
    return found


def count_spans(data: bytes) -> int:
    """How many spans an ``ExportTraceServiceRequest`` holds, without decoding the spans."""
    return sum(
        len(messages(data, 2, *scope))
        for resource in messages(data, 1, 0, len(data))
        for scope in messages(data, 2, *resource)
    )


def count_lines(body: bytes, encoding: str) -> int:
    """How many lines an NDJSON body holds, decompressed piece by piece."""
    if encoding != "zstd":
        return body.count(b"\n")
    reader = zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True)
    return sum(piece.count(b"\n") for piece in iter(lambda: reader.read(1 << 20), b""))


def answer(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
    """The body of the answer to one request; counts what it carried."""
    url = urlsplit(target)
    encoding = headers.get("content-encoding", "")
    if url.path == "/counts":
        with lock:
            return json.dumps(counts).encode()
    if url.path.endswith("/v1/traces"):
        spans = count_spans(gzip.decompress(body) if encoding == "gzip" else body)
        with lock:
            counts["otlp"] += spans
            counts["requests"] += 1
        return b""
    if url.path.startswith("/api/v1/"):
        things = json.loads(body).get("items", [None])
        with lock:
            counts["registrations"] += len(things)
        return b"{}"
    statement = parse_qs(url.query).get("query", [""])[0]
    if table := INSERT_TABLE.match(statement):
        lines = count_lines(body, encoding)
        with lock:
            counts[table[1].removesuffix("_rows")] += lines
            counts["requests"] += 1
            counts["bytes"] += len(body)
        return b""
    if not statement:
        statement = body.decode(errors="replace")
    return VERSION if "version()" in statement else b"0\n"


def serve(connection: socket.socket) -> None:
    """Answer the requests of one connection until the client closes it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb", 1 << 20) as stream:
        while request := stream.readline().decode("latin-1").split():
            headers: dict[str, str] = {}
            while (line := stream.readline().decode("latin-1").strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            content = answer(request[0], request[1], headers, body)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)


def accept(listener: socket.socket) -> None:
    """Give each connection a thread; clients here keep a few connections open."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main() -> None:
    """Listen until standard input is closed, by the benchmark or by its death."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
