"""From nothing to the page: the demo, then the service, and both the API and the page show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commandline import caribou
from support.browser import chromium
from support.serving import Service, serving
from support.waiting import wait_until

pytest.importorskip("chdb", reason="the embedded engine is not installed")


@dataclass(frozen=True)
class Shown:
    """A service over what the demo recorded, and what the demo said that was."""

    service: Service
    traces: list[dict[str, Any]]

    @property
    def run_id(self) -> str:
        [run_id] = {trace["run_id"] for trace in self.traces}
        return run_id


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    home = tmp_path_factory.mktemp("demo") / "home"
    demo = caribou("demo", "--json", home=home)
    assert (demo.code, demo.err) == (0, "")
    with serving(home) as service:
        wait_until(lambda: service.request("GET", "/readyz")[0] == 200)
        yield Shown(service, demo.objects)


def test_the_api_shows_the_demo(shown: Shown) -> None:
    def get(path: str) -> list[dict[str, Any]]:
        page = shown.service.get(f"/api/v1{path}run_id={shown.run_id}")
        assert page["next_cursor"] is None
        return page["items"]

    said = {trace["trace_id"]: trace for trace in shown.traces}
    found = get("/traces?limit=1000&")
    assert len(found) == len(said) == 320
    names = ["datapoint_id", "step_number", "status", "score", "turns", "tool_calls", "tags"]
    for trace in found:
        same = said[trace["trace_id"]]
        assert [trace[name] for name in names] == [same[name] for name in names]
    steps = Counter(trace["step_number"] for trace in shown.traces)
    assert {step["step_number"]: step["traces"] for step in get("/aggregates/steps?")} == steps
    assert {tool["tool_name"] for tool in get("/aggregates/tools?")} >= {
        "lookup_order",
        "calculate",
    }
    talk = shown.service.get(f"/api/v1/traces/{shown.traces[0]['trace_id']}/spans")["items"]
    assert {"system", "user", "assistant"} <= {span["role"] for span in talk}


@pytest.mark.slow
def test_the_page_shows_the_demo(shown: Shown, tmp_path: Path) -> None:
    perfect = [t for t in shown.traces if t["status"] == "COMPLETED" and t["score"] == 1]
    failed = [t for t in shown.traces if t["status"] == "ERROR"]
    with chromium(tmp_path) as browser:
        browser.open(shown.service.url)
        browser.wait_for("100 shown", "#notice")
        assert browser.text("main tbody").count(shown.run_id) == 100
        for more in ("200 shown", "300 shown", "320 in all"):
            browser.click("button.more")
            browser.wait_for(more, "#notice")
        browser.open(f"{shown.service.url}/#/runs")
        browser.wait_for("registered or not", "main")
        assert f"{shown.run_id}\ttrain\t320\t" in browser.text("h2 + div table tbody")
        browser.click(f"a[href='#/traces?run_id={shown.run_id}']")
        browser.wait_for("100 shown", "#notice")
        browser.open(f"{shown.service.url}/#/traces?run_id={shown.run_id}&status=ERROR")
        browser.wait_for(f"{len(failed)} in all", "#notice")
        browser.open(f"{shown.service.url}/#/trace/{perfect[0]['trace_id']}")
        browser.wait_for("Ended", "#notice")
        talk = browser.text("main")
        for text in ("Turn 0", "Is there anything else I can do for you?", "policy_check: score 1"):
            assert text in talk, text
        assert browser.log() == []
