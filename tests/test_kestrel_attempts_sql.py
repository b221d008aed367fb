"""SQL, patterns, and values that no column holds, wherever the API takes text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from commandline import caribou, record
from support.hostile_texts import HOSTILE
from support.serving import Service, serving
from support.waiting import wait_until

from caribou.schema.tables import ALL_TABLES

pytest.importorskip("chdb", reason="the embedded engine is not installed")

KEY = "correct horse"
ROLLOUTS = """
import caribou.sync as c
from caribou import Grade, Message, ToolExecution
for n in range(3):
    about = {"datapoint_id": "d", "run_id": "r", "phase": "eval", "step_number": n}
    with c.trace_run({**about, "env_name": "e", "model_name": "m", "grader_name": "g"}):
        c.add_tags("t")
        c.add_meta({"k": n, "s": "v"})
        c.log(Message(role="user", content="There is a needle here."))
        c.log(ToolExecution(name="tool", arguments={}, result="x"))
        c.log(Grade(score=1.0, grader_name="g"))
"""
TEXTS = {
    "traces": [
        *("project", "run_id", "tag", "meta.k", "meta.s", "meta.", "grader_name", "model_name"),
        *("env_name", "datapoint_id", "text", "phase", "status", "sort", "cursor", "start_min"),
        *("score_min", "meta.k.min", "meta.k.max", "step_number", "limit"),
    ],
    "runs": ["project_id", "project", "name", "status", "tag", "archived", "phase", "cursor"],
    "projects": ["name", "cursor"],
    "datapoints": ["project", "project_id", "tag", "cursor"],
    "aggregates/steps": ["project", "run_id", "tag", "meta.k", "text", "grader_name"],
    "aggregates/tools": ["project", "run_id", "tag", "meta.k", "text", "grader_name"],
    "aggregates/models": ["project", "run_id", "tag", "meta.k", "text", "grader_name"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    record(home, ROLLOUTS)
    return home


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    with serving(home, KESTREL_API_KEY=KEY) as service:
        wait_until(lambda: len(ask(service, "traces")[1].get("items", ())) == 3)
        for kind, body in (
            ("runs/r", {"name": "n", "project": "p"}),
            ("runs/r/steps/1", {}),
            ("datapoints/d", {"project": "p", "tags": ["t"]}),
        ):
            assert put(service, kind, body)[0] == 200
        yield service


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One in which anything may be stored."""
    with serving(tmp_path_factory.mktemp("other"), KESTREL_API_KEY=KEY) as service:
        yield service


