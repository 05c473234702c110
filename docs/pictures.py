"""Make the pictures of the docs: python -m docs.pictures [--smoke] [FOLDER]

Runs a sweep in a terminal of its own (the quick start; `--smoke` its short form), and takes
pictures of the terminal, of `pointsweep serve` while it trains, of the report, of MLflow's runs
page and of the LaTeX table; of serve and the report also in dark colours and on a phone. Chromium
must be installed; without pdflatex and pdftoppm the table is left as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image, ImageChops
from rich.console import Console
from rich.text import Text

from pointsweep.reporting.formats.latex import PACKAGES
from pointsweep.tracking.mlflow.payload import runs_page
from tests.support import browser
from tests.support.ports import free_port
from tests.support.postgres import mlflow_server
from tests.support.terminal import Terminal

HERE = Path(__file__).parent
COLUMNS, LINES = 118, 30
PHONE = (390, 844)
# the ending of a picture's name, the system's colours, and whether it is of a phone
LOOKS = (("", "light", False), ("_dark", "dark", False), ("_phone", "light", True))
COMMAND = [
    sys.executable,
    "-c",
    "from pointsweep.cli.app import console; raise SystemExit(console())",
]
# MLflow's assistant covers a third of its page until it is closed once
CLOSED = "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"
CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
# rich names fonts on a server; a page that shows the picture takes the reader's own
FONT_FACE = re.compile(r"@font-face \{[^}]*\}\s*")


def screen(written: str) -> list[str]:
    """Return the lines that stand on a terminal after this was written, with their colours."""
    lines = [""]
    row = 0
    for part in re.split(r"(\r\n|\r|\n|\x1b\[[0-9;?]*[A-Za-z])", written):
        found = CONTROL.fullmatch(part)
        if part in ("\n", "\r\n"):
            row += 1
        elif part == "\r":
            continue  # what follows clears the line
        elif found and found[2] == "A":
            row -= int(found[1] or 1)
        elif found and found[2] in "KJ":
            lines[row] = ""
        elif found and found[2] != "m":
            continue
        else:
            lines[row] += part
        while len(lines) <= row:
            lines.append("")
    return lines


def terminal_picture(written: bytes, path: Path, prompt: str) -> None:
    """Write what a terminal shows as SVG."""
    shown = [prompt, *screen(written.decode(errors="replace"))]
    while shown and not shown[-1].strip():
        shown.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    for line in shown:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    made = console.export_svg(title="pointsweep", unique_id="terminal")
    path.write_text(FONT_FACE.sub("", made), encoding="utf-8")


def under_way(text: str) -> bool:
    """Tell whether a third of the trials have ended, by the last count on the terminal."""
    counts = re.findall(r"\[(\d+)/(\d+)\]", text)
    return bool(counts) and 3 * int(counts[-1][0]) >= int(counts[-1][1])


def trained(store: Path, words: list[str], folder: Path, serve_port: int) -> None:
    """Train the sweep in a terminal; take the pictures of the terminal and of serve on the way."""
    line = [*COMMAND, "run", "sweeps/quickstart.yaml", *words, "--store", str(store)]
    terminal = Terminal(line, COLUMNS, LINES)
    terminal.read_until(lambda: under_way(terminal.text))
    begun = time.monotonic()
    terminal.read_until(lambda: time.monotonic() > begun + 1)
    prompt = " ".join(["$ pointsweep run sweeps/quickstart.yaml", *words])
    terminal_picture(terminal.written, folder / "terminal.svg", prompt)
    photograph_serve(f"http://127.0.0.1:{serve_port}", folder)
    code = terminal.wait()
    if code != 0:
        raise SystemExit(f"the sweep ended with {code}:\n{terminal.text[-3000:]}")


@contextlib.asynccontextmanager
async def sized(
    width: int, height: int, colours: str = "light"
) -> AsyncIterator[browser.Page]:
    """Open a tab whose page, not whose window, has this size, on a system with light or dark
    colours.
    """
    async with browser.page(width, height) as tab:
        size = {
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": False,
        }
        await tab.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": colours}
        await tab.call("Emulation.setEmulatedMedia", features=[scheme])
        yield tab


async def photograph_index(
    server: str, path: Path, size: tuple[int, int], colours: str
) -> None:
    """Take the picture of the page with all sweeps."""
    async with sized(*size, colours) as tab:
        await tab.open(f"{server}/", "document.querySelector('[data-sweep] a')")
        await asyncio.sleep(1)
        await tab.picture(path)


async def photograph_sweep(
    server: str, path: Path, size: tuple[int, int], colours: str
) -> None:
    """Take the picture of the page of the sweep that runs."""
    frame = "document.querySelector('iframe:not(.next)')"
    async with sized(*size, colours) as tab:
        await tab.open(f"{server}/", "document.querySelector('[data-sweep] a')")
        await tab.evaluate("document.querySelector('[data-sweep] a').click()")
        await tab.wait(f"{frame}.contentDocument.querySelector('#table')")
        await asyncio.sleep(2)
        await tab.picture(path)


def photograph_serve(server: str, folder: Path) -> None:
    """Take the pictures of all pages of `pointsweep serve`."""
    for suffix, colours, is_phone in LOOKS:
        index_size = (PHONE[0], 420) if is_phone else (1100, 420)
        size = PHONE if is_phone else (1100, 1000)
        asyncio.run(
            photograph_index(server, folder / f"index{suffix}.png", index_size, colours)
        )
        asyncio.run(
            photograph_sweep(server, folder / f"serve{suffix}.png", size, colours)
        )


async def photograph_report(
    file: Path, path: Path, size: tuple[int, int], colours: str
) -> None:
    """Take the picture of the upper part of the report: its table and, as far down as it reaches,
    the first chart; charts are drawn when they come into view.
    """
    async with sized(*size, colours) as tab:
        await tab.open(file.as_uri(), "document.querySelector('.plot')")
        await asyncio.sleep(3)
        await tab.picture(path)


async def photograph_mlflow(address: str, path: Path) -> None:
    """Take the picture of the runs page that the launch's link opens."""
    async with sized(1500, 760) as tab:
        await tab.open(address, "document.body.innerText.includes('matching runs')")
        await tab.evaluate(CLOSED)
        await tab.open("about:blank", "location.href === 'about:blank'")
        await tab.open(address, "document.body.innerText.includes('matching runs')")
        await asyncio.sleep(5)
        await tab.picture(path)


