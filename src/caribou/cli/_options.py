"""Options that several commands share, and what they mean in SQL.

A value given by a person reaches the engine as a parameter, never as part of the statement.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ..records import RolloutStatus
from ..store import Parameters

__all__ = ["STATUSES", "Filters", "filter_options", "json_option"]

F = TypeVar("F", bound=Callable[..., Any])

STATUSES = tuple(status.value for status in RolloutStatus)

# As in schema/0001_tables.sql.
_TOKENS_OF_CONTENT = "lower(ifNull(content, ''))"

json_option = click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")


class _ScoreRange(click.ParamType[tuple[float | None, float | None]]):
    name = "MIN..MAX"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float | None, float | None]:
        if isinstance(value, tuple):
            return value  # pyright: ignore
        low, dots, high = value.partition("..")
        if not dots:
            high = low
        try:
            bounds = (float(low) if low else None, float(high) if high else None)
        except ValueError:
            bounds = (None, None)
        if bounds == (None, None) or any(b is not None and b != b for b in bounds):
            self.fail(f"{value!r} is not a score or range; write 0.5.. or ..0.3 or 0.2..0.8 or 1")
        if any(b is not None and not 0 <= b <= 1 for b in bounds):
            self.fail(f"{value!r} is outside 0..1, where every score is")
        first, last = bounds
        if first is not None and last is not None and first > last:
            self.fail(f"{value!r} runs from high to low; write {high}..{low}")
        return bounds


class _Status(click.Choice[str]):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if str(value).upper() == "INTERRUPTED":
            self.fail(
                "what is shown as INTERRUPTED is stored as PENDING, as its process died before it"
                " could say more; write --status pending"
            )
        return super().convert(value, param, ctx)


class _KeyValue(click.ParamType[tuple[str, str]]):
    name = "KEY=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value  # pyright: ignore
        key, equals, rest = value.partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not of the form KEY=VALUE")
        return key, rest


@dataclass(frozen=True, slots=True)
class Filters:
    """Which traces a person asked for. Every condition given must hold; any one status may."""

    run: str | None = None
    step: int | None = None
    status: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    meta: tuple[tuple[str, str], ...] = ()
    score: tuple[float | None, float | None] | None = None
    text: str | None = None

    def where(self) -> tuple[str, Parameters]:
        """A condition over the columns of ``traces``, and the parameters in it."""
        terms: list[str] = []
        values: dict[str, str | int | float | Sequence[str]] = {}

        def value(name: str, content: str | int | float | Sequence[str], kind: str) -> str:
            values[name] = content
            return f"{{{name}:{kind}}}"

        in_run = ""
        if self.run is not None:
            in_run = f"run_id = {value('run', self.run, 'String')}"
            terms.append(in_run)
            in_run += " AND "
        if self.step is not None:
            terms.append(f"step_number = {value('step', self.step, 'Int64')}")
        if self.status:
            terms.append(f"status IN {value('status', self.status, 'Array(String)')}")
        for i, tag in enumerate(self.tag):
            terms.append(
                "trace_id IN (SELECT trace_id FROM trace_tags"
                f" WHERE {in_run}tag = {value(f'tag{i}', tag, 'String')})"
            )
        for i, (key, content) in enumerate(self.meta):
            terms.append(
                "trace_id IN (SELECT entity_id FROM entity_metadata"
                f" WHERE {in_run}entity_type = 'trace' AND key = {value(f'key{i}', key, 'String')}"
                f" AND value = {value(f'value{i}', content, 'String')})"
            )
        if self.score is not None:
            low, high = self.score
            if low is not None:
                terms.append(f"score >= {value('low', low, 'Float64')}")
            if high is not None:
                terms.append(f"score <= {value('high', high, 'Float64')}")
        if self.text is not None:
            wanted = value("text", self.text, "String")
            content, arguments, result = (
                f"positionCaseInsensitiveUTF8({field}, {wanted}) > 0"
                for field in ("content", "arguments", "result")
            )
            tokens = "".join(
                f"hasToken({_TOKENS_OF_CONTENT}, {value(f'token{i}', token, 'String')}) AND "
                for i, token in enumerate(_whole_tokens(self.text))
            )
            # Apart from each other, as only content has an index. From the table and not the view:
            # the copies of a row are alike, and not every server uses an index under FINAL.
            spans = f"trace_id IN (SELECT trace_id FROM spans_rows WHERE {in_run}"
            terms.append(f"({spans}{tokens}{content}) OR {spans}({arguments} OR {result})))")
        return " AND ".join(terms) or "1", values


def _whole_tokens(text: str) -> list[str]:
    """The words that every text containing ``text`` has as tokens of the index on content.

    The first and the last may be parts of longer ones. Beyond ASCII the index tells upper from
    lower case, which the search does not; to the search, the sign for Kelvin is a k as well.
    """
    inner = re.split(r"[\x00-/:-@\[-`{-\x7f]", text)[1:-1]
    return [word.lower() for word in inner if word and word.isascii() and "k" not in word.lower()]


def filter_options(command: F) -> F:
    """Adds the filters; the command gets them as one ``filters`` argument."""
    options = (
        click.option("--run", metavar="ID", help="Of this run."),
        click.option("--step", type=click.IntRange(min=0), metavar="N", help="Of this step."),
        click.option(
            "--status",
            type=_Status(STATUSES, case_sensitive=False),
            multiple=True,
            metavar="STATUS",
            help="With this status; give it again for any of several.",
        ),
        click.option("--tag", multiple=True, metavar="TAG", help="With this tag (repeatable)."),
        click.option(
            "--meta", type=_KeyValue(), multiple=True, help="With this metadata (repeatable)."
        ),
        click.option(
            "--score", type=_ScoreRange(), help="With a score in a range: 0.5.., ..0.3 or just 1."
        ),
        click.option(
            "--text", metavar="TEXT", help="Where a message, an argument or a result has this text."
        ),
    )

    def collect(**arguments: Any) -> Any:
        names = Filters.__dataclass_fields__
        filters = Filters(**{name: arguments.pop(name) for name in names})
        return command(filters=filters, **arguments)

    # Options that are there already are kept on the function.
    wrapped: Any = functools.update_wrapper(collect, command)
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
