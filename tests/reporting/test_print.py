"""The report on paper: the table whole, no chart and no column beyond the sheet, nothing to press."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
from dataclasses import replace
from pathlib import Path

import pypdf
import pytest

from pointsweep.reporting.build import build
from pointsweep.reporting.html.page import page
from pointsweep.results.records import CellLayout
from tests.reporting.test_report_browser import EVIL, made_page
from tests.reporting.test_tables import failures, layout, records
from tests.support import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
A4 = {"paperWidth": 210 / 25.4, "paperHeight": 297 / 25.4}
SPACE = str.maketrans("", "", " \n\u00a0")


async def printed(path: Path, query: str = "") -> bytes:
    async with browser.page(1280, 900) as tab:
        await tab.open(path.as_uri() + query, "document.readyState === 'complete'")
        answer = await tab.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True, **A4)
        # after it the page on the screen is as before
        assert await tab.evaluate("!document.documentElement.classList.contains('paper')")
        return base64.b64decode(answer["data"])


def read(data: bytes) -> tuple[str, list[tuple[str, float]]]:
    """The text without its spaces; and what stands outside a sheet, with its place from the left in points."""
    text, outside = "", []
    for sheet in pypdf.PdfReader(io.BytesIO(data)).pages:
        width = float(sheet.mediabox.width)

        def look(part: str, cm: list[float], tm: list[float], *_: object, width: float = width) -> None:
            x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
            if part.strip() and not 0 <= x <= width:
                outside.append((part, x))

        text += sheet.extract_text(visitor_text=look)
    return text.translate(SPACE), outside


def test_the_printed_report_has_its_table_and_charts_and_nothing_to_press(tmp_path):
    path, _ = made_page(tmp_path)
    data = asyncio.run(printed(path, "?theme=dark"))
    text, outside = read(data)
    assert outside == []
    for label in ("full", "prompt", "82.0±2.0", "Notes", EVIL):
        assert label.translate(SPACE) in text, label
    for title in ("test/accuracy by epoch, a", "Pareto front", "Time of a trial", "Confusion matrix", "Gained and lost by class"):
        assert title.translate(SPACE) in text, title
    for word in ("Filter rows", "Copy", "As text", "CSV"):
        assert word.translate(SPACE) not in text, word
    assert data.count(b"/Subtype /Image") + data.count(b"/Subtype/Image") > 0, "the cloud in 3D is a picture"


def test_a_table_of_many_columns_is_printed_whole(tmp_path):
    columns = tuple(f"column{number:02d}" for number in range(24))
    rows = (("full",), ("prompt",))
    cells = tuple(
        CellLayout(row, column, tuple((seed, f"{rows[row][0]}/a/{seed}") for seed in (0, 1)))
        for row, column in itertools.product(range(2), range(24))
    )
    shape = replace(layout(), rows=rows, columns=columns, cells=cells)
    path = tmp_path / "wide.html"
    path.write_text(page(build(shape, records(), failures()), records(), {}), encoding="utf-8")
    text, outside = read(asyncio.run(printed(path)))
    assert outside == []
    assert [column for column in columns if column not in text] == []
