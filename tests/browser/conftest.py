"""A page in headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1280,900",
)  # fmt: skip
PATIENCE = 30.0
"""Seconds within which the browser must answer."""


class Page:
    """One open page; `complaints` collects what its console and its exceptions say."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=PATIENCE)
        self._number = 0
        self.complaints: list[str] = []
        self.loaded = False
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; note the events that come before it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        name, facts = event.get("method"), event.get("params", {})
        printed = name == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning")
        if printed or name in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(facts))
        self.loaded = self.loaded or name == "Page.loadEventFired"

    def open(self, path: Path) -> None:
        """Load a file and wait until its scripts have run."""
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._note(json.loads(self._socket.recv()))

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, or of the promise that it is."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll to the first match of a selector and return where its middle is."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        self.run("new Promise(requestAnimationFrame)")
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        return self.run(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move, press or release the mouse at a point of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        """Press a key."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name)


def _address(profile: Path) -> str:
    """Return where the browser's first page listens."""
    note, end = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
    while not (note.exists() and note.read_text().count("\n")):
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    port, path = note.read_text().splitlines()[:2]
    browser = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=PATIENCE)
    browser.send(json.dumps({"id": 1, "method": "Target.createTarget",
                             "params": {"url": "about:blank"}}))  # fmt: skip
    answer = json.loads(browser.recv())
    browser.close()
    return f"ws://127.0.0.1:{port}/devtools/page/{answer['result']['targetId']}"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page in a fresh browser, which is ended afterwards."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        reason = "no browser is installed: none of " + ", ".join(NAMES)
        if os.environ.get("XATTN_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    profile = tmp_path / "profile"
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Page(_address(profile))
    finally:
        process.terminate()
        process.wait(PATIENCE)
