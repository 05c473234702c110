"""The page in a real browser, its network off: no complaint, every chart answers hover, zoom and export, nothing wider than a phone,
the counts right.
"""

from __future__ import annotations

import asyncio
import html
import json
import struct
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pointsweep.reporting.build import build
from pointsweep.reporting.compare import p_value
from pointsweep.reporting.formats.registry import render
from pointsweep.reporting.html.evidence import Evidence, Truth
from pointsweep.reporting.html.page import page
from pointsweep.reporting.html.search import read_searches
from pointsweep.statistics.paired_objects import mcnemar
from pointsweep.statistics.seeds import holm
from pointsweep.storage.base import FileStore
from tests.reporting.test_report_search import PARAMETERS, TRIALS, suggestion
from tests.reporting.test_tables import failures, layout, records
from tests.support import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
CJK = "提示调优 \"deep\" & 'shallow'"
DRAWN = "[...document.querySelectorAll('.plot')].filter((plot) => plot.offsetParent)"
# What the page shows once two arms and one arm's confusions are chosen.
LOOK = """
(async () => {
  const at = (id) => document.getElementById(id), rest = () => new Promise((done) => setTimeout(done, 300));
  const pick = (id, name) => {
    at(id).value = [...at(id).options].findIndex((option) => option.text === name);
    at(id).dispatchEvent(new Event("change"));
  };
  const seen = { title: document.title };
  pick("first", "full / a");
  pick("second", "prompt / a");
  pick("confused", "full / a");
  await rest();
  const count = (name) => Number(document.querySelector(`[data-count=${name}]`).textContent);
  Object.assign(seen, { gain: count("gain"), loss: count("loss") });
  const number = (text) => text === "null" ? null : Number(text);
  seen.tests = [...document.querySelectorAll(".tests li")].map((line) => [line.textContent, number(line.dataset.p), number(line.dataset.adjusted)]);
  const bars = document.querySelector(".plot[aria-label='Gained and lost by class']");
  seen.classes = Object.fromEntries(bars.data[0].text.map((name, i) => [name, [bars.data[1].x[i], -bars.data[0].x[i]]]));
  seen.settings = [...document.querySelectorAll("#settings tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
  seen.confusions = document.querySelector("#confusion .plot").data[0].customdata.flat().filter((text) => !text.includes(": 0 of"));
  seen.objects = document.querySelectorAll("button.object").length;
  const cloud = document.querySelector(".cloud .plot");
  seen.points = cloud.data[0].x.length;
  seen.cloud = cloud.getAttribute("aria-label");
  document.querySelectorAll("button.object")[1].click();
  await rest();
  seen.next = cloud.getAttribute("aria-label");
  return seen;
})()
"""


LABELS = np.arange(30) % 5
SAID = {key: np.random.default_rng(i).integers(0, 5, 30).astype(np.uint8) for i, key in enumerate(sorted(records()))}
SAID["full/a/0"] = np.where(np.arange(30) < 24, LABELS, SAID["full/a/0"]).astype(np.uint8)  # a model that a test tells apart
SAID["full/a/1"] = np.where(np.arange(30) < 2, LABELS, SAID["prompt/a/1"]).astype(np.uint8)  # and one that differs too little for any


