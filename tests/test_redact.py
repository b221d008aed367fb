"""The redaction hook, sampling, and recording nothing at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import caribou.sync as caribou
from caribou import Event, Grade, Message, ToolExecution
from caribou.testing import Capture, capture

META = {"datapoint_id": "d", "phase": "train", "run_id": "r", "step_number": 2}
SECRET = "hunter2"
TABLES = ("spans", "traces", "entity_metadata", "trace_tags", "scores")
IDENTITY = {
    *("run_id", "trace_id", "span_id", "parent_span_id", "root_span_id", "entity_id", "key"),
    *("entity_type", "phase", "step_number", "seq", "start_time", "end_time", "time", "kind"),
    "version",
}


def everything() -> None:
    """Logs the secret in every place that there is."""
    with pytest.raises(ValueError, match=SECRET):
        agent()


def agent() -> None:
    with (
        caribou.trace_run(META | {"env_name": SECRET}),
        caribou.span(f"step {SECRET}", attributes={"a": SECRET}),
    ):
        caribou.log(Message(role="user", content=SECRET, prompt=SECRET, model=SECRET, cost_usd=1.0))
        caribou.log(ToolExecution(name="t", arguments={"p": SECRET}, error=SECRET))
        caribou.log(Grade(score=0.5, reasoning=SECRET, grader_name=SECRET))
        caribou.log(Event(name=SECRET, data={"deep": [{"er": SECRET}]}))
        caribou.add_meta({"m": {"n": SECRET}})
        caribou.add_tags(SECRET)
        raise ValueError(SECRET)


def lines(captured: Capture) -> str:
    return "\n".join(str(row) for table in TABLES for row in captured.rows(table))


def mask(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(SECRET, "***")
    if isinstance(value, dict):
        return {mask(key): mask(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [mask(inner) for inner in value]
    return value


def test_the_hook_sees_everything_before_the_journal(tmp_path: Path) -> None:
    seen: set[str] = set()

    def redact(table: str, row: dict[str, Any]) -> dict[str, Any]:
        seen.add(table)
        return mask(row)

    caribou.configure(redact=redact)
    everything()
    assert seen == set(TABLES)
    caribou.shutdown()
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert any(b"***" in path.read_bytes() for path in files)
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def test_identity_stays_whatever_the_hook_does(caribou_capture: Capture) -> None:
    plain, hooked = [], []
    for into, hook in ((plain, None), (hooked, lambda table, row: {"seq": 99, "kind": "mine"})):
        with capture() as captured:
            if hook is not None:
                caribou.configure(redact=hook)
            everything()
            into += [row for table in TABLES for row in captured.rows(table)]
    for before, after in zip(plain, hooked, strict=True):
        assert set(after) - {"sanitized"} == IDENTITY & set(before)
        fixed = ("kind", "phase", "step_number", "seq", "key", "version")
        if "version" in before and before["version"] > 1000:
            fixed = fixed[:-1]  # a time, of an edit
        assert [after.get(name) for name in fixed] == [before.get(name) for name in fixed]


def _raise(table: str, row: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError(row)


def _change_and_raise(table: str, row: dict[str, Any]) -> dict[str, Any]:
    row["span_id"] = row["trace_id"] = "forged"
    raise RuntimeError


def _nothing(table: str, row: dict[str, Any]) -> dict[str, Any]:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize("hook", [_raise, _change_and_raise, _nothing])
def test_a_hook_that_fails_fails_closed(
    caribou_capture: Capture, hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caribou.configure(redact=hook)
    with caplog.at_level(logging.WARNING, "caribou"):
        everything()
    assert SECRET not in lines(caribou_capture)
    assert "forged" not in lines(caribou_capture)
    rows = caribou_capture.rows("spans")
    assert len(rows) == 6
    assert {row["sanitized"] for row in rows} == {"redaction_failed"}
    (warning,) = caplog.records
    assert "redact" in warning.getMessage()
    assert SECRET not in caplog.text


def test_what_the_hook_returns_is_made_storable(caribou_capture: Capture) -> None:
    def redact(table: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"content": "\ud800", "input_tokens": "many", "mine": 1, "role": object}

    caribou.configure(redact=redact)
    with caribou.trace_run(META):
        caribou.log(Message(role="user", content={"a": float("nan")}))
    (row,) = caribou_capture.spans
    assert row["content"] == "�"
    assert row["sanitized"] == "nonfinite,object,surrogate"
    assert "mine" not in row
    assert "input_tokens" not in row


def test_a_trace_is_sampled_whole_or_not_at_all(caribou_capture: Capture) -> None:
    caribou.configure(sample_rate=0.5)
    ids = [f"{number:032x}" for number in range(1, 201)]
    for trace_id in ids:
        with caribou.trace_run(META | {"trace_id": trace_id}) as given:
            assert caribou.current_trace_id() == given == trace_id
            with caribou.span("s"):
                caribou.log(Message(role="user"))
                caribou.log(Grade(score=1.0))
            caribou.add_meta({"a": 1})
            caribou.add_tags("t")
            caribou.set_error("x")
    kept = {row["trace_id"] for row in caribou_capture.traces}
    assert 60 < len(kept) < 140
    for table, rows in {"spans": 4, "traces": 2, "scores": 1, "trace_tags": 1}.items():
        assert len(caribou_capture.rows(table)) == rows * len(kept)
    account = caribou.stats().sinks["capture"]
    written = sum(len(caribou_capture.rows(table)) for table in TABLES)
    assert account.logged == written + account.dropped["sampled"]
    # The same ids are kept in another process too.
    caribou_capture.clear()
    for trace_id in ids:
        with caribou.trace_run(META | {"trace_id": trace_id}):
            pass
    assert {row["trace_id"] for row in caribou_capture.traces} == kept


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_none_and_all(caribou_capture: Capture, rate: float) -> None:
    caribou.configure(sample_rate=rate)
    for _ in range(20):
        with caribou.trace_run(META):
            pass
    assert len(caribou_capture.traces) == 20 * rate


def test_disabled_does_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARIBOU_DISABLED", "1")
    with caribou.trace_run(META) as trace_id:
        assert caribou.current_trace_id() == trace_id
        caribou.log(Message(role="user"))
        caribou.add_meta({"a": 1})
        with caribou.span("s"):
            caribou.set_error("x")
        with pytest.raises(caribou.InvalidType):
            caribou.log("text")  # type: ignore[arg-type]
    caribou.log(Message(role="user"))  # and no warning
    assert caribou.flush().complete
    assert not (tmp_path / "home").exists()