def latex_picture(store: Path, name: str, path: Path) -> None:
    """Write the sweep's table as LaTeX sets it, without the page around it."""
    if shutil.which("pdflatex") is None or shutil.which("pdftoppm") is None:
        sys.stdout.write(f"{path.name}: needs pdflatex and pdftoppm, left as it is\n")
        return
    line = [*COMMAND, "tables", name, "--format", "latex", "--store", str(store)]
    table = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    packages = f"\\usepackage{{{','.join(PACKAGES)}}}\\pagestyle{{empty}}"
    preamble = f"\\documentclass{{article}}{packages}"
    document = f"{preamble}\\begin{{document}}\n{table}\\end{{document}}\n"
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "table.tex").write_text(document, encoding="utf-8")
        compile_line = [
            "pdflatex",
            "-interaction=batchmode",
            "-halt-on-error",
            "table.tex",
        ]
        subprocess.run(compile_line, cwd=place, check=True, stdout=subprocess.DEVNULL)
        picture_line = [
            "pdftoppm",
            "-png",
            "-singlefile",
            "-r",
            "130",
            "table.pdf",
            "table",
        ]
        subprocess.run(picture_line, cwd=place, check=True)
        page = Image.open(Path(place) / "table.png").convert("RGB")
        white = Image.new("RGB", page.size, "white")
        left, top, right, bottom = ImageChops.difference(page, white).getbbox()
        margin = 24
        box = (left - margin, top - margin, right + margin, bottom + margin)
        page.crop(box).save(path, optimize=True)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=HERE, help="where to write them (docs)"
    )
    parser.add_argument("--smoke", action="store_true", help="the sweep's short form")
    options = parser.parse_args()
    words = ["profile=smoke", "train.epochs=30"] if options.smoke else []
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        store, port = Path(place) / "pointsweep", free_port()
        serve = [*COMMAND, "serve", "--store", str(store), "--port", str(port)]
        server = subprocess.Popen(serve, stdout=subprocess.DEVNULL)
        try:
            trained(store, words, options.folder, port)
        finally:
            server.terminate()
            server.wait()
        [report] = (store / "sweeps").glob("*/report.html")
        for suffix, colours, is_phone in LOOKS:
            size = PHONE if is_phone else (1000, 1890)
            picture = options.folder / f"report{suffix}.png"
            asyncio.run(photograph_report(report, picture, size, colours))
        latex_picture(store, report.parent.name, options.folder / "latex.png")
        uri = f"sqlite:///{store / 'mlflow.db'}"
        [experiment] = [
            found.experiment_id
            for found in MlflowClient(uri).search_experiments()
            if found.name == report.parent.name
        ]
        with mlflow_server(uri, Path(place), workers=1) as address:
            page = f"{address}{runs_page(experiment)}"
            asyncio.run(photograph_mlflow(page, options.folder / "runs.png"))


if __name__ == "__main__":
    main()