def made_page(folder: Path) -> tuple[Path, str]:
    """A page with every section, on the disk, and its table as CSV."""
    shape = layout(title=f"A title {EVIL}", notes=(EVIL, "a" * 400), rows=(("full",), (CJK,), *layout().rows[2:]))
    configs = {"full": {"method": {"name": "full"}, "compat": EVIL}, "prompt": {"method": {"name": "prompt", "num_prompts": 4}}}
    found = {key: replace(r, config=configs.get(key.split("/")[0], {})) for key, r in records().items()}
    clouds = np.random.default_rng(0).normal(size=(30, 64, 3))
    truth = Truth("d" * 64, LABELS.astype(np.uint8), ("cup", "car", EVIL, "bed", "tent"), clouds)
    curves = {key: [0.2, 0.5, 0.8 + i / 90] for i, key in enumerate(sorted(found))}
    histories = {key: {"test/accuracy": values, "train/loss": [2.0, 1.0, 0.5]} for key, values in curves.items()}
    store = FileStore(folder / "store")
    suggestions = [
        {**suggestion(i, *trial), "curve": [[1, 0.1], [2, trial[3]]], "times": [1.7e9 + i, 1.7e9 + 3 * i + 5]}
        for i, trial in enumerate(TRIALS)
    ]
    arm = {"name": EVIL, "study": "s", "importances": {"val/accuracy": {"train.lr": 0.7, "method": 0.3}}, "suggestions": suggestions}
    objectives = {"val/accuracy": "maximize", "parameters": "minimize"}
    searched = {"objectives": objectives, "parameters": PARAMETERS, "arms": [arm]}
    store.write("sweeps/s/search.json", json.dumps(searched).encode())
    evidence = Evidence(SAID, dict.fromkeys(SAID, truth), read_searches(store, "s"), histories)
    table = build(shape, found, failures())
    path = folder / "report.html"
    path.write_text(page(table, found, curves, evidence), encoding="utf-8")
    return path, render(table, "csv")


async def shown_whole(tab: browser.Page) -> None:
    """Scroll to the end, so that every chart is drawn."""
    await tab.evaluate("""(async () => {
        for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {
            scrollTo(0, y);
            await new Promise((done) => setTimeout(done, 60));
        }
    })()""")
    await tab.wait(f"{DRAWN}.every((plot) => plot.querySelector('.main-svg'))")


async def mouse(tab: browser.Page, kind: str, x: float, y: float, **more: object) -> None:
    await tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


TITLE = "(plot) => plot.getAttribute('aria-label') || document.getElementById(plot.getAttribute('aria-labelledby')).textContent"
# Where the marks of a chart lie in the window: a few of each trace.
MARKS = """((plot) => {
  const found = [], box = plot.getBoundingClientRect();
  for (const [first, ...others] of plot.calcdata) {
    const trace = first.trace, layout = plot._fullLayout;
    if (trace.hoverinfo === "skip" || !trace.xaxis) continue;
    const x = layout[trace.xaxis.replace("x", "xaxis")], y = layout[trace.yaxis.replace("y", "yaxis")], all = [first, ...others];
    for (const mark of [all[0], all[Math.floor(all.length / 2)]]) {
      if (mark.ct) found.push([x._offset + mark.ct[0] - 3, y._offset + mark.ct[1]], [x._offset + mark.ct[0] + 3, y._offset + mark.ct[1]]);
      else if (trace.z) found.push([x._offset + x._length / 2, y._offset + y._length / 2], [x._offset + x.c2p(0), y._offset + y.c2p(0)]);
      else found.push([x._offset + x.c2p(mark.x), y._offset + y.c2p(mark.y)]);
    }
  }
  return found.slice(0, 12).filter((spot) => spot.every(Number.isFinite)).map(([x, y]) => [x + box.x, y + box.y]);
})"""


async def hovered(tab: browser.Page, box: dict) -> bool:
    """Move the mouse over the marks of a chart until it says what is below it."""
    plot = f"{DRAWN}[{box['index']}]"
    for x, y in await tab.evaluate(f"{MARKS}({plot})"):
        await mouse(tab, "mouseMoved", x - 2, y)
        await mouse(tab, "mouseMoved", x, y)
        await asyncio.sleep(0.12)  # Plotly looks every 50 ms
        if await tab.evaluate(f"{plot}.querySelector('.hoverlayer').childElementCount > 0"):
            return True
    return False


