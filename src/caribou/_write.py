"""Writing a record: where it stands in its rollout, and its line.

This runs in ``log()``, in the caller's loop. It makes no system call and waits for nothing. The
most common record has a shorter way, in ``_log``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from . import _ids
from ._rows import event_body, grade_body, labels, message_body, times, tool_body
from ._sanitize import encode, storable_text
from ._scope import Scope
from .errors import InvalidType
from .records import Event, Grade, Message, ToolExecution

__all__ = ["ROLES", "WRITERS", "base_record", "write_placed"]

_MAX_STATUS_MESSAGE: Final = 1024

ROLES: Final = {
    role: (labels("message", f"message.{role}"), role != "tool", role == "assistant")
    for role in ("user", "assistant", "system", "tool")
}
"""What a role means for a turn, kept so that a common one costs one look-up: its label, whether it
opens a turn once the model has answered, and whether it is the answer."""

_ROW: Final = b'%b,"seq":%d,"span_id":"%b",%b,%b,"turn_index":%d,"intra_index":%d%b%b'


def _write_message(scope: Scope, message: Message) -> None:
    message, body, notes = message_body(message)
    rollout = scope.rollout
    if message.grader_name is None:
        label, opens, answers = ROLES.get(message.role) or _other_role(message.role)
        turn, intra = rollout.place(opens, answers)
    else:
        turn, intra = rollout.turn, rollout.intra
        grader = f"grader.{message.grader_name}"
        label = labels(grader, grader)
    rollout.add_usage(message)
    seq, span_id = rollout.next_seq(), _ids.new_span_id()
    _append(scope, seq, span_id, message.duration_ms, label, turn, intra, notes, body)


def write_placed(scope: Scope, message: Message, seq: int, turn: int, intra: int) -> None:
    """Write a message that has its place already."""
    message, body, notes = message_body(message)
    label, _, _ = ROLES[message.role]
    _append(scope, seq, _ids.new_span_id(), None, label, turn, intra, notes, body)


def _other_role(role: str) -> tuple[bytes, bool, bool]:
    return labels("message", f"message.{role}"), False, False


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
"""How each record is written; each raises ``InvalidType`` for one without its name or role."""


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
