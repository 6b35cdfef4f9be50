"""A browser without a window, driven over pipes: nothing is installed and no port is opened."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # containers and root have none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


def find_browser() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a headless Chromium, which speaks its DevTools protocol."""

    def __init__(self, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        found = find_browser()
        assert found is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # The protocol is spoken on descriptors 3 and 4.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                script,
                "bash",
                found,
                *OPTIONS,
                f"--user-data-dir={self._profile.name}",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._write, self._read = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb")
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Network.setCacheDisabled", cacheDisabled=False)
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._write.close()
        self._process.kill()
        self._process.wait()
        self._read.close()
        self._profile.cleanup()

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command, collect events until its answer is there, and return that."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        received = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has gone"
            received += byte
        answer: dict[str, Any] = json.loads(received)
        return answer

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in pixels."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, path: Path) -> None:
        """Open a file and wait until it, and what it shows at once, is loaded."""
        self.events.clear()
        self.ask("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Evaluate an expression, waiting for a promise, and return its value."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press a key and let go of it."""
        for kind in ("keyDown", "keyUp"):
            words = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **words)

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self.ask("Input.insertText", text=text)

    def settle(self) -> None:
        """Wait until observers have run and no picture is being loaded."""
        self.run(
            "(async () => { for (let i = 0; i < 200; i++) {"
            " await new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)));"
            " const seen = [...document.images].filter(image => {"
            "  const box = image.getBoundingClientRect();"
            "  return box.bottom > 0 && box.top < innerHeight && box.width; });"
            " if (seen.every(image => image.complete)) return; } })()"
        )

    def requested(self) -> list[str]:
        """Return the addresses that were asked for since the page was opened."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Return what the console and the log say is wrong."""
        return [
            str(event["params"])
            for event in self.events
            if event["method"] in {"Runtime.exceptionThrown", "Log.entryAdded"}
            or (
                event["method"] == "Runtime.consoleAPICalled"
                and event["params"]["type"] in {"error", "warning"}
            )
        ]

    def screenshot(self, path: Path) -> None:
        """Save what the window shows."""
        data = self.ask("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
