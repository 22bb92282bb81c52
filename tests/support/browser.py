"""A headless Chromium that clicks: its DevTools protocol over two pipes, for tests of pages."""

from __future__ import annotations

import base64
import importlib.util
import io
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

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
# The checks of axe-core, where a package brings them; nothing of it is imported.
_AXE = (importlib.util.find_spec(name) for name in ("axe_core_python", "axe_playwright_python"))
AXE = next((Path(s.origin).with_name("axe.min.js") for s in _AXE if s and s.origin), None)
TIMEOUT = 120  # seconds for any answer: a loaded machine starts a browser slowly


class Tab:
    """One page: what it is asked, and everything it told meanwhile."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._number, self._session = b"", 0, {}
        self.told: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; what is told before it is kept in `told`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.told.append(answer)

    def _read(self) -> dict[str, Any]:
        stop = time.monotonic() + TIMEOUT
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], stop - time.monotonic())
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        one, self._rest = self._rest.split(b"\0", 1)
        return json.loads(one)

    def open(self, page: Path, width: int, height: int) -> None:
        """Shows a file at the size of a phone or a screen, once all of it is there."""
        self.window(width, height)
        self.call("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete'")

    def window(self, width: int, height: int, scheme: str = "light") -> None:
        """Makes the window this large, in pixels, of someone who likes pages "light" or "dark"."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def violations(self) -> list[Any]:
        """Rules of axe-core that the page breaks, with the first element of each."""
        assert AXE is not None
        self.value(AXE.read_text(encoding="utf-8") + ";0")
        told = "r.violations.map(v => [v.id, v.impact, v.nodes[0].html.slice(0, 200)])"
        found = self.call(
            "Runtime.evaluate",
            expression=f"axe.run().then(r => {told})",
            awaitPromise=True,
            returnByValue=True,
        )
        return found["result"]["value"]

    def until(self, expression: str) -> None:
        """Waits for an expression to become true."""
        stop = time.monotonic() + TIMEOUT
        while not self.value(expression):
            assert time.monotonic() < stop, f"never true: {expression}"
            time.sleep(0.02)

    def click(self, element: str) -> None:
        """Presses the mouse in the middle of the element that a JavaScript expression gives."""
        self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(f"{element}.getBoundingClientRect().toJSON()")
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def press(self, key: str, code: int) -> None:
        """Presses a key by its name and its number on Windows keyboards."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def screenshot(self) -> np.ndarray:
        """What is to be seen, uint8 `[H,W,3]`."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A browser with one empty page; `profile` is a folder for what it keeps."""
    assert PROGRAM is not None
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    # The protocol wants the numbers 3 and 4; a shell puts them there, whatever the pipes got.
    line = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    flags = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    with subprocess.Popen(
        ["bash", "-c", line, PROGRAM, *flags],
        pass_fds=(to_browser, from_browser),
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Tab(commands, answers)
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)
