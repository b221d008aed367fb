"""What is sent to Kestrel, as bytes; what cannot be sent is said before anything is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import InvalidType, InvalidValue
from .models import LARGEST_BATCH

__all__ = [
    "batches",
    "encode",
    "given",
    "item_of",
    "moment",
    "object_of",
    "query",
    "segment",
    "tag_list",
]

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

_LARGEST_BODY: Final = 8 << 20  # bytes; half of what the service takes


def given(value: T | None) -> T | UnsetType:
    """``value``, or what is left out of the request when it is None."""
    return UNSET if value is None else value


def encode(call: str, value: Any) -> bytes:
    """``value`` as JSON.

    Raises:
        InvalidType: it holds something that JSON cannot.
        InvalidValue: it holds a text or a number that JSON cannot, or itself.
    """
    try:
        return msgspec.json.encode(value)
    except TypeError as problem:
        raise InvalidType(f"{call}: {problem}") from None
    except (ValueError, OverflowError, RecursionError) as problem:
        raise InvalidValue(f"{call} cannot send this as JSON: {problem}") from None


def object_of(call: str, config: Mapping[str, Any] | None, name: str = "config") -> Any:
    """A JSON object; what is left out when it is None.

    Raises:
        InvalidType: it is no dict.
    """
    if config is None:
        return UNSET
    if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"{call}: {name} must be a dict, not {type(config).__name__}")
    return dict(config)


def tag_list(call: str, tags: Sequence[str] | None) -> Any:
    """Texts to find something by; what is left out when it is None.

    Raises:
        InvalidType: it is one text, not several.
    """
    if tags is None:
        return UNSET
    if isinstance(tags, str | bytes):
        raise InvalidType(f"{call}: tags must be a list of texts, not {type(tags).__name__}")
    return list(tags)


def segment(call: str, name: str, value: str) -> str:
    """An id as a part of a path.

    Raises:
        InvalidType: it is no str.
        InvalidValue: it is empty.
    """
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"{call}: {name} must be a str, not {type(value).__name__}")
    if not value:
        raise InvalidValue(f"{call}: {name} must not be empty")
    # Dots as well: alone, they would lead to the folder above.
    return quote(value, safe="", errors="replace").replace(".", "%2E")


def moment(call: str, name: str, value: datetime) -> datetime:
    """A time that says where it is.

    Raises:
        InvalidType: it is no datetime.
        InvalidValue: it has no time zone.
    """
    if not isinstance(value, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidType(f"{call}: {name} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise InvalidValue(f"{call}: {name} must have a time zone, for example datetime.now(UTC)")
    return value


def query(call: str, **parameters: Any) -> dict[str, str | Sequence[str]]:
    """Query parameters from those that are not None.

    Raises:
        InvalidType: a value cannot be one.
        InvalidValue: a time has no time zone.
    """
    found: dict[str, str | Sequence[str]] = {}
    for name, value in parameters.items():
        if value is None:
            continue
        if isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif isinstance(value, datetime):
            found[name] = moment(call, name, value).isoformat()
        elif isinstance(value, str | int | float):
            found[name] = str(value)
        else:
            raise InvalidType(f"{call}: {name} cannot be a {type(value).__name__}")
    return found


def item_of(
    call: str, kind: type[S], key: str, number: int, value: Any, defaults: Mapping[str, str]
) -> S:
    """One item of a batch: as it is, or made from a dict or from the value of its ``key`` alone.

    Raises:
        InvalidType: it has another form; the message says which item and what of it.
    """
    if not isinstance(value, kind):
        fields = dict(value) if isinstance(value, Mapping) else {key: value}  # pyright: ignore
        try:
            value = msgspec.convert(fields, kind)
        except msgspec.ValidationError as problem:
            raise InvalidType(f"{call}: item {number}: {problem}") from None
    # An item that says where it belongs, in either way, does not belong where the others do.
    if defaults and all(getattr(value, name) is UNSET for name in ("project", "project_id")):
        value = msgspec.structs.replace(value, **defaults)
    return value


def batches(items: Iterable[T], encoded: Callable[[int, T], bytes]) -> Iterator[bytes]:
    """Bodies ``{"items": [...]}`` of at most 10,000 items, and 8 MiB unless an item is larger."""
    lines: list[bytes] = []
    size = 0
    for number, item in enumerate(items):
        line = encoded(number, item)
        if lines and (len(lines) == LARGEST_BATCH or size + len(line) > _LARGEST_BODY):
            yield b'{"items":[%b]}' % b",".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield b'{"items":[%b]}' % b",".join(lines)
