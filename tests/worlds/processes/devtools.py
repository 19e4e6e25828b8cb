"""A tab of a browser without a screen, driven by the DevTools protocol through a pipe: real keys, clicks and files."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.worlds.processes.browser import LIMIT

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--remote-debugging-pipe", "--disable-dev-shm-usage"]


class Tab:
    """One page. `requests`: all urls that were asked for; `complaints`: errors and warnings of the console."""

    def __init__(self, reads: int, writes: int):
        self.reads, self.writes, self.rest, self.count, self.loads, self.session = reads, writes, b"", 0, 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.answers: dict[int, dict[str, Any]] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + LIMIT
        while self.count not in self.answers:
            assert time.monotonic() < until, f"no answer to {method}"
            self._listen(1.0)
        answer = self.answers.pop(self.count)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _listen(self, seconds: float) -> None:
        if not select.select([self.reads], [], [], seconds)[0]:
            return
        data = os.read(self.reads, 1 << 20)
        assert data, "the browser has ended"
        *messages, self.rest = (self.rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
            elif message["method"] == "Page.loadEventFired":
                self.loads += 1
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message["method"] == "Runtime.consoleAPICalled" and message["params"]["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(message["params"]["args"]))
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] in ("error", "warning"):
                self.complaints.append(message["params"]["entry"]["text"])

    def size(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def go(self, url: str) -> None:
        """Returns when the page is loaded, its scripts begun."""
        loads, until = self.loads, time.monotonic() + LIMIT
        self.send("Page.navigate", url=url)
        while self.loads == loads:
            assert time.monotonic() < until, f"{url} is not loaded"
            self._listen(1.0)

    def value(self, script: str) -> Any:
        """Of an expression of JavaScript, as JSON has it."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + LIMIT
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < until, f"never true: {script}; the page: {self.value('document.body.innerText')[:2000]}"
            self._listen(0.1)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        box = self.value(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)}); it.scrollIntoView({{block: 'center'}}); "
            "const box = it.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def key(self, name: str, code: int, text: str = "", modifiers: int = 0) -> None:
        """One key: its name (`Tab`), its Windows key code, and what it writes."""
        given = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def write(self, selector: str, text: str) -> None:
        """Puts a text in the place of what a field holds, as typed."""
        self.value(f"(() => {{ const it = document.querySelector({json.dumps(selector)}); it.focus(); it.select(); }})()")
        self.send("Input.insertText", text=text)

    def choose(self, selector: str, file: Path) -> None:
        """A file in a file field."""
        document = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def picture(self, file: Path, whole: bool = True) -> None:
        """A screenshot."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def tab(browser: str, profile: Path) -> Iterator[Tab]:
    """A browser with one empty tab; both end with the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # it reads from descriptor 3 and writes to 4, whatever ours are called
    take = f'exec 3<&{to_browser[0]} 4>&{from_browser[1]}; exec "$@"'
    words = ["bash", "-c", take, "bash", browser, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    inherited = (to_browser[0], from_browser[1])
    process = subprocess.Popen(words, pass_fds=inherited, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for end in inherited:
        os.close(end)
    try:
        yield Tab(from_browser[0], to_browser[1])
    finally:
        process.terminate()
        process.wait(LIMIT)
        os.close(to_browser[1])
        os.close(from_browser[0])
