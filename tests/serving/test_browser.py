"""The pages of serve in a real browser: no fault by axe-core, and plotly.js fetched once."""

from __future__ import annotations

import asyncio

import pytest

from pointsweep.storage.base import FileStore
from tests.serving.made import KEYS, begin, fail, finish, hold, plan
from tests.serving.test_listening import TOKEN, served
from tests.support import browser
from tests.support.axe import faults

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
FRAME = "document.querySelector('iframe:not(.next)')"
SHOWN = f"{FRAME}.contentDocument.querySelector('#table')"


@pytest.fixture
def store(tmp_path) -> FileStore:
    """A trial finished, one failed, one running, one open; and a sweep of which nothing is begun."""
    found = FileStore(tmp_path / "store")
    plan(found, per_hour=2.0)
    plan(found, "waiting")
    first, second, third, _ = KEYS.values()
    finish(found, first)
    begin(found, second, 3)
    hold(found, second)
    fail(found, third)
    return found


def test_axe_finds_no_fault_in_its_pages(store):
    async def judged(url: str, locked: str) -> dict[tuple[str, str, int], list[str]]:
        found = {}
        pages = {
            "index": (url, "document.querySelector('[data-sweep=made]')"),
            "sweep": (f"{url}sweeps/made", f"{SHOWN} && document.querySelector('.trials li')"),
            "waiting": (f"{url}sweeps/waiting", SHOWN),
            "unknown": (f"{url}sweeps/mate", "document.querySelector('main')"),
            "token": (locked, "document.querySelector('#token')"),
        }
        async with browser.page(1280, 900) as tab:
            for theme in ("light", "dark"):
                await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
                for width in (1280, 390):
                    await tab.call(
                        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
                    )
                    for name, (address, until) in pages.items():
                        await tab.open(address, f"document.readyState === 'complete' && {until}")
                        found[name, theme, width] = await faults(tab)
        return found

    with served(store.root) as (_, url), served(store.root, POINTSWEEP_SERVE_TOKEN=TOKEN) as (_, locked):
        found = asyncio.run(judged(url, locked))
    assert len(found) == 20
    assert {place: lines for place, lines in found.items() if lines} == {}


def test_plotly_is_fetched_once_however_often_the_report_changes(store):
    async def watched(url: str) -> list[str]:
        async with browser.page(1280, 900) as tab:
            await tab.call("Network.enable")
            await tab.open(f"{url}sweeps/made", SHOWN)
            cell = f"{FRAME}.contentDocument.querySelector('#table td.first').innerText"
            assert "n=1/2" in await tab.evaluate(cell)
            finish(store, KEYS["lora", 1])
            await tab.wait(f"!{cell}.includes('n=1/2') && {FRAME}.contentWindow.Plotly")
            ids = {}
            for event in tab.events:
                if event.get("method") == "Network.requestWillBeSent" and "/assets/plotly-" in event["params"]["request"]["url"]:
                    ids[event["params"]["requestId"]] = "network"
            for event in tab.events:
                if event.get("method") == "Network.requestServedFromCache" and event["params"]["requestId"] in ids:
                    ids[event["params"]["requestId"]] = "cache"
                if event.get("method") == "Network.responseReceived" and event["params"]["response"].get("fromDiskCache"):
                    ids[event["params"]["requestId"]] = "cache"
            return [ids[key] for key in ids]

    with served(store.root) as (_, url):
        found = asyncio.run(watched(url))
    assert found[0] == "network" and len(found) >= 2
    assert set(found[1:]) == {"cache"}