async def dragged(tab: browser.Page, box: dict) -> None:
    x, y, button = box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"], {"button": "left", "buttons": 1, "clickCount": 1}
    await mouse(tab, "mousePressed", x, y, **button)
    for share in (0.2, 0.6, 1.0):
        await mouse(tab, "mouseMoved", x + 0.3 * share * box["width"], y + 0.3 * share * box["height"], button="left", buttons=1)
    await mouse(tab, "mouseReleased", x + 0.3 * box["width"], y + 0.3 * box["height"], **button)
    await asyncio.sleep(0.15)


# What a chart shows: the ranges of its axes, and where it is looked at from.
LOOKS = """(plot) => JSON.stringify([
  Object.keys(plot.layout).filter((name) => /^[xy]axis[0-9]*$/.test(name)).map((name) => plot.layout[name].range),
  plot._fullLayout.scene?._scene.getCamera(),
])"""


async def downloaded(folder: Path, before: set[Path]) -> Path:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [path for path in set(folder.iterdir()) - before if path.suffix != ".crdownload"]
        if found:
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError("nothing was saved")


async def tried(tab: browser.Page, index: int, folder: Path) -> dict:
    """What one chart does: hover, zoom by the mouse, back and along by keys, both exports."""
    box = await tab.evaluate(f"""(() => {{
        const plot = {DRAWN}[{index}];
        plot.scrollIntoView({{ block: "center" }});
        const area = (plot.querySelector(".nsewdrag") || plot).getBoundingClientRect();
        const title = ({TITLE})(plot);
        const {{ x, y, width, height }} = area;
        return {{ index: {index}, title, x, y, width, height, types: [...new Set(plot.data.map((trace) => trace.type))] }};
    }})()""")
    solid = "scatter3d" in box["types"]
    look = f"({LOOKS})({DRAWN}[{index}])"
    found = {"title": box["title"], "hover": solid or await hovered(tab, box)}
    first = await tab.evaluate(look)
    await dragged(tab, box)
    if solid:
        await asyncio.sleep(0.5)
    zoomed = await tab.evaluate(look)
    found["zoom"] = zoomed != first
    keyboard = "(key) => {DRAWN}[{index}].dispatchEvent(new KeyboardEvent('keydown', {{ key, bubbles: true, cancelable: true }}))"
    keyboard = keyboard.replace("{DRAWN}", DRAWN).replace("{index}", str(index)).replace("{{", "{").replace("}}", "}")
    await tab.evaluate(f"({keyboard})('-')")
    await asyncio.sleep(0.1)
    found["keys"] = await tab.evaluate(look) != zoomed
    for kind in ("SVG", "PNG"):
        before = set(folder.iterdir())
        await tab.evaluate(f"{DRAWN}[{index}].querySelector('[data-title=\"Save as {kind}\"]').click()")
        saved = await downloaded(folder, before)
        found[kind] = saved.read_bytes()
    return found


def complained(event: dict) -> bool:
    """Whether an event is an exception, or an error on the console: the policy's among them."""
    match event.get("method"):
        case "Runtime.exceptionThrown":
            return True
        case "Log.entryAdded":
            return event["params"]["entry"]["level"] == "error"
        case "Runtime.consoleAPICalled":
            return event["params"]["type"] in ("error", "assert")
    return False


