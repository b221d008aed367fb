"""Rollouts to Langfuse and OTLP backends beside every kind of store, whatever they answer."""

from __future__ import annotations

import json
import logging
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import caribou as command
from support.langfuse import SECRET_KEY, Langfuse, settings, variables
from support.left import ROWS, kept, trace
from support.otlp import Receiver, Refusal, Request, receiver
from support.servers import DoorServer

import caribou.sync as caribou
from caribou import Event, Grade, Message
from caribou.journal.owner import owner_folders


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_without_clickhouse_the_journal_stays_the_store(there: Langfuse, home: Path) -> None:
    caribou.configure(**settings(there))
    trace()
    result = caribou.flush(20)
    assert result.complete
    assert result.sinks["local"].delivered == result.sinks["local"].logged == 9
    account = result.sinks["langfuse"]
    assert (account.logged, account.delivered, account.pending) == (9, 9, 0)
    assert caribou.shutdown(20).complete
    assert kept(home) == ROWS
    assert (len(there.spans), len(there.scores)) == (6, 1)
    shown = command("traces", "--json", home=home).objects
    assert [row["datapoint_id"] for row in shown] == ["d"]
    (run,) = command("runs", "--json", home=home).objects
    assert (run["run_id"], int(run["traces"])) == ("r", 1)


def test_segments_that_stay_are_delivered_once_and_not_mapped(there: Langfuse, home: Path) -> None:
    caribou.configure(**settings(there), batch_age=0.01)
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        for number in range(3000):
            caribou.log(Message(role="user", content=f"{number} " + "x" * 2000))
            if number % 1000 == 0:
                assert caribou.flush(20).complete
    assert caribou.flush(20).complete
    full = [path for path in home.glob("journal/*/spans-*.ndjson") if path.read_bytes().strip()]
    assert len(full) > 2
    mapped = [path for path in full if str(path) in Path("/proc/self/maps").read_text()]
    assert len(mapped) == 1  # the one being written
    assert caribou.shutdown(20).complete
    assert len(list(home.glob("journal/*/spans-*.ndjson"))) > 2
    assert kept(home)["traces"] == 2
    assert there.received == len(there.spans) == 3001


def test_langfuse_down_costs_clickhouse_nothing_and_loses_nothing(
    there: Langfuse, door: DoorServer, database: str, caplog: pytest.LogCaptureFixture, home: Path
) -> None:
    there.refuse()
    given = {"clickhouse_url": door.url, "clickhouse_database": database}
    caribou.configure(**settings(there), **given)
    with caplog.at_level(logging.INFO, "caribou"):
        for number in range(100):
            trace(f"d{number}")
        began = time.monotonic()
        result = caribou.flush(2.0)
        assert time.monotonic() - began < 3.0
        assert not result.complete
        assert result.sinks["clickhouse"].pending == 0
        account = result.sinks["langfuse"]
        assert (account.logged, account.pending) == (900, 900)
        there.listen()
        assert caribou.flush(30).complete
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert there.url in warnings[0]
    assert (len(there.spans), len(there.scores)) == (600, 100)
    assert caribou.shutdown(20).complete
    assert list(owner_folders(home / "journal")) == []


def test_a_silent_langfuse_delays_no_rollout_and_no_deadline(there: Langfuse, home: Path) -> None:
    there.hang()
    caribou.configure(**settings(there), batch_age=0.01)
    trace()
    assert there.called.wait(10)
    began = time.monotonic()
    for number in range(100):
        trace(f"d{number}")
    assert time.monotonic() - began < 1.0
    result = caribou.shutdown(0.5)
    assert not result.complete
    assert time.monotonic() - began < 3.0
    assert kept(home)["spans"] == 606


def test_what_waits_for_langfuse_alone_is_not_kept_in_memory(
    there: Langfuse, door: DoorServer, database: str, home: Path
) -> None:
    there.hang()
    given = {"clickhouse_url": door.url, "clickhouse_database": database}
    caribou.configure(**settings(there), **given)
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        for number in range(20_000):
            caribou.log(Message(role="user", content=f"{number} " + "x" * 2000))
    while caribou.flush(0.1).sinks["clickhouse"].pending:
        pass
    waiting = sorted(home.glob("journal/*/spans-*.ndjson"))
    mapped = [path for path in waiting if str(path) in Path("/proc/self/maps").read_text()]
    # The one being written, those that wait to be used, and the one that Langfuse is to take.
    assert len(mapped) <= 6 < 10 <= len(waiting)
    assert not caribou.shutdown(0.1).complete


