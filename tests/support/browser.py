"""Headless Chromium over the WebDriver protocol: what a person sees and does on a page."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.waiting import wait_until

_ELEMENT = (
    "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, as the standard has it
)
_LIMIT = 60.0  # seconds that one command may take
# In a container the sandbox has no rights to set itself up, and /dev/shm is small.
_ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


class Browser:
    """One tab."""

    def __init__(self, driver: str, profile: Path) -> None:
        chrome = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}", "--window-size=1200,900"]}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self._base = f"{driver}/session"
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/{session['sessionId']}"

    def _call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self._base + path,
            data=None if method != "POST" else json.dumps(body or {}).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=_LIMIT) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        """Load a page afresh, also where the address differs in its fragment only."""
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns in the page; used to look, not to act."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        """The text as it is rendered."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def wait_for(self, text: str, selector: str = "body", timeout: float = 20.0) -> None:
        """Until ``text`` is to be seen."""
        with contextlib.suppress(TimeoutError, AssertionError):
            wait_until(lambda: text in self.text(selector), timeout)
        assert text in self.text(selector), self.log()

    def _find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return found[_ELEMENT]

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, wherever the focus is."""
        presses = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": presses}]
        self._call("POST", "/actions", {"actions": actions})

    def role(self, selector: str) -> tuple[str, str]:
        """The role and the name of an element, as a screen reader has them."""
        element = self._find(selector)
        role = self._call("GET", f"/element/{element}/computedrole")
        return role, self._call("GET", f"/element/{element}/computedlabel")

    def dialog(self) -> str | None:
        """The text of the dialog that a script opened; None when there is none."""
        try:
            return self._call("GET", "/alert/text")
        except AssertionError:
            return None

    def log(self) -> list[str]:
        """What came to the console since the last look: errors, and what the policy refused."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._call("POST", "/goog/cdp/execute", command)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def quit(self) -> None:
        self._call("DELETE", "")


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in ``folder``; skips where none is installed."""
    if shutil.which("chromedriver") is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    with subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        assert driver.stdout is not None
        try:
            started = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
            port = next(match[1] for match in started if match)
            browser = Browser(f"http://127.0.0.1:{port}", folder / "profile")
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            driver.terminate()