async def looked(path: Path, folder: Path) -> dict:
    async with browser.page(1280, 900) as tab:
        await tab.call("Page.enable")
        await tab.call("Runtime.enable")
        await tab.call("Log.enable")
        await tab.call("Network.enable")
        await tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        await tab.open(path.as_uri(), "document.readyState === 'complete' && !document.getElementById('tools').hidden")
        await shown_whole(tab)
        seen = await tab.evaluate(LOOK)
        await tab.evaluate("document.querySelector('#table details').open = true")
        await tab.wait(f"{DRAWN}[0].querySelector('.main-svg')")
        number = await tab.evaluate(f"{DRAWN}.length")
        seen["charts"], kinds = [], set()
        for index in range(number):
            # The charts of a second objective are drawn as those of the first.
            kind = (await tab.evaluate(f"({TITLE})({DRAWN}[{index}])")).partition(",")[0]
            if kind not in kinds:
                seen["charts"].append(await tried(tab, index, folder))
            kinds.add(kind)
        seen |= await table_tried(tab, folder)
        await tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        seen["open"] = await tab.evaluate(
            "[...document.querySelectorAll('td details > :last-child')].every((each) => each.checkVisibility())"
        )
        before = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        axis = "document.querySelector('#curves .plot')._fullLayout.font.color"
        colors = [await tab.evaluate(axis)]
        await tab.evaluate("document.getElementById('theme').click()")
        colors.append(await tab.evaluate(axis))
        seen["dark"] = before != await tab.evaluate("getComputedStyle(document.body).backgroundColor") and colors[0] != colors[1]
        await tab.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        await shown_whole(tab)
        seen["width"] = await tab.evaluate("document.documentElement.scrollWidth")
        seen["console"] = [event for event in tab.events if complained(event)]
        asked = [event["params"]["request"]["url"] for event in tab.events if event.get("method") == "Network.requestWillBeSent"]
        seen["asked"] = [url for url in asked if not url.startswith(("data:", "blob:"))]
        return seen


async def table_tried(tab: browser.Page, folder: Path) -> dict:
    """The order of the rows as a heading is clicked twice, the rows that a filter leaves, and the saved table."""
    names = "[...document.querySelectorAll('#table tbody tr')].filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"
    click = "document.querySelector('#table .sort[data-column=\"0\"]').click()"
    sort = "document.querySelector('#table .sort[data-column=\"0\"]').closest('th').getAttribute('aria-sort')"
    orders = []
    for _ in range(2):
        await tab.evaluate(click)
        orders.append((await tab.evaluate(sort), await tab.evaluate(names)))
    await tab.evaluate(
        "(() => { const box = document.getElementById('filter'); box.value = '提示'; box.dispatchEvent(new Event('input')); })()"
    )
    left = await tab.evaluate(names), await tab.evaluate("document.getElementById('shown').textContent")
    await tab.evaluate(
        "(() => { const box = document.getElementById('filter'); box.value = ''; box.dispatchEvent(new Event('input')); })()"
    )
    before = set(folder.iterdir())
    await tab.evaluate("document.querySelector('.save').click()")
    return {"orders": orders, "left": left, "csv": (await downloaded(folder, before)).read_bytes().decode()}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("browser")
    path, csv = made_page(folder)
    saved = folder / "saved"
    saved.mkdir()
    return {**asyncio.run(looked(path, saved)), "wanted_csv": csv, "path": path}


def counted() -> tuple[np.ndarray, np.ndarray]:
    """By object, over the two seeds that both arms have: only full is right, only prompt is right."""
    right = {arm: np.stack([SAID[f"{arm}/a/{seed}"] == LABELS for seed in (0, 1)]) for arm in ("full", "prompt")}
    return (right["full"] & ~right["prompt"]).sum(axis=0), (~right["full"] & right["prompt"]).sum(axis=0)


def test_nothing_is_complained_of_no_label_is_run_and_nothing_is_fetched(seen):
    assert seen["console"] == []
    assert seen["title"] == f"A title {EVIL}"
    assert seen["asked"] == [seen["path"].as_uri()]


def test_every_chart_answers_hover_zoom_and_keys(seen):
    titles = [chart["title"] for chart in seen["charts"]]
    for word in (
        "by epoch, each seed",
        "parameters",
        "test/accuracy by epoch",
        "Pareto front",
        "history",
        "Importance",
        "Parallel",
        "Slices",
        "Contours",
        "Timeline",
        "by class",
        "cloud",
        "Confusion",
        "Time of a trial",
    ):
        assert [title for title in titles if word in title], word
    assert [chart["title"] for chart in seen["charts"] if not chart["hover"]] == []
    assert [chart["title"] for chart in seen["charts"] if not chart["zoom"]] == []
    assert [chart["title"] for chart in seen["charts"] if not chart["keys"]] == []


