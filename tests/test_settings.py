"""Settings: from the environment and ``configure()``, and what is said about wrong ones."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

import caribou.sync as caribou
from caribou import ConfigurationError, InvalidType, InvalidValue, Message, MissingExtra
from caribou._recording import active
from caribou._settings import from_environment
from caribou.testing import Capture

PASSWORD = "s3cret"
KEY = "k-5ecret"


def test_defaults() -> None:
    settings = from_environment(environ={})
    assert settings.home == Path(".caribou")
    assert settings.journal_dir == Path(".caribou/journal")
    assert (settings.clickhouse_url, settings.clickhouse_database) == (None, "caribou")
    assert (settings.disabled, settings.debug, settings.journal) == (False, False, "disk")


def test_the_environment_is_read_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CLICKHOUSE_URL": "https://ch.example:8443/path/",
        "CLICKHOUSE_DATABASE": "traces",
        "CLICKHOUSE_USER": "agent",
        "CLICKHOUSE_PASSWORD": PASSWORD,
        "KESTREL_API_URL": "https://kestrel.example/team/api/v1/",
        "KESTREL_API_KEY": KEY,
        "CARIBOU_HOME": "/h",
        "CARIBOU_TRACE_DEBUG": "yes",
        "CARIBOU_DISABLED": "off",
    }.items():
        monkeypatch.setenv(name, value)
    settings = active()
    assert settings.clickhouse_url == "https://ch.example:8443/path"
    assert settings.clickhouse_database == "traces"
    assert (settings.clickhouse_user, settings.clickhouse_password) == ("agent", PASSWORD)
    assert settings.kestrel_api_url == "https://kestrel.example/team"
    assert settings.kestrel_api_key == KEY
    assert (settings.home, settings.journal_dir) == (Path("/h"), Path("/h/journal"))
    assert (settings.debug, settings.disabled) == (True, False)


def test_what_is_configured_weighs_more_and_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKHOUSE_DATABASE", "environment")
    caribou.configure("run", clickhouse_database="argument", sample_rate=0.5)
    caribou.configure(phase="eval", batch_age=2, home=tmp_path)
    settings = active()
    assert (settings.run_id, settings.phase) == ("run", "eval")
    assert (settings.clickhouse_database, settings.sample_rate) == ("argument", 0.5)
    assert (settings.batch_age, settings.journal_dir) == (2.0, tmp_path / "journal")
    caribou.configure(run_id="other")
    assert (active().run_id, active().sample_rate) == ("other", 0.5)


def test_an_empty_url_asks_for_the_local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKHOUSE_URL", "http://ch:8123")
    assert active().clickhouse_url == "http://ch:8123"
    caribou.configure(clickhouse_url="")
    assert active().clickhouse_url is None


def test_an_empty_kestrel_url_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_API_URL", "http://kestrel")
    assert active().kestrel_api_url == "http://kestrel"
    caribou.configure(kestrel_api_url="")
    assert active().kestrel_api_url is None


@pytest.mark.parametrize(
    ("url", "user", "password"),
    [
        (f"http://agent:{PASSWORD}@ch:8123", "agent", PASSWORD),
        ("http://agent@ch:8123", "agent", None),
        ("http://a%40b:p%2Fw%3A@ch:8123", "a@b", "p/w:"),
    ],
)
def test_credentials_in_the_url_are_moved_out(url: str, user: str, password: str | None) -> None:
    settings = from_environment({"clickhouse_url": url}, environ={})
    assert settings.clickhouse_url == "http://ch:8123"
    assert (settings.clickhouse_user, settings.clickhouse_password) == (user, password)
    own = {"clickhouse_url": url, "clickhouse_user": "u", "clickhouse_password": "p"}
    settings = from_environment(own, environ={})
    assert (settings.clickhouse_user, settings.clickhouse_password) == ("u", "p")


def test_the_native_protocol_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"clickhouses://agent:{PASSWORD}@ch"
    settings = from_environment({"clickhouse_url": url}, environ={})
    assert (settings.clickhouse_url, settings.clickhouse_user) == ("clickhouses://ch", "agent")
    monkeypatch.setitem(sys.modules, "asynch", None)
    for environ in ({}, {"CLICKHOUSE_URL": url}):
        given = {} if environ else {"clickhouse_url": url}
        with pytest.raises(MissingExtra, match=r"caribou-trace\[native\]") as refused:
            from_environment(given, environ=environ)
        assert PASSWORD not in str(refused.value)


def test_an_ipv6_host_keeps_its_brackets() -> None:
    settings = from_environment({"clickhouse_url": "http://[::1]:8123"}, environ={})
    assert settings.clickhouse_url == "http://[::1]:8123"


def test_no_secret_is_shown() -> None:
    url = f"http://agent:{PASSWORD}@ch:8123"
    given = {"clickhouse_url": url, "kestrel_api_key": KEY}
    settings = from_environment(given, environ={})
    for shown in (repr(settings), str(settings), f"{settings}", repr([settings])):
        assert PASSWORD not in shown
        assert KEY not in shown
        assert "clickhouse_password='***'" in shown
    assert dict(settings.__rich_repr__())["clickhouse_password"] == "***"
    with pytest.raises((TypeError, AttributeError)):
        settings.clickhouse_password = "other"  # type: ignore[misc]


WRONG: list[tuple[str, Any, str]] = [
    (
        "clickhouse_url",
        "tcp://ch:9000",
        "has tcp://; it must have the form http://host:port or https://host:port or "
        "clickhouse://host:port or clickhouses://host:port",
    ),
    ("clickhouse_url", "ch:8123", "http://host:port"),
    ("clickhouse_url", "clickhouse://", "names no host"),
    ("clickhouse_url", f"clickhouse://u:{PASSWORD}@ch:9000/db", "CLICKHOUSE_DATABASE"),
    ("clickhouse_url", f"clickhouses://u:{PASSWORD}@ch:9440?secure=1", "query"),
    ("kestrel_api_url", "clickhouse://kestrel", "http://host:port or https://host:port"),
    ("clickhouse_url", f"//user:{PASSWORD}@ch", "http://host:port"),
    ("clickhouse_url", "http://", "names no host"),
    ("clickhouse_url", f"http://u:{PASSWORD}@ch:port", "a port that is not from 1 to 65535"),
    ("clickhouse_url", f"http://u:{PASSWORD}@[ch", "is not a URL"),
    ("clickhouse_url", f"http://u:{PASSWORD}@ch/?database=x", "query"),
    ("clickhouse_url", 5, "str"),
    ("clickhouse_database", "a-b; DROP", "letters, digits and underscores"),
    ("clickhouse_database", "", "empty"),
    ("clickhouse_user", "", "empty"),
    ("clickhouse_password", 5, "str"),
    ("kestrel_api_url", "kestrel:8000", "http://host:port or https://host:port"),
    ("kestrel_api_url", f"http://u:{PASSWORD}@kestrel", "KESTREL_API_KEY"),
    ("kestrel_api_url", 5, "str"),
    ("kestrel_api_key", f"{PASSWORD}\r\nX-Evil: 1", "printable ASCII"),
    ("kestrel_api_key", 5, "str"),
    ("run_id", "", "empty"),
    ("run_id", 5, "str, not int"),
    ("phase", "test", "train, eval, prod"),
    ("home", "", "path"),
    ("home", "a\0b", "path"),
    ("home", 5, "path"),
    ("home", b"bytes", "path"),
    ("journal", "tape", "'disk' or 'memory'"),
    ("max_journal_bytes", 0, "at least 1"),
    ("max_journal_bytes", 1.5, "int"),
    ("batch_rows", True, "int"),
    ("batch_bytes", -1, "at least 1"),
    ("batch_age", 0, "seconds"),
    ("batch_age", float("nan"), "seconds"),
    ("batch_age", "1", "number"),
    ("sample_rate", 1.1, "0.0 to 1.0"),
    ("sample_rate", float("nan"), "0.0 to 1.0"),
    ("sample_rate", True, "number"),
    ("redact", "hook", "callable"),
    ("disabled", "perhaps", "1 or 0"),
    ("debug", 2, "1 or 0"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_a_wrong_argument_is_named_and_changes_nothing(name: str, value: Any, words: str) -> None:
    caribou.configure(run_id="before")
    before = active()
    with pytest.raises((InvalidValue, InvalidType)) as refused:
        caribou.configure(**{"run_id": "after", name: value})
    assert str(refused.value).startswith(name)
    assert words in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert refused.value.__cause__ is None
    assert active() == before


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CLICKHOUSE_URL", "tcp://ch", "http://host:port or https://host:port"),
        ("CLICKHOUSE_URL", f"tcp://u:{PASSWORD}@ch", "http://host:port"),
        ("CLICKHOUSE_DATABASE", "a b", "letters"),
        ("CARIBOU_DISABLED", "perhaps", "1 or 0"),
        ("CARIBOU_TRACE_DEBUG", "2", "1 or 0"),
    ],
)
def test_a_wrong_variable_is_named_at_the_first_call(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as refused:
        caribou.trace_run({"datapoint_id": "d", "phase": "eval"})
    assert str(refused.value).startswith(variable)
    assert words in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_rollouts_take_run_and_phase_from_the_settings(caribou_capture: Capture) -> None:
    with pytest.raises(InvalidValue, match=r"phase is missing here and in configure\(\)"):
        caribou.trace_run({"datapoint_id": "d"})
    caribou.configure("run", "train")
    with caribou.trace_run({"datapoint_id": "a"}):
        pass
    with caribou.trace_run({"datapoint_id": "b", "run_id": "own", "phase": "prod"}):
        pass
    found = [(row["run_id"], row["phase"]) for row in caribou_capture.traces]
    assert found == [("run", "train"), ("own", "prod")]


def test_configuring_many_times_is_harmless(tmp_path: Path) -> None:
    for number in range(10):
        caribou.configure(run_id=f"r{number}", phase="eval")
        with caribou.trace_run({"datapoint_id": "d"}):
            caribou.log(Message(role="user", content="x"))
    # Only the names of rollouts changed: it is one journal all along.
    assert len(list((tmp_path / "home" / "journal").glob("*/lock"))) == 1
    assert caribou.stats().sinks["local"].delivered == 30


def test_settings_go_to_other_processes() -> None:
    settings = from_environment({"run_id": "r", "sample_rate": 0.5}, environ={})
    assert pickle.loads(pickle.dumps(settings)) == settings
