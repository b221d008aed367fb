"""Values that nobody should log, and somebody will."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = object.__hash__


class Liar:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        return str

    def __str__(self) -> str:
        return "lies"


class HostileClass:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("no class")


class HostileDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")

    def __iter__(self) -> Any:
        raise RuntimeError("no keys")

    def __len__(self) -> int:
        raise RuntimeError("no length")


class HostileList(list[Any]):
    def __iter__(self) -> Any:
        while True:
            yield self


class HostileStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __len__(self) -> int:
        return -1


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    y: Any


class Model:
    """As pydantic's models have it."""

    def __init__(self, dump: Any) -> None:
        self.dump = dump

    def model_dump(self) -> Any:
        if isinstance(self.dump, Exception):
            raise self.dump
        return self if self.dump is None else self.dump


class Struct(msgspec.Struct):
    a: Any


Pair = namedtuple("Pair", ["left", "right"])


def cycle() -> list[Any]:
    inner: list[Any] = [1]
    inner.append({"again": inner})
    return inner


def laughs(depth: int = 30) -> list[Any]:
    value: list[Any] = ["ha"]
    for _ in range(depth):
        value = [value] * 10
    return value


def deep(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = {"down": value}
    return value


ODD: list[Any] = [
    *("\ud800", "a\udfffb", "\ud83d\ude00", "\0", "\x1b[2J\u202e", "", "x" * 5000, "é" * 600_000),
    *(2**63, 2**64, -(2**63) - 1, 10**5000, -1, 0, True, False),
    *(float("nan"), float("inf"), float("-inf"), 1e308, -0.0, 7.0, 7.5, 1e3),
    *(b"bytes \xff", bytearray(b"a"), memoryview(b"m"), 1 + 2j, ..., object(), object, len),
    *(datetime.datetime(2026, 1, 2), datetime.date(1, 1, 1), datetime.timedelta(days=-1)),
    *(decimal.Decimal("NaN"), decimal.Decimal("0.1"), uuid.UUID(int=7), Path("/p")),
    *(Colour.RED, Level.HIGH, Point(1, Point(2, float("nan"))), Pair(1, "\ud800"), Struct({1: 2})),
    *(Model({"a": 1}), Model(None), Model(ValueError("no dump")), ValueError("\ud800")),
    *(Raises(), Liar(), HostileClass(), HostileStr("hostile")),
    *({1: "a", "1": "b", None: "c", (1, 2): "d"}, {b"k": 1, Raises(): 2, 1.5: 3, True: 4}),
    *({"\ud800": "\ud800"}, {float("nan"): float("nan")}, {"a" * 5000: 1}),
    *(HostileDict(a=1), HostileList([1]), OrderedDict(a=1), defaultdict(list, a=[1]), {1, 2}),
    *(cycle(), laughs(), deep(31), deep(32), deep(5000), [[]] * 30_000, ["x" * 1000] * 9000),
    *(dict.fromkeys(range(25_000)), frozenset({"a"}), (1, (2,)), range(3), iter([1]), [b"x"]),
]
