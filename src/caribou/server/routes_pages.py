"""The page at ``/`` and its files at ``/static``: read once, needing no key, holding no data.

They carry nothing that anybody recorded: the page's script asks the API for that, with the key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from importlib.resources import files
from typing import Final

from aiohttp import ETag, web

__all__ = ["add_pages"]

_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


def add_pages(app: web.Application) -> None:
    """Serve the first page and what it loads."""
    for file in files("caribou.server").joinpath("pages").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/static/{file.name}"
            app.router.add_get(path, _serve(file.read_bytes(), kind))


def _serve(body: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    tag = ETag(blake2b(body, digest_size=16).hexdigest())

    async def serve(request: web.Request) -> web.Response:
        unchanged = request.if_none_match is not None and tag in request.if_none_match
        response = (
            web.Response(status=304)
            if unchanged
            else web.Response(body=body, content_type=kind, charset="utf-8")
        )
        response.etag = tag
        # Asked for again each time: a new version of the service brings new files.
        response.headers["Cache-Control"] = "no-cache"
        return response

    return serve
