"""Drives a headless Chromium over its DevTools pipe: no port, no driver program, no package."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
WITHIN_S = 30.0
CONTROLS = {
    "button", "checkbox", "combobox", "link", "radio", "searchbox", "slider", "spinbutton", "textbox", "region",
    "image", "DisclosureTriangle", "dialog",
}  # fmt: skip
LEFT = ("navigated", "context was destroyed", "Cannot find context")  # what Chromium says of a page that was left


class PageLeft(RuntimeError):
    """The page was left for another one while it evaluated an expression."""


class Browser:
    """One Chromium with one page; every call waits for its answer."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._last_id, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send one DevTools command to the page, or to the browser before there is a page, and return its result."""
        self._last_id += 1
        command: dict[str, Any] = {"id": self._last_id, "method": method, "params": arguments}
        if self._session:
            command["sessionId"] = self._session
        unsent = memoryview(json.dumps(command).encode() + b"\0")
        while unsent:
            unsent = unsent[os.write(self._commands, unsent) :]
        deadline = time.monotonic() + WITHIN_S
        while (answer := self._read(deadline)).get("id") != self._last_id:
            self.events.append(answer)
        if "error" in answer:
            message = answer["error"]["message"]
            left = any(words in message for words in LEFT)
            raise (PageLeft if left else RuntimeError)(f"{method}: {message}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium did not answer within {WITHIN_S:g} s")
            part = os.read(self._answers, 2**20)
            if not part:
                raise RuntimeError("Chromium ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def open(self, url: str) -> None:
        """Open a page of its own and wait until it has loaded."""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Evaluate an expression as if the user had clicked; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true; on a page without a body yet, or one that is being left, it is not."""
        deadline = time.monotonic() + WITHIN_S
        attempt = f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"

        def is_true() -> bool:
            try:
                return bool(self.run(attempt))
            except PageLeft:
                return False

        while not is_true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not true after {WITHIN_S:g} s: {condition}")
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release one key."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def size(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Give the page a width and height in px and light or dark surroundings; `open` undoes it."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def cut_off(self) -> list[str]:
        """Return what sticks out of the page to the right, where only what scrolls inside itself may."""
        cut: list[str] = self.run(
            "(() => { const scrolls = (node) => node && (['auto', 'scroll', 'hidden'].includes("
            "getComputedStyle(node).overflowX) || scrolls(node.parentElement));"
            "const wide = [...document.body.querySelectorAll('*')].filter((node) => node.getClientRects().length"
            " && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1"
            " && !scrolls(node.parentElement));"
            "return wide.map((node) => node.tagName + ' ' + node.className + ' ' + node.textContent.slice(0, 40)); })()"
        )
        return cut

    def controls(self) -> list[tuple[str, str]]:
        """Return role and name of every control, as a screen reader is told them."""
        self.call("Accessibility.enable")
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node.get("ignored")]
        spoken = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]
        return [(role, name) for role, name in spoken if role in CONTROLS]

    @contextmanager
    def inside_frame(self) -> Iterator[None]:
        """Send the calls to the frame inside the page, which, being sandboxed, runs in a process of its own."""
        outer, self._session = self._session, ""
        deadline = time.monotonic() + WITHIN_S
        while not (frames := [
            info["targetId"] for info in self._targets()
            if info["type"] == "iframe" and not info["url"].startswith("chrome")  # as Chromium's own first page has
        ]):  # fmt: skip
            if time.monotonic() > deadline:
                raise TimeoutError(f"no sandboxed frame within {WITHIN_S:g} s")
            time.sleep(0.05)
        self._session = self.call("Target.attachToTarget", targetId=frames[0], flatten=True)["sessionId"]
        try:
            yield
        finally:
            self._session = outer

    def _targets(self) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = self.call("Target.getTargets")["targetInfos"]
        return infos

    def requested(self) -> list[str]:
        """Return the addresses that the page asked for."""
        self.run("0")
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def complaints(self) -> list[str]:
        """Return errors that the page threw or logged."""
        self.run("0")
        told = [(event.get("method"), event.get("params", {})) for event in self.events]
        thrown = [params["exceptionDetails"]["text"] for method, params in told if method == "Runtime.exceptionThrown"]
        logged = [params["entry"]["text"] for method, params in told if method == "Log.entryAdded"]
        return thrown + logged


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Start a Chromium with a profile of its own and further options; skips the test where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs Chromium to open a page in, none of {', '.join(NAMES)} is installed")
    profile = tempfile.mkdtemp(prefix="clapcur-chromium-")
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    # Chromium reads its commands from descriptor 3 and writes its answers to 4
    shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", program, *OPTIONS, *options, f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": profile},
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        os.close(ours_out)  # Chromium ends when nobody can command it any more
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_in)
        shutil.rmtree(Path(profile), ignore_errors=True)
