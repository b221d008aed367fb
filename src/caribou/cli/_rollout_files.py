"""Reading rollouts out of JSON files: which items there are, and what JMESPath finds in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jmespath
from jmespath.exceptions import JMESPathError

from ..errors import InvalidValue

__all__ = ["Expressions", "Rollout", "read_rollouts"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One item of a file. ``messages`` are OpenAI-style chat messages, not yet looked into."""

    datapoint_id: str
    messages: list[Mapping[str, Any]]
    score: float | None
    metadata: dict[str, Any]


class _Expression:
    """A compiled JMESPath expression that knows which option it came from."""

    def __init__(self, option: str, text: str) -> None:
        self.label = f"{option} {text!r}"
        try:
            self._compiled: Any = jmespath.compile(text)
        except JMESPathError as error:
            # The library draws the position on lines of its own.
            reason = str(error).split("\n")[0].rstrip(": ")
            raise InvalidValue(f"{self.label} is no JMESPath expression: {reason}") from None

    def find(self, item: Any) -> Any:
        """What the expression finds in ``item``; None when there is nothing."""
        try:
            return self._compiled.search(item)
        except JMESPathError as error:
            reason = str(error).split("\n")[0]
            raise InvalidValue(f"{self.label} cannot be applied: {reason}") from None


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
            role = (
                cast("dict[str, Any]", message).get("role") if isinstance(message, dict) else None
            )
            if not isinstance(role, str):
                raise InvalidValue(f"{self._messages.label}: message {i} has no role")
        datapoint = self._datapoint.find(item)
        if datapoint in (None, "") or isinstance(datapoint, dict | list):
            raise InvalidValue(f"{self._datapoint.label} gives {_kind(datapoint)}, not an id")
        found = {name: expression.find(item) for name, expression in self._metadata.items()}
        return Rollout(
            datapoint_id=_text(datapoint),
            messages=cast("list[Mapping[str, Any]]", messages),
            score=self._find_score(item),
            metadata={name: value for name, value in found.items() if value is not None},
        )

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


def read_rollouts(paths: Sequence[Path], expressions: Expressions) -> Iterator[Rollout]:
    """The rollouts in ``paths``, in order. JSON arrays are held in memory, JSONL is not.

    Raises:
        InvalidValue: a file cannot be read or is empty, or an item lacks a part; the message names
            the file and the item.
    """
    for path in paths:
        number = 0
        for number, item in enumerate(_items(path), 1):
            try:
                yield expressions.apply(item)
            except InvalidValue as error:
                raise InvalidValue(f"{path}, item {number}: {error}") from None
        if number == 0:
            raise InvalidValue(f"{path} holds no rollouts")


def _items(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            start = b""
            while not start.strip():
                start = file.read(1)
                if not start:
                    return
            file.seek(0)
            if start == b"[":
                yield from _decode(path, 0, file.read())
                return
            for number, line in enumerate(file, 1):
                if number == 1 and line.strip() == b"{":
                    # One object, laid out over many lines.
                    yield _decode(path, 0, line + file.read())
                    return
                if line.strip():
                    yield _decode(path, number, line)
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read: {error.strerror}") from None


def _decode(path: Path, line: int, data: bytes) -> Any:
    # The standard library's reader takes what Python programs write: NaN, lone surrogates.
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        where = f"{path}, line {line}" if line else str(path)
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
