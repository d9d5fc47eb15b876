"""A headless Chromium without a driver or a package: the DevTools protocol over two pipes.

    with Browser() as browser:
        page = browser.open(path.as_uri(), width=390, dark=True)
        page.evaluate("document.title"), page.errors, page.requests, page.screenshot(file)

CHROMIUM names the program; else the usual names are tried.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


def find() -> str | None:
    """The browser's path, or None."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser process with a fresh profile; close it, or use it in a with statement."""

    def __init__(self, timeout: float = 60) -> None:
        program = find()
        if program is None:
            raise FileNotFoundError("no Chromium: apt-get install chromium, or set CHROMIUM to its path.")
        self.timeout = timeout
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()

        def wire() -> None:  # the protocol is fixed to file descriptors 3 and 4
            spare_in, spare_out = os.dup2(to_child, 100), os.dup2(from_child, 101)
            os.dup2(spare_in, 3)
            os.dup2(spare_out, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=wire,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer = b""
        self._last = 0
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A new tab with `url`, loaded, at that window size and colour scheme."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.look(width, height, dark)
        page.go(url)
        return page

    def call(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Send one command and return its result; events that arrive meanwhile go to their pages."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            answer = self.receive(deadline)
            if answer and answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
        raise TimeoutError(f"the browser did not answer {method} within {self.timeout} s")

    def receive(self, deadline: float) -> dict[str, Any] | None:
        """The next message, after an event was handed to its page; None at the deadline."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser ended (exit status {self._process.poll()}).")
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(raw)
        if "method" in message and (page := self._pages.get(message.get("sessionId", ""))):
            page.event(message["method"], message["params"])
        return message


class Page:
    """One tab. errors: what its console and network complained of. requests: every address that it asked for."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def go(self, url: str) -> None:
        """Load `url` and wait until its equations, its fonts and its transitions are done."""
        self._loaded = False
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + self._browser.timeout
        while not self._loaded:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not load")
            self._browser.receive(deadline)
        self.evaluate("window.MathJax?.startup?.promise")
        self.evaluate("document.fonts.ready.then(() => 0)")
        self.settle()

    def look(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Another window size and colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()

    def settle(self) -> None:
        """Wait for a frame to be drawn, and put transitions at their end: off the screen, they may never get there."""
        self.call("Page.bringToFront")  # a tab behind another one draws no frame, ever
        self.evaluate(
            "new Promise(done => { requestAnimationFrame(() => setTimeout(done, 50)); setTimeout(done, 2000) })"
        )
        finite = "document.getAnimations().filter(a => a.effect.getComputedTiming().endTime < Infinity)"
        self.evaluate(f"{finite}.forEach(a => a.finish())")
        self.evaluate("new Promise(done => { requestAnimationFrame(done); setTimeout(done, 2000) }).then(() => 0)")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + self._browser.timeout
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {condition}")
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. Raises RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def click(self, selector: str, *, patience: float = 5) -> None:
        """Click in the middle of the first element that matches, with a real mouse; again if it did not arrive in time.

        Raises TimeoutError naming the selector where no click reaches the element: hidden, covered, or never still.
        """
        element = f"document.querySelector({json.dumps(selector)})"
        self.call("Page.bringToFront")
        for _ in range(3):
            self.evaluate(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
            x, y = self._middle(element, patience)
            listen = f"{element}.addEventListener('click', () => window.arrived = true, {{capture: true, once: true}})"
            self.evaluate(f"{listen}, window.arrived = false")
            for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
                button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if self.evaluate("window.arrived !== false"):  # undefined: the click has led to another page
                    return
                time.sleep(0.02)
        raise TimeoutError(f"no click reached {selector}")

    def _middle(self, element: str, patience: float) -> tuple[float, float]:
        """Where an element lies, once it lies still and nothing covers its middle, or at the end of patience."""
        where, deadline = None, time.monotonic() + patience
        while True:
            # a frame is drawn first: what has just been moved is clicked where it was
            found = self.evaluate(
                "new Promise(done => { requestAnimationFrame(() => setTimeout(done, 0)); setTimeout(done, 1000) })"
                f".then(() => {{ const e = {element}, b = e.getBoundingClientRect(), x = b.x + b.width / 2,"
                " y = b.y + b.height / 2; return [x, y, e.contains(document.elementFromPoint(x, y))]; })"
            )
            if (found == where and found[2]) or time.monotonic() > deadline:
                return found[0], found[1]
            where = found

    def screenshot(self, file: Path, *, full: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        options: dict[str, Any] = {"captureBeyondViewport": full}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"]))
        return file

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target})
        self._browser._pages.pop(self._session, None)

    def event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])


def main() -> int:
    """Screenshots of pages: python -m tools.browser OUT_FOLDER FILE.html ... (light, dark and phone of each)."""
    folder, files = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    folder.mkdir(parents=True, exist_ok=True)
    looks: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 844}}
    with Browser() as browser:
        for file in files:
            for look, options in looks.items():
                page = browser.open(file.resolve().as_uri(), **options)
                print(page.screenshot(folder / f"{file.stem}-{look}.png", full=look == "phone"), *page.errors)
                page.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
