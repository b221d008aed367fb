"""One call to Kestrel over HTTP: connections for each event loop, a deadline, retries.

httpx and the event loop's side are imported when the first client is made that has a URL to call.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import ConfigurationError, InvalidValue, KestrelError, MissingExtra
from ._problems import refusal

if TYPE_CHECKING:
    import ssl

    import anyio
    import httpx

__all__ = ["Bearer", "Transport"]

_API: Final = "/api/v1"
_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})
_AT_ONCE: Final = 32  # calls on their way from one event loop; the others wait for a place
_CONNECT: Final = 5.0  # seconds
_FIRST_PAUSE: Final = 0.2  # seconds; doubles with every retry
_LONGEST_PAUSE: Final = 5.0


class _Session(NamedTuple):
    """The connections of one event loop, and what closes them."""

    http: httpx.AsyncClient
    places: anyio.Semaphore
    keeper: AsyncGenerator[None]


class _Failure(NamedTuple):
    """Why an attempt failed, whether another makes no sense, and the seconds to wait before it."""

    error: KestrelError
    final: bool
    pause: float | None = None


class Bearer:
    """Puts the key into requests. Nothing that is shown holds it."""

    def __init__(self, key: str | None) -> None:
        self._header = f"Bearer {key}" if key else None

    def check(self) -> None:
        """Refuse a key that no header can carry.

        Raises:
            InvalidValue: the key is such a one.
        """
        if self._header and not (self._header.isascii() and self._header.isprintable()):
            raise InvalidValue("key must hold printable ASCII characters only")

    def __call__(self, request: httpx.Request) -> httpx.Request:
        if self._header is not None:
            request.headers["Authorization"] = self._header
        return request


class Transport:
    """Calls below ``url``. Any number of event loops and threads may use it at once."""

    def __init__(
        self, url: str | None, credentials: Bearer, *, timeout: float, retries: int
    ) -> None:
        if not timeout > 0:
            raise InvalidValue(f"timeout must be seconds, more than 0, not {timeout!r}")
        if retries < 0:
            raise InvalidValue(f"retries must be 0 or more, not {retries!r}")
        self._base = None if url is None else url.rstrip("/").removesuffix(_API) + _API
        self._credentials = credentials
        self._timeout = timeout
        self._retries = retries
        self._sessions: dict[object, _Session] = {}
        self._tls: ssl.SSLContext | None = None
        if url is not None:
            # Here, since it takes milliseconds that no event loop should wait for at each call.
            self._tls = _load().create_ssl_context()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | Sequence[str]] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        """Make one call and return the body of its answer.

        Every call may be repeated: a POST carries an ``Idempotency-Key``, the same each time.

        Raises:
            ConfigurationError: there is no URL.
            KestrelError: it was refused, or there was no answer in time.
        """
        base = self._configured()
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if method == "POST":
            headers["Idempotency-Key"] = os.urandom(16).hex()

        def build(http: httpx.AsyncClient) -> httpx.Request:
            return http.build_request(
                method, base + path, params=query, content=body, headers=headers
            )

        async with (await self._session()).places:
            answer = await self._answer(build, attempts=self._retries + 1)
            return answer.content

    async def stream(
        self,
        path: str,
        *,
        query: Mapping[str, str | Sequence[str]],
        headers: Mapping[str, str],
        silence: float,
        again: bool,
    ) -> httpx.Response:
        """Begin to read an answer that has no end; whoever asks closes it.

        Args:
            path: below the API's.
            query: parameters.
            headers: beyond those of every request.
            silence: seconds without a byte, after which reading fails.
            again: it was read before, and the service may be starting: try until the deadline.

        Raises:
            ConfigurationError: there is no URL.
            KestrelError: it was refused, or there was no answer in time.
        """
        url = self._configured() + path
        import httpx

        timeout = httpx.Timeout(None, connect=_CONNECT, read=silence)

        def build(http: httpx.AsyncClient) -> httpx.Request:
            return http.build_request("GET", url, params=query, headers=headers, timeout=timeout)

        attempts = None if again else self._retries + 1
        return await self._answer(build, attempts=attempts, stream=True)

    def _configured(self) -> str:
        if self._base is None:
            raise ConfigurationError(
                "Kestrel is not configured: set KESTREL_API_URL, or configure(kestrel_api_url=...)"
            )
        return self._base

    async def _answer(
        self,
        build: Callable[[httpx.AsyncClient], httpx.Request],
        *,
        attempts: int | None,
        stream: bool = False,
    ) -> httpx.Response:
        """The first success of ``attempts``, or of as many as there is time for."""
        import anyio

        give_up = anyio.current_time() + self._timeout
        attempt = 0
        while True:
            # Looked up again: somebody may have closed the connections in between.
            http = (await self._session()).http
            answer = await self._try(http, build(http), give_up, stream=stream)
            if not isinstance(answer, _Failure):
                return answer
            pause = _pause(attempt) if answer.pause is None else answer.pause
            attempt += 1
            in_time = anyio.current_time() + pause < give_up
            if answer.final or attempt == attempts or not in_time:
                raise answer.error
            await anyio.sleep(pause)

    async def _try(
        self, http: httpx.AsyncClient, request: httpx.Request, give_up: float, *, stream: bool
    ) -> httpx.Response | _Failure:
        import anyio
        import httpx

        asked = f"{request.method} {request.url.copy_with(query=None)}"
        try:
            with anyio.fail_after(give_up - anyio.current_time()):
                answer = await http.send(request, stream=stream)
                if not answer.is_success:
                    await answer.aread()
        except TimeoutError:
            error = KestrelError(f"{asked}: no answer within {self._timeout:g} seconds")
            return _Failure(error, final=True)
        except httpx.RequestError as problem:
            said = str(problem) or "the connection was lost"
            error = KestrelError(f"{asked}: {said} ({type(problem).__name__})")
            hopeless = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.DecodingError)
            return _Failure(error, final=isinstance(problem, hopeless))
        if answer.is_success:
            return answer
        location = answer.headers.get("Location")
        error = refusal(asked, answer.status_code, answer.content, location)
        pause = _retry_after(answer.headers.get("Retry-After"))
        return _Failure(error, final=answer.status_code not in _TRY_AGAIN, pause=pause)

    async def _session(self) -> _Session:
        """The running event loop's connections, made now if it has none."""
        import anyio
        import httpx

        loop = _running_loop()
        session = self._sessions.get(loop)
        if session is not None:
            return session
        for other in list(self._sessions):
            # Loops that ended without closing what was left open in them.
            if getattr(other, "is_closed", bool)():
                self._sessions.pop(other, None)
        http = httpx.AsyncClient(
            auth=self._credentials,
            verify=True if self._tls is None else self._tls,
            # How long all of it may take is up to the deadline.
            timeout=httpx.Timeout(None, connect=_CONNECT),
            # Places bound the calls; streams, which keep theirs, are the caller's to bound.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_AT_ONCE),
        )
        keeper = self._keep(loop, http)
        session = _Session(http, anyio.Semaphore(_AT_ONCE), keeper)
        # A loop that ends closes its asynchronous generators: with this one go its connections,
        # also those of a program that never closes its client. Nothing is waited for here.
        await anext(keeper)
        self._sessions[loop] = session
        return session

    async def _keep(self, loop: object, http: httpx.AsyncClient) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._sessions.pop(loop, None)
            await http.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the next call opens others."""
        if self._base is None:
            return
        session = self._sessions.get(_running_loop())
        if session is not None:
            await session.keeper.aclose()


def _load() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtra(
            "calling Kestrel needs httpx: pip install 'caribou-trace[kestrel]'"
        ) from error
    return httpx


def _running_loop() -> object:
    from anyio.lowlevel import current_token

    token = current_token()
    # What tells loops apart is itself wrapped since anyio 4.11.
    return getattr(token, "native_token", token)


def _pause(attempt: int) -> float:
    """Seconds to wait after an attempt: doubling, with the upper half random. The randomness is
    the operating system's: the program's own generators are left alone."""
    ceiling = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
    return ceiling * (0.5 + 0.5 * int.from_bytes(os.urandom(2)) / 65535)


def _retry_after(text: str | None) -> float | None:
    """The seconds that a ``Retry-After`` header asks for, a little more so that not all who read it
    come back at once; None without one."""
    if text is None:
        return None
    if text.strip().isdecimal():
        seconds = float(text)
    else:
        from datetime import UTC, datetime
        from email.utils import parsedate_to_datetime

        try:
            then = parsedate_to_datetime(text)
            seconds = (then - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) + _pause(0)
