"""A headless Chromium without internet, asked through its DevTools: open a page, wait for something on it, take its picture."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Names other than this machine's are not looked up.
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-unsafe-swiftshader",  # WebGL without a GPU
)  # fmt: skip
PATIENCE_S = 120


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number = socket, 0
        self.events: list[dict[str, Any]] = []  # what domains that were enabled have reported

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        async for message in self.socket:
            answer = message.json()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)
        raise AssertionError("Chromium has gone")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def open(self, url: str, until: str) -> None:
        """Opens a page and waits until the expression is true on it."""
        await self.call("Page.navigate", url=url)
        await self.wait(until)

    async def wait(self, until: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not await self.evaluate(f"(() => {{ try {{ return Boolean({until}); }} catch {{ return false; }} }})()"):
            assert time.monotonic() < deadline, f"{until}: {await self.evaluate('document.body?.innerText')}"
            await asyncio.sleep(0.3)

    async def picture(self, path: Path) -> None:
        """What is seen, as PNG."""
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"]))


@contextlib.asynccontextmanager
async def page(width: int, height: int) -> AsyncIterator[Page]:
    """A tab of this size in a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        browser = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told, deadline = Path(profile) / "DevToolsActivePort", time.monotonic() + PATIENCE_S
            while not (told.exists() and told.read_text().count("\n")):
                assert time.monotonic() < deadline and browser.poll() is None, "Chromium does not start"
                await asyncio.sleep(0.1)
            port = told.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    [tab] = [tab for tab in await answer.json() if tab["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            browser.kill()
            browser.wait()
