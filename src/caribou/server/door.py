"""The insert door: as much of ClickHouse's HTTP interface as the tracers of other machines use.

No SQL from outside is run. A request must be, letter for letter, one of the statements that the
sink sends; what runs is built here from the table and the batch id in it.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from typing import Final

import zstandard
from aiohttp import web

from ..errors import StoreError
from ..schema import TABLES, insert_statement, quote, quote_text
from ..store._engine import EngineError
from .embedded import EmbeddedBackend
from .problems import problems_middleware

__all__ = ["create_door"]

_LARGEST: Final = 64 << 20  # bytes of a batch; the sink's are a few millions
_BODY_SECONDS: Final = 60.0
_BATCH: Final = r"(?P<batch>[A-Za-z0-9._:-]+)"
_TABLE: Final = "|".join(sorted(TABLES))
_INSERT: Final = re.compile(rf"INSERT INTO \S+\.(?P<table>{_TABLE})_rows .*, '{_BATCH}' FROM .*")
_COUNT: Final = re.compile(
    rf"SELECT uniqExact\(.*\) FROM \S+\.(?P<table>{_TABLE})_rows WHERE batch_id = '{_BATCH}' .*"
)
_RUNNING: Final = re.compile(
    r"SELECT count\(\) FROM system\.processes WHERE startsWith\(query_id, '([\w.:-]+)'\) FORMAT TSV"
)
# How ClickHouse says it, which is what the sink judges failures by.
_REFUSED: Final = 516, "Authentication failed: the password must be the key of the service", 403
_NOT_HERE: Final = 497, "Not enough privileges: this is a door for what tracers insert", 403
_NO_DATABASE: Final = 81, "there is no such database here", 404
_BAD_BODY: Final = 117, "the body is no zstd of at most 64 MiB", 400


class _Refusal(Exception):
    def __init__(self, code: int, message: str, status: int) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message}")
        self.code, self.status = code, status


def create_door(backend: EmbeddedBackend, *, api_key: str | None) -> web.Application:
    """An application for a port of its own; the password it asks for is ``api_key``."""
    door = _Door(backend, api_key)
    app = web.Application(middlewares=[problems_middleware], client_max_size=_LARGEST)
    app.router.add_post("/", door.answer)
    return app


class _Door:
    def __init__(self, backend: EmbeddedBackend, api_key: str | None) -> None:
        self._backend = backend
        self._database = backend.database
        self._key = None if api_key is None else api_key.encode()
        self._running: set[str] = set()

    async def answer(self, request: web.Request) -> web.Response:
        """Do as one statement says, or refuse it as ClickHouse would."""
        try:
            self._check(request)
            async with asyncio.timeout(_BODY_SECONDS):
                body = await request.read()
            sql = request.query.get("query")
            if sql is None:
                return web.Response(text=await self._ask(body.decode("utf-8", "replace")))
            await self._insert(sql, request, body)
            return web.Response()
        except _Refusal as refusal:
            return _refused(refusal.code, str(refusal), refusal.status)
        except EngineError as error:
            return _refused(error.code, f"Code: {error.code}. DB::Exception: {error}", 500)
        except (StoreError, TimeoutError) as error:
            return _refused(999, f"Code: 999. DB::Exception: {error}", 503)

    def _check(self, request: web.Request) -> None:
        # A page in somebody's browser says where it is from; tracers do not.
        if "Origin" in request.headers:
            raise _Refusal(*_NOT_HERE)
        given = request.headers.get("X-ClickHouse-Key", "").encode("utf-8", "surrogateescape")
        if self._key is not None and not hmac.compare_digest(given, self._key):
            raise _Refusal(*_REFUSED)

    async def _insert(self, sql: str, request: web.Request, body: bytes) -> None:
        found = _INSERT.fullmatch(sql)
        # Rows of this machine's own journals are told by how their batches are called.
        if found is None or found["batch"].startswith("local:"):
            raise _Refusal(*_NOT_HERE)
        table, batch = found["table"], found["batch"]
        if sql != insert_statement(self._database, table, batch):
            raise _Refusal(*_NO_DATABASE)
        if request.headers.get("Content-Encoding") == "zstd":
            body = await asyncio.to_thread(_decompressed, body)
        query_id = request.query.get("query_id", "")
        self._running.add(query_id)
        try:
            await self._backend.insert_batch(table, body, batch)
        finally:
            self._running.discard(query_id)

    async def _ask(self, sql: str) -> str:
        database = quote(self._database)
        if sql == "SELECT version() FORMAT TSV":
            return await self._value("SELECT version() AS value")
        if sql == f"SELECT max(version) FROM {database}.schema_migrations FORMAT TSV":
            return await self._value("SELECT max(version) AS value FROM schema_migrations")
        if found := _RUNNING.fullmatch(sql):
            return f"{sum(query_id.startswith(found[1]) for query_id in self._running)}\n"
        if found := _COUNT.fullmatch(sql):
            table = TABLES[found["table"]]
            identity = f"uniqExact({', '.join(table.identity)})"
            source = f"FROM {database}.{table.rows_table}"
            batch = quote_text(found["batch"])
            if sql == f"SELECT {identity} {source} WHERE batch_id = {batch} FORMAT TSV":
                question = f"SELECT {identity} AS value {source} WHERE batch_id = {{batch:String}}"
                return await self._value(question, batch=found["batch"])
            raise _Refusal(*_NO_DATABASE)
        raise _Refusal(*_NOT_HERE)

    async def _value(self, sql: str, **parameters: str) -> str:
        [row] = await self._backend.rows(sql, parameters)
        return f"{row['value']}\n"


def _decompressed(body: bytes) -> bytes:
    try:
        if zstandard.frame_content_size(body) > _LARGEST:
            raise _Refusal(*_BAD_BODY)
        # One frame and all of it: a stream would take the rows of one that was cut for all.
        return zstandard.ZstdDecompressor().decompress(
            body, max_output_size=_LARGEST, allow_extra_data=False
        )
    except zstandard.ZstdError:
        raise _Refusal(*_BAD_BODY) from None


def _refused(code: int, text: str, status: int) -> web.Response:
    return web.Response(
        status=status, text=f"{text}\n", headers={"X-ClickHouse-Exception-Code": str(code)}
    )
