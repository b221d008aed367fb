"""What the commands that record rollouts themselves have in common."""

from __future__ import annotations

from .. import FlushResult, flush, shutdown
from .._settings import Settings, from_environment
from ..errors import ConfigurationError
from ._output import note
from ._owners import destinations

__all__ = ["deliver", "recording_settings", "report_unfinished"]

# Without a word.
_PATIENCE_SECONDS = 2.0


def recording_settings() -> Settings:
    """The settings in the environment.

    Raises:
        ConfigurationError: they cannot work, or keep anything from being recorded.
    """
    settings = from_environment()
    if settings.disabled:
        raise ConfigurationError("CARIBOU_DISABLED is set, so nothing would be recorded; unset it")
    if settings.clickhouse_url is None:
        # With a server the rows would do with memory.
        try:
            settings.journal_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"nothing can be kept in {settings.journal_dir}: {error.strerror}; CARIBOU_HOME "
                "names another folder"
            ) from None
    return settings


async def deliver(settings: Settings, seconds: float) -> FlushResult:
    """End the recording: wait for the server to take the rows, and say so if it takes long."""
    if not (await flush(_PATIENCE_SECONDS)).complete:
        note(f"Waiting up to {seconds:.0f} s for {destinations(settings)} to take the rows.")
    return await shutdown(seconds)


def report_unfinished(result: FlushResult) -> int:
    """Tell of rows that have not arrived; returns the exit code, 1 if there are any."""
    dropped = sum(sum(sink.dropped.values()) for sink in result.sinks.values())
    if dropped:
        note(f"{dropped:,} rows were dropped; `caribou doctor` says why.")
    if not result.complete:
        note(
            f"{result.pending:,} rows are safe in the journal but not delivered yet;"
            " `caribou replay` delivers them once the server answers."
        )
    return 0 if result.complete and not dropped else 1
