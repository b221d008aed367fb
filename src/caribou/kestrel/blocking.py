"""The same client for programs without an event loop: each call blocks its thread.

There is one implementation, the asynchronous one; its coroutines run in a background thread. So
this works anywhere, also in a thread whose own event loop is running.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import lru_cache, wraps
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from ._background import run
from ._live import LiveStream
from ._pages import Pages
from .client import KestrelClient, shared_client
from .models import LARGEST_BATCH, DatapointItem, LiveEvent, Page, StepItem

__all__ = [
    "BlockingKestrelClient",
    "BlockingLiveStream",
    "BlockingPages",
    "shared_blocking_client",
]

P = ParamSpec("P")
T = TypeVar("T")


class BlockingPages(Generic[T]):
    """A list at Kestrel: ``for item in pages`` reads it to its end, page after page.

    Nothing is asked before the first item is wanted; iterating again asks again.
    """

    def __init__(self, pages: Pages[T]) -> None:
        self._pages = pages

    def __iter__(self) -> Iterator[T]:
        cursor = None
        while True:
            page = self.page(cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def page(self, cursor: str | None = None) -> Page[T]:
        """One page: the first, or the one that another page's ``next_cursor`` leads to.

        Raises:
            KestrelError: it was refused, or there was no answer in time.
        """
        return run(self._pages.page(cursor))


def _calls(
    method: Callable[Concatenate[KestrelClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingKestrelClient, P], T]:
    @wraps(method)
    def call(self: BlockingKestrelClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self.asynchronous, *args, **kwargs))

    return call


def _lists(
    method: Callable[Concatenate[KestrelClient, P], Pages[T]],
) -> Callable[Concatenate[BlockingKestrelClient, P], BlockingPages[T]]:
    @wraps(method)
    def call(self: BlockingKestrelClient, /, *args: P.args, **kwargs: P.kwargs) -> BlockingPages[T]:
        return BlockingPages(method(self.asynchronous, *args, **kwargs))

    return call


def _follows(
    method: Callable[Concatenate[KestrelClient, P], LiveStream],
) -> Callable[Concatenate[BlockingKestrelClient, P], BlockingLiveStream]:
    @wraps(method)
    def call(
        self: BlockingKestrelClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingLiveStream:
        return BlockingLiveStream(method(self.asynchronous, *args, **kwargs))

    return call


class BlockingLiveStream:
    """What rollouts do as they do it, as :class:`LiveStream`: ``for event in stream``.

    ``close()``, which any thread may call, ends it; so does a ``with`` around it.
    """

    def __init__(self, stream: LiveStream) -> None:
        self._stream = stream

    @property
    def last_event_id(self) -> str | None:
        """Where to go on after the last event that was taken; None before it is known."""
        return self._stream.last_event_id

    def __enter__(self) -> Self:
        run(self._stream.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LiveEvent:
        event = run(self._stream.next())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """End it, also for a thread that waits for its next event."""
        run(self._stream.aclose())


class BlockingKestrelClient:
    """Calls Kestrel, as :class:`KestrelClient` does, and blocks until there is an answer."""

    def __init__(self, asynchronous: KestrelClient) -> None:
        """Most programs take the client that :func:`caribou.sync.get_kestrel_client` gives.

        Args:
            asynchronous: the client that does the work.
        """
        self.asynchronous = asynchronous

    @property
    def enabled(self) -> bool:
        """Whether there is a URL to call."""
        return self.asynchronous.enabled

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.asynchronous!r})"

    def __enter__(self) -> BlockingKestrelClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections of blocking calls. The client may be used again."""
        run(self.asynchronous.aclose())

    get_or_create_project: Final = _calls(KestrelClient.get_or_create_project)
    get_project: Final = _calls(KestrelClient.get_project)
    list_projects: Final = _lists(KestrelClient.list_projects)

    create_run: Final = _calls(KestrelClient.create_run)
    get_or_create_run: Final = _calls(KestrelClient.get_or_create_run)
    register_run: Final = _calls(KestrelClient.register_run)
    update_run: Final = _calls(KestrelClient.update_run)
    archive_run: Final = _calls(KestrelClient.archive_run)
    get_run: Final = _calls(KestrelClient.get_run)
    list_runs: Final = _lists(KestrelClient.list_runs)

    upsert_run_step: Final = _calls(KestrelClient.upsert_run_step)
    list_run_steps: Final = _lists(KestrelClient.list_run_steps)

    upsert_datapoint: Final = _calls(KestrelClient.upsert_datapoint)
    get_datapoint: Final = _calls(KestrelClient.get_datapoint)
    list_datapoints: Final = _lists(KestrelClient.list_datapoints)

    get_trace: Final = _calls(KestrelClient.get_trace)
    list_traces: Final = _lists(KestrelClient.list_traces)
    list_spans: Final = _lists(KestrelClient.list_spans)

    aggregate_steps: Final = _calls(KestrelClient.aggregate_steps)
    aggregate_scores: Final = _calls(KestrelClient.aggregate_scores)
    aggregate_tools: Final = _calls(KestrelClient.aggregate_tools)
    aggregate_models: Final = _calls(KestrelClient.aggregate_models)
    aggregate_pass_k: Final = _calls(KestrelClient.aggregate_pass_k)

    live: Final = _follows(KestrelClient.live)

    # What is iterated over is the caller's, so it is in the caller's thread.

    def upsert_run_steps(
        self, run_id: str, steps: Iterable[int | Mapping[str, Any] | StepItem]
    ) -> int:
        """As :meth:`KestrelClient.upsert_run_steps`; ``steps`` is read in the calling thread."""
        return sum(run(self.asynchronous.upsert_run_steps(run_id, batch)) for batch in _cut(steps))

    def upsert_datapoints(
        self,
        items: Iterable[str | Mapping[str, Any] | DatapointItem],
        *,
        project: str | None = None,
        project_id: str | None = None,
    ) -> int:
        """As :meth:`KestrelClient.upsert_datapoints`; ``items`` is read in the calling thread."""
        client = self.asynchronous
        return sum(
            run(client.upsert_datapoints(batch, project=project, project_id=project_id))
            for batch in _cut(items)
        )


def _cut(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, LARGEST_BATCH)):
        yield batch


@lru_cache(maxsize=8)
def shared_blocking_client(url: str | None, key: str | None) -> BlockingKestrelClient:
    """The one blocking client of this process for a service and a key."""
    return BlockingKestrelClient(shared_client(url, key))
