"""Which traces a filter means, and their pages, in SQL over a million rows and more.

The tables may hold a trace several times: as it began, as it ended, and rows delivered twice. To
merge them (``FINAL``) takes longer than all else, so a page is found in the rows as they are, of
which there can only be too many, and then whatever a later version has replaced is dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

from msgspec import Meta

from ..kestrel.models import Span, Trace
from .backend import Backend, Row
from .parameters import read_cursor, write_cursor
from .problems import Problem

__all__ = ["SORTS", "Selection", "find_spans", "find_trace", "find_traces"]

SORTS: Final = ("start_time", "score", "duration_ms", "cost_usd")
"""What traces can be sorted by; ascending, or descending with a minus before it."""

# What never changes while a rollout runs, by the name of its parameter.
_FIXED: Final = {
    "run_id": "run_id = {run_id:String}",
    "step_number": "step_number = {step_number:Int64}",
    "step_min": "step_number >= {step_min:Int64}",
    "step_max": "(step_number >= 0 AND step_number <= {step_max:Int64})",
    "phase": "phase = {phase:String}",
    "grader_name": "grader_name = {grader_name:String}",
    "model_name": "model_name = {model_name:String}",
    "env_name": "env_name = {env_name:String}",
    "datapoint_id": "datapoint_id = {datapoint_id:String}",
    "start_min": "start_time >= {start_min:DateTime64(9, 'UTC')}",
    "start_max": "start_time <= {start_max:DateTime64(9, 'UTC')}",
    # In production the run is the project.
    "project": (
        "(run_id IN (SELECT run_id FROM runs WHERE project_id IN"
        " (SELECT project_id FROM projects WHERE name = {project:String}))"
        " OR (phase = 'prod' AND run_id = {project:String}))"
    ),
}
_OF_SPANS: Final = (
    "run_id",
    "step_number",
    "step_min",
    "step_max",
    "phase",
    "model_name",
    "env_name",
    "datapoint_id",
)
_CHANGING: Final = {
    "score_min": "score >= {score_min:Float64}",
    "score_max": "score <= {score_max:Float64}",
}
_METADATA: Final = (
    "trace_id IN (SELECT entity_id FROM entity_metadata_rows"
    " WHERE entity_type = 'trace' AND key = {key} AND {scope} AND entity_id IN"
    " (SELECT entity_id FROM entity_metadata_rows"
    " WHERE entity_type = 'trace' AND key = {key} AND {scope} AND {condition})"
    " GROUP BY run_id, entity_id HAVING {latest})"
)
# A newer value that is no number hides an older one: argMax alone would skip it.
_LATEST: Final = {
    "value": "argMax(value, version)",
    "value_number": "tupleElement(argMax(tuple(value_number), version), 1)",
}
# As in schema/0001_tables.sql.
_TOKENS: Final = "lower(ifNull(content, ''))"
_SEPARATORS: Final = re.compile(r"[\x00-/:-@\[-`{-\x7f]+")

_NARROW: Final = "run_id, trace_id"
_COLUMNS: Final = ", ".join(
    name for name in Trace.__struct_fields__ if name not in ("interrupted",)
)
_SPAN_COLUMNS: Final = ", ".join(Span.__struct_fields__)

# Traces, in the order of the list, among which metadata or text is looked for before all are. What
# is rare is found sooner among all; of a text that is neither, far more has to be read.
_WINDOWS: Final = (2_000,)
_TEXT_WINDOWS: Final = (2_000, 20_000)
_ROWS_A_CHECK: Final = 150  # ids in one statement: they travel in an address
_MOST_ROWS: Final = 10_000

_Id = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00]*$")]
# What the column holds: from 1900 to 2261.
_Date = r"(19[0-9]{2}|2[01][0-9]{2}|22[0-5][0-9]|226[01])-[01][0-9]-[0-3][0-9]"
_Moment = Annotated[str, Meta(pattern=rf"^{_Date} [0-2][0-9]:[0-5][0-9]:[0-5][0-9]\.[0-9]{{9}}$")]
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Key = tuple[Any, str, str]


@dataclass(slots=True)
class Selection:
    """The traces that a call's filters mean, as conditions over the columns of ``traces_rows``.

    Attributes:
        values: the parameters in all conditions.
        fixed: conditions that hold for each version of a trace or for none.
        changing: conditions that only the last version tells.
    """

    values: dict[str, str | int | float | Sequence[str]] = field(default_factory=dict[str, Any])
    fixed: list[str] = field(default_factory=list[str])
    changing: list[str] = field(default_factory=list[str])
    _searches: list[str] = field(default_factory=list[str])
    _by_text: bool = False

    @classmethod
    def of(cls, query: Mapping[str, Any]) -> Selection:
        """The filters among the parameters of a call.

        Raises:
            Problem: a bound of a metadata range is no number.
        """
        made = cls()
        for conditions, kind in ((_FIXED, made.fixed), (_CHANGING, made.changing)):
            for name, condition in conditions.items():
                if query.get(name) is not None:
                    made.values[name] = _plain(query[name])
                    kind.append(condition)
        if query["status"]:
            made.values["status"] = list(query["status"])
            made.changing.append("status IN {status:Array(String)}")
        in_run = made._in_run
        for i, tag in enumerate(query["tag"]):
            made.values[f"tag{i}"] = tag
            made.fixed.append(
                "trace_id IN (SELECT trace_id FROM trace_tags_rows"
                f" WHERE {in_run} AND tag = {{tag{i}:String}})"
            )
        for i, (name, text) in enumerate(query["meta."].items()):
            made._add_metadata(i, name, text)
        if query["text"]:
            made._add_text(query["text"])
        return made

    @property
    def windows(self) -> list[int]:
        """Among how many traces at first to look other tables through; none if that is not to be
        done."""
        if not self._searches:
            return []
        return [*(_TEXT_WINDOWS if self._by_text else _WINDOWS)]

    @property
    def on_trace(self) -> str:
        """The conditions on the trace's own row."""
        return " AND ".join([*self.fixed, *self.changing]) or "1"

    def where(self, window: str | None = None) -> str:
        """All conditions, to be asked of last versions only.

        Args:
            window: a condition that narrows the traces before other tables are looked through.
        """
        scope = {"rows": self._in_run, "spans": self._in_run}
        if window is not None:
            among = f"IN (SELECT {_NARROW} FROM traces_rows WHERE {window})"
            scope = {
                "rows": f"{self._in_run} AND (run_id, entity_id) {among}",
                "spans": f"{self._in_run} AND (run_id, trace_id) {among}",
            }
        searches = [
            search.replace("{scope}", scope["rows"]).replace("{spans}", scope["spans"])
            for search in self._searches
        ]
        return " AND ".join([self.on_trace, *searches])

    def on_spans(self) -> str:
        """The same traces as conditions over the columns of ``spans_rows``."""
        own = [_FIXED[name] for name in _OF_SPANS if name in self.values]
        if len(own) < len(self.fixed) + len(self.changing) + len(self._searches):
            own.append(
                f"(run_id, trace_id) IN (SELECT {_NARROW} FROM traces_rows FINAL"
                f" WHERE {self.where()})"
            )
        return " AND ".join(own) or "1"

    @property
    def _in_run(self) -> str:
        return _FIXED["run_id"] if "run_id" in self.values else "1"

    def _add_metadata(self, i: int, name: str, text: str) -> None:
        key, dot, bound = name.rpartition(".")
        column, test = "value", f"= {{value{i}:String}}"
        self.values[f"value{i}"] = text
        if key and dot and bound in ("min", "max"):
            self.values[f"value{i}"] = _number(f"meta.{name}", text)
            column, test = (
                "value_number",
                f"{'>=' if bound == 'min' else '<='} {{value{i}:Float64}}",
            )
        else:
            key = name
        self.values[f"key{i}"] = key
        self._searches.append(
            _METADATA.replace("{key}", f"{{key{i}:String}}")
            .replace("{condition}", f"{column} {test}")
            .replace("{latest}", f"{_LATEST[column]} {test}")
        )

    def _add_text(self, text: str) -> None:
        self._by_text = True
        # Words beyond ASCII are not in the index as people write them: case is theirs to choose.
        words = [word.lower() for word in _SEPARATORS.split(text) if word and word.isascii()]
        conditions: list[str] = []
        for i, word in enumerate(dict.fromkeys(words)):
            self.values[f"word{i}"] = word
            conditions.append(f"hasToken({_TOKENS}, {{word{i}:String}})")
        if [text.lower()] != words:
            self.values["text"] = text
            conditions.append("positionCaseInsensitiveUTF8(content, {text:String}) > 0")
        # From the table and not the view: the copies of a record are alike.
        self._searches.append(
            "trace_id IN (SELECT trace_id FROM spans_rows WHERE {spans} AND "
            + " AND ".join(conditions)
            + ")"
        )


