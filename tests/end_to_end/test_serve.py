"""A running sweep watched in a real browser: its table fills, and the page outlives the server.

`python -m tests.end_to_end.test_serve STORE NAME FOLDER` takes pictures of the pages: light, dark and as wide as a phone.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pointsweep.cli.report import main as report
from tests.support import browser
from tests.support.ports import free_port

SWEEP = """
name: watched
title: A sweep that is watched
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 40, test_limit: 20}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 80, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows: {method: [lora, head_only]}
seeds: 2
"""
SERVE = [sys.executable, "-c", "import sys; from pointsweep.cli.app import console; sys.exit(console())", "serve"]
FRAME = "document.querySelector('iframe:not(.next)')"
# Cells of the report's first column of numbers, as they are read.
CELLS = (
    f"[...{FRAME}.contentDocument.querySelectorAll('#results tbody td.first')].map((cell) => cell.innerText.trim().split('\\n')[0])"
)
# What the page complains of; that a server is away is no fault of it.
LISTEN = """window.faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("securitypolicyviolation", (event) => faults.push(event.violatedDirective));"""


def without_plotly(page: str) -> str:
    """A report without plotly.js, which lies in the file that `report` writes and beside the page that `serve` shows."""
    page, count = re.subn(r"(script-src \S+) \S+ img-src", r"\1 img-src", page, count=1)
    assert count == 1
    page, count = re.subn(r"<script(?: src=[^>]*|)>(?:(?!</script>).)*</script>\n", "", page, count=1, flags=re.DOTALL)
    assert count == 1
    return page


def started(root: Path, port: int) -> subprocess.Popen[str]:
    line = [*SERVE, "--store", str(root), "--port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == f"http://127.0.0.1:{port}/\n"
    return process


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
def test_a_page_follows_a_running_sweep_while_the_server_is_killed_and_started_again(tmp_path):
    (tmp_path / "watched.yaml").write_text(SWEEP)
    root, port = tmp_path / "store", free_port()
    words = ["--inline", "--quiet", "--tracking-uri", "none", "--store", str(root)]
    command = [sys.executable, "-m", "pointsweep.run", str(tmp_path / "watched.yaml"), *words]

    async def watch() -> None:
        server = started(root, port)
        run = None
        try:
            async with browser.page(1200, 900) as tab:
                await tab.call("Page.enable")
                await tab.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
                await tab.open(f"http://127.0.0.1:{port}/", "document.body.innerText.includes('No sweeps yet.')")
                run = subprocess.Popen(command)
                await tab.wait("document.querySelector('[data-sweep=watched] .state.running')")
                await tab.evaluate("document.querySelector('[data-sweep=watched] a').click()")
                await tab.wait("document.querySelector('.trials li').innerText.includes('of 80, test/accuracy')")
                await tab.wait("document.querySelector('.trials polyline')")
                await tab.wait(f"{CELLS}.some((cell) => cell.includes('(n=1/2)'))")
                assert run.poll() is None, "the sweep is not at its end"
                assert "0/2" in await tab.evaluate(CELLS)
                await tab.evaluate(f"{FRAME}.contentDocument.querySelector('#results details').open = true")

                server.kill()
                await tab.wait("document.querySelector('#notice').innerText.includes('This is an old state, of ')")
                assert await tab.evaluate("document.body.classList.contains('old')")
                server.wait()
                server = started(root, port)
                await tab.wait("document.querySelector('#notice').hidden && !document.body.classList.contains('old')")

                await tab.wait("document.querySelector('.state').innerText === 'done'")
                await tab.wait(f"!{CELLS}.some((cell) => cell.includes('/2'))")
                assert await tab.evaluate("document.title") == "4/4 watched"
                assert await tab.evaluate(f"{FRAME}.contentDocument.querySelector('#results details').open"), "as the reader left it"
                assert run.wait(timeout=60) == 0
                assert report(["watched", "--store", str(root), "-o", str(tmp_path / "report.html")]) == 0
                shown = await tab.evaluate(f"fetch({FRAME}.src).then((answer) => answer.text())")
                assert without_plotly(shown) == without_plotly((tmp_path / "report.html").read_text())
                assert await tab.evaluate(f"[...window.faults, ...{FRAME}.contentWindow.faults]") == []
        finally:
            server.kill()
            server.communicate()
            if run is not None:
                run.kill()
                run.wait()

    asyncio.run(watch())


async def photograph(server: str, name: str, folder: Path) -> None:
    """Pictures of the index and of a sweep's page."""
    for look, width, theme in (("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "light")):
        async with browser.page(width, 900) as tab:
            await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            await tab.open(f"{server}/", "document.querySelector('table, .soft')")
            await tab.picture(folder / f"index-{look}.png")
            await tab.open(f"{server}/sweeps/{name}", f"{FRAME}.contentDocument.querySelector('table')")
            await asyncio.sleep(2)
            await tab.picture(folder / f"sweep-{look}.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory():
        chosen = free_port()
        process = started(Path(sys.argv[1]), chosen)
        try:
            asyncio.run(photograph(f"http://127.0.0.1:{chosen}", sys.argv[2], Path(sys.argv[3])))
        finally:
            process.kill()
