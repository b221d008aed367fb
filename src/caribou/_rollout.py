"""One rollout: its turns, its totals, its outcome, and the rows that say so.

Several tasks and threads may log into one rollout, and no lock guards it. CPython switches threads
only at calls and at the ends of loops, so what several of them may change is changed by one
assignment that has neither in it (``x.total += y.number``), or by one call of C.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from . import _ids
from ._failures import MAX_MESSAGE, is_abort, message_of, traceback_of, type_of
from ._redact import Appender, redacted
from ._registration import Registrar
from ._rows import WHOSE, prefix, row, stamp, trace_fields
from ._sanitize import MAX_LINE, Cleaner, encode, storable_text
from ._scope import Scope
from ._settings import Settings
from ._usage import Usage, totals
from .records import Grade, Message, RolloutStatus

__all__ = ["Recorder", "Rollout"]

_MAX_MODELS: Final = 100
_SCORE_CONSTANTS: Final = ("run_id", "trace_id", "phase", "step_number", "datapoint_id")


class Recorder(Protocol):
    """Where rows go: the process's runtime, or a test's capture."""

    @property
    def streams(self) -> Mapping[str, Appender]:
        """What takes the rows of each table."""
        ...

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        ...

    @property
    def accepting(self) -> bool:
        """False while the journal has no room for new rollouts."""
        ...

    @property
    def registrar(self) -> Registrar | None:
        """Writes what Kestrel is to be told of; None where there is no Kestrel."""
        ...

    def count_dropped(self, reason: str, rows: int) -> None:
        """Count rows that are not recorded, and why."""
        ...


class Rollout:
    """The state of one rollout.

    ``skipped`` is None if it is recorded, or else why not: the reason its rows are counted under,
    empty if they are not even counted.
    """

    __slots__ = (
        "_began",
        "_constants",
        "_edited",
        "_next_version",
        "_pid",
        "_recorder",
        "_start",
        "_start_of_line",
        "_streams",
        "_summary",
        "answered",
        "closed",
        "duration_ms",
        "error",
        "error_message",
        "grader_name",
        "intra",
        "messages",
        "metadata",
        "model_name",
        "next_intra",
        "root",
        "scopes",
        "score",
        "seq",
        "skipped",
        "status",
        "tags",
        "tool_calls",
        "tool_errors",
        "trace_fields",
        "trace_id",
        "turn",
        "turns",
        "usage",
    )

    def __init__(
        self,
        constants: dict[str, object],
        grader_name: str | None,
        recorder: Recorder,
        skipped: str | None,
        parent: Scope | None,
    ) -> None:
        self.trace_id = str(constants["trace_id"])
        self.model_name = str(constants.get("model_name") or "")
        self.grader_name = grader_name
        self.skipped = skipped
        self.closed = False
        self.seq = 0
        self.turn = 0
        self.intra = 0
        self.next_intra = 0
        self.answered = False
        self.turns = 0
        self.messages = 0
        self.tool_calls = 0
        self.tool_errors = 0
        self.usage: dict[str, Usage] = {}
        self.scopes: set[Scope] = set()
        self.score: float | None = None
        self.status: str | None = None
        self.error: tuple[str, str] | None = None
        self.error_message: str | None = None
        self.duration_ms: float | None = None
        self.tags: list[str] = []
        self.metadata: dict[str, str] = {}
        self.trace_fields = b""
        self._next_version = itertools.count(1).__next__
        self._edited = 0
        self._recorder = recorder
        hook = recorder.settings.redact
        self._streams = redacted(recorder.streams, hook) if hook else recorder.streams
        self._constants = constants
        self._start = time.time_ns()
        self._began = time.monotonic_ns()
        self._pid = os.getpid()
        self._start_of_line = prefix(constants)
        span_id = _ids.new_span_id()
        self.root = Scope(self, parent, self._inside(span_id), self._streams["spans"].append)
        self._summary = b'%b,"root_span_id":"%b","start_time":"%b"' % (
            self._start_of_line,
            span_id,
            stamp(self._start),
        )
        if grader_name is not None:
            self._summary += b',"grader_name":' + encode(grader_name)
        self._write("traces", b'%b,"status":"PENDING"}' % self._summary)
        if recorder.registrar is not None and skipped is None:
            recorder.registrar.register(constants, self._streams["registrations"].append)

    def next_seq(self) -> int:
        """The place of the next row in the rollout."""
        self.seq = seq = self.seq + 1
        return seq

    def scope(self, parent: Scope, span_id: bytes) -> Scope:
        """A scope within this rollout."""
        return Scope(self, parent, self._inside(span_id), self.root.append)

    def _inside(self, span_id: bytes) -> bytes:
        """The start of a line whose parent this span is. Ids need no escaping."""
        return b'%b,"parent_span_id":"%b"' % (self._start_of_line, span_id)

    def skip(self, rows: int) -> None:
        """Count rows of a rollout that is not recorded."""
        if self.skipped:
            self._recorder.count_dropped(self.skipped, rows)

    def write(self, table: str, columns: Mapping[str, object]) -> None:
        """Write one row of a table other than ``spans``."""
        self._write(table, encode(columns))

    def add_grade(self, span_id: bytes, seq: int, grade: Grade) -> None:
        """The last grade's score is the rollout's; each has a row of ``scores``."""
        self.score = grade.score
        columns = {name: self._constants.get(name) for name in _SCORE_CONSTANTS}
        columns["grader_name"] = self.grader_of(grade)
        columns["span_id"] = span_id.decode()
        columns["seq"] = seq
        columns["time"] = stamp(time.time_ns()).decode()
        columns["score"] = grade.score
        columns["reasoning"] = grade.reasoning
        self.write("scores", {name: value for name, value in columns.items() if value is not None})

    def grader_of(self, grade: Grade) -> str:
        """Who gave a grade, as far as anybody said."""
        return grade.grader_name or grade.grader_type or self.grader_name or ""

    def add_tool(self, failed: bool) -> None:
        """Add one run of a tool to the totals."""
        self.tool_calls += 1
        self.tool_errors += failed

    def add_usage(self, message: Message) -> None:
        """Add what a message took to the totals."""
        model = message.model or self.model_name
        usage = self.usage.get(model)
        if usage is None:
            if len(self.usage) >= _MAX_MODELS:
                model = "(others)"
            usage = self.usage.setdefault(model, Usage())
        if message.input_tokens:
            usage.input_tokens += message.input_tokens
        if message.output_tokens:
            usage.output_tokens += message.output_tokens
        if message.cache_read_tokens:
            usage.cache_read_tokens += message.cache_read_tokens
        if message.cache_write_tokens:
            usage.cache_write_tokens += message.cache_write_tokens
        if message.reasoning_tokens:
            usage.reasoning_tokens += message.reasoning_tokens
        if message.cost_usd:
            usage.cost_usd += message.cost_usd

    def place(self, opens: bool, answers: bool) -> tuple[int, int]:
        """The turn and the place in it of the next message of the conversation.

        Args:
            opens: the message opens a turn once the model has answered.
            answers: it is the answer.
        """
        if opens and self.answered:
            self.answered = False
            self.next_intra = 0
            self.turn += 1
        self.intra = intra = self.next_intra
        self.next_intra = intra + 1
        self.messages += 1
        if answers:
            self.answered = True
            self.turns += 1
        return self.turn, intra

    def set_turn(self, turn: int) -> None:
        """The next message stands in this turn, at its start if that is another one."""
        if turn != self.turn:
            self.turn = turn
            self.set_intra(0)
        self.answered = False

    def set_intra(self, intra: int) -> None:
        """The next message stands here, unless it opens a turn."""
        self.intra = intra
        self.next_intra = intra

    def add_meta(self, data: Mapping[str, object]) -> None:
        """One row of ``entity_metadata`` a key; the summary has them as text."""
        if self.skipped is not None:
            self.skip(len(data))
            return
        # The same key may be set again by another process, for a trace id of the user's own.
        self._edited = version = max(time.time_ns(), self._edited + 1)
        for key, value in Cleaner().json(data).items():
            if value is None and key in WHOSE:
                # There is no session or user, and none that is called "null".
                value = ""
            text = value if isinstance(value, str) else encode(value).decode()
            columns: dict[str, object] = {
                "entity_type": "trace",
                "entity_id": self.trace_id,
                "run_id": self._constants.get("run_id") or "",
                "key": key,
                "value": value if isinstance(value, dict | list) else text,
                "version": version,
            }
            if isinstance(value, int | float) and not isinstance(value, bool):
                columns["value_number"] = float(value)
            self.write("entity_metadata", columns)
            self.metadata[key] = storable_text(text, MAX_MESSAGE)
        self._tell_scopes()
        self.amended()

    def add_tags(self, tags: tuple[str, ...]) -> None:
        """One row of ``trace_tags`` a tag that is new."""
        for tag in tags:
            text = storable_text(tag, MAX_MESSAGE)
            if text in self.tags:
                continue
            if self.skipped is not None:
                self.skip(1)
                continue
            self.tags.append(text)
            run_id = self._constants.get("run_id") or ""
            self.write("trace_tags", {"tag": text, "run_id": run_id, "trace_id": self.trace_id})
        self._tell_scopes()
        self.amended()

    def _tell_scopes(self) -> None:
        """Have every line from now on say whose it is."""
        # A thread that puts older fields over those of another finds that out at its next look.
        while (fields := trace_fields(self.metadata, self.tags)) != self.trace_fields:
            self.trace_fields = fields
            for scope in tuple(self.scopes):
                scope.renew()

    def set_status(self, status: str, error_message: str | None) -> None:
        """The outcome, whatever happens next."""
        self.status = status
        if error_message is not None:
            self.error_message = storable_text(error_message, MAX_MESSAGE)
        self.amended()

    def finish(self, problem: BaseException | None) -> None:
        """Close the rollout; ``problem`` is what it raised, if anything."""
        self.duration_ms = (time.monotonic_ns() - self._began) / 1e6
        if self.skipped is None and problem is not None and not is_abort(problem):
            self.error = type_of(problem), traceback_of(problem)
            self.error_message = self.error_message or message_of(problem)
        if self.status is None:
            outcome = RolloutStatus.COMPLETED
            if problem is not None:
                outcome = RolloutStatus.ABORTED if is_abort(problem) else RolloutStatus.ERROR
            self.status = outcome.value
        self.closed = True
        for scope in tuple(self.scopes):
            scope.look_again()
        self.amended()

    def amended(self) -> None:
        """Write the summary (again) if the rollout is closed, and is this process's own."""
        if not self.closed or self._pid != os.getpid():
            return
        if self.skipped is not None:
            self.skip(1)
            return
        # The version before the totals: then the highest version has the latest totals.
        version = self._next_version()
        usage = totals(self.usage)
        error_type, traceback = self.error or (None, None)
        duration = self.duration_ms or 0.0
        columns: dict[str, Any] = {
            "status": self.status,
            "error_type": error_type,
            "error_message": self.error_message,
            "traceback": traceback,
            "end_time": stamp(self._start + int(duration * 1e6)).decode(),
            "duration_ms": duration,
            "turns": self.turns or None,
            "messages": self.messages or None,
            "tool_calls": self.tool_calls or None,
            "tool_errors": self.tool_errors or None,
            **usage,
            "score": self.score,
            "version": version,
        }
        more = {"tags": self.tags or None, "metadata": self.metadata or None}
        line = row(self._summary, columns | more)
        if len(line) > MAX_LINE:
            # They are all in their own tables.
            line = row(self._summary, columns)
        self._write("traces", line)

    def _write(self, table: str, line: bytes) -> None:
        if self.skipped is None:
            self._streams[table].append(line)
        else:
            self.skip(1)
