"""The current ClickHouse engine behind enough of ClickHouse's HTTP interface to test against.

``python -m support.door --path DIR`` prints the port it listens on, and that of its native protocol
(see ``support.nativedoor``; 0 where asynch is not installed), and serves until SIGTERM. One thread
owns the embedded engine; statements run one after another.

What the engine cannot do inside a process is stood in for, and nothing else:

- ``input()`` and the data after ``FORMAT`` become ``file()`` and ``INFILE`` over a temporary file;
- ``system.processes`` lists the inserts that the door has accepted and not yet answered;
- rights: the engine has no users, so ``deny`` refuses statements by their first words;
- ``readonly``, which a session cannot leave again: statements that do not read are refused.

``POST /_door`` with a JSON object changes, for all that comes after: ``settings`` (applied to every
statement, as a user's profile would be), ``deny`` (a list of such first words), ``hold`` (inserts
wait until it is false again) and ``keep_cut`` (an insert cut off in mid-body stores the whole rows
that arrived, as real servers have been seen to do).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.util
import json
import re
import signal
import sys
import tempfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zstandard
from aiohttp import web

_NOT_SETTINGS = {
    "query", "query_id", "database", "default_format", "user", "password",
    "wait_end_of_query", "buffer_size", "session_id", "readonly",
}  # fmt: skip
_INSERT = re.compile(r"\s*INSERT\s", re.IGNORECASE)
_FORMAT = re.compile(r"\sFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_INPUT = re.compile(r"\binput\(('(?:[^'\\]|\\.)*')\)", re.IGNORECASE)
_READS = ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS")
_STATUS = {
    159: 408, 164: 403, 192: 403, 193: 403, 194: 401, 497: 403, 516: 403,
    16: 404, 46: 404, 47: 404, 60: 404, 81: 404, 241: 500, 252: 500,
    25: 400, 26: 400, 27: 400, 41: 400, 62: 400, 115: 404, 117: 400, 130: 400, 467: 400,
}  # fmt: skip


class Refusal(Exception):
    """An answer in the form of a ClickHouse error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        found = re.search(r"Code: (\d+)", text)
        self.code = int(found[1]) if found else 1001


class Engine:
    """The embedded engine; every method runs in the one thread that owns it."""

    def __init__(self, path: Path) -> None:
        from chdb import session

        self._session = session.Session(str(path))
        self._scratch = tempfile.TemporaryDirectory(prefix="door-")

    def close(self) -> None:
        self._session.close()
        self._scratch.cleanup()

    def run(
        self,
        sql: str,
        *,
        database: str,
        output: str,
        settings: dict[str, str],
        parameters: dict[str, str],
        body: bytes | None,
    ) -> tuple[bytes, int]:
        """Run one statement; return its output and how many rows it wrote."""
        if database:
            self._plain(f"USE `{database}`")
        changed: list[str] = []
        try:
            for name, value in settings.items():
                self._plain(f"SET {name} = '{value}'")
                changed.append(name)
            if body is not None:
                file = Path(self._scratch.name, "body")
                file.write_bytes(body)
                sql = _read_from(sql, file)
            return self._plain(sql, output, parameters)
        finally:
            for name in changed:
                self._plain(f"SET {name} = DEFAULT")
            if database:
                self._plain("USE default")

    def _plain(
        self, sql: str, output: str = "TabSeparated", parameters: dict[str, str] | None = None
    ) -> tuple[bytes, int]:
        try:
            result = self._session.query(sql, output, params=parameters or {})
        except RuntimeError as error:
            raise Refusal(str(error) or self._unreadable()) from None
        except UnicodeDecodeError as error:  # the message quotes bytes that are no text
            raise Refusal(error.object.decode(errors="replace")) from None
        return result.bytes(), result.rows_written()

    def _unreadable(self) -> str:
        """The engine's latest message that is no text, which older Pythons lose altogether."""
        sql = (
            "SELECT concat('Code: ', toString(code), '. DB::Exception: ', last_error_message)"
            " FROM system.errors WHERE NOT isValidUTF8(last_error_message)"
            " ORDER BY last_error_time DESC LIMIT 1"
        )
        return self._session.query(sql, "TSVRaw").bytes().decode(errors="replace")


def _read_from(sql: str, file: Path) -> str:
    """Make an insert read its data from a file instead of from the request."""
    if _INPUT.search(sql):
        sql = _FORMAT.sub("", sql)
        return _INPUT.sub(lambda found: f"file('{file}', JSONEachRow, {found[1]})", sql)
    return _FORMAT.sub(lambda found: f" FROM INFILE '{file}' FORMAT {found[1]}", sql)


