"""Tell Kestrel of the runs, run steps and datapoints that rollouts belong to.

Every call registers things by ids of the caller's, and registering a thing again changes nothing.
So a batch that failed in any way is simply sent again, and nothing has to be asked first.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from caribou.sinks._answers import NoAnswer
from caribou.sinks.base import Batch, Misconfigured, Poison, Retry, SinkError, TooLarge

if TYPE_CHECKING:
    from caribou.sinks._kestrel_http import Client

__all__ = ["Kestrel"]

_MOST_ITEMS = 10_000


class _Line(msgspec.Struct):
    """One line of the journal; which fields it has depends on its kind."""

    kind: str
    run_id: str | None = None
    step_number: int | None = None
    datapoint_id: str | None = None
    project: str | None = None
    phase: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


class Kestrel:
    """The sink for the service's registry; implements ``Sink``.

    Args:
        url: ``http(s)://host:port`` of the service, with a path when a gateway needs one.
        api_key: sent as a bearer token; never shown. Empty for none.
        timeout: seconds for one request, its answer included.
        connect_timeout: seconds for reaching the service, TLS included.
    """

    def __init__(
        self, url: str, *, api_key: str = "", timeout: float = 30.0, connect_timeout: float = 5.0
    ) -> None:
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"Kestrel({self.target!r})"

    @property
    def name(self) -> str:
        """``kestrel``: names the sink's cursor files and its row in ``stats()``."""
        return "kestrel"

    @property
    def target(self) -> str:
        """The service's address."""
        return self._url

    @property
    def tables(self) -> frozenset[str]:
        """Registrations, and nothing of what is traced."""
        return frozenset({"registrations"})

    def load(self) -> None:
        """Import the HTTP client; see ``Sink``."""
        importlib.import_module("aiohttp")

    async def send(self, batch: Batch) -> None:
        """Register what the batch names; return when the service has all of it.

        Raises:
            SinkError: one of its subclasses, for every failure.
        """
        for path, body in _calls(_read(batch.data)):
            await self._put(path, body)

    async def confirm(self, batch: Batch) -> bool:
        """Always False: to register again what is there already is cheaper than to ask."""
        return False

    async def aclose(self) -> None:
        """Close the connections; the next ``send`` opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _put(self, path: str, body: object) -> None:
        if self._client is None:
            from caribou.sinks._kestrel_http import Client

            self._client = Client(
                self._url,
                api_key=self._api_key,
                timeout=self._timeout,
                connect_timeout=self._connect_timeout,
            )
        try:
            answer = await self._client.put(path, msgspec.json.encode(body))
        except NoAnswer as error:
            # To send it again does no harm, whether it went through or not.
            raise (Misconfigured if error.permanent else Retry)(error.reason) from None
        status, reason, retry_after = answer
        if status != 200:
            raise _failure(status, reason, retry_after)


def _read(data: memoryview) -> list[_Line]:
    """The lines of a batch.

    Raises:
        Poison: one of them is no registration.
    """
    try:
        return [_decode(line) for line in bytes(data).splitlines()]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Poison(f"not a registration: {error}") from None


def _calls(lines: Sequence[_Line]) -> Iterator[tuple[str, object]]:
    """The calls that register ``lines``, as paths and bodies: runs first, then what is in them."""
    runs: dict[str, str | None] = {}
    steps: dict[str, dict[int, None]] = {}
    datapoints: dict[tuple[str | None, str], None] = {}
    for line in lines:
        if line.run_id is not None:
            runs.setdefault(line.run_id, line.phase)
            if line.step_number is not None:
                steps.setdefault(line.run_id, {})[line.step_number] = None
        # None where a redaction hook took it out.
        if line.datapoint_id:
            datapoints[line.project, line.datapoint_id] = None
    for run_id, phase in runs.items():
        yield f"/runs/{_segment(run_id)}", {"phase": phase} if phase else {}
    for run_id, numbers in steps.items():
        path = f"/runs/{_segment(run_id)}/steps"
        yield from _in_parts(path, [{"step_number": number} for number in numbers])
    items: list[dict[str, Any]] = [
        {"datapoint_id": datapoint_id, "project": project}
        if project
        else {"datapoint_id": datapoint_id}
        for project, datapoint_id in datapoints
    ]
    yield from _in_parts("/datapoints", items)


def _in_parts(path: str, items: Sequence[object]) -> Iterator[tuple[str, object]]:
    for start in range(0, len(items), _MOST_ITEMS):
        yield path, {"items": items[start : start + _MOST_ITEMS]}


def _segment(text: str) -> str:
    """A text as one segment of a path, also where it looks like more, or like a way up."""
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="")


def _failure(status: int, reason: str, retry_after: float | None) -> SinkError:
    """What the service's refusal means for the batch."""
    text = f"HTTP status {status}: {reason}" if reason else f"HTTP status {status}"
    if status in (401, 403):
        return Misconfigured(
            f"the service refused the key; check KESTREL_API_KEY ({text})", code=status
        )
    if status == 413:
        return TooLarge(text, code=status)
    # 414 and 431: an id that makes an address longer than servers take.
    if status in (400, 414, 422, 431):
        return Poison(text, code=status)
    if status in (408, 409, 425, 429) or status >= 500:
        return Retry(text, code=status, retry_after=retry_after)
    return Misconfigured(f"no Kestrel answers at KESTREL_API_URL ({text})", code=status)