def test_a_span_that_a_backend_chokes_on_holds_others_up_for_a_while_only(
    there: Langfuse, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many servers answer 500 to what they cannot read, which is what they say in trouble, too."""
    monkeypatch.setattr("caribou.sinks._otlp._ATTEMPTS_ALONE", 3)

    def answer(request: Request) -> Refusal | None:
        bad = any("BAD" in str(span.attributes) for span in request.spans)
        return (500, '{"message": "cannot process"}', {}) if bad else None

    there.answers = answer
    caribou.configure(**settings(there), batch_age=0.01)
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        for number in range(20):
            caribou.log(Message(role="user", content="BAD" if number == 7 else "good"))
    while not caribou.flush(0.5).complete:
        with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
            pass
    account = caribou.stats().sinks["langfuse"]
    assert account.dropped == {"dead_letter": 1}
    assert sum(span.name != "invoke_agent" for span in there.spans.values()) == 19


def test_trouble_with_one_table_is_told_once_while_another_is_taken(
    there: Langfuse, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Request) -> Refusal | None:
        return (503, "", {}) if any(span.parent_span_id for span in request.spans) else None

    there.answers = answer
    caribou.configure(**settings(there), batch_age=0.01)
    with caplog.at_level(logging.INFO, "caribou"):
        for _ in range(4):
            trace()
            assert not caribou.flush(0.6).complete
        there.answers = lambda request: None
        assert caribou.flush(20).complete
    told = [message for message in caplog.messages if message.startswith("langfuse")]
    assert ["Rows wait" in message for message in told] == [True, False]
    assert told[1] == "langfuse takes rows again."


def test_refused_keys_are_named_once_and_nothing_is_lost(
    there: Langfuse, caplog: pytest.LogCaptureFixture
) -> None:
    right, there.authorization = there.authorization, "Basic other"
    caribou.configure(**settings(there))
    trace()
    assert not caribou.flush(1.5).complete
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY" in warning
    assert SECRET_KEY not in caplog.text
    there.authorization = right
    assert caribou.shutdown(30).complete
    assert (len(there.spans), len(there.scores)) == (6, 1)


@pytest.mark.parametrize("how", ["status", "partial success"])
def test_one_bad_span_never_takes_its_batch_along(there: Langfuse, home: Path, how: str) -> None:
    def is_bad(span: Any) -> bool:
        return "culprit" in span.attributes.get("langfuse.observation.input", "")

    if how == "status":
        refusal = (400, '{"error":"not so"}', {})
        there.answers = lambda request: refusal if any(map(is_bad, request.spans)) else None
    else:
        there.rejects = is_bad
        there.says = "one is bad"
    caribou.configure(**settings(there))
    with caribou.trace_run({"datapoint_id": "d", "phase": "eval"}):
        for number in range(200):
            caribou.log(Message(role="user", content="culprit" if number == 77 else "fine"))
    result = caribou.shutdown(30)
    assert result.complete
    account = result.sinks["langfuse"]
    assert account.dropped == {"dead_letter": 1}
    assert account.logged == account.delivered + 1 == 202
    assert len(there.spans) == 200
    (letters,) = (home / "journal" / "dead").glob("spans-langfuse-*.ndjson")
    assert json.loads(letters.read_text())["row"]["content"] == "culprit"
    assert kept(home)["spans"] == 200


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "60"}), (500, {})])
def test_trouble_with_scores_holds_up_no_span(
    there: Langfuse, caplog: pytest.LogCaptureFixture, status: int, headers: dict[str, str]
) -> None:
    there.score_answers = lambda score: (status, "{}", headers)
    caribou.configure(**settings(there), run_id="run", phase="eval", batch_age=0.05)
    for number in range(8):
        with caribou.trace_run({"datapoint_id": f"d{number}"}):
            caribou.log(Grade(score=0.5, grader_name="judge"))
        caribou.flush(0.3)
        assert len(there.spans) == 2 * (number + 1)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert there.score_calls < 16


def test_a_rate_limit_is_kept_to(there: Langfuse) -> None:
    seen: list[float] = []

    def limit(request: Any) -> Any:
        if len(request.spans) == 1:
            # The summary, which goes by itself.
            return None
        seen.append(time.monotonic())
        return (429, '{"message":"slow"}', {"Retry-After": "1"}) if len(seen) == 1 else None

    there.answers = limit
    caribou.configure(**settings(there), batch_age=0.01)
    trace()
    assert caribou.shutdown(20).complete
    assert seen[1] - seen[0] >= 0.95
    assert len(there.spans) == 6


def test_late_records_and_edits_replace_the_root(there: Langfuse) -> None:
    caribou.configure(**settings(there))
    with caribou.trace_run({"datapoint_id": "d", "phase": "prod", "run_id": "shop"}):
        caribou.log(Event(name="sale"))
    assert caribou.flush(20).complete
    assert len(there.spans) == 2
    with caribou.trace_run({"datapoint_id": "d", "phase": "prod", "run_id": "shop"}):
        caribou.set_status("TRUNCATED", "out of time")
        caribou.add_tags("late")
    assert caribou.shutdown(20).complete
    roots = [o for o in there.observations().values() if o["type"] == "agent"]
    assert [(o["level"], o["statusMessage"], o["tags"]) for o in roots] == [
        ("DEFAULT", None, []),
        ("WARNING", "out of time", ["late"]),
    ]
    assert {o["traceName"] for o in roots} == {"shop"}
    assert {o["environment"] for o in roots} == {"prod"}


def test_in_memory_nothing_is_kept_for_nobody(there: Langfuse) -> None:
    caribou.configure(**settings(there), journal="memory")
    for number in range(20):
        trace(f"d{number}")
    result = caribou.flush(20)
    assert result.complete
    assert set(result.sinks) == {"langfuse"}
    assert result.sinks["langfuse"].delivered == 180
    assert caribou.shutdown(20).complete


def test_what_is_not_recorded_is_not_sent(there: Langfuse) -> None:
    caribou.configure(**settings(there), sample_rate=0.0)
    trace()
    result = caribou.shutdown(20)
    account = result.sinks["langfuse"]
    assert account.dropped == result.sinks["local"].dropped == {"sampled": account.logged}
    assert there.spans == {}


def test_redaction_comes_before_langfuse(there: Langfuse) -> None:
    def redact(table: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"content": "***"} if "content" in row else row

    caribou.configure(**settings(there), redact=redact)
    trace()
    assert caribou.shutdown(20).complete
    assert "hello" not in str(there.spans)


def test_both_at_once(there: Langfuse, collector: Receiver) -> None:
    caribou.configure(**settings(there), otlp={"endpoint": collector.url, "headers": {"k": "v"}})
    trace()
    result = caribou.shutdown(20)
    assert result.complete
    assert {name: sink.delivered for name, sink in result.sinks.items()} == {
        "local": 9,
        "langfuse": 9,
        "otlp": 8,
    }
    assert {request.headers["k"] for request in collector.requests} == {"v"}
    assert set(there.spans) == set(collector.spans)


def test_doctor_asks_whether_spans_would_be_taken(
    there: Langfuse, collector: Receiver, home: Path
) -> None:
    otlp = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cret",
    }
    doctor = command("doctor", home=home, **variables(there), **otlp)
    assert f"Langfuse at {there.url} takes spans, project key pk-lf-0123" in doctor.out
    assert f"{collector.url}/v1/traces takes spans, headers api-key" in doctor.out
    assert "s3cret" not in doctor.out + doctor.err
    assert there.asked == collector.asked == 1
    wrong = variables(there) | {"LANGFUSE_SECRET_KEY": "sk-lf-wr0ng"}
    collector.refuse()
    doctor = command("doctor", home=home, **wrong, **otlp)
    assert doctor.code == 1
    assert "refused the credentials" in doctor.out
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in doctor.out
    assert "wr0ng" not in doctor.out + doctor.err


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "console,zipkin"),
    ],
)
def test_doctor_says_why_an_endpoint_is_not_used(
    collector: Receiver, home: Path, setting: str, value: str
) -> None:
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, setting: value}
    doctor = command("doctor", home=home, **otlp)
    assert doctor.code == 0
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT is not used: {setting} is {value}" in doctor.out
    assert "configure(otlp=...)" in doctor.out
    assert collector.asked == 0


def test_what_the_environment_says_of_certificates_and_compression_is_done(
    certificate: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(certificate)
    with receiver(tls=tls) as there:
        otlp = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": there.url,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "20000",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate),
        }
        doctor = command("doctor", home=home, **otlp)
        assert f"{there.url}/v1/traces takes spans" in doctor.out
        for variable, value in otlp.items():
            monkeypatch.setenv(variable, value)
        trace()
        assert caribou.shutdown(20).complete
        assert there.spans
        assert all("Content-Encoding" not in request.headers for request in there.requests)
