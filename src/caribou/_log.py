"""``log()``: the call that agents make most, and nothing that is not needed for it.

Most records are messages that have a role and a text. They are found out by one look at all
fields, and their row is encoded in one go: what is constant in a scope and for a role was encoded
before, as a head that stands where the first value of the row does. All others go through
``_write``.
"""

from __future__ import annotations

from time import time_ns
from typing import Any, Final

from msgspec import Raw, Struct
from msgspec.structs import astuple

from ._ids import pool
from ._recording import scope_for
from ._sanitize import MAX_STRING, encode, encode_into
from ._scope import Scope, current
from ._write import ROLES, WRITERS, base_record, write_placed
from .records import Message, Record

__all__ = ["log"]

_NONE_OF_PLAIN: Final = len(Message.__struct_fields__) - 2

# A text of no more characters is storable whatever they are: an escape takes six bytes.
_PLAIN_CHARACTERS: Final = MAX_STRING // 8

_START: Final = b'{"trace_id":'

_current = current.get


class _PlainRow(Struct, gc=False):
    # The id, and after it every member that is constant.
    trace_id: Raw
    seq: int
    span_id: str
    start_time: str
    turn_index: int
    intra_index: int
    content: str


# Where the next row is encoded. Memory of its own for each row would be a tenth of the whole. It is
# taken out by one statement, so that nobody else can have the same.
_buffer: bytearray | None = None

# The second that times were last taken in: its start in nanoseconds, and it as the start of a time.
# Most calls of a busy program fall into the same one, and only the fraction is to be written.
_second: tuple[int, str] = (0, "")


def log(item: Record) -> None:
    """Record a message, tool execution, grade or event under the current span.

    Synchronous and quick: once it returns, what it was given is safe from a crash of the process,
    and may be changed. It never raises for what the record holds.

    Args:
        item: the record.

    Raises:
        InvalidType: it is no record, or one without its name or role.
    """
    global _buffer
    scope = _current()
    if scope is None or not scope.fast:
        _log_carefully(item)
        return
    if type(item) is not Message:
        write = WRITERS.get(type(item))
        if write is None:
            _log_carefully(item)
        else:
            write(scope, item)
        return
    head = None
    values = astuple(item)
    role, content = values[0], values[1]
    try:
        if (
            values.count(None) == _NONE_OF_PLAIN
            and type(content) is str
            and len(content) <= _PLAIN_CHARACTERS
        ):
            if type(role) is not str:
                # By what it is, not by what it says it equals: an enum's member, say.
                role = str.__str__(role)
            head = scope.heads.get(role) or _new_head(scope, role)
    except Exception:
        # A value that cannot even be compared, or a role that is none of the common ones.
        pass
    if head is None:
        WRITERS[Message](scope, item)
        return
    constants, opens, answers = head
    now = time_ns()
    start, second = _second
    fraction = now - start
    # Formatting without a width takes half as long.
    nine_digits = 100_000_000 <= fraction < 1_000_000_000
    start_time = f"{second}{fraction}" if nine_digits else _format_time(now)
    # Several threads may be in here at once, but not between these assignments: there is no call
    # and no loop among them (see ``_rollout``). They are ``Rollout.next_seq`` and ``place``,
    # spelled out since the calls would be a tenth of the whole.
    rollout = scope.rollout
    rollout.seq = seq = rollout.seq + 1
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
    buffer, _buffer = _buffer, None
    if buffer is None:
        # Another thread has it, or a call that this one, of a finaliser, came between.
        buffer = bytearray()
    try:
        encode_into(
            _PlainRow(
                constants,
                seq,
                pool.pop(),
                start_time,
                turn,
                intra,
                content,
            ),
            buffer,
        )
    except (IndexError, UnicodeEncodeError):
        # The ids are used up, or there is a lone surrogate in the text.
        write_placed(scope, item, seq, turn, intra)
    else:
        scope.append(buffer)
    _buffer = buffer


def _new_head(scope: Scope, role: str) -> tuple[Raw, bool, bool]:
    """What starts the rows of a common role in a scope, kept for those that follow."""
    label, opens, answers = ROLES[role]
    heads = scope.heads
    constants = scope.prefix.removeprefix(_START)
    head = Raw(b'%b,%b,"role":%b' % (constants, label, encode(role))), opens, answers
    heads[role] = head
    return head


def _format_time(now: int) -> str:
    """The time in any second, and the start of its second for the calls that follow."""
    global _second
    seconds, fraction = divmod(now, 1_000_000_000)
    start = f"{max(seconds, 0):010d}."
    # One assignment of both: another thread may be reading.
    _second = seconds * 1_000_000_000, start
    return f"{start}{fraction:09d}"


def _log_carefully(item: Any) -> None:
    if type(item) not in WRITERS:
        item = base_record(item)
    scope = scope_for("log()", 2)
    if scope is None:
        return
    rollout = scope.rollout
    if rollout.skipped is not None:
        rollout.skip(1)
        return
    scope.catch_up()
    WRITERS[type(item)](scope, item)
    rollout.amended()
