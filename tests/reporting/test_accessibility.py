"""The report as axe-core judges it: no fault by WCAG 2.2 A or AA, light and dark, on a desk and on a phone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.reporting.test_report_browser import made_page, shown_whole
from tests.support import browser
from tests.support.axe import faults

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")


async def judged(path: Path, looks: list[tuple[str, int]]) -> dict[tuple[str, int], list[str]]:
    """The faults of the page by theme and width, with its charts drawn and everything open that opens."""
    found = {}
    async with browser.page(1280, 900) as tab:
        for theme, width in looks:
            await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
            await tab.open(
                f"{path.as_uri()}?theme={theme}", "document.readyState === 'complete' && !document.getElementById('tools').hidden"
            )
            await tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            await shown_whole(tab)
            found[theme, width] = await faults(tab)
    return found


@pytest.mark.parametrize(
    "looks", [[("light", 1280), ("dark", 390)], pytest.param([("dark", 1280), ("light", 390)], marks=pytest.mark.slow)]
)
def test_axe_finds_no_fault_in_the_report(tmp_path, looks):
    path, _ = made_page(tmp_path)
    assert asyncio.run(judged(path, looks)) == {look: [] for look in looks}


def test_axe_finds_what_is_wrong(tmp_path):
    """The check can fail: a picture without a text, a button without a name, letters that cannot be read."""
    path = tmp_path / "wrong.html"
    path.write_text(
        "<!doctype html><html lang=en><title>wrong</title><main><h1>x</h1><img src=a.png><button></button>"
        "<p style='color:#ccc;background:#fff'>pale</p></main></html>"
    )

    async def look() -> list[str]:
        async with browser.page(1280, 900) as tab:
            await tab.open(path.as_uri(), "document.readyState === 'complete'")
            return await faults(tab)

    rules = {fault.partition(":")[0] for fault in asyncio.run(look())}
    assert rules == {"image-alt", "button-name", "color-contrast"}
