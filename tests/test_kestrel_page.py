"""The first page in a real browser, on a real service: what it shows, and what it does not do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from commandline import environment, record, running
from support.browser import Browser, chromium
from support.waiting import wait_until

pytestmark = pytest.mark.slow

TAB, ENTER, SPACE = "\ue004", "\ue007", " "
PAYLOAD = (
    "\"'><script>hacked=1</script><img src=x onerror=hacked=1><svg onload=hacked=1>"
    '<a href="javascript:hacked=1">x</a><iframe srcdoc="<script>top.hacked=1</script>">'
    "{{constructor.constructor('hacked=1')()}}\u202egnp.exe\x1b[2J"
)
SEEN = PAYLOAD.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")

ROLLOUTS = """
import caribou.sync as c
from caribou import Event, Grade, Message, ToolExecution

for n in range(3):
    about = {"datapoint_id": f"task-{n}", "run_id": "plain", "phase": "eval", "step_number": n}
    with c.trace_run({**about, "model_name": "small-1", "trace_id": f"{n + 1:032x}"}):
        c.add_tags("smoke")
        c.log(Message(role="system", content="You find bags."))
        c.log(Message(role="user", content="Where is my bag?"))
        call = {"id": "c1", "function": {"name": "find_bag", "arguments": '{"tag": "LX123"}'}}
        c.log(Message(role="assistant", tool_calls=[call], input_tokens=1512, output_tokens=20))
        c.log(ToolExecution(name="find_bag", call_id="c1", arguments={"tag": "LX123"},
                            result={"airport": "Zurich"}, duration_ms=21.5))
        c.log(ToolExecution(name="find_bag", call_id="c2", arguments={"tag": "AB9"},
                            error="503 from the belt"))
        c.log(Message(role="assistant", content=f"It is in Zurich, at belt {n}."))
        with c.span("grading"):
            c.log(Grade(score=n / 2, grader_name="found", reasoning="It says where the bag is."))
        if n == 2:
            c.set_status("TRUNCATED", "no room left")
"""

HOSTILE = f"""
import caribou.sync as c
from caribou import Event, Grade, Message, ToolExecution

P = {PAYLOAD!r}
about = dict.fromkeys(["datapoint_id", "run_id", "env_name", "model_name", "grader_name"], P)
with c.trace_run({{**about, "phase": "eval", "trace_id": "f" * 32}}):
    c.add_tags(P)
    c.add_meta({{P: P}})
    with c.span(P, kind=P, attributes={{P: P}}):
        call = {{"id": P, "function": {{"name": P, "arguments": P}}}}
        c.log(Message(role=P, content=P, tool_calls=[call, {{P: P}}, P], name=P, tool_call_id=P,
                      model=P, provider=P, prompt=P, attributes={{P: P}}))
        c.log(Message(role="user", content=[{{"type": "text", "text": P}}, {{P: P}}]))
        c.log(Message(role=P, content=P, grader_name=P))
        c.log(ToolExecution(name=P, call_id=P, arguments={{P: P}}, result={{P: P}}, error=P))
        c.log(ToolExecution(name=P, call_id=P, arguments=P, result=P))
        c.log(Grade(score=0.5, grader_name=P, grader_type=P, reasoning=P, criteria=[{{P: P}}]))
        c.log(Event(name=P, data={{P: P}}))
        c.set_error(P)
    try:
        raise type("<b>hacked</b>", (ValueError,), {{}})(P)
    except ValueError as error:
        c.set_status("ERROR", P)
"""

GROWING = """
import sys
import caribou.sync as c
from caribou import Grade, Message

with c.trace_run({"datapoint_id": "d", "run_id": "growing", "phase": "eval", "trace_id": "e" * 32}):
    c.log(Message(role="user", content="Count.", prompt="the whole prompt"))
    print("begun", flush=True)
    for line in sys.stdin:
        c.log(Message(role="assistant", content=f"This is {line.strip()}."))
    c.log(Grade(score=1.0, grader_name="counted", reasoning="It counted."))
