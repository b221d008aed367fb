"""What both mappers have in common, and what the journal knows of the sinks."""

from __future__ import annotations

from typing import Any

import pytest
from support.golden import ASSISTANT, CONSTANT, GRADE, ROOT, SCOPE, SPAN, SUMMARY, TOOL, TRACE, USER

from caribou.journal.journal import TABLES
from caribou.journal.owner import stores, takes
from caribou.otel import generic, langfuse
from caribou.otel.spans import bounded
from caribou.sinks.base import Sink
from caribou.sinks.clickhouse_http import ClickHouseHTTP
from caribou.sinks.kestrel import Kestrel
from caribou.sinks.langfuse import Langfuse
from caribou.sinks.otlp import OTLP

META = "langfuse.observation.metadata."


@pytest.mark.parametrize("mapper", [generic, langfuse])
def test_what_is_written_when_a_scope_opens_is_no_span(mapper: Any) -> None:
    opened = {k: v for k, v in SCOPE.items() if k not in ("end_time", "duration_ms", "version")}
    assert mapper.to_span("spans", opened | {"status": "PENDING"}) is None
    began = {k: v for k, v in SUMMARY.items() if k not in ("end_time", "duration_ms")}
    assert mapper.to_span("traces", began | {"status": "PENDING"}) is None
    assert mapper.to_span("traces", SUMMARY | {"status": "PENDING"}) is not None


def test_a_grade_is_a_score_with_an_id_of_its_own() -> None:
    row = {name: CONSTANT[name] for name in ("trace_id", "run_id", "phase", "datapoint_id")} | {
        "span_id": SPAN,
        "grader_name": "judge",
        "seq": 4,
        "time": "1790000000.408435526",
        "score": 0.0,
        "reasoning": "none of it",
    }
    assert langfuse.to_score(row) == {
        "id": f"{TRACE}-{SPAN}",
        "traceId": TRACE,
        "name": "judge",
        "value": 0.0,
        "dataType": "NUMERIC",
        "comment": "none of it",
        "environment": "eval",
        "metadata": {"run_id": "nightly", "datapoint_id": "task-7", "span_id": SPAN},
    }
    del row["score"]
    assert langfuse.to_score(row) is None


@pytest.mark.parametrize(
    ("phase", "run_id", "env_name", "agent"),
    [
        ("prod", "shop", "web", "shop"),
        ("prod", None, "web", "web"),
        ("train", "nightly", "airline", "airline"),
        ("train", "nightly", None, ""),
    ],
)
def test_who_acts(phase: str, run_id: str | None, env_name: str | None, agent: str) -> None:
    row = SUMMARY | {"phase": phase, "run_id": run_id, "env_name": env_name}
    span = generic.to_span("traces", row)
    assert span is not None
    assert span.name == f"invoke_agent {agent}".strip()
    shown = langfuse.to_span("traces", row)
    assert shown is not None
    assert shown.attributes["langfuse.trace.name"] == (agent or "rollout")
    # Only an evaluation is an experiment.
    assert not [name for name in shown.attributes if "experiment" in name]


def test_whose_a_record_is_stands_on_it_as_far_as_its_row_says() -> None:
    named = ("session_id", "user_id", "tags")
    without = {name: value for name, value in USER.items() if name not in named}
    for mapper in (generic, langfuse):
        nobodys = mapper.to_span("spans", without)
        # What a redaction hook may make of tags.
        of_user = mapper.to_span("spans", without | {"user_id": "u", "tags": "***"})
        assert nobodys is not None
        assert of_user is not None
        assert {**of_user.attributes} == {**nobodys.attributes, "user.id": "u"}


@pytest.mark.parametrize(("size", "kept"), [(99, 99), (100, 100), (101, 98)])
def test_what_is_too_large_is_cut_between_two_characters(size: int, kept: int) -> None:
    # The last character has three bytes, of which one or more are beyond the hundredth.
    row = bounded({**USER, "content": "x" * (size - 3) + "€"}, longest=100)
    assert len(row["content"].encode()) == kept
    for mapper, name, told in (
        (generic, "caribou.original_bytes.content", size),
        (langfuse, META + "original_bytes.content", str(size)),
    ):
        span = mapper.to_span("spans", row)
        assert span is not None
        assert span.attributes.get(name) == (told if size > 100 else None)


def test_a_large_value_takes_no_other_of_its_column_along() -> None:
    metadata = {"note": "é" * 300, "session_id": "s1", "long": "y" * 60, "user_id": "u1"}
    row = bounded({**SUMMARY, "metadata": metadata, "tags": ["hard", "z" * 300]}, longest=200)
    assert list(row["metadata"]) == ["note", "session_id", "long", "user_id"]
    assert len(str(row["metadata"]).encode()) < 300
    for mapper, prefix in ((generic, "caribou."), (langfuse, "langfuse.trace.")):
        span = mapper.to_span("traces", row)
        assert span is not None
        given = span.attributes
        assert given[prefix + "metadata.session_id"] == "s1"
        assert given[prefix + "metadata.long"] == "y" * 60
        assert set(str(given[prefix + "metadata.note"])) == {"é"}
        assert given["user.id"] == "u1"
        assert given[prefix + "tags"] == ["hard"]
    attributes = bounded({**USER, "attributes": {"a": 1, "b": "x" * 300}}, longest=200)
    for mapper, name in ((generic, "caribou.attributes.a"), (langfuse, META + "a")):
        span = mapper.to_span("spans", attributes)
        assert span is not None
        assert str(span.attributes[name]) == "1"


def test_cut_structures_are_text_and_no_mapper_minds() -> None:
    everything = ASSISTANT | TOOL | GRADE | {"data": {"a": "x" * 50}, "prompt": "y" * 50}
    for row in (everything, ASSISTANT, TOOL, GRADE, USER, everything | {"version": 1}):
        small = bounded(row, longest=16)
        for mapper in (generic, langfuse):
            assert mapper.to_span("spans", small | {
                "trace_id": TRACE, "span_id": SPAN, "start_time": "1790000000.408435526",
                "end_time": "1790000001.908435526",
            }) is not None  # fmt: skip
    for mapper in (generic, langfuse):
        ids = {"trace_id": TRACE, "root_span_id": ROOT, "start_time": "1790000000.408435526"}
        cut = bounded(SUMMARY, longest=4) | ids | {"end_time": "1790000001.908435526"}
        assert mapper.to_span("traces", cut) is not None


def test_the_journal_knows_what_each_sink_takes() -> None:
    sinks: list[Sink] = [
        ClickHouseHTTP("http://127.0.0.1:1"),
        Kestrel("http://127.0.0.1:1"),
        Langfuse("http://127.0.0.1:1", public_key="p", secret_key="s"),
        OTLP("http://127.0.0.1:1/v1/traces"),
    ]
    for sink in sinks:
        assert sink.tables == {table for table in TABLES if takes(sink.name, table)}
    homes = {table: [s.name for s in sinks if stores(s.name, table)] for table in TABLES}
    assert homes.pop("registrations") == ["kestrel"]
    assert all(names == ["clickhouse"] for names in homes.values())
