"""Which scope a call belongs to: task-local state that survives being left from anywhere.

The current scope stands in one context variable. Tokens are not used: a token may be reset only in
the context that made it, and generators, finalisers and frameworks leave in others. Instead a scope
that ends puts its parent back if it is still current, and a call that finds a scope which ended
elsewhere works out what to do with it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from msgspec import Raw

    from ._rollout import Rollout

__all__ = ["Scope", "calling_frame", "current", "enter", "leave", "settle"]

# Of generators and asynchronous generators: code that may be resumed in another context.
_GENERATOR: Final = 0x20 | 0x200


class Scope:
    """A rollout's root or a span in it: the parent of what is logged while it is current.

    ``prefix`` starts each of its lines and ``append`` takes them; ``fast`` says that a call may use
    both without another look. ``heads`` keeps what ``prefix`` makes of each role. It holds no
    contents, as contexts keep scopes alive.
    """

    __slots__ = (
        "append",
        "closed",
        "code",
        "error",
        "fast",
        "frame_id",
        "guests",
        "heads",
        "late",
        "parent",
        "prefix",
        "rollout",
        "start",
        "task",
    )

    def __init__(
        self,
        rollout: Rollout,
        parent: Scope | None,
        start: bytes,
        append: Callable[[bytes | bytearray], None],
    ) -> None:
        self.rollout = rollout
        self.parent = parent
        self.start = start
        self.append = append
        self.closed = False
        self.error: str | None = None
        self.late = False
        self.task = 0
        # Scopes within this one that a generator holds, and the generator that holds this one.
        self.guests = 0
        self.frame_id = 0
        self.code: CodeType | None = None
        # Before the first look, so that no change comes between.
        rollout.scopes.add(self)
        self.renew()
        self.look_again()

    def renew(self) -> None:
        """Make ``prefix`` anew after a change to what stands in it."""
        rollout = self.rollout
        while True:
            fields, late = rollout.trace_fields, self.late
            # In this order: who takes ``heads`` first never puts an older prefix into newer ones.
            self.prefix = self.start + fields + (b',"late":true' if late else b"")
            self.heads: dict[str, tuple[Raw, bool, bool]] = {}
            # Another thread may have changed them meanwhile, and been here first.
            if rollout.trace_fields is fields and self.late is late:
                return

    def catch_up(self) -> None:
        """Before a line that may come after the end: closed scopes are not told of changes, and
        what comes after the rollout's end is late."""
        rollout = self.rollout
        if self.closed or rollout.closed:
            self.late = rollout.closed
            self.renew()

    def look_again(self) -> None:
        """Work out ``fast`` after a change to what it depends on."""
        rollout = self.rollout
        slow = self.closed or self.guests or rollout.closed or rollout.skipped is not None
        self.fast = not slow


current: Final[ContextVar[Scope | None]] = ContextVar("caribou_scope", default=None)

# Open scopes that were entered by a generator's own frame, by the id of that frame. A generator
# whose steps run in several tasks does not find its scope in their contexts, but its frame is the
# same in all of them.
_held: dict[int, Scope] = {}


def calling_frame(depth: int) -> FrameType:
    """The frame ``depth`` calls above the caller of this function."""
    return sys._getframe(depth + 1)  # pyright: ignore[reportPrivateUsage]


def enter(scope: Scope, frame: FrameType) -> None:
    """Make ``scope`` current; ``frame`` is the code that holds it open."""
    scope.task = _task()
    if frame.f_code.co_flags & _GENERATOR:
        scope.frame_id = id(frame)
        scope.code = frame.f_code
        _held[scope.frame_id] = scope
        if scope.parent is not None:
            scope.parent.guests += 1
            scope.parent.look_again()
    current.set(scope)


def leave(scope: Scope) -> None:
    """Close ``scope``; where it is still current, its parent is from now on."""
    scope.closed = True
    scope.look_again()
    scope.rollout.scopes.discard(scope)
    parent = scope.parent
    if scope.frame_id:
        if _held.get(scope.frame_id) is scope:
            # A generator may hold several scopes, one within the other.
            if parent is not None and parent.frame_id == scope.frame_id and not parent.closed:
                _held[scope.frame_id] = parent
            else:
                del _held[scope.frame_id]
        if parent is not None:
            parent.guests -= 1
            parent.look_again()
    if current.get() is scope:
        current.set(parent)


def settle() -> Scope | None:
    """The scope that the running code belongs to; it may be closed, if what it holds came late."""
    scope = current.get()
    if _held:
        held = _held_by_stack(calling_frame(1))
        if held is not None and not _encloses(held, scope):
            return held
    if scope is None or not scope.closed:
        return scope
    if scope.task != _task():
        # A task that was started inside goes on after the end: its records still belong here.
        return scope
    # This very task entered the scope, and something else left it: a finaliser closed a generator.
    scope = _open(scope)
    current.set(scope)
    return scope


def _open(scope: Scope | None) -> Scope | None:
    while scope is not None and scope.closed:
        scope = scope.parent
    return scope


def _encloses(outer: Scope, inner: Scope | None) -> bool:
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


def _held_by_stack(frame: FrameType | None) -> Scope | None:
    while frame is not None:
        scope = _held.get(id(frame))
        # The id may have been reused if a generator died without being closed.
        if scope is not None and scope.code is frame.f_code:
            return scope
        frame = frame.f_back
    return None


def _task() -> int:
    """What runs this code: a task, or else a thread. Libraries nobody imported are not asked."""
    for library, where in (("asyncio", "asyncio"), ("trio", "trio.lowlevel")):
        if library in sys.modules:
            current_task = getattr(sys.modules.get(where), "current_task", None)
            try:
                task = current_task() if current_task else None
            except RuntimeError:
                continue
            if task is not None:
                return id(task)
    return -threading.get_ident()