def ask(service: Service, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    status, answer = service.request(method, f"/api/v1/{path}", body, **headers)
    return status, json.loads(answer)


def put(service: Service, path: str, body: Any) -> tuple[int, Any]:
    return ask(service, path, "PUT", body)


def untouched(service: Service) -> None:
    """Every table is there with what is in it."""
    for path, count in (("traces", 3), ("aggregates/tools", 1), ("aggregates/models", 0)):
        status, page = ask(service, f"{path}?run_id=r")
        assert (status, len(page["items"])) == (200, count)
    assert ask(service, "runs/r")[1]["name"] == "n"
    assert ask(service, "datapoints/d?project=p")[1]["tags"] == ["t"]
    assert ask(service, "projects?name=p")[1]["items"][0]["name"] == "p"


@pytest.mark.parametrize(("path", "names"), TEXTS.items(), ids=TEXTS)
def test_sql_in_a_filter_finds_nothing(service: Service, path: str, names: list[str]) -> None:
    for name in names:
        for text in HOSTILE:
            query = urlencode({name: text} if name != "meta." else {name + text: "1"})
            status, answer = ask(service, f"{path}?{query}")
            assert status in (200, 400), (name, text, answer)
            if status == 200:
                assert answer["items"] == [], (name, text)
            else:
                assert answer["field"].startswith(name), (name, text)
    untouched(service)


def test_a_text_that_is_in_all_contents_is_text(service: Service) -> None:
    for text, count in (("needle", 3), (" ", 3), ("needl_", 0), ("n%e", 0), ("n.edle", 0)):
        found = ask(service, "traces?" + urlencode({"text": text}))[1]["items"]
        assert len(found) == count, text


@pytest.mark.parametrize(
    "path",
    [
        *("runs/{}", "runs/{}/steps", "projects/{}", "datapoints/{}", "traces/{}"),
        *("traces/{}/spans", "datapoints/d?project={}"),
    ],
)
def test_sql_in_a_path_finds_nothing(service: Service, path: str) -> None:
    for text in HOSTILE:
        status, problem = ask(service, path.format(quote(text, safe="")))
        assert status == 404, (text, problem)


@pytest.mark.parametrize("text", [*HOSTILE, "🦌" * 1024], ids=lambda text: ascii(text[:20]))
def test_sql_in_what_is_stored_is_stored_as_it_is(other: Service, text: str) -> None:
    at = quote(text, safe="")
    value = {text: [text, {text: text}]}
    made = put(other, f"runs/{at}", {"project": text, "name": text, "phase": "eval"})[1]
    assert (made["run_id"], made["project"], made["name"]) == (text, text, text)
    changes = {"status": text, "config": value, "tags": [text]}
    changed = ask(other, f"runs/{at}", "PATCH", changes)[1]
    assert changed["updated_at"] >= made["updated_at"]
    run = ask(other, f"runs/{at}")[1]
    assert (run["status"], run["config"], run["tags"]) == (text, value, [text])

    assert put(other, f"runs/{at}/steps", {"items": [{"step_number": 1, "data": value}]})[0] == 200
    [step] = ask(other, f"runs/{at}/steps")[1]["items"]
    assert (step["run_id"], step["data"]) == (text, value)

    item = {"datapoint_id": text, "project": text, "data": value, "tags": [text]}
    assert put(other, "datapoints", {"items": [item, {"datapoint_id": text + "'"}]})[0] in (
        200,
        400,
    )
    assert (
        put(other, f"datapoints/{at}", {k: item[k] for k in ("project", "data", "tags")})[0] == 200
    )
    if len(text) <= 300:  # a longer one makes the address too long
        [found] = ask(other, "datapoints?" + urlencode({"project": text}))[1]["items"]
        assert (found["datapoint_id"], found["data"], found["tags"]) == (text, value, [text])
        assert ask(other, f"datapoints/{at}?" + urlencode({"project": text}))[1] == found
    for name in ("POST", "PUT"):
        assert ask(other, "runs", name, {"name": text, "project": text})[0] in (200, 201)


def cursor(*values: Any) -> str:
    text = values[0] if len(values) == 1 else json.dumps(values)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


CURSORS = {
    "projects": ("projects", 1),
    "runs": ("runs", 2),
    "runs/r/steps": ("steps", 1),
    "datapoints": ("datapoints", 2),
    "traces": ("traces -start_time", 3),
    "traces?sort=score": ("traces score", 3),
    "traces?sort=-cost_usd": ("traces -cost_usd", 3),
    "traces/x/spans": ("spans x", 2),
}
TIMES = [
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-14:00",
    "2026-01-31T12:00:00",
    "0000-00-00 00:00:00.000000000",
    "0001-01-01 00:00:00.000000000",
    "2262-12-31 00:00:00.000000000",
    "2300-01-01 00:00:00.000000000",
    "9999-99-99 99:99:99.999999999",
    "2026-02-31 29:00:00.000000000",
    "２０２６-01-01 00:00:00.000000000",  # noqa: RUF001 - digits, but no ASCII
]
NUMBERS = [True, 1, -1, 2**63 - 1, -(2**63), 2**63, 2**200, 1.5, 1e308, None, [1], {"a": 1}]


@pytest.mark.parametrize(("path", "shape"), CURSORS.items(), ids=CURSORS)
def test_a_cursor_of_ones_own_making_is_a_position_or_is_refused(
    service: Service, path: str, shape: tuple[str, int]
) -> None:
    kind, count = shape
    last = [*HOSTILE[:12], "\0", "x" * 2000, 7, None]
    made = [cursor(kind, *[value] * count) for value in (*HOSTILE, *TIMES, *NUMBERS)]
    made += [
        cursor(kind, first, *[text] * (count - 1))
        for first in (*TIMES, *NUMBERS, "2026-01-31T12:00:00Z", "2026-01-31 12:00:00.000000000")
        for text in last[: None if count > 1 else 1]
    ]
    made += [cursor(text) for text in ("[", "[]", "{}", "null", "[" * 5000, f'["{kind}",NaN,"a"]')]
    made += [cursor(kind), cursor(kind, "a", "b", "c", "d"), "====", "a", "%00", "é"]
    for text in made:
        given = urlencode({"cursor": text})
        if len(given) > 8000:
            continue
        sign = "&" if "?" in path else "?"
        status, answer = ask(service, f"{path}{sign}{given}")
        assert status in (200, 400), (text, base64.urlsafe_b64decode(text + "==="), answer)
        assert status == 200 or answer["field"] == "cursor"
    untouched(service)


@pytest.mark.parametrize(
    "number",
    [
        *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e3", "1.0"),
        *("99999999999999999999", "0x10", "+5", "٣", "1_000", " 1", "NaN", "Infinity", "-0"),
    ],
)
def test_a_number_that_no_column_holds_is_refused(other: Service, number: str) -> None:
    at = quote(number)
    for name in ("step_number", "step_min", "step_max", "score_min", "meta.k.min", "limit"):
        status, answer = ask(other, f"traces?{urlencode({name: number})}")
        assert status in (200, 400), answer
        assert status == 200 or answer["field"] == name
    status, answer = put(other, f"runs/numbers/steps/{at}", {})
    assert status in (200, 400), answer
    for path, sent in (
        ("runs/numbers/steps", '{"items": [{"step_number": %s}]}'),
        ("datapoints/numbers", '{"data": {"a": [%s]}}'),
        ("runs/numbers/steps/1", '{"data": {"a": %s}}'),
    ):
        status, answer = raw(other, path, (sent % number).encode())
        assert status in (200, 400), answer
    status, page = ask(other, "runs/numbers/steps")
    assert status == 404 or min(step["step_number"] for step in page["items"]) >= 0


def raw(service: Service, path: str, body: bytes) -> tuple[int, Any]:
    head = (
        f"PUT /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    answer = service.send(head.encode() + body)
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\ud83e\\udd8c"])
def test_what_is_no_text_is_refused_or_kept(other: Service, text: str) -> None:
    """Lone surrogates are no JSON text; NUL is, in data, and no name."""
    status, _ = raw(other, "datapoints/odd", f'{{"data": ["{text}"]}}'.encode())
    assert status == (400 if "d800" in text else 200)
    if status == 200:
        assert ask(other, "datapoints/odd")[1]["data"] == [json.loads(f'"{text}"')]
    for body in (f'{{"name": "{text}"}}', f'{{"project": "{text}"}}'):
        status, _ = raw(other, "runs/odd", body.encode())
        assert status == (200 if "dd8c" in text else 400)
    for query in ("%ED%A0%80", "%FF", "%C0%AF", "%00"):
        assert ask(other, f"runs?name={query}")[0] in (200, 400)
        assert ask(other, f"runs/{query}")[0] in (400, 404)


def test_at_the_end_every_table_is_there_and_nothing_else(
    tmp_path: Path,
) -> None:
    record(tmp_path, ROLLOUTS)
    with serving(tmp_path) as service:
        wait_until(lambda: len(service.get("/api/v1/traces")["items"]) == 3)
        for text in HOSTILE:
            query = urlencode({"run_id": text, "text": text, "tag": text, f"meta.{text}": text})
            if len(query) < 8000:
                service.get(f"/api/v1/traces?{query}")
        assert service.end() == (0, "")
    sql = "SELECT name FROM system.tables WHERE database = 'caribou'"
    names = {row["name"] for row in caribou("sql", sql, "--json", home=tmp_path).objects}
    assert names == {*ALL_TABLES, "schema_migrations"}
