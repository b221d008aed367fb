"""Which traces a filter means, and their pages, in SQL over a million rows and more.

The tables may hold a trace several times: as it began, as it ended, and rows delivered twice. To
merge them (``FINAL``) takes longer than all else, so a page is found in the rows as they are, of
which there can only be too many, and then whatever a later version has replaced is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from msgspec import Meta

from ..kestrel.models import Span, Trace
from .backend import Backend, Row
from .parameters import read_cursor, write_cursor
from .selection import Search, Selection

__all__ = ["SORTS", "find_spans", "find_trace", "find_traces"]

SORTS: Final = ("start_time", "score", "duration_ms", "cost_usd")
"""What traces can be sorted by; ascending, or descending with a minus before it."""

_COLUMNS: Final = ", ".join(
    name for name in Trace.__struct_fields__ if name not in ("interrupted",)
)
_SPAN_COLUMNS: Final = ", ".join(Span.__struct_fields__)

# So many traces, in the order of the list, are looked through before all are, where nothing tells
# beforehand how rare a match is.
_WINDOWS: Final = (2_000, 20_000)
_MANY: Final = 50_000  # matches: counting goes no further
_FEW: Final = 5_000  # so many are found at once among all traces
# What a record may have much of, and how much of it goes into one page.
_LONG: Final = (
    "content",
    "tool_calls",
    "arguments",
    "result",
    "error",
    "criteria",
    "prompt",
    "data",
)
_TEXTS: Final = ", ".join(_LONG)
_SIZE: Final = " + ".join(f"ifNull(length({name}), 0)" for name in _LONG)
_PAGE_BYTES: Final = 16 << 20
_ROWS_A_CHECK: Final = 150  # ids in one statement: they travel in an address
_MOST_ROWS: Final = 10_000

_Id = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00]*$")]
# What the column holds: from 1900 to 2261.
_Date = r"(19[0-9]{2}|2[01][0-9]{2}|22[0-5][0-9]|226[01])-[01][0-9]-[0-3][0-9]"
_Moment = Annotated[str, Meta(pattern=rf"^{_Date} [0-2][0-9]:[0-5][0-9]:[0-5][0-9]\.[0-9]{{9}}$")]
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Key = tuple[Any, str, str]
_AFTER_ALL: Final = "~"  # sorts behind every trace id, which are hexadecimal digits


@dataclass(frozen=True, slots=True)
class _Order:
    """An order of traces: by one column, those without a value last, and then by their ids."""

    name: str

    @property
    def column(self) -> str:
        return self.name.removeprefix("-")

    @property
    def names(self) -> str:
        return f"{self.column}, trace_id, root_span_id"

    @property
    def by_value(self) -> str:
        return f"{self.column} {'DESC' if self.name.startswith('-') else 'ASC'} NULLS LAST"

    @property
    def clause(self) -> str:
        return f"{self.by_value}, trace_id, root_span_id"

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
    # One more tells whether there is another page, and some will have been replaced.
    wanted = limit + 1 + max(limit // 4, 8)
    windows = await _windows(backend, selection, wanted)
    while True:
        until = None
        if windows:
            until = await _end_of_window(backend, selection, order, after, windows.pop(0))
        while True:
            rows = await _read(backend, selection, order, after, until, wanted)
            found += await _latest(backend, selection, rows)
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

    It ends early where the records are large; it never is empty when there are more.

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
    found = f"FROM spans WHERE {' AND '.join(conditions)} ORDER BY seq, span_id LIMIT"
    fitting = await backend.rows(
        f"SELECT countIf(upto <= {_PAGE_BYTES}) AS records FROM (SELECT sum({_SIZE})"
        " OVER (ORDER BY seq, span_id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS upto"
        f" FROM (SELECT seq, span_id, {_TEXTS} {found} {{limit:UInt64}}))",
        values,
    )
    limit = min(limit, max(fitting[0]["records"], 1))
    rows = await backend.rows(
        f"SELECT {_SPAN_COLUMNS} {found} {{limit:UInt64}}", {**values, "limit": limit + 1}
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


async def _windows(backend: Backend, selection: Selection, wanted: int) -> list[int]:
    """Among how many traces to look other tables through before it is done among all.

    What is rare is found sooner among all; what is frequent, among a few that should do.
    """
    if not selection.searches:
        return []
    quick = [search for search in selection.searches if search.quick]
    if not quick:
        return [*_WINDOWS]
    counted = await backend.rows(
        f"SELECT count() AS traces FROM traces_rows WHERE {selection.scope}", selection.values
    )
    traces, share = counted[0]["traces"], 1.0
    for search in quick:
        counted = await backend.rows(search.matches(selection.scope, _MANY), selection.values)
        if counted[0]["matches"] < _FEW:
            return []
        share *= min(counted[0]["matches"] / max(traces, 1), 1.0)
    size = math.ceil(2 * wanted / share)
    return [size] if 2 * size < traces else []


async def _end_of_window(
    backend: Backend, selection: Selection, order: _Order, after: _Key | None, size: int
) -> _Key | None:
    """The key of the last of ``size`` rows, None when there are fewer."""
    conditions, values = _range(order, after, None)
    where = " AND ".join([selection.on_trace, *conditions])
    by_time = order.column == "start_time"
    # The ids take far longer to read than a time, which few traces share.
    columns, clause = (order.column, order.by_value) if by_time else (order.names, order.clause)
    rows = await backend.rows(
        f"SELECT {columns} FROM traces_rows WHERE {where}"
        f" ORDER BY {clause} LIMIT 1 OFFSET {{skip:UInt64}}",
        {**selection.values, **values, "skip": size - 1},
    )
    if not rows:
        return None
    return order.key({"trace_id": _AFTER_ALL, "root_span_id": "", **rows[0]})


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
    chosen = selection.where(window if until else None, merged=False)
    where = " AND ".join([chosen, *conditions])
    # Every trace has been PENDING: here most of what is found may have been replaced.
    merged = " FINAL" if "PENDING" in str(selection.values.get("status")) else ""
    return await backend.rows(
        f"SELECT {_COLUMNS} FROM traces_rows{merged} WHERE {where}"
        f" ORDER BY {order.clause} LIMIT {{limit:UInt64}}"
        " SETTINGS do_not_merge_across_partitions_select_final = 1",
        {**selection.values, **values, "limit": limit},
    )


async def _latest(backend: Backend, selection: Selection, rows: list[Row]) -> list[Row]:
    """Those of ``rows`` that are the last version of their trace and still of the selection, each
    once."""
    versions: dict[tuple[str, str], int] = {}
    for values in _checks(rows):
        answer = await backend.rows(
            "SELECT trace_id, root_span_id, max(version) AS version FROM traces_rows"
            " WHERE run_id IN {runs:Array(String)} AND trace_id IN {ids:Array(String)}"
            " GROUP BY trace_id, root_span_id",
            values,
        )
        versions |= {(row["trace_id"], row["root_span_id"]): row["version"] for row in answer}
    latest: list[Row] = []
    for row in rows:
        key = row["trace_id"], row["root_span_id"]
        if versions.get(key) == row["version"]:
            del versions[key]  # a copy of it may follow
            latest.append(_without_none(row))
    for search in selection.searches:
        if search.key:
            latest = await _still_found(backend, selection, search, latest)
    return latest


async def _still_found(
    backend: Backend, selection: Selection, search: Search, rows: list[Row]
) -> list[Row]:
    """Those of ``rows`` whose match is not hidden by a later version."""
    traces: set[tuple[str, str]] = set()
    for values in _checks(rows):
        answer = await backend.rows(search.still_found, {**selection.values, **values})
        traces.update((row["run_id"], row["trace_id"]) for row in answer)
    return [row for row in rows if (row["run_id"], row["trace_id"]) in traces]


def _checks(rows: list[Row]) -> Iterator[dict[str, list[str]]]:
    """The ids of traces and their runs, some at a time."""
    runs: dict[str, set[str]] = {}
    for row in rows:
        runs.setdefault(row["trace_id"], set()).add(row["run_id"])
    ids = list(runs)
    for start in range(0, len(ids), _ROWS_A_CHECK):
        some = ids[start : start + _ROWS_A_CHECK]
        yield {"ids": some, "runs": sorted(set[str]().union(*(runs[id] for id in some)))}


def _without_none(row: Row) -> Row:
    if row["step_number"] < 0:
        row["step_number"] = None
    return row
