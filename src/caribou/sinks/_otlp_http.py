"""One request to an OTLP backend or to Langfuse, and what became of it.

It imports aiohttp and opentelemetry-proto: import it late, in the thread that does the I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, NamedTuple, cast

import aiohttp
import msgspec

from caribou.otel.encoding import rejected
from caribou.sinks._answers import NoAnswer, clean, retry_after
from caribou.sinks._http import as_no_answer, open_session

try:
    # The same format in a quarter of the time; there are no builds of it for some machines.
    from isal import isal_zlib as zlib
except ImportError:
    import zlib

__all__ = ["Answer", "Client", "partial_success", "said"]

# A body is compressed in pieces, so that the loop is free between them. In few, as after each this
# thread queues for the interpreter lock.
_PIECE = 512 << 10
_GZIP = 31  # window bits that ask zlib for gzip's format
# Bytes of an answer to a success; one of OTLP is some hundred. Memory is not for others to fill.
_LONGEST_ANSWER = 256 << 10


class Answer(NamedTuple):
    """What a server said; ``reason`` is fit for a person and empty for a success."""

    status: int
    reason: str
    retry_after: float | None
    body: bytes
    content_type: str


class Client:
    """Sends requests over a few connections."""

    def __init__(
        self,
        url: str,
        *,
        who: str,
        variable: str,
        authorities: str,
        identity: str,
        headers: Mapping[str, str],
        secrets: Collection[str],
        connections: int,
        timeout: float,
        connect_timeout: float,
        compressed: bool,
        tls: ssl.SSLContext | None,
    ) -> None:
        """``who`` is asked, for people; ``variable`` holds the address, ``authorities`` whom to
        trust, and ``identity`` the certificate to show. Answers may quote ``secrets``, which are
        not shown."""
        self._who = who
        self._variable = variable
        self._authorities = authorities
        self._identity = identity
        self._compressed = compressed
        self._secrets = [secret.encode() for secret in secrets]
        self._session: aiohttp.ClientSession = open_session(
            url,
            headers=headers,
            connections=connections,
            timeout=timeout,
            connect_timeout=connect_timeout,
            tls=tls,
        )

    async def post_spans(self, url: str, request: bytes) -> Answer:
        """Send an encoded request of spans.

        Raises:
            NoAnswer: no whole answer came.
        """
        headers = {"Content-Type": "application/x-protobuf"}
        if self._compressed:
            headers["Content-Encoding"] = "gzip"
            request = await _compressed(request)
        return await self._post(url, request, headers)

    async def post_json(self, url: str, body: object) -> Answer:
        """Send a value as JSON.

        Raises:
            NoAnswer: no whole answer came.
        """
        headers = {"Content-Type": "application/json"}
        return await self._post(url, msgspec.json.encode(body), headers)

    async def aclose(self) -> None:
        """Close the connections."""
        with contextlib.suppress(Exception):
            await self._session.close()

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        # Otherwise the body, which is no plain value to the library, would go in HTTP chunks.
        headers["Content-Length"] = str(len(body))
        with as_no_answer(
            self._who, self._variable, lambda: True, self._authorities, self._identity
        ):
            async with self._session.post(
                url, data=_whole(body), headers=headers, allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    answer = await self._whole_answer(response)
                else:
                    answer = await response.content.read(16_384)
                    response.close()
                for secret in self._secrets:
                    # As long as it was: protobuf tells lengths.
                    answer = answer.replace(secret, b"*" * len(secret))
                after = retry_after(response.headers.get("Retry-After", ""))
                kind = response.content_type
        reason = "" if response.status == 200 else _reason(answer, kind)
        return Answer(response.status, reason, after, answer, kind)

    async def _whole_answer(self, response: aiohttp.ClientResponse) -> bytes:
        answer = bytearray()
        async for part in response.content.iter_any():
            answer += part
            if len(answer) > _LONGEST_ANSWER:
                response.close()
                raise NoAnswer(
                    f"no {self._who} answers at {self._variable} (more than {_LONGEST_ANSWER:,} "
                    "bytes came back)",
                    sent=True,
                    permanent=True,
                )
        return bytes(answer)


def partial_success(answer: Answer, *, plain: bool) -> tuple[int, str]:
    """How many spans a receiver that said 200 did not take, and what it says, on one line.

    ``plain`` takes plain text for a success. Some receivers answer ``OK``, which OTLP does not
    have; the exporters of OpenTelemetry's collector and of its libraries let it pass.

    Raises:
        NoAnswer: it is no answer of an OTLP receiver.
    """
    count, message = 0, ""
    text = answer.body.strip()
    if not text:
        return count, message
    try:
        if answer.content_type == "application/x-protobuf":
            count, message = rejected(answer.body)
        elif answer.content_type == "application/json":
            told = said(answer)
            partial: dict[str, Any] = told.get("partialSuccess") or {}
            # Langfuse answers an empty object, or what became of each event.
            errors = told.get("errors")
            if partial:
                # In JSON, numbers of 64 bits are texts.
                count = int(partial.get("rejectedSpans") or 0)
                message = str(partial.get("errorMessage") or "")
            elif errors and isinstance(errors, list):
                refused = cast("list[Any]", errors)
                count, message = len(refused), str(refused[0])
        elif plain and answer.content_type == "text/plain" and not text.startswith(b"<"):
            message = "something in plain text, which is no answer of OTLP"
        else:
            raise ValueError(answer.content_type)
    except (ValueError, TypeError, AttributeError, msgspec.DecodeError) as error:
        raise NoAnswer(clean(str(error)), sent=True, permanent=True) from None
    return count, clean(message)


def said(answer: Answer) -> dict[str, Any]:
    """What an answer in JSON says; nothing where it is empty.

    Raises:
        ValueError: it is no JSON object.
    """
    if answer.content_type != "application/json":
        raise ValueError(answer.content_type)
    return msgspec.json.decode(answer.body or b"{}", type=dict[str, Any])


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    """A body in one piece; after each system call this thread queues for the interpreter lock."""
    yield body


async def _compressed(body: bytes) -> bytes:
    compressor: Any = zlib.compressobj(1, wbits=_GZIP)  # pyright: ignore[reportUnknownMemberType]
    view = memoryview(body)
    parts: list[bytes] = []
    for at in range(0, len(body), _PIECE):
        parts.append(compressor.compress(view[at : at + _PIECE]))
        await asyncio.sleep(0)
    parts.append(compressor.flush())
    return b"".join(parts)


def _reason(answer: bytes, content_type: str) -> str:
    """What a refusal says, on one line: receivers answer in JSON, in protobuf or in plain text."""
    if content_type == "application/json":
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            told = msgspec.json.decode(answer, type=dict[str, Any])
            texts = [told.get(name) for name in ("error", "message")]
            found = ": ".join(text for text in texts if isinstance(text, str))
            return clean(found or str(told))
    if content_type == "text/html":
        return ""
    # A Status in protobuf is a text with a few bytes around it.
    return clean(answer[:2000].decode(errors="ignore"))
