"""Where records go, their session, user and tags go too, or are no trouble."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commandline import caribou as command
from support.langfuse import Langfuse, settings
from support.otlp import Receiver
from support.servers import DoorServer

import caribou.sync as caribou
from caribou import Event, Grade, Message, ToolExecution

META = {"datapoint_id": "d", "phase": "train", "run_id": "r"}
NAMES = ("session_id", "user_id", "tags")
RECORDS = [
    Message(role="user", content="plain"),
    Message(role="assistant", content="with more", input_tokens=1),
    ToolExecution(name="t"),
    Grade(score=1.0),
    Event(name="e"),
]


@contextmanager
def under_way() -> Iterator[None]:
    """A rollout that has not ended, as one that is killed never does."""
    with caribou.trace_run(META), caribou.span("step"):
        caribou.add_meta({"session_id": "s-1", "user_id": 7})
        caribou.add_tags("b", "a")
        for record in RECORDS:
            caribou.log(record)
        yield


@pytest.mark.parametrize("journal", ["disk", "memory"])
def test_langfuse_and_others_find_records_by_them(
    there: Langfuse, collector: Receiver, journal: Any
) -> None:
    caribou.configure(**settings(there), otlp=collector.url, journal=journal)
    with under_way():
        assert caribou.flush(20).complete
        seen = there.observations().values()
        assert len(seen) == len(collector.spans) == len(RECORDS)
        for observation in seen:
            assert observation["sessionId"] == "s-1"
            assert observation["userId"] == "7"
            assert observation["tags"] == ["b", "a"]
        for span in collector.spans.values():
            assert span.attributes["gen_ai.conversation.id"] == "s-1"
            assert span.attributes["user.id"] == "7"
            assert span.attributes["caribou.tags"] == ["b", "a"]
    assert caribou.shutdown(20).complete
    # The scope and the root as well.
    assert {o["sessionId"] for o in there.observations().values()} == {"s-1"}
    assert len(there.spans) == len(RECORDS) + 2


@pytest.mark.parametrize("way", ["url", "native_url"])
def test_they_are_no_columns_of_clickhouse(door: DoorServer, database: str, way: str) -> None:
    caribou.configure(clickhouse_url=getattr(door, way), clickhouse_database=database)
    with under_way():
        pass
    assert caribou.shutdown(20).complete
    rows = door.rows(f"SELECT * FROM {database}.spans ORDER BY seq")
    assert [row["kind"] for row in rows][:2] == ["span", "message"]
    assert len(rows) == len(RECORDS) + 1
    assert not set(rows[0]) & set(NAMES)
    (trace,) = door.rows(f"SELECT tags, metadata FROM {database}.traces")
    assert trace == {"tags": ["b", "a"], "metadata": {"session_id": "s-1", "user_id": "7"}}


def test_the_local_store_and_its_commands_do_not_mind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    caribou.configure(home=home)
    with under_way():
        pass
    caribou.shutdown(20)
    [listed] = command("traces", "--json", home=home).objects
    trace_id = listed["trace_id"]
    [trace] = command("show", trace_id, "--json", home=home).objects
    assert len(trace["spans"]) == len(RECORDS) + 1
    assert not set(trace["spans"][0]) & set(NAMES)
    assert trace["tags"] == ["b", "a"]
    assert "tags: b, a" in command("show", trace_id, home=home).out
    [exported] = command("export", "--json", home=home).objects
    assert [m["content"] for m in exported["messages"]][:2] == ["plain", "with more"]
