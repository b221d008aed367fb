"""Reading rollouts out of JSON files: which items there are, and what JMESPath finds in them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import jmespath
from jmespath.exceptions import JMESPathError

from .. import trace_run
from ..errors import InvalidValue
from ._format import counted

__all__ = ["Expressions", "Rollout", "Source", "read_rollouts"]


class Source:
    """A file of rollouts, to be read more than once; ``-`` is standard input."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._standard_input = str(path) == "-"
        self._copy: IO[bytes] | None = None

    def __str__(self) -> str:
        return "standard input" if self._standard_input else str(self._path)

    @contextmanager
    def opened(self) -> Generator[IO[bytes]]:
        """The file from its beginning.

        Raises:
            OSError: it cannot be read.
        """
        if self._copy is None and (self._standard_input or _runs_dry(self._path)):
            # What a pipe has given is gone from it.
            self._copy = tempfile.TemporaryFile()  # noqa: SIM115 (kept for the next reading)
            file = 0 if self._standard_input else self._path
            with open(file, "rb", closefd=not self._standard_input) as pipe:
                shutil.copyfileobj(pipe, self._copy)
        if self._copy is not None:
            self._copy.seek(0)
            yield self._copy
            return
        with self._path.open("rb") as file:
            yield file


def _runs_dry(path: Path) -> bool:
    return path.is_fifo() or path.is_char_device()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One item of a file. ``messages`` are OpenAI-style chat messages."""

    datapoint_id: str
    messages: list[Mapping[str, Any]]
    score: float | None
    metadata: dict[str, Any]


class _Expression:
    """A compiled JMESPath expression that knows which option it came from, and whether it has
    ``found`` anything."""

    def __init__(self, option: str, text: str) -> None:
        self.label = f"{option} {text!r}"
        self.found = False
        try:
            self._compiled: Any = jmespath.compile(text)
        except JMESPathError as error:
            # The library draws the position on lines of its own.
            reason = str(error).split("\n")[0].rstrip(": ")
            raise InvalidValue(f"{self.label} is no JMESPath expression: {reason}") from None

    def find(self, item: Any) -> Any:
        """What the expression finds in ``item``; None when there is nothing."""
        try:
            value = self._compiled.search(item)
        except JMESPathError as error:
            reason = str(error).split("\n")[0]
            raise InvalidValue(f"{self.label} cannot be applied: {reason}") from None
        self.found = self.found or (value is not None and value == value)
        return value


class Expressions:
    """Where in an item its parts are. Compiled once, so that a mistake shows before any work."""

    def __init__(
        self,
        *,
        messages: str,
        datapoint: str,
        score: str | None,
        metadata: Mapping[str, str],
    ) -> None:
        """Compile them.

        Raises:
            InvalidValue: one is no JMESPath expression; the message shows it.
        """
        self._messages = _Expression("--messages", messages)
        self._datapoint = _Expression("--datapoint", datapoint)
        self._score = None if score is None else _Expression("--score", score)
        self._metadata = {
            name: _Expression("--trial" if name == "trial" else f"--meta {name}", text)
            for name, text in metadata.items()
        }

    def apply(self, item: Any) -> Rollout:
        """The rollout in ``item``.

        Raises:
            InvalidValue: a part is missing or of the wrong kind; the message shows the expression.
        """
        messages = self._messages.find(item)
        if not isinstance(messages, list) or not messages:
            raise InvalidValue(
                f"{self._messages.label} gives {_kind(messages)}, not a list of messages"
            )
        for i, message in enumerate(cast("list[Any]", messages)):
            wrong = _wrong_in(message)
            if wrong:
                raise InvalidValue(f"{self._messages.label}: message {i} {wrong}")
        datapoint = self._datapoint.find(item)
        if datapoint in (None, "") or isinstance(datapoint, dict | list):
            raise InvalidValue(f"{self._datapoint.label} gives {_kind(datapoint)}, not an id")
        try:
            # Checks it; nothing is recorded before it is entered.
            trace_run({"datapoint_id": _text(datapoint), "phase": "eval"})
        except InvalidValue as error:
            raise InvalidValue(f"{self._datapoint.label}: {error}") from None
        found = {name: expression.find(item) for name, expression in self._metadata.items()}
        return Rollout(
            datapoint_id=_text(datapoint),
            messages=cast("list[Mapping[str, Any]]", messages),
            score=self._find_score(item),
            metadata={name: value for name, value in found.items() if value is not None},
        )

    def require_found(self, items: int) -> None:
        """To be called after all ``items``.

        Raises:
            InvalidValue: a part that an item may lack was in none of them, which is a slip.
        """
        for expression in (self._score, *self._metadata.values()):
            if expression is not None and not expression.found:
                some = "the item" if items == 1 else f"any of {counted(items, 'item')}"
                raise InvalidValue(f"{expression.label} gives nothing in {some}")

    def _find_score(self, item: Any) -> float | None:
        if self._score is None:
            return None
        score = self._score.find(item)
        if score is None or score != score:
            return None
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InvalidValue(
                f"{self._score.label} gives {_kind(score)}, not a number from 0 to 1"
            )
        return float(score)


def _wrong_in(message: Any) -> str:
    """What keeps a message from being recorded, to follow its name; empty when nothing does.

    Contents and ids of any kind can be stored; what else a message has goes to its attributes.
    """
    if not isinstance(message, dict):
        return f"is {_kind(message)}, which has no role"
    fields = cast("dict[str, Any]", message)
    role = fields.get("role")
    if role in (None, ""):
        return "has no role"
    if not isinstance(role, str):
        return f"has {_kind(role)} as role, not a text"
    calls: object = fields.get("tool_calls") or []
    if not isinstance(calls, list):
        return f"has {_kind(calls)} as tool_calls, not a list"
    for i, call in enumerate(cast("list[Any]", calls)):
        if not isinstance(call, dict):
            return f"has {_kind(call)} as tool_calls[{i}], not an object"
        function = cast("dict[str, Any]", call).get("function")
        if not isinstance(function, dict | None):
            return f"has {_kind(function)} as tool_calls[{i}].function, not an object"
    return ""


def read_rollouts(sources: Sequence[Source], expressions: Expressions) -> Iterator[Rollout]:
    """The rollouts in ``sources``, in order. JSON arrays are held in memory, JSONL is not.

    Raises:
        InvalidValue: a file cannot be read or is empty, or an item lacks a part; the message names
            the file and the item.
    """
    for source in sources:
        number = 0
        for number, item in enumerate(_items(source), 1):
            try:
                rollout = expressions.apply(item)
            except InvalidValue as error:
                raise InvalidValue(f"{source}, item {number}: {error}") from None
            yield rollout
        if number == 0:
            raise InvalidValue(f"{source} holds no rollouts")


def _items(source: Source) -> Iterator[Any]:
    try:
        with source.opened() as file:
            start = b""
            while not start.strip():
                start = file.read(1)
                if not start:
                    return
            file.seek(0)
            if start == b"[":
                yield from _decode(source, 0, file.read())
                return
            for number, line in enumerate(file, 1):
                if number == 1 and line.strip() == b"{":
                    # One object, laid out over many lines.
                    yield _decode(source, 0, line + file.read())
                    return
                if line.strip():
                    yield _decode(source, number, line)
    except OSError as error:
        raise InvalidValue(f"{source} cannot be read: {error.strerror}") from None


def _decode(source: Source, line: int, data: bytes) -> Any:
    # The standard library's reader takes what Python programs write: NaN, lone surrogates.
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        where = f"{source}, line {line}" if line else str(source)
        raise InvalidValue(f"{where} is not JSON: {error}") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
