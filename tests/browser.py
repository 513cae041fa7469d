"""A headless Chromium, driven by chromedriver over HTTP, as the standard library can."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

OPENER = build_opener(ProxyHandler({}))
KEYS = {"ArrowUp": "\ue013", "ArrowRight": "\ue014"}
needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver on PATH"
)


class Browser:
    """One window; ``address`` is that of its session."""

    def __init__(self, address: str, options: list[str]) -> None:
        self.address = address
        wish = {"browserName": "chrome", "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        wish["goog:chromeOptions"] = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", *options]}
        self.address += "/session/" + self.ask("POST", "/session", capabilities={"alwaysMatch": wish})["sessionId"]

    def ask(self, method: str, path: str, **data: Any) -> Any:
        body = json.dumps(data).encode() if method == "POST" else None
        request = Request(self.address + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            return json.loads(OPENER.open(request, timeout=60).read())["value"]
        except HTTPError as e:
            raise AssertionError(e.read().decode(errors="replace")[:2000]) from e

    def open(self, file: Path) -> None:
        self.ask("POST", "/url", url=file.resolve().as_uri())

    def run(self, script: str, *values: Any) -> Any:
        """What a script returns that runs in the page."""
        return self.ask("POST", "/execute/sync", script=script, args=list(values))

    def wait(self, script: str) -> None:
        """Until an expression is true in the page."""
        end = time.monotonic() + 20
        while not self.run(f"return Boolean({script})"):
            assert time.monotonic() < end, f"not true: {script}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def turn_wheel(self, x: int, y: int, by: int) -> None:
        turn = {"type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": by, "origin": "viewport", "duration": 0}
        self.ask("POST", "/actions", actions=[{"type": "wheel", "id": "wheel", "actions": [turn]}])

    def dark(self) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        self.ask("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})

    def errors(self) -> list[str]:
        """What went wrong in the page since it was asked last."""
        lines = self.ask("POST", "/se/log", type="browser")
        return [line["message"] for line in lines if line["level"] == "SEVERE"]

    def requested(self) -> set[str]:
        """Addresses that were asked for, but those of data in the page itself and of the empty window."""
        lines = [json.loads(line["message"])["message"] for line in self.ask("POST", "/se/log", type="performance")]
        asked = [e["params"]["request"]["url"] for e in lines if e["method"] == "Network.requestWillBeSent"]
        return {url for url in asked if not url.startswith(("data:", "about:", "chrome"))}

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def print(self, file: Path) -> None:
        """As a PDF on A4."""
        page = {"width": 21.0, "height": 29.7}
        file.write_bytes(base64.b64decode(self.ask("POST", "/print", page=page, background=False)))


@contextmanager
def chromium(folder: Path, *options: str) -> Iterator[Browser]:
    """A browser whose profile is in ``folder``; it ends with the ``with``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=log)
    browser = None
    try:
        end = time.monotonic() + 20
        while browser is None:
            with suppress(URLError):
                OPENER.open(f"http://127.0.0.1:{port}/status", timeout=5)
                profile = f"--user-data-dir={folder / 'profile'}"
                browser = Browser(f"http://127.0.0.1:{port}", [profile, "--window-size=1400,1000", *options])
            assert time.monotonic() < end, "chromedriver does not answer"
        yield browser
    finally:
        if browser is not None:
            browser.ask("DELETE", "")
        driver.kill()
        driver.wait()
