"""Payloads in every text that a rollout, a registration or an address can carry, in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from commandline import record
from support.browser import Browser, chromium
from support.serving import Service, serving
from support.waiting import wait_until

pytestmark = pytest.mark.slow

PAYLOADS = [
    "<script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "<img src=x onerror=hacked=1>",
    "<svg onload=hacked=1><animate onbegin=hacked=1 attributeName=x dur=1s>",
    "<svg><script href=data:,hacked=1 /></svg>",
    "<details open ontoggle=hacked=1>",
    "<iframe srcdoc='<script>top.hacked=1</script>'></iframe>",
    "<a href=javascript:hacked=1 autofocus onfocus=hacked=1>x</a>",
    "<math><mtext><table><mglyph><style><img src=x onerror=hacked=1>",
    "<form action=javascript:hacked=1><button autofocus formaction=javascript:hacked=1>x",
    "<base href=//attacker.example/><link rel=stylesheet href=//attacker.example/x.css>",
    "<meta http-equiv=refresh content='0;url=javascript:hacked=1'>",
    "<object data=javascript:hacked=1><embed src=javascript:hacked=1>",
    "<body onload=hacked=1><input autofocus onfocus=hacked=1>",
    "javascript:hacked=1",
    "java\tscript:hacked=1//",
    "data:text/html,<script>opener.hacked=1</script>",
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "\"'><img src=x onerror=hacked=1>",
    "' onmouseover='hacked=1' style='position:fixed;inset:0",
    "{{constructor.constructor('hacked=1')()}}${hacked=1}<%= hacked=1 %>",
    '[x](javascript:hacked=1) ![x](x "onerror=hacked=1")',
    "</title></textarea></style></noscript></template><script>alert(1)</script>",
    "<!--><img src=x onerror=hacked=1>-->",
    "__proto__",
    "constructor",
]
ALL = " ".join(PAYLOADS[:13])

# Each record has one of the payloads in every text it takes; one trace has them all at once.
ROLLOUTS = f"""
import caribou.sync as c
from caribou import Event, Grade, Message, ToolExecution

payloads = {[*PAYLOADS, ALL]!r}
ALL = payloads[-1]

def record(p, trace_id):
    names = ["datapoint_id", "run_id", "env_name", "model_name", "grader_name"]
    about = {{**dict.fromkeys(names, p), "phase": "eval", "step_number": 1, "trace_id": trace_id}}
    with c.trace_run(about):
        c.add_tags(p, "tag " + p)
        c.add_meta({{p: p, "nested": {{p: [p]}}}})
        part = [{{"type": "image_url", "image_url": {{"url": p}}}}, {{"type": p, p: p}}, p,
                {{"type": "text", "text": p}}, {{"type": "audio", "input_audio": {{"data": p}}}},
                {{"type": "file", "file": {{"filename": p, "file_data": p}}}}]
        asked = {{"name": p, "arguments": p}}
        for role in ("system", "user", "assistant", "tool", p):
            c.log(Message(role=role, content=p, name=p, tool_call_id=p, model=p, provider=p,
                          prompt=p, attributes={{p: p}}, input_tokens=1, cost_usd=0.1,
                          tool_calls=[{{"id": p, "type": p, "function": asked}}, p, {{p: p}},
                                      {{"id": p, "name": p, "arguments": {{p: p}}}}]))
            c.log(Message(role=role, content=part))
        c.log(Message(role="user", content=p, grader_name=p))
        for value in (p, {{p: p}}, [p]):
            c.log(ToolExecution(name=p, call_id=p, arguments={{p: p}}, result=value, error=p,
                                requestor="user", duration_ms=1.0))
        c.log(ToolExecution(name=p, arguments=p, result=part))
        c.log(Grade(score=0.5, grader_name=p, grader_type=p, reasoning=p, passed_count=1,
                    total_count=2, criteria=[{{p: p, "name": p}}]))
        c.log(Event(name=p, data={{p: p}}))
        with c.span(p, kind=p, attributes={{p: p}}):
            c.log(Event(name="inside", data={{}}))
            c.set_error(p)
        c.set_status("ERROR", p)

