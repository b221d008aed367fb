"""The two context managers, without the way they are entered: that is asynchronous or blocking.

Entering and leaving is synchronous in the caller's own task, so that what is current is set there
and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Final

from . import _ids
from ._failures import is_abort, message_of, type_of
from ._meta import GIVEN_TRACE_ID, CheckedMeta
from ._rollout import Recorder, Rollout
from ._rows import labels, stamp
from ._sanitize import Cleaner, encode, storable_text
from ._scope import Scope, enter, leave, settle
from .errors import CaribouError, InvalidType, InvalidValue

if TYPE_CHECKING:
    from ._redact import Appender
    from ._settings import Settings

__all__ = ["NullRecorder", "SpanManager", "TraceManager"]

_MAX_STATUS_MESSAGE: Final = 1024


class TraceManager:
    """One rollout, entered once."""

    def __init__(self, meta: CheckedMeta) -> None:
        self._meta = meta
        self._scope: Scope | None = None
        self.trace_id: str = str(meta.constants["trace_id"])

    def _open(self, recorder: Recorder, skipped: str | None, frame: FrameType) -> str:
        if self._scope is not None:
            raise CaribouError("This trace_run was entered before; call trace_run for each rollout")
        meta = self._meta
        rollout = Rollout(meta.constants, meta.grader_name, recorder, skipped, settle())
        if meta.given_trace_id is not None:
            rollout.add_meta({GIVEN_TRACE_ID: meta.given_trace_id})
        self._scope = rollout.root
        enter(rollout.root, frame)
        return self.trace_id

    def _close(self, problem: BaseException | None) -> None:
        if self._scope is not None:
            leave(self._scope)
            self._scope.rollout.finish(problem)


class SpanManager:
    """A scope within a rollout, entered once.

    Raises:
        InvalidType: the name or kind is no text, or the attributes are no mapping.
        InvalidValue: the name or kind is empty.
    """

    def __init__(self, name: str, kind: str, attributes: Mapping[str, object] | None) -> None:
        for argument, text in (("name", name), ("kind", kind)):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidType(f"span: {argument} must be a str, not {type(text).__name__}")
            if not text:
                raise InvalidValue(f"span: {argument} must not be empty")
        if attributes is not None and not isinstance(attributes, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidType(f"span: attributes must be a dict, not {type(attributes).__name__}")
        self._label = labels(kind, name)
        self._more = b""
        if attributes is not None:
            cleaner = Cleaner()
            self._more = b',"attributes":' + encode(cleaner.mapping(attributes))
            if cleaner.marks:
                self._more += b',"sanitized":' + encode(",".join(sorted(cleaner.marks)))
        self._scope: Scope | None = None

    def _open(self, parent: Scope, frame: FrameType) -> None:
        if self._scope is not None:
            raise CaribouError("This span was entered before; call span for each")
        rollout = parent.rollout
        parent.catch_up()
        span_id = _ids.new_span_id()
        self._parent = parent
        self._start = time.time_ns()
        self._began = time.monotonic_ns()
        self._place = (
            b',"seq":%d,"span_id":"%b","start_time":"%b",%b,"turn_index":%d,"intra_index":%d%b'
            % (
                rollout.next_seq(),
                span_id,
                stamp(self._start),
                self._label,
                rollout.turn,
                rollout.intra,
                self._more,
            )
        )
        scope = rollout.scope(parent, span_id)
        try:
            self._write(b',"status":"PENDING"}')
            enter(scope, frame)
        except BaseException:
            # A signal's handler raised: nobody will leave it.
            rollout.scopes.discard(scope)
            raise
        self._scope = scope

    def _close(self, problem: BaseException | None) -> None:
        scope = self._scope
        if scope is None:
            return
        leave(scope)
        status, message = "COMPLETED", scope.error
        if problem is not None and is_abort(problem):
            status = "ABORTED"
        elif problem is not None:
            message = message or f"{type_of(problem)}: {message_of(problem)}"
        if message is not None:
            status = "ERROR"
        duration = time.monotonic_ns() - self._began
        tail = b',"end_time":"%b","duration_ms":%b,"status":"%b","version":1' % (
            stamp(self._start + duration),
            encode(duration / 1e6),
            status.encode(),
        )
        if message is not None:
            tail += b',"status_message":' + encode(storable_text(message, _MAX_STATUS_MESSAGE))
        self._parent.catch_up()
        self._write(tail + b"}")
        self._place = b""

    def _write(self, tail: bytes) -> None:
        parent = self._parent
        if parent.rollout.skipped is None:
            parent.append(parent.prefix + self._place + tail)
        else:
            parent.rollout.skip(1)


class NullRecorder:
    """What is used where nothing is recorded and nothing counted."""

    accepting = True
    registrar = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.streams: dict[str, Appender] = {"spans": self}

    def append(self, line: bytes | bytearray) -> None:
        """Never called: rollouts that use this are skipped."""

    def count_dropped(self, reason: str, rows: int) -> None:
        """Never called, for the same reason."""
