"""What records: settings, journal and I/O thread, as long as the settings stay the same."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ._registration import Registrar
from ._settings import Settings
from ._urls import is_native
from .delivery.accounting import FlushResult, SinkStats
from .errors import ConfigurationError
from .journal.journal import Journal
from .journal.stream import Stream

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .delivery.replay import ReplayResult
    from .sinks.base import Sink
    from .sinks.exporters import Exporter

__all__ = ["Runtime", "replay"]

_logger = logging.getLogger("caribou")

# Beyond a deadline that has passed: what stopping a thread and closing files may still take.
_GRACE = 0.1


class Runtime:
    """Journal and delivery under one set of settings."""

    def __init__(
        self,
        settings: Settings,
        *,
        successor: Callable[[str], Stream],
        importing: AbstractContextManager[object],
    ) -> None:
        """Open the journal (a few milliseconds of file work) and start the I/O thread.

        ``successor`` gives the stream that takes the rows of a table once this runtime is closed;
        ``importing`` is held while the I/O thread imports what it needs.
        """
        self.settings = settings
        self._refused: Counter[str] = Counter()
        self._refused_lock = threading.Lock()
        self._exporters = _exporter_sinks(settings)
        sinks = [*_durable_sinks(settings), *self._exporters]
        targets = {sink.name: sink.target for sink in sinks}
        root = settings.journal_dir if settings.journal == "disk" else None
        self.journal = Journal(
            root,
            sinks=targets,
            max_bytes=settings.max_journal_bytes,
            rolled=self._rolled,
            successor=successor,
        )
        self.registrar = Registrar() if "kestrel" in targets else None
        # asyncio is imported here, by the first rollout, and not by `import caribou`.
        from .delivery.dispatcher import Dispatcher
        from .delivery.io_thread import IOThread
        from .delivery.source import kept_tables

        on_disk = self.journal.owner is not None
        # Of tables that no sink stores the journal is the store.
        self._kept = kept_tables(targets, on_disk=on_disk)
        # No server, and no file either: rows are nowhere but in memory.
        self._volatile = "spans" in self._kept and not on_disk

        self._dispatcher = Dispatcher(
            self.journal,
            root if self.journal.owner is not None else None,
            [*sinks, *_watching_sinks(settings)],
            durable=targets,
            batch_bytes=settings.batch_bytes,
            batch_rows=settings.batch_rows,
            batch_age=settings.batch_age,
            importing=importing,
        )
        self._closes_journal = False
        self._io = IOThread(self._dispatcher.run, self._ended)
        # Before the first row, so that no caller ever has to make a segment itself.
        self.journal.upkeep()
        self._io.start()

    @property
    def streams(self) -> dict[str, Stream]:
        """The stream of each table."""
        return self.journal.streams

    @property
    def accepting(self) -> bool:
        """False while the journal's bound is reached or its disk is full: new rollouts run
        untraced, so that no trace is ever kept in part."""
        return self.journal.accepting

    @property
    def alive(self) -> bool:
        """Whether the I/O thread is at work, or a new one would be no more so."""
        return self._io.alive or self._io.refused

    def count_dropped(self, reason: str, rows: int) -> None:
        """Count rows that were logged and are deliberately not recorded."""
        with self._refused_lock:
            self._refused[reason] += rows

    def sink_stats(self) -> dict[str, SinkStats]:
        """The account of each sink."""
        refused = self._refused.copy()
        accounts: dict[str, SinkStats] = {}
        local = "spans" in self._kept
        if local:
            rows = sum(self.streams[table].rows for table in self._kept)
            accounts["local"] = SinkStats(
                logged=rows + refused.total(),
                recovered=0,
                delivered=0 if self._volatile else rows,
                pending=rows if self._volatile else 0,
                dropped=dict(refused),
            )
        for name, (ledger, tables) in self._dispatcher.accounts().items():
            streams = [self.streams[table] for table in tables]
            rows = partial(sum, (stream.rows for stream in streams))
            # What is refused is rows of rollouts, and never registrations.
            accounts[name] = ledger.stats(rows, refused if "spans" in tables else Counter())
        return accounts

    def flush(self, timeout: float, *, recovered: bool = False) -> FlushResult:
        """Wait for delivery, at most ``timeout`` seconds. Blocks; never call it in a loop."""
        began = time.monotonic()
        complete = self._flush(timeout, recovered=recovered) and not self._volatile
        return FlushResult(
            complete=complete, seconds=time.monotonic() - began, sinks=self.sink_stats()
        )

    def _flush(self, timeout: float, *, recovered: bool) -> bool:
        from concurrent.futures import wait

        future = self._submit(self._dispatcher.flush(recovered=recovered))
        if future is None:
            return False
        wait([future], max(0.0, timeout))
        if not future.done():
            future.cancel()
            return False
        return not future.cancelled() and future.exception() is None

    def _submit(self, coroutine: Coroutine[Any, Any, None]) -> Future[None] | None:
        try:
            return self._io.submit(coroutine)
        except RuntimeError:
            # The thread was lost. Rows are in the journal; a new thread carries them.
            coroutine.close()
            return None

    def close(self, timeout: float) -> FlushResult:
        """Flush, stop, release; by the deadline, whatever the backend does."""
        began = time.monotonic()
        deadline = began + timeout
        complete = self._flush(timeout, recovered=True)
        # From here on rows go to a successor. One more look takes what came during the flush.
        for stream in self.streams.values():
            stream.close()
        if complete:
            complete = self._flush(deadline - time.monotonic(), recovered=False)
        ended = self._io.stop(max(_GRACE, deadline - time.monotonic()))
        sinks = self.sink_stats()
        if ended:
            self.journal.close(delivered=complete and self._dispatcher.delivered)
        else:
            # It holds on to the journal until it does end.
            self._closes_journal = True
            if not self._io.alive:
                self._ended()
        complete = complete and not self._volatile
        return FlushResult(complete=complete, seconds=time.monotonic() - began, sinks=sinks)

    def succeeded_by(self, settings: Settings) -> None:
        """Before the end of ``close()``, where a runtime with ``settings`` goes on: exporters that
        it uses as well are not to be shut down."""
        for sink in self._exporters:
            sink.stays = sink.stays or sink.exporter in settings.exporters

    def abandon(self) -> None:
        """In a forked child."""
        self.journal.abandon()
        self._dispatcher.abandon()

    def _ended(self) -> None:
        if self._closes_journal:
            self.journal.close(delivered=False)

    def _rolled(self) -> None:
        self._io.call(self._dispatcher.rolled)


def _durable_sinks(settings: Settings) -> list[Sink]:
    """The sinks that must acknowledge every row they take. They import network libraries when
    first used, which is in the I/O thread."""
    sinks: list[Sink] = []
    if settings.clickhouse_url is not None:
        sinks.append(_clickhouse(settings, settings.clickhouse_url))
    if settings.kestrel_api_url is not None:
        from .sinks.kestrel import Kestrel

        sinks.append(Kestrel(settings.kestrel_api_url, api_key=settings.kestrel_api_key or ""))
    if settings.langfuse_public_key is not None:
        from .sinks.langfuse import Langfuse

        sinks.append(
            Langfuse(
                settings.langfuse_host,
                public_key=settings.langfuse_public_key,
                secret_key=settings.langfuse_secret_key or "",
                resource=dict(settings.otel_resource),
            )
        )
    if settings.otlp_endpoint is not None:
        from .sinks.otlp import OTLP

        sinks.append(
            OTLP(
                settings.otlp_endpoint,
                headers=dict(settings.otlp_headers),
                resource=dict(settings.otel_resource),
                **msgspec.structs.asdict(settings.otlp_transport),
            )
        )
    return sinks


def _clickhouse(settings: Settings, url: str) -> Sink:
    database = settings.clickhouse_database
    user, password = settings.clickhouse_user or "", settings.clickhouse_password or ""
    if is_native(url):
        from .sinks.clickhouse_native import ClickHouseNative

        return ClickHouseNative(url, database=database, user=user, password=password)
    from .sinks.clickhouse_http import ClickHouseHTTP

    return ClickHouseHTTP(url, database=database, user=user, password=password)


def _exporter_sinks(settings: Settings) -> list[Exporter]:
    """The sinks for exporters, which exist in this process alone."""
    exporters = list(settings.exporters.named())
    if not exporters:
        return []
    from .sinks.exporters import Exporter

    resource = dict(settings.otel_resource)
    return [Exporter(name, exporter, resource=resource) for name, exporter in exporters]


def _watching_sinks(settings: Settings) -> list[Sink]:
    """The sinks that only look on."""
    if not settings.debug:
        return []
    from .sinks.console import Console

    return [Console()]


async def replay(
    settings: Settings, timeout: float, report: Callable[[ReplayResult], None]
) -> ReplayResult:
    """Deliver what dead processes left in the journal of ``settings`` to its sinks.

    ``report`` is called with what waits before anything is sent, while it goes on, and at the end,
    also when this is cancelled.

    Raises:
        ConfigurationError: no sink is configured.
    """
    from .delivery.replay import replay as deliver

    sinks = _durable_sinks(settings)
    if not sinks:
        raise ConfigurationError(
            "CLICKHOUSE_URL is not set, nor anything else that rows could go to; without a server "
            "the journal itself is the store, and every command reads it as it is"
        )
    return await deliver(
        settings.journal_dir,
        sinks,
        timeout=timeout,
        batch_bytes=settings.batch_bytes,
        batch_rows=settings.batch_rows,
        report=report,
    )