@dataclass(frozen=True, slots=True)
class _Order:
    """An order of traces: by one column, those without a value last, and then by their ids."""

    name: str

    @property
    def column(self) -> str:
        return self.name.removeprefix("-")

    @property
    def clause(self) -> str:
        direction = "DESC" if self.name.startswith("-") else "ASC"
        return f"{self.column} {direction} NULLS LAST, trace_id, root_span_id"

    @property
    def kind(self) -> Any:
        return _Moment if self.column == "start_time" else float | None

    def beyond(self, place: str, key: _Key) -> tuple[str, dict[str, Any]]:
        """The condition of being after ``key``, and its parameters, whose names hold ``place``."""
        value, trace_id, root = key
        values = {f"{place}_trace": trace_id, f"{place}_root": root}
        later = f"(trace_id, root_span_id) > ({{{place}_trace:String}}, {{{place}_root:String}})"
        column = self.column
        if value is None:
            return f"({column} IS NULL AND {later})", values
        values[f"{place}_value"] = value
        kind = "DateTime64(9, 'UTC')" if column == "start_time" else "Float64"
        given = f"{{{place}_value:{kind}}}"
        sign = "<" if self.name.startswith("-") else ">"
        none = "" if column in ("start_time", "cost_usd") else f" OR {column} IS NULL"
        # Once more by itself where it can be: the engine reads the other columns of what is left.
        first = f"{column} {sign}= {given} AND " if not none else ""
        return (
            f"({first}({column} {sign} {given} OR ({column} = {given} AND {later}){none}))",
            values,
        )

    def key(self, row: Row) -> _Key:
        value = row[self.column]
        if self.column == "start_time":
            value = value.replace("T", " ").removesuffix("Z")
        return value, row["trace_id"], row["root_span_id"]


