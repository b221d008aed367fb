"""Writing a record: where it stands in its rollout, and its line.

This is the path that every ``log()`` takes, in the caller's loop. It makes no system call and waits
for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time_ns
from typing import Any, Final

from msgspec.structs import astuple

from . import _ids
from ._rows import event_body, grade_body, labels, message_body, times, tool_body
from ._sanitize import MAX_STRING, encode, storable_text
from ._scope import Scope
from .errors import InvalidType
from .records import Event, Grade, Message, ToolExecution

__all__ = ["WRITERS", "base_record"]

_MAX_STATUS_MESSAGE: Final = 1024

# What a role means for a turn, kept so that a common one costs one look-up: its label, whether it
# opens a turn once the model has answered, and whether it is the answer.
_ROLES: Final = {
    role: (labels("message", f"message.{role}"), role != "tool", role == "assistant")
    for role in ("user", "assistant", "system", "tool")
}

_FIELDS: Final = len(Message.__struct_fields__)

_ROW: Final = b'%b,"seq":%d,"span_id":"%b",%b,%b,"turn_index":%d,"intra_index":%d%b%b\n'


# The second that times were last taken in: its start in nanoseconds, and it as the start of a time.
# Most calls of a busy program fall into the same one, and only the fraction is to be written.
_second: tuple[int, bytes] = (0, b"")


def _write_message(scope: Scope, message: Message) -> None:
    bare, body, notes = False, b"", b""
    try:
        # Most messages are a role and a text. One look at all fields finds that out.
        values = astuple(message)
        if values.count(None) == _FIELDS - 2:
            role, content = values[0], values[1]
            if type(content) is str and len(content) <= MAX_STRING and type(role) is str:
                body = encode(message)
                bare = len(body) <= MAX_STRING
    except Exception:
        # A lone surrogate in the text, or a value that cannot even be compared.
        pass
    if not bare:
        message, body, notes = message_body(message)
    rollout = scope.rollout
    role = message.role
    label, opens, answers = _ROLES.get(role) or (labels("message", f"message.{role}"), False, False)
    seq = rollout.next_seq()
    if bare or message.grader_name is None:
        # Several threads may be in here at once, but not between these assignments: there is no
        # call and no loop among them (see ``_rollout``).
        if opens and rollout.answered:
            rollout.answered = False
            rollout.next_intra = 0
            rollout.turn += 1
        rollout.intra = intra = rollout.next_intra
        rollout.next_intra = intra + 1
        turn = rollout.turn
        rollout.messages += 1
        if answers:
            rollout.answered = True
            rollout.turns += 1
    else:
        turn = rollout.turn
        intra = rollout.intra
        grader = f"grader.{message.grader_name}"
        label = labels(grader, grader)
    if bare:
        start, second = _second
        now = time_ns()
        if not 0 <= now - start < 1_000_000_000:
            start, second = _new_second(now)
        scope.append(
            b'%b,"seq":%d,"span_id":"%b",%b%09d",%b,"turn_index":%d,"intra_index":%d,%b\n'
            % (
                scope.prefix,
                seq,
                _ids.new_span_id(),
                second,
                now - start,
                label,
                turn,
                intra,
                body[1:],
            )
        )
        return
    rollout.add_usage(message)
    span_id = _ids.new_span_id()
    _append(scope, seq, span_id, message.duration_ms, label, turn, intra, notes, body)


def _new_second(now: int) -> tuple[int, bytes]:
    global _second
    seconds = now // 1_000_000_000
    # One assignment of both: another thread may be reading.
    _second = (seconds * 1_000_000_000, b'"start_time":"%010d.' % seconds)
    return _second


def _write_tool(scope: Scope, tool: ToolExecution) -> None:
    tool, body, notes = tool_body(tool)
    rollout = scope.rollout
    rollout.add_tool(tool.error is not None)
    if tool.error is not None:
        reason = encode(storable_text(tool.error, _MAX_STATUS_MESSAGE))
        notes += b',"status":"ERROR","status_message":' + reason
    label = labels("tool", f"tool.{tool.name}")
    turn, intra = rollout.turn, rollout.intra
    seq = rollout.next_seq()
    _append(scope, seq, _ids.new_span_id(), tool.duration_ms, label, turn, intra, notes, body)


def _write_grade(scope: Scope, grade: Grade) -> None:
    grade, body, notes = grade_body(grade)
    rollout = scope.rollout
    grader = rollout.grader_of(grade)
    label = labels("grade", f"grade.{grader}" if grader else "grade")
    turn, intra = rollout.turn, rollout.intra
    seq, span_id = rollout.next_seq(), _ids.new_span_id()
    _append(scope, seq, span_id, grade.duration_ms, label, turn, intra, notes, body)
    rollout.add_grade(span_id, seq, grade)


def _write_event(scope: Scope, event: Event) -> None:
    event, body, notes = event_body(event)
    rollout = scope.rollout
    # The body starts with {"name":" and so becomes the column by what is put before.
    body = b'{"name":"event.' + body[9:]
    turn, intra = rollout.turn, rollout.intra
    seq = rollout.next_seq()
    label = b'"kind":"event"'
    _append(scope, seq, _ids.new_span_id(), event.duration_ms, label, turn, intra, notes, body)


def _append(
    scope: Scope,
    seq: int,
    span_id: bytes,
    duration_ms: float | None,
    label: bytes,
    turn: int,
    intra: int,
    notes: bytes,
    body: bytes,
) -> None:
    # A grade may be an empty object.
    more = b"," + body[1:] if len(body) > 2 else b"}"
    when = times(duration_ms)
    scope.append(_ROW % (scope.prefix, seq, span_id, when, label, turn, intra, notes, more))


WRITERS: Final[dict[type[object], Callable[[Scope, Any], None]]] = {
    Message: _write_message,
    ToolExecution: _write_tool,
    Grade: _write_grade,
    Event: _write_event,
}
"""How each record is written; each raises ``InvalidType`` for a record without its name or role."""


def base_record(item: object) -> Any:
    """An instance of a user's subclass of a record as the record itself: more fields would be more
    columns.

    Raises:
        InvalidType: it is no record at all.
    """
    for kind in (Message, ToolExecution, Grade, Event):
        if issubclass(type(item), kind):
            return kind(**{field: getattr(item, field) for field in kind.__struct_fields__})
    names = ", ".join(kind.__name__ for kind in (Message, ToolExecution, Grade, Event))
    raise InvalidType(f"log() takes one of {names}, not {type(item).__name__}")
