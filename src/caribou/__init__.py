"""Caribou: tracing for agent rollouts.

::

    import caribou
    from caribou import Message

    async with caribou.trace_run({"datapoint_id": "task-7", "phase": "eval"}) as trace_id:
        caribou.log(Message(role="user", content="Hello"))

Every record lands, once, in ClickHouse or in the local store; see ``configure``.
``caribou.sync`` has the same names for programs without an event loop, and ``caribou.testing`` what
it takes to test a program that logs.
"""

from __future__ import annotations

from . import sync as sync
from ._api import (
    add_meta,
    add_tags,
    configure,
    current_trace_id,
    flush,
    get_kestrel_client,
    increment_intra,
    increment_turn,
    log,
    set_error,
    set_intra_index,
    set_status,
    set_turn_index,
    shutdown,
    span,
    stats,
    trace_run,
)
from ._version import __version__
from .delivery.accounting import FlushResult, SinkStats, Stats
from .errors import (
    CaribouError,
    ConfigurationError,
    InvalidType,
    InvalidValue,
    JournalError,
    KestrelError,
    MissingExtra,
    StoreError,
)
from .records import Event, Grade, Message, RolloutStatus, ToolExecution, TraceMeta

__all__ = [
    "CaribouError",
    "ConfigurationError",
    "Event",
    "FlushResult",
    "Grade",
    "InvalidType",
    "InvalidValue",
    "JournalError",
    "KestrelError",
    "Message",
    "MissingExtra",
    "RolloutStatus",
    "SinkStats",
    "Stats",
    "StoreError",
    "ToolExecution",
    "TraceMeta",
    "__version__",
    "add_meta",
    "add_tags",
    "configure",
    "current_trace_id",
    "flush",
    "get_kestrel_client",
    "increment_intra",
    "increment_turn",
    "log",
    "set_error",
    "set_intra_index",
    "set_status",
    "set_turn_index",
    "shutdown",
    "span",
    "stats",
    "trace_run",
]