for number, p in enumerate(payloads):
    record(p, f"{{number + 1:032x}}")
record(ALL, ALL)
try:
    with c.trace_run({{"datapoint_id": "d", "phase": "eval", "trace_id": "e" * 32}}):
        raise type(ALL, (ValueError,), {{}})(ALL)
except ValueError:
    pass
"""
TRACES = len(PAYLOADS) + 3
# What the page itself is made of.
OURS = {
    *("a", "article", "button", "caption", "dd", "details", "div", "dl", "dt", "form", "h1", "h2"),
    *(
        "h3",
        "h4",
        "header",
        "input",
        "label",
        "li",
        "main",
        "nav",
        "noscript",
        "option",
        "p",
        "pre",
    ),
    *("section", "select", "span", "summary", "table", "tbody", "td", "th", "thead", "time", "tr"),
    "ul",
}
FOUND = """
const all = [...document.querySelectorAll('body *')];
return {
  names: [...new Set(all.map(e => e.localName))],
  attributes: [...new Set(all.flatMap(e => e.getAttributeNames()))],
  links: [...document.links].map(a => a.getAttribute('href')),
  loaded: performance.getEntriesByType('resource').map(e => e.name),
  scripts: [...document.scripts].map(e => e.src),
  hacked: typeof hacked,
  polluted: Object.keys(Object.prototype).length + ({}.polluted === undefined ? 0 : 1),
}
"""
ATTRIBUTES = {
    *(
        "aria-current",
        "aria-label",
        "autocomplete",
        "class",
        "datetime",
        "disabled",
        "for",
        "hidden",
    ),
    *("href", "id", "name", "open", "required", "role", "scope", "spellcheck", "tabindex", "title"),
    *("type", "value"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("chdb", reason="the embedded engine is not installed")
    home: Path = tmp_path_factory.mktemp("hostile")
    record(home, ROLLOUTS)
    with serving(home) as service:
        wait_until(lambda: len(service.get("/api/v1/traces")["items"]) == TRACES)
        for text in (*PAYLOADS, ALL):
            run = {"name": text, "project": text, "tags": [text], "config": {text: text}}
            assert service.request("PUT", "/api/v1/runs", run)[0] == 200
            path = f"/api/v1/runs/{quote(text, safe='')}"
            assert service.request("PUT", path, {"project": text})[0] == 200
            assert service.request("PATCH", path, {"status": text, "tags": [text]})[0] == 200
            point = {"datapoint_id": text, "project": text, "data": {text: text}, "tags": [text]}
            assert service.request("PUT", "/api/v1/datapoints", {"items": [point]})[0] == 200
        yield service


@pytest.fixture(scope="module")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium_browser: Browser) -> Iterator[Browser]:
    """A browser in which the policy had nothing to refuse."""
    chromium_browser.log()
    yield chromium_browser
    assert [line for line in chromium_browser.log() if "Content Security Policy" in line] == []


def looked_at(browser: Browser, service: Service, view: str, said: str = "") -> dict[str, Any]:
    """What a view has come to be made of, with all that it folds shown."""
    browser.open(f"{service.url}/{view}")
    wait_until(lambda: browser.text("#notice") not in ("", "Loading …"))
    browser.wait_for(said, "#notice")
    browser.run(
        "for (const each of document.querySelectorAll('details')) each.open = true;"
        "for (const each of document.querySelectorAll('button.more')) each.click();"
        "for (const each of document.querySelectorAll('main *')) {"
        "  for (const name of ['mouseover', 'focus', 'toggle', 'load', 'error'])"
        "    each.dispatchEvent(new Event(name)); }"
    )
    assert browser.dialog() is None
    found = browser.run(FOUND)
    assert set(found["names"]) <= OURS
    assert set(found["attributes"]) <= ATTRIBUTES
    here = f"{service.url}/"
    assert [link for link in found["links"] if not link.startswith("#")] == []
    for address in (*found["loaded"], *found["scripts"]):
        assert address.startswith(here), address
    assert (found["hacked"], found["polluted"]) == ("undefined", 0)
    return found


@pytest.mark.parametrize("number", range(len(PAYLOADS) + 1))
def test_a_payload_in_every_field_of_a_rollout_is_text(
    service: Service, browser: Browser, number: int
) -> None:
    text = [*PAYLOADS, ALL][number]
    looked_at(browser, service, f"#/trace/{number + 1:032x}", "Ended")
    shown = browser.text("main")
    # Some of it is shown as the JSON that it is part of, with its quotes escaped.
    shown += shown.replace('\\"', '"')
    assert shown.count(text.replace("\t", " ")) + shown.count(text) >= 50
    for heading in ("grader", "tool", "grade", "event", "scope"):
        assert f"{heading} " in browser.text("main")


def test_a_trace_id_and_an_exception_of_payloads_are_text(
    service: Service, browser: Browser
) -> None:
    looked_at(browser, service, f"#/trace/{quote(ALL, safe='')}", "Ended")
    looked_at(browser, service, f"#/trace/{'e' * 32}", "Ended")
    assert "onerror=hacked=1" in browser.text("main .error")


def test_payloads_in_the_lists_are_text(service: Service, browser: Browser) -> None:
    for view in ("traces", "runs"):
        found = looked_at(browser, service, f"#/{view}", "in all")
        assert browser.text("main").count("<script>hacked=1</script>") > 5
        for link in dict.fromkeys(found["links"]):
            browser.run("location.href = arguments[0]", link)
            assert browser.run("return [typeof hacked, location.origin]") == [
                "undefined",
                service.url,
            ]


@pytest.mark.parametrize("text", [*PAYLOADS[::3], "%", "%zz", "%E0%A4%A", "?", "/../../x"])
def test_a_payload_in_the_address_is_text(service: Service, browser: Browser, text: str) -> None:
    at = quote(text, safe="")
    known = text in PAYLOADS
    looked_at(browser, service, f"#/traces?run_id={at}", "in all" if known else "No trace matches.")
    for view in (f"traces?status={at}&text={at}&{at}={at}", f"trace/{at}", at):
        looked_at(browser, service, f"?{at}={at}#/{view}")


def test_what_the_api_answers_is_no_page(service: Service, browser: Browser) -> None:
    """Also where a browser is sent there: by a link in a mail, say."""
    for path in (
        "/api/v1/traces?limit=100",
        f"/api/v1/traces/{1:032x}/spans",
        "/api/v1/runs?limit=100",
        "/api/v1/datapoints?limit=100",
        *(f"/{quote(text, safe='')}" for text in PAYLOADS[:6]),
        *(f"/api/v1/runs/x{quote(text, safe='')}" for text in PAYLOADS[:6]),
        *(f"/api/v1/runs?{quote(text)}={quote(text)}" for text in PAYLOADS[:6]),
        *(f"/static/{quote(text, safe='')}" for text in PAYLOADS[:6]),
    ):
        browser.open(f"{service.url}{path}")
        assert browser.dialog() is None
        kind, names = browser.run(
            "const all = [...document.querySelectorAll('*')];"
            "return [document.contentType, all.map(e => e.localName)]"
        )
        assert kind in ("application/json", "application/problem+json", "text/plain")
        assert {"script", "img", "svg", "iframe", "a", "form"}.isdisjoint(names), (path, names)
        assert browser.run("return typeof hacked") == "undefined"


def test_payloads_in_the_live_stream_are_data(service: Service) -> None:
    with service.live("?spans=true&run_id=" + quote(ALL, safe="")) as events:
        events.wait_for_id()
    spans = service.get(f"/api/v1/traces/{len(PAYLOADS) + 1:032x}/spans")["items"]
    assert ALL in json.dumps(spans, ensure_ascii=False).replace('\\"', '"')
