"""What ``configure(exporters=[...])`` is given: objects of others, of which nothing is known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Protocol, cast

from .errors import InvalidType, InvalidValue

__all__ = ["Exporters", "SpanExporter", "check_exporters"]

_FORM: Final = "must be a list of OpenTelemetry SpanExporters, with export() and shutdown()"
_LONGEST_NAME: Final = 40


class SpanExporter(Protocol):
    """What is asked of an exporter. That of OpenTelemetry is one, and has ``force_flush()`` too."""

    def export(self, spans: Any, /) -> Any:
        """Take a list of ``ReadableSpan``s; ``SpanExportResult.SUCCESS`` says that it has."""
        ...

    def shutdown(self) -> None:
        """End; nothing is exported afterwards."""
        ...


class Exporters:
    """Span exporters in the order they were given. Two are equal if they hold the same objects: how
    the objects themselves compare is up to strangers, as is what they show of themselves."""

    def __init__(self, given: tuple[Any, ...] = ()) -> None:
        self._given = given

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exporters) or len(self._given) != len(other._given):
            return False
        return all(one is another for one, another in zip(self._given, other._given, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._given)))

    def __repr__(self) -> str:
        return f"[{', '.join(type(exporter).__name__ for exporter in self._given)}]"

    def __contains__(self, exporter: object) -> bool:
        return any(exporter is one for one in self._given)

    def named(self) -> Iterator[tuple[str, Any]]:
        """The exporters, each with a name that is the same in every process: of its class, and
        numbered among those of the same name. It names a file, and says what takes copies only."""
        seen: dict[str, int] = {}
        for exporter in self._given:
            plain = re.sub("[^a-z0-9]+", "-", type(exporter).__name__.lower()).strip("-")
            name = f"exporter-{plain[:_LONGEST_NAME]}"
            seen[name] = number = seen.get(name, 0) + 1
            yield (name if number == 1 else f"{name}-{number}"), exporter


def check_exporters(value: object) -> Exporters:
    """The argument ``exporters`` as it is kept.

    Raises:
        InvalidType: it is no list or tuple, or something in it is no exporter.
        InvalidValue: it holds the same object twice.
    """
    if not isinstance(value, list | tuple):
        raise InvalidType(f"{_FORM}, not {type(value).__name__}")
    given = tuple(cast("list[Any]", value))
    for exporter in given:
        if isinstance(exporter, type):
            raise InvalidType(f"{_FORM}; {exporter.__name__} is a class, and not an object of it")
        if not (_has(exporter, "export") and _has(exporter, "shutdown")):
            raise InvalidType(f"{_FORM}; {type(exporter).__name__} is none")
    if len(set(map(id, given))) < len(given):
        raise InvalidValue("must not hold the same object twice")
    return Exporters(given)


def _has(exporter: Any, method: str) -> bool:
    try:
        return callable(getattr(exporter, method, None))
    except Exception:
        return False
