"""What an exception says, as text that can be stored.

Source lines are left out of tracebacks: to read them from files would block the caller's loop.
"""

from __future__ import annotations

from typing import Final

from ._sanitize import storable_text

__all__ = ["MAX_MESSAGE", "is_abort", "message_of", "traceback_of", "type_of"]

MAX_MESSAGE: Final = 16 << 10
_MAX_TRACEBACK: Final = 64 << 10
_MAX_FRAMES: Final = 50
_MAX_EXCEPTIONS: Final = 20

_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n"


def is_abort(problem: BaseException) -> bool:
    """Whether the code was stopped from outside: cancelled, closed or interrupted. That is no error
    of its own. All such exceptions, of any library, are not an ``Exception``."""
    if isinstance(problem, BaseExceptionGroup):
        return all(is_abort(inner) for inner in problem.exceptions)  # pyright: ignore
    return not isinstance(problem, Exception)


def type_of(problem: BaseException) -> str:
    """The name of its class, with the module unless that is built in."""
    kind = type(problem)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return storable_text(f"{kind.__module__}.{kind.__qualname__}", 1024)


def message_of(problem: BaseException) -> str:
    """Its own words, cut."""
    try:
        text = str(problem)
    except Exception:
        text = "<the message could not be shown>"
    return storable_text(text, MAX_MESSAGE)


def traceback_of(problem: BaseException) -> str:
    """Where it came from, causes first, without source lines; cut."""
    return storable_text("\n".join(_describe(problem, set())), _MAX_TRACEBACK)


def _describe(problem: BaseException, seen: set[int]) -> list[str]:
    if id(problem) in seen or len(seen) >= _MAX_EXCEPTIONS:
        return []
    seen.add(id(problem))
    lines: list[str] = []
    if problem.__cause__ is not None:
        lines = [*_describe(problem.__cause__, seen), _CAUSE]
    elif problem.__context__ is not None and not problem.__suppress_context__:
        lines = [*_describe(problem.__context__, seen), _CONTEXT]
    lines += [*_frames(problem), f"{type_of(problem)}: {message_of(problem)}"]
    if isinstance(problem, BaseExceptionGroup):
        for number, inner in enumerate(problem.exceptions, 1):  # pyright: ignore
            lines.append(f"  +---------------- {number} ----------------")
            lines += [f"  | {line}" for line in _describe(inner, seen)]  # pyright: ignore
    return lines


def _frames(problem: BaseException) -> list[str]:
    lines: list[str] = []
    trace = problem.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_name}')
        trace = trace.tb_next
    if len(lines) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        lines[half:-half] = [f"  … {len(lines) - 2 * half} frames left out"]
    return ["Traceback (most recent call last):", *lines] if lines else []
