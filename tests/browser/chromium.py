"""A headless Chromium, driven through a pipe by its DevTools protocol: no port, no driver, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--no-first-run"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync"),
    *("--force-device-scale-factor=1", "--remote-debugging-pipe"),
)
HAND_OVER = "import os, sys; r, w = int(sys.argv[1]), int(sys.argv[2]); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
"""The protocol reads from descriptor 3 and writes to descriptor 4."""
PATIENCE = 60.0


def find() -> str | None:
    """Path of a Chromium; VDQ_BROWSER names another one."""
    return os.environ.get("VDQ_BROWSER") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One process; `page` opens a file in a fresh tab."""

    def __init__(self, path: str, profile: Path) -> None:
        (there, self.outbox), (self.inbox, back) = os.pipe(), os.pipe()
        for descriptor in (there, back):
            os.set_inheritable(descriptor, True)
        command = [sys.executable, "-c", HAND_OVER, str(there), str(back), path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        self.count, self.rest, self.events = 0, b"", []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that arrive meanwhile are kept."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.outbox, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(PATIENCE)
            if answer is None:
                raise TimeoutError(f"{method} was not answered within {PATIENCE} s")
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None if there is none in time."""
        until = time.monotonic() + seconds
        while b"\0" not in self.rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.inbox], [], [], left)[0]:
                return None
            part = os.read(self.inbox, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self.rest += part
        first, _, self.rest = self.rest.partition(b"\0")
        return json.loads(first)

    def page(self, url: str, width: int = 1320, height: int = 900) -> Page:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.call("Page.navigate", url=url)
        page.wait("document.readyState === 'complete'")
        return page

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.outbox)
        os.close(self.inbox)


ARROWS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36}
KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), " ": ("Space", 32, " "), "Escape": ("Escape", 27, "")}
KEYS |= {name: (name, code, "") for name, code in ARROWS.items()}
"""By key: code, number and text."""


class Page:
    """A tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def js(self, expression: str) -> Any:
        """Value of an expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description") or answer["exceptionDetails"]["text"])
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> Any:
        """Value of an expression as soon as it is true; an element counts as true."""
        until = time.monotonic() + seconds
        while not (value := self.js(f"(value => value instanceof Node ? true : value)({expression})")):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} did not come true within {seconds} s")
            time.sleep(0.03)
        return value

    def press(self, key: str) -> None:
        """A key, as the keyboard gives it."""
        code, number, text = KEYS[key]
        known = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **known, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def click(self, selector: str) -> None:
        """The left mouse button in the middle of an element."""
        place = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def choose(self, label: str, value: str) -> None:
        """An option of the select with this label."""
        found = self.js(
            f"(() => {{ const l = [...document.querySelectorAll('label')].find(l => l.textContent.trim().startsWith({json.dumps(label)}));"
            f" const s = l && l.querySelector('select'); if (!s) return false; s.value = {json.dumps(value)};"
            " s.dispatchEvent(new Event('change', {bubbles: true})); return s.value; })()"
        )
        assert found == value, f"no option {value} under {label}"

    def go(self, view: str) -> None:
        """A view by its address."""
        self.js(f"location.hash = {json.dumps(view)}")
        self.wait(f"document.querySelector('#view h2') && location.hash === '#' + {json.dumps(view)}")
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def emulate(self, **features: str) -> None:
        """Preferences of the user, such as prefers_color_scheme='dark'."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": n.replace("_", "-"), "value": v} for n, v in features.items()])

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path, full: bool = True) -> Path:
        """A picture of the page, or of what is in sight."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]))
        return path

    def problems(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions, and requests that are no files, since the tab was opened."""
        self.js("0")
        return [text for event in self.browser.events if event.get("sessionId") == self.session and (text := _problem(event))]

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)


def _problem(event: dict[str, Any]) -> str | None:
    about: dict[str, Callable[[dict[str, Any]], str | None]] = {
        "Runtime.exceptionThrown": lambda p: p["exceptionDetails"].get("exception", {}).get("description") or p["exceptionDetails"]["text"],
        "Runtime.consoleAPICalled": lambda p: f"console.{p['type']}: {p['args']}" if p["type"] in ("error", "warning", "assert") else None,
        "Log.entryAdded": lambda p: f"{p['entry']['level']}: {p['entry']['text']}" if p["entry"]["level"] in ("error", "warning") else None,
        "Network.requestWillBeSent": lambda p: _network(p["request"]["url"]),
    }
    read = about.get(event.get("method", ""))
    return read(event["params"]) if read else None


def _network(url: str) -> str | None:
    return None if url.split(":", 1)[0] in ("file", "data", "blob", "about") else f"request to {url}"
