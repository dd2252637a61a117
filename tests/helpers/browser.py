"""A headless chromium that tests drive: open a page, evaluate, click, press keys, read its errors, take its picture.

    with Browser() as page:
        page.open("file:///…/page.html")
        page.click("#pair")
        assert page.run("document.title") == "Trajectories" and page.errors == []

It speaks the DevTools protocol through tornado's client, which JupyterLab brings along.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from tornado.websocket import websocket_connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page of one chromium. `errors` are what its console and its content policy complained of."""

    def __init__(self, width: int = 1400, height: int = 900, patience: float = 60):
        self.size, self.patience, self.errors, self._number = (width, height), patience, list[str](), 0

    def __enter__(self) -> Self:
        self._folder, self._loop = tempfile.mkdtemp(), asyncio.new_event_loop()
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={self._folder}", "--remote-debugging-port=0", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = self._until(self._port, "chromium did not start")
            found = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=self.patience))
            address = next(target["webSocketDebuggerUrl"] for target in found if target["type"] == "page")
            self._socket = self._wait(lambda: websocket_connect(address, max_message_size=2**30))
            for domain in ("Page", "Runtime", "Log"):
                self.send(f"{domain}.enable")
            self.resize(*self.size)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command of the DevTools protocol and return its result."""
        self._number = number = self._number + 1
        order = json.dumps({"id": number, "method": method, "params": parameters})
        self._wait(lambda: self._socket.write_message(order))
        return self._read(lambda message: message.get("id") == number)["result"]

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.send("Page.navigate", url=url)
        self._read(lambda message: message.get("method") == "Page.loadEventFired")

    def resize(self, width: int, height: int) -> None:
        """Make the window as large as a desk's or a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def run(self, script: str) -> Any:
        """The value of an expression, a promise's when it is kept. Raises RuntimeError where it throws."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(_thrown(done["exceptionDetails"]))
        return done["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The value of an expression as soon as it is true. Raises TimeoutError where patience ends before."""
        return self._until(lambda: self.run(script), script)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that a selector names, as soon as there is one."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{element} !== null")
        place = f"{element}.scrollIntoView({{block: 'nearest'}}), {element}.getBoundingClientRect()"
        box = self.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(({place}))")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key: a character, or one of KEYS."""
        text = {"Enter": "\r"}.get(key, "" if key in KEYS else key)
        stroke = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": 8 * shift}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **stroke)
        self.send("Input.dispatchKeyEvent", type="keyUp", **stroke)

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> Path:
        """Write what is seen as a PNG and return its path."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
        return path

    def _port(self) -> str:
        told = Path(self._folder) / "DevToolsActivePort"
        return told.read_text().partition("\n")[0] if told.exists() else ""

    def _until(self, look: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + self.patience
        while not (found := look()):
            if time.monotonic() > end:
                raise TimeoutError(what)
            time.sleep(0.05)
        return found

    def _wait(self, begin: Callable[[], Any]) -> Any:
        async def result() -> Any:  # tornado's calls want a running loop
            return await asyncio.wait_for(begin(), self.patience)

        return self._loop.run_until_complete(result())

    def _read(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The next message that is wanted; complaints among those before it are kept."""
        while True:
            text = self._wait(self._socket.read_message)
            if text is None:
                raise ConnectionError("chromium has gone")
            message = json.loads(text)
            if "error" in message:
                raise RuntimeError(message["error"]["message"])
            said, method = message.get("params", {}), message.get("method")
            if method == "Runtime.exceptionThrown":
                self.errors.append(_thrown(said["exceptionDetails"]))
            elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
                self.errors.append(said["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in said["args"]))
            if wanted(message):
                return message


def _thrown(details: dict[str, Any]) -> str:
    return details.get("exception", {}).get("description") or details["text"]
