"""Headless Chromium, spoken to over its DevTools pipe: no driver, no port, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSTALL = "apt-get install --no-install-recommends chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--remote-debugging-pipe", "about:blank"),
)
ANSWER_S = 30.0


def find_chromium() -> str | None:
    """The path of Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab.

    Attributes:
        events: what the tab has told since the last page was opened: (method, parameters).
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._to, self._from = to_browser, from_browser
        self._unread, self._number = b"", 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append((answer["method"], answer["params"]))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, page: Path, *, width: int, height: int = 800, scheme: str = "light") -> None:
        """Show a file in a window of `width` CSS pixels, light or dark, and wait until it is laid out."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            told = self._read()
            self.events.append((told["method"], told["params"]))
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        made = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in made:
            raise RuntimeError(f"{script}: {made['exceptionDetails']}")
        return made["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page has asked for, itself included."""
        return [told["request"]["url"] for method, told in self.events if method == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the page has written to the console, and the browser about it."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(told) for method, told in self.events if method in methods]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        made = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(made["data"]))

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + ANSWER_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._from, 1 << 16) if ready else b""
            if not chunk:
                raise TimeoutError("Chromium ended, or does not answer")
            self._unread += chunk
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile in the folder `profile`, ended with the block."""
    chromium = find_chromium()
    assert chromium is not None
    # Chromium reads commands from its descriptor 3 and writes answers to 4.
    their_in, to_browser = os.pipe()
    from_browser, their_out = os.pipe()
    shell = f'exec 3<&{their_in} 4>&{their_out}; exec "$@"'
    command = ["bash", "-c", shell, "bash", chromium, f"--user-data-dir={profile}", *FLAGS]
    process = subprocess.Popen(
        command, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_browser)
        os.close(from_browser)


def assert_page_is_whole(browser: Browser, page: Path, *, least_charts: int) -> None:
    """On a phone and a desktop, light and dark: nothing asked for, no complaint, no sideways scrolling, charts drawn.

    All `<details>` are opened for it.
    """
    for width in (360, 1280):
        for scheme in ("light", "dark"):
            browser.open(page, width=width, scheme=scheme)
            browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            where = f"at {width} pixels, {scheme}"
            assert browser.requests() == [page.as_uri()], f"the page asked for {browser.requests()} {where}"
            assert browser.complaints() == [], f"the browser complained {where}: {browser.complaints()}"
            inner, wide = browser.run("[innerWidth, document.documentElement.scrollWidth]")
            # A phone zooms out of what is too wide for it.
            assert max(inner, wide) <= width, f"the page is wider than the screen {where}: {wide} pixels"
            sizes = browser.run(SIZES)
            assert len(sizes) >= least_charts, f"charts without size {where}: {len(sizes)} have one"
            assert all(200 <= w <= width and 80 <= h <= 4000 for w, h in sizes), f"{sizes} {where}"


# Every chart is there twice, for narrow and for wide screens; one of them is shown.
SIZES = """[...document.querySelectorAll('figure svg[role=img]')].map(svg => svg.getBoundingClientRect())
  .filter(box => box.width && box.height).map(box => [box.width, box.height])"""