"""


@contextmanager
def serving(home: Path, **env: str) -> Iterator[str]:
    """The address of a service over the store in ``home``, once it has taken in what is there."""
    with running("serve", "--port", "0", home=home, **env) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, process.stderr
        wait_until(lambda: is_ready(found[0]))
        yield found[0]
        process.terminate()
        process.wait(20)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=20):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("page") / "home"
    record(home, ROLLOUTS)
    record(home, HOSTILE)
    return home


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[str]:
    pytest.importorskip("chdb", reason="the embedded engine is not installed")
    with serving(home) as url:
        put(url, "/runs/plain", {"name": "bags", "project": "airline", "phase": "eval"})
        put(url, "/runs/hostile", {"name": PAYLOAD, "project": PAYLOAD})
        yield url


@pytest.fixture(scope="module")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium_browser: Browser) -> Iterator[Browser]:
    """A browser; whatever a test does in it, the policy has nothing to refuse."""
    chromium_browser.log()
    yield chromium_browser
    violations = [line for line in chromium_browser.log() if "Content Security Policy" in line]
    assert violations == []


def put(url: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{url}/api/v1{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=20).close()


def test_traces_are_listed_and_filtered(service: str, browser: Browser) -> None:
    browser.open(service)
    browser.wait_for("in all", "#notice")
    assert browser.text("main").count("smoke") == 3
    browser.type("[name=run_id]", "plain")
    browser.type("[name=text]", "belt 1")
    browser.click("main form button")
    browser.wait_for("1 in all", "#notice")
    assert "task-1" in browser.text("main table")
    browser.open(f"{service}/#/traces?run_id=plain&status=TRUNCATED")
    browser.wait_for("1 in all", "#notice")
    assert "task-2" in browser.text("main table")
    assert browser.log() == []


def test_runs_lead_to_their_traces(service: str, browser: Browser) -> None:
    browser.open(f"{service}/#/runs")
    browser.wait_for("airline", "main table")
    # Registered once, with three traces; the hostile one has traces under another id.
    browser.wait_for("registered or not", "main")
    assert browser.text("main table:first-of-type").count("bags") == 1
    assert "plain\teval\t3\t" in browser.text("h2 + div table tbody")
    browser.click("a[href='#/traces?run_id=plain']")
    browser.wait_for("3 in all", "#notice")


def test_a_rollout_is_a_conversation(service: str, browser: Browser) -> None:
    browser.open(service)
    browser.wait_for("in all", "#notice")
    browser.click(f"a[href='#/trace/{3:032x}']")
    browser.wait_for("Ended", "#notice")
    headings = browser.run(
        "return [...document.querySelectorAll('h1,h2,h3')].map(h => h.innerText)"
    )
    assert headings == [
        f"Trace {3:032x}",
        "Turn 0",
        *("system", "user", "assistant", "tool find_bag", "tool find_bag"),
        "Turn 1",
        *("assistant", "scope grading", "grade found: score 1"),
    ]
    shown = browser.text("main")
    for text in (
        *("TRUNCATED", "no room left", "Where is my bag?", "It is in Zurich, at belt 2."),
        *('{"tag": "LX123"}', '{"airport":"Zurich"}', "503 from the belt", "22 ms"),
        *("1,512 tokens in", "20 tokens out", "It says where the bag is."),
    ):
        assert text in shown.replace('{"tag":"LX123"}', '{"tag": "LX123"}'), text
    assert shown.count("LX123") == 1  # said by the call, not again by its execution
    assert browser.log() == []


def test_an_unknown_trace_is_said_to_be_none(service: str, browser: Browser) -> None:
    browser.open(f"{service}/#/trace/nothing%3Cb%3E")
    browser.wait_for("there is no such trace", "#notice")


@pytest.mark.parametrize("view", ["traces", "runs", f"trace/{'f' * 32}"])
def test_what_agents_wrote_is_text_and_nothing_else(
    service: str, browser: Browser, view: str
) -> None:
    browser.open(f"{service}/#/{view}")
    browser.wait_for("Ended" if "/" in view else "in all", "#notice")
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    assert browser.text("main").count(SEEN) >= {"traces": 4, "runs": 2}.get(view, 25)
    made = browser.run(
        "return [...new Set([...document.querySelectorAll('body *')].map(e => e.localName))]"
    )
    assert {"script", "img", "svg", "iframe", "b"}.isdisjoint(made)
    links = browser.run("return [...document.links].map(a => a.getAttribute('href'))")
    assert all(link.startswith("#") for link in links), links
    attributes = browser.run(
        "return [...document.querySelectorAll('body *')].flatMap(e => e.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
    for link in dict.fromkeys(links):
        browser.run("location.hash = arguments[0]", link)
    assert browser.dialog() is None
    assert browser.run("return typeof hacked") == "undefined"


def test_the_link_of_a_hostile_run_finds_its_traces(service: str, browser: Browser) -> None:
    browser.open(f"{service}/#/trace/{'f' * 32}")
    browser.wait_for("Ended", "#notice")
    browser.click("dl a")
    browser.wait_for("1 in all", "#notice")
    assert browser.run("return document.querySelector('[name=run_id]').value") == PAYLOAD


def test_the_policy_stops_what_the_page_does_not_do(
    service: str, chromium_browser: Browser
) -> None:
    chromium_browser.open(service)
    chromium_browser.wait_for("in all", "#notice")
    chromium_browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\">'"
        " + '<img src=x onerror=hacked=1><iframe srcdoc=\"<script>top.hacked=1</script>\">')"
    )
    refused: list[str] = []

    def stopped() -> bool:
        refused.extend(line for line in chromium_browser.log() if "Content Security Policy" in line)
        return any("style" in line for line in refused) and any(
            "script" in line for line in refused
        )

    wait_until(stopped)
    assert chromium_browser.run("return typeof hacked") == "undefined"


def test_a_rollout_is_followed_from_its_first_message_to_its_grade(
    service: str, browser: Browser, home: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GROWING],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        assert agent.stdout.readline() == "begun\n"
        wait_until(lambda: "Running" in opened(browser, f"{service}/#/trace/{'e' * 32}"))
        browser.wait_for("Count.", "[role=log]")
        browser.click("summary")
        for word in ("one", "two"):
            agent.stdin.write(f"{word}\n")
            agent.stdin.flush()
            browser.wait_for(f"This is {word}.", "[role=log]")
        assert "the whole prompt" in browser.text("main")  # what was unfolded stays so
        agent.stdin.close()
        assert agent.wait(20) == 0
    browser.wait_for("grade counted: score 1", "[role=log]")
    browser.wait_for("Ended", "#notice")
    assert "COMPLETED" in browser.text("main dl")
    assert browser.run("return document.querySelectorAll('article').length") == 4


def opened(browser: Browser, url: str) -> str:
    """What a page says of a trace that may not have been taken in yet."""
    browser.open(url)
    wait_until(lambda: browser.text("#notice") not in ("", "Loading …"))
    return browser.text("#notice")


def test_the_key_is_asked_for_and_kept_in_the_tab(
    home: Path, tmp_path: Path, browser: Browser
) -> None:
    own = tmp_path / "own"
    record(own, ROLLOUTS)
    with serving(own, KESTREL_API_KEY="correct horse") as url:
        browser.open(url)
        browser.wait_for("The service asks for its API key.", "#notice")
        assert browser.role("#key") == ("textbox", "API key")
        assert browser.run("return document.activeElement.id") == "key"
        browser.type("#key", "wrong horse" + ENTER)
        browser.wait_for("refused this API key", "#notice")
        browser.type("#key", "correct horse" + ENTER)
        browser.wait_for("3 in all", "#notice")
        browser.open(url)
        browser.wait_for("3 in all", "#notice")
        kept = browser.run("return [localStorage.length, document.cookie, location.href]")
        assert kept == [0, "", f"{url}/"]
        browser.click("#forget")
        browser.wait_for("The service asks for its API key.", "#notice")
        assert browser.run("return sessionStorage.length") == 0


def test_everything_can_be_done_with_the_keyboard(service: str, browser: Browser) -> None:
    browser.open(service)
    browser.wait_for("in all", "#notice")
    names: list[str] = []
    for _ in range(9):
        browser.press(TAB)
        names.append(
            browser.run("return document.activeElement.innerText || document.activeElement.name")
        )
    skip, runs, traces, run, status, text, button, every, trace = names
    assert (skip, runs, traces) == ("Skip to the content", "Runs", "Traces")
    assert (run, text, button, every) == ("run_id", "text", "Filter", "All traces")
    assert status.startswith("any")
    browser.press(ENTER)
    browser.wait_for(f"Trace {trace}", "h1")
    browser.wait_for("Ended", "#notice")
    assert browser.run("return document.activeElement.id") == "content"


def test_every_field_has_a_name_and_every_list_a_caption(service: str, browser: Browser) -> None:
    browser.open(service)
    browser.wait_for("in all", "#notice")
    assert browser.role("[name=run_id]") == ("searchbox", "Run")
    assert browser.role("[name=status]") == ("combobox", "Status")
    assert browser.role("[name=text]") == ("searchbox", "Text in the conversation")
    assert browser.role("main table") == ("table", "Traces, the latest first")
    assert browser.role("#notice")[0] == "status"
    assert browser.role("main")[0] == "main"
    assert browser.role("nav") == ("navigation", "Pages")
    assert browser.role("thead th")[0] == "columnheader"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(service: str, browser: Browser, scheme: str) -> None:
    browser.open(service)
    browser.prefer(scheme)
    names = ["ground", "raised", "ink", "quiet", "link", "good", "bad", "odd", "open"]
    script = (
        "const style = getComputedStyle(document.documentElement);"
        "return arguments[0].map(name => style.getPropertyValue(`--${name}`))"
    )
    ground, raised, *inks = map(luminance, browser.run(script, names))
    assert (ground > 0.5) == (scheme == "light")
    for ink, name in zip(inks, names[2:], strict=True):
        for paper in (ground, raised):
            lighter, darker = max(ink, paper), min(ink, paper)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, name


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it, of ``#rrggbb``."""
    parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_made_of_markup() -> None:
    pages = files("caribou.server").joinpath("pages")
    sources = {file.name: file.read_text() for file in pages.iterdir()}
    assert {"index.html", "app.js", "style.css"} <= set(sources)
    for name, source in sources.items():
        outside = re.findall(r"(?<!xmlns=\")https?://|[\"'(]//\w", source)
        assert outside == [], name
        sinks = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|Function\("
        )
        assert re.findall(sinks, source) == [], name
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script[^>]*>[^<]", sources["index.html"]) == []


def test_an_unchanged_file_is_not_sent_again(service: str) -> None:
    with urllib.request.urlopen(f"{service}/static/app.js") as answer:
        assert answer.headers["Content-Type"].startswith("text/javascript")
        tag = answer.headers["ETag"]
    request = urllib.request.Request(f"{service}/static/app.js", headers={"If-None-Match": tag})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.code == 304
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{service}/static/..%2f__init__.py")
    missing.value.close()
    assert missing.value.code == 404
