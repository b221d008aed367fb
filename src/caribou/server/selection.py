"""Which traces the filters of a call mean, as conditions in SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from .problems import Problem

__all__ = ["Search", "Selection"]

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
# As in schema/0001_tables.sql: an index is found by the very expression.
_CONTENT: Final = "lower(ifNull(content, ''))"
_SEPARATORS: Final = re.compile(r"[\x00-/:-@\[-`{-\x7f]+")
# Shorter ones are not looked for in the index's words (text_index_like_min_pattern_length).
_SHORTEST: Final = 4


@dataclass(frozen=True, slots=True)
class Search:
    """A condition that rows of another table decide.

    Attributes:
        table: the table to look through.
        trace_id: its column with the trace.
        condition: what is looked for.
        quick: whether an index or the table's key finds it.
        key: where a later version may hide a match, the condition that all versions share.
    """

    table: str
    trace_id: str
    condition: str
    quick: bool
    key: str = ""

    def traces(self, scope: str, *, merged: bool) -> str:
        """The traces that have it among the rows of ``scope``, as a subquery. With their runs, as
        the key of traces begins with those. Not ``merged``, hidden versions count, too."""
        table = f"{self.table} FINAL" if self.key and merged else self.table
        return f"(SELECT run_id, {self.trace_id} FROM {table} WHERE {scope} AND {self.found})"

    def matches(self, scope: str, most: int) -> str:
        """A query that counts matching rows up to ``most``; a hidden version is one, too."""
        return (
            f"SELECT count() AS matches FROM (SELECT 1 FROM {self.table}"
            f" WHERE {scope} AND {self.found} LIMIT {most:d})"
        )

    @property
    def found(self) -> str:
        """The condition on a row."""
        return f"{self.key} AND {self.condition}" if self.key else self.condition

    @property
    def still_found(self) -> str:
        """A query for which of the traces ``ids`` in ``runs`` have it in their last version."""
        # In one tuple: by itself, a value that is NULL in the last version would be passed over.
        last = (
            f"SELECT run_id, {self.trace_id} AS trace_id,"
            f" argMax((value, value_number), version) AS last FROM {self.table} WHERE {self.key}"
            f" AND run_id IN {{runs:Array(String)}} AND {self.trace_id} IN {{ids:Array(String)}}"
            " GROUP BY run_id, trace_id"
        )
        return (
            "SELECT run_id, trace_id FROM"
            f" (SELECT run_id, trace_id, last.1 AS value, last.2 AS value_number FROM ({last}))"
            f" WHERE {self.condition}"
        )


@dataclass(slots=True)
class Selection:
    """The traces that a call's filters mean, as conditions over the columns of ``traces_rows``.

    Attributes:
        values: the parameters in all conditions.
        fixed: conditions that hold for each version of a trace or for none.
        changing: conditions that only the last version tells.
        searches: conditions that other tables decide.
    """

    values: dict[str, str | int | float | Sequence[str]] = field(default_factory=dict[str, Any])
    fixed: list[str] = field(default_factory=list[str])
    changing: list[str] = field(default_factory=list[str])
    searches: list[Search] = field(default_factory=list[Search])

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
        for i, tag in enumerate(query["tag"]):
            made.values[f"tag{i}"] = tag
            made.fixed.append(
                "trace_id IN (SELECT trace_id FROM trace_tags_rows"
                f" WHERE {made.scope} AND tag = {{tag{i}:String}})"
            )
        made._add_metadata(query["meta."])
        if query["text"]:
            made._add_text(query["text"])
        return made

    @property
    def scope(self) -> str:
        """What is known of the rows of all tables."""
        return _FIXED["run_id"] if "run_id" in self.values else "1"

    @property
    def on_trace(self) -> str:
        """The conditions on the trace's own row."""
        return " AND ".join([*self.fixed, *self.changing]) or "1"

    def where(self, window: str | None = None, *, merged: bool = True) -> str:
        """All conditions, to be asked of last versions only.

        Args:
            window: a condition that narrows the traces before other tables are looked through.
            merged: whether rows of those count in their last version only.
        """
        conditions = [*self.fixed, *self.changing]
        for search in sorted(self.searches, key=lambda search: not search.quick):
            # Among the traces that all else leaves, what has to be read whole is less.
            among = " AND ".join(conditions) if window is None and not search.quick else window
            scope = self.scope
            if among:
                scope += (
                    f" AND (run_id, {search.trace_id}) IN"
                    f" (SELECT run_id, trace_id FROM traces_rows WHERE {among})"
                )
            conditions.append(f"(run_id, trace_id) IN {search.traces(scope, merged=merged)}")
        return " AND ".join(conditions) or "1"

    def on_spans(self) -> str:
        """The same traces as conditions over the columns of ``spans_rows``, each of which holds
        for all versions of a record or for none."""
        own = [_FIXED[name] for name in _OF_SPANS if name in self.values]
        if len(own) < len(self.fixed) + len(self.changing) + len(self.searches):
            own.append(
                # Without the run, which takes longer to compare than it saves reading.
                f"trace_id IN (SELECT trace_id FROM traces_rows FINAL WHERE {self.where()})"
            )
        return " AND ".join(own) or "1"

    def _add_metadata(self, given: Mapping[str, str]) -> None:
        tests: dict[str, list[str]] = {}
        for i, (name, text) in enumerate(given.items()):
            key, dot, bound = name.rpartition(".")
            if key and dot and bound in ("min", "max"):
                self.values[f"value{i}"] = _number(f"meta.{name}", text)
                sign = ">=" if bound == "min" else "<="
                tests.setdefault(key, []).append(f"value_number {sign} {{value{i}:Float64}}")
            else:
                self.values[f"value{i}"] = text
                tests.setdefault(name, []).append(f"value = {{value{i}:String}}")
        for i, (key, of_value) in enumerate(tests.items()):
            self.values[f"key{i}"] = key
            known = f"entity_type = 'trace' AND key = {{key{i}:String}}"
            self.searches.append(
                Search(
                    "entity_metadata_rows",
                    "entity_id",
                    " AND ".join(of_value),
                    quick=True,
                    key=known,
                )
            )

    def _add_text(self, text: str) -> None:
        # Of a word that has no upper and lower case, or is ASCII, the index tells all.
        words = dict.fromkeys(word for word in _SEPARATORS.split(text) if word)
        known = [word for word in words if word.isascii() or word.lower() == word.upper()]
        conditions: list[str] = []
        for i, word in enumerate(known):
            self.values[f"word{i}"] = f"%{word.lower()}%"
            conditions.append(f"{_CONTENT} LIKE {{word{i}:String}}")
        if known != [text]:
            self.values["text"] = text
            conditions.append("positionCaseInsensitiveUTF8(content, {text:String}) > 0")
        quick = any(len(word.encode()) >= _SHORTEST for word in known)
        # Not FINAL: the copies of a record are alike.
        self.searches.append(
            Search("spans_rows", "trace_id", " AND ".join(conditions), quick=quick)
        )


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