async def find_traces(
    backend: Backend, selection: Selection, sort: str, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """A page of traces, and the cursor of the next.

    Args:
        backend: the engine to ask.
        selection: which traces.
        sort: one of :data:`SORTS`, or that with a minus before it.
        limit: traces in a page.
        cursor: as the page before gave it.

    Raises:
        Problem: the cursor is not one of this list in this order.
        StoreError: the engine refused.
    """
    order = _Order(sort)
    kind = f"traces {sort}"
    after: _Key | None = None
    if cursor is not None:
        value, trace_id, root = read_cursor(cursor, kind, [order.kind, _Id, _Id])
        after = value, trace_id, root
    found: list[Row] = []
    windows = selection.windows
    # One more tells whether there is another page, and some will have been replaced.
    wanted = limit + 1 + max(limit // 4, 8)
    while True:
        until = None
        if windows:
            until = await _end_of_window(backend, selection, order, after, windows.pop(0))
        while True:
            rows = await _read(backend, selection, order, after, until, wanted)
            found += await _latest(backend, rows)
            if len(found) > limit:
                page = found[:limit]
                return page, write_cursor(kind, order.key(page[-1]))
            if len(rows) < wanted:
                break
            after = order.key(rows[-1])
            wanted = min(4 * wanted, _MOST_ROWS)
        if until is None:
            return found, None
        after = until


async def find_trace(backend: Backend, trace_id: str) -> Row | None:
    """The trace of this id, or the one whose creator gave it this id; of several rollouts in one
    trace, the one that began last. None when there is none."""
    sql = (
        f"SELECT {_COLUMNS} FROM traces_rows WHERE trace_id = {{id:String}}"
        " ORDER BY start_time DESC, root_span_id, version DESC LIMIT 1"
    )
    rows = await backend.rows(sql, {"id": trace_id})
    if not rows:
        given = await backend.rows(
            "SELECT entity_id FROM entity_metadata_rows WHERE entity_type = 'trace'"
            " AND key = 'given_trace_id' AND value = {id:String} LIMIT 1",
            {"id": trace_id},
        )
        if given:
            rows = await backend.rows(sql, {"id": given[0]["entity_id"]})
    return _without_none(rows[0]) if rows else None


async def find_spans(
    backend: Backend, trace_id: str, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """A page of a trace's records in the order in which they were logged, and the next cursor.

    Raises:
        Problem: the cursor is not one of this list.
        StoreError: the engine refused.
    """
    values: dict[str, str | int] = {"id": trace_id, "limit": limit + 1}
    conditions = ["trace_id = {id:String}"]
    known = await backend.rows(
        "SELECT 1 AS known FROM traces_rows WHERE trace_id = {id:String} LIMIT 1", {"id": trace_id}
    )
    if known:
        # Where the key begins; its summary may also be on its way still.
        conditions.append("run_id IN (SELECT run_id FROM traces_rows WHERE trace_id = {id:String})")
    if cursor is not None:
        seq, span_id = read_cursor(cursor, f"spans {trace_id}", [_Integer, _Id])
        values |= {"seq": seq, "span": span_id}
        conditions.append("(seq, span_id) > ({seq:Int64}, {span:String})")
    rows = await backend.rows(
        f"SELECT {_SPAN_COLUMNS} FROM spans WHERE {' AND '.join(conditions)}"
        " ORDER BY seq, span_id LIMIT {limit:UInt64}",
        values,
    )
    page = rows[:limit]
    if len(rows) <= limit:
        return page, None
    return page, write_cursor(f"spans {trace_id}", [page[-1]["seq"], page[-1]["span_id"]])


def _range(
    order: _Order, after: _Key | None, until: _Key | None
) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if after is not None:
        condition, values = order.beyond("after", after)
        conditions.append(condition)
    if until is not None:
        condition, more = order.beyond("until", until)
        conditions.append(f"NOT {condition}")
        values |= more
    return conditions, values


async def _end_of_window(
    backend: Backend, selection: Selection, order: _Order, after: _Key | None, size: int
) -> _Key | None:
    """The key of the last of ``size`` rows, None when there are fewer."""
    conditions, values = _range(order, after, None)
    where = " AND ".join([selection.on_trace, *conditions])
    rows = await backend.rows(
        f"SELECT {order.column}, trace_id, root_span_id FROM traces_rows WHERE {where}"
        f" ORDER BY {order.clause} LIMIT 1 OFFSET {{skip:UInt64}}",
        {**selection.values, **values, "skip": size - 1},
    )
    return order.key(rows[0]) if rows else None


async def _read(
    backend: Backend,
    selection: Selection,
    order: _Order,
    after: _Key | None,
    until: _Key | None,
    limit: int,
) -> list[Row]:
    """Rows in order, versions that have been replaced among them."""
    conditions, values = _range(order, after, until)
    window = " AND ".join([selection.on_trace, *conditions])
    where = " AND ".join([selection.where(window if until else None), *conditions])
    # Every trace has been PENDING: here most of what is found may have been replaced.
    merged = " FINAL" if "PENDING" in str(selection.values.get("status")) else ""
    return await backend.rows(
        f"SELECT {_COLUMNS} FROM traces_rows{merged} WHERE {where}"
        f" ORDER BY {order.clause} LIMIT {{limit:UInt64}}"
        " SETTINGS do_not_merge_across_partitions_select_final = 1",
        {**selection.values, **values, "limit": limit},
    )


async def _latest(backend: Backend, rows: list[Row]) -> list[Row]:
    """Those of ``rows`` that are the last version of their trace, each once."""
    versions: dict[tuple[str, str], int] = {}
    ids = list(dict.fromkeys(row["trace_id"] for row in rows))
    for start in range(0, len(ids), _ROWS_A_CHECK):
        some = set(ids[start : start + _ROWS_A_CHECK])
        answer = await backend.rows(
            "SELECT trace_id, root_span_id, max(version) AS version FROM traces_rows"
            " WHERE run_id IN {runs:Array(String)} AND trace_id IN {ids:Array(String)}"
            " GROUP BY trace_id, root_span_id",
            {
                "ids": sorted(some),
                "runs": sorted({row["run_id"] for row in rows if row["trace_id"] in some}),
            },
        )
        versions |= {(row["trace_id"], row["root_span_id"]): row["version"] for row in answer}
    latest: list[Row] = []
    for row in rows:
        key = row["trace_id"], row["root_span_id"]
        if versions.get(key) == row["version"]:
            del versions[key]  # a copy of it may follow
            latest.append(_without_none(row))
    return latest


def _without_none(row: Row) -> Row:
    if row["step_number"] < 0:
        row["step_number"] = None
    return row


def _plain(value: Any) -> str | int | float:
    return f"{value:%Y-%m-%d %H:%M:%S.%f}" if isinstance(value, datetime) else value


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Problem(400, "this value cannot be used", field=name, given=text, allowed="a number")
    return number