def test_every_chart_is_saved_as_svg_and_png_with_its_title(seen):
    for chart in seen["charts"]:
        drawn = ElementTree.fromstring(chart["SVG"])
        text = " ".join("".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text"))
        assert chart["title"] in text
        assert chart["PNG"].startswith(b"\x89PNG")
        width, height = struct.unpack(">II", chart["PNG"][16:24])
        assert width == 2400 and height > 300, chart["title"]


def test_the_table_sorts_filters_and_is_saved(seen):
    means = {"full": 82.0, CJK: 72.33, "prompt": 72.0}
    descending = sorted(means, key=lambda name: -means[name])
    (first, down), (second, up) = seen["orders"]
    assert (first, second) == ("descending", "ascending")
    assert [name for name in down if name in means] == descending
    assert [name for name in up if name in means] == descending[::-1]
    assert seen["left"] == [[CJK], "1 of 4 rows"] or seen["left"] == ([CJK], "1 of 4 rows")
    assert seen["csv"] == seen["wanted_csv"]


def test_it_is_no_wider_than_a_phone_with_everything_open(seen):
    assert seen["width"] == 390
    assert seen["open"]


def test_gains_and_losses_are_those_of_the_predictions(seen):
    gain, loss = counted()
    assert (seen["gain"], seen["loss"]) == (gain.sum(), loss.sum())
    names = ("cup", "car", EVIL, "bed", "tent")
    wanted = {name: [int(gain[i == LABELS].sum()), int(loss[i == LABELS].sum())] for i, name in enumerate(names)}
    assert seen["classes"] == {html.escape(name, quote=False): counts for name, counts in wanted.items() if any(counts)}


def test_each_seeds_models_are_tested_as_python_tests_them(seen):
    right = {arm: [SAID[f"{arm}/a/{seed}"] == LABELS for seed in (0, 1)] for arm in ("full", "prompt")}
    pairs = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(right["full"], right["prompt"], strict=True)]
    values = [mcnemar(*pair) for pair in pairs]
    assert [test[1] for test in seen["tests"]] == pytest.approx(values, abs=1e-12)
    assert [test[2] for test in seen["tests"]] == pytest.approx(holm(values), abs=1e-12)
    assert values[0] < 0.01
    assert values[1] is None
    assert seen["tests"][1][0] == f"seed 1: {pairs[1][0]} gained, {pairs[1][1]} lost; so few carry no p-value"
    assert seen["tests"][0][0] == (
        f"seed 0: {pairs[0][0]} gained, {pairs[0][1]} lost; {p_value(values[0])}, by Holm over the seeds {p_value(holm(values)[0])}"
    )


def test_settings_that_differ_are_shown_and_no_others(seen):
    wanted = [["compat", EVIL, "—"], ["method.name", "full", "prompt"], ["method.num_prompts", "—", "4"]]
    assert sorted(seen["settings"]) == wanted


def test_confusions_count_every_prediction_of_every_seed(seen):
    names = ("cup", "car", EVIL, "bed", "tent")
    table = sum(np.histogram2d(LABELS, SAID[f"full/a/{seed}"], bins=(range(6), range(6)))[0] for seed in range(3))
    names = [html.escape(name, quote=False) for name in names]
    wanted = {f"{names[i]} taken for {names[j]}: {int(table[i, j])} of 18" for i in range(5) for j in range(5) if table[i, j]}
    assert set(seen["confusions"]) == wanted


def test_objects_that_flip_are_shown_in_3d_and_the_page_turns_dark(seen):
    gain, loss = counted()
    assert seen["objects"] == min(6, (gain > 0).sum()) + min(6, (loss > 0).sum())
    assert seen["points"] == 64
    assert "point cloud" in seen["cloud"]
    assert seen["next"] != seen["cloud"]
    assert seen["dark"]