class Door:
    """The HTTP side."""

    def __init__(self, path: Path, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._thread = ThreadPoolExecutor(1)
        self._engine = self._thread.submit(Engine, path).result()
        self._running: set[str] = set()
        self._profile: dict[str, str] = {}
        self._deny: list[str] = []
        self._keep_cut = False
        self._go = asyncio.Event()
        self._go.set()

    def close(self) -> None:
        self._thread.submit(self._engine.close).result()
        self._thread.shutdown()

    async def control(self, request: web.Request) -> web.Response:
        order: dict[str, Any] = await request.json()
        self._profile = order.get("settings", self._profile)
        self._deny = order.get("deny", self._deny)
        self._keep_cut = order.get("keep_cut", self._keep_cut)
        if "hold" in order:
            (self._go.clear if order["hold"] else self._go.set)()
        return web.Response()

    async def ping(self, request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def answer(self, request: web.Request) -> web.Response:
        try:
            self._authenticate(request)
            body, whole = await _body(request)
            return await self._statement(request, body, whole)
        except Refusal as refusal:
            return web.Response(
                status=_STATUS.get(refusal.code, 500),
                text=f"{refusal} (version 26.9)\n",
                headers={"X-ClickHouse-Exception-Code": str(refusal.code)},
            )

    def _authenticate(self, request: web.Request) -> None:
        user = request.headers.get("X-ClickHouse-User") or request.query.get("user", "")
        password = request.headers.get("X-ClickHouse-Key") or request.query.get("password", "")
        basic = request.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            user, _, password = base64.b64decode(basic[6:]).decode().partition(":")
        self.check_user(user, password)

    def check_user(self, user: str, password: str) -> None:
        """Raises Refusal for whoever is not let in."""
        if self._password and (user, password) != (self._user, self._password):
            raise Refusal(
                f"Code: 516. DB::Exception: {user or 'default'}: Authentication failed: password "
                "is incorrect, or there is no user with such name. (AUTHENTICATION_FAILED)"
            )

    async def _statement(self, request: web.Request, body: bytes, whole: bool) -> web.Response:
        sql = request.query.get("query", "")
        data: bytes | None = None
        if _INSERT.match(sql) and _FORMAT.search(sql):
            data = body
        else:
            sql += body.decode()
        if not whole:
            if data is None or not self._keep_cut:
                raise Refusal("Code: 210. DB::Exception: Connection reset. (NETWORK_ERROR)")
            data = data[: data.rfind(b"\n") + 1]
        given = {name: value for name, value in request.query.items() if name not in _NOT_SETTINGS}
        prefix = "param_"
        answer, written = await self.statement(
            sql,
            data=data,
            query_id=request.query.get("query_id", ""),
            readonly=request.query.get("readonly", "0") != "0",
            database=request.query.get("database", ""),
            output=request.query.get("default_format", "TabSeparated"),
            settings={name: value for name, value in given.items() if not name.startswith(prefix)},
            parameters={
                name.removeprefix(prefix): value
                for name, value in given.items()
                if name.startswith(prefix)
            },
        )
        summary = json.dumps({"written_rows": str(written)})
        return web.Response(body=answer, headers={"X-ClickHouse-Summary": summary})

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
    ) -> tuple[bytes, int]:
        """Run one statement for whoever asks; its output, and how many rows it wrote."""
        for words in self._deny:
            if sql.upper().startswith(words):
                raise Refusal(
                    f"Code: 497. DB::Exception: {self._user or 'default'}: Not enough privileges. "
                    f"To execute this query, it's necessary to have the grant {words} ON *.*. "
                    "(ACCESS_DENIED)"
                )
        if readonly and not sql.upper().lstrip().startswith(_READS):
            raise Refusal(
                "Code: 164. DB::Exception: Cannot execute query in readonly mode. (READONLY)"
            )
        sql = sql.replace("system.processes", self._processes())
        self._running.add(query_id)
        try:
            if data is not None:
                await self._go.wait()
            return await asyncio.get_running_loop().run_in_executor(
                self._thread,
                lambda: self._engine.run(
                    sql,
                    database=database,
                    output=output,
                    settings=self._profile
                    | {k: v for k, v in settings.items() if k not in _NOT_SETTINGS},
                    parameters=dict(parameters),
                    body=data,
                ),
            )
        finally:
            self._running.discard(query_id)

    def _processes(self) -> str:
        rows = "".join(f", '{query_id}'" for query_id in sorted(self._running) if query_id)
        return f"(SELECT * FROM values('query_id String', ''{rows}) WHERE query_id != '')"


async def _body(request: web.Request) -> tuple[bytes, bool]:
    """The body as far as it came, decompressed, and whether that is all of it."""
    chunks: list[bytes] = []
    whole = True
    try:
        async for chunk in request.content.iter_any():
            chunks.append(chunk)
    except Exception:
        whole = False
    raw = b"".join(chunks)
    match request.headers.get("Content-Encoding", ""):
        case "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(raw), whole
        case "gzip" | "deflate":
            return zlib.decompressobj(47).decompress(raw), whole
        case _:
            return raw, whole


async def _serve(arguments: argparse.Namespace) -> None:
    door = Door(arguments.path, arguments.user, arguments.password)
    app = web.Application()
    app.router.add_post("/_door", door.control)
    app.router.add_get("/ping", door.ping)
    app.router.add_route("*", "/", door.answer)
    runner = web.AppRunner(app, auto_decompress=False, max_line_size=1 << 20, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", arguments.port, shutdown_timeout=1.0)
    await site.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    native = await _listen_natively(door, arguments.native_port)
    native_port = native.sockets[0].getsockname()[1] if native else 0
    print(runner.addresses[0][1], native_port, flush=True)
    await stop.wait()
    if native is not None:
        native.close()
    await runner.cleanup()
    door.close()


async def _listen_natively(door: Door, port: int) -> asyncio.Server | None:
    if importlib.util.find_spec("asynch") is None:
        return None
    from support.nativedoor import listen

    return await listen(door, Refusal, port)


def main() -> int:
    parser = argparse.ArgumentParser(description="ClickHouse's current engine over HTTP")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--native-port", type=int, default=0)
    parser.add_argument("--path", type=Path, required=True, help="the engine's folder")
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="", help="required of every request if given")
    asyncio.run(_serve(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
