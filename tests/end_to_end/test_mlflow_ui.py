"""MLflow's own pages of a finished sweep in a real browser: runs grouped by row, curves, only the parameters that differ.

`python -m tests.end_to_end.test_mlflow_ui DATABASE EXPERIMENT ROW PICTURE` takes the picture of docs/ from a sweep's database.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from pointsweep.cli.run import main
from tests.support import browser
from tests.support.postgres import mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")]

SWEEP = """
name: shown
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 32, test_limit: 16}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 3, batch_size: 16, warmup_epochs: 0, lr: 2.0e-3}
rows: {method: [lora, head_only]}
seeds: 2
"""
TRIALS = quote("tags.`pointsweep.kind` = 'trial' and tags.`pointsweep.done` = '1'")
CLICK = """(() => {
  const found = [...document.querySelectorAll(%s)].find((element) => element.innerText.trim() === %s);
  for (const kind of ["pointerdown", "mousedown", "pointerup", "mouseup", "click"])
    found.dispatchEvent(new PointerEvent(kind, { bubbles: true, button: 0 }));
})()"""


# Charts are drawn once they are in sight.
CURVES = r"""(() => {
  [...document.querySelectorAll("*")].filter((e) => /^test\s*\(\d+\)$/.test(e.innerText ?? "")).at(-1)?.scrollIntoView();
  return document.querySelector("svg .scatterlayer path");
})()"""


def shows(text: str) -> str:
    return f"document.body.innerText.includes({json.dumps(text)})"


def some(selector: str, text: str) -> str:
    return f"[...document.querySelectorAll({json.dumps(selector)})].some((e) => e.innerText.trim() === {json.dumps(text)})"


async def click(tab: browser.Page, selector: str, text: str) -> None:
    await tab.wait(some(selector, text))
    await tab.evaluate(CLICK % (json.dumps(selector), json.dumps(text)))


async def grouped(tab: browser.Page, server: str, experiment: str, group: str) -> None:
    """The charts of an experiment's finished trials, grouped by their row."""
    await tab.open(f"{server}/#/experiments/{experiment}/runs?compareRunsMode=CHART&searchFilter={TRIALS}", shows("matching runs"))
    await click(tab, "button", "Group by")
    await click(tab, "[role=menuitemcheckbox]", "row")
    await tab.wait(shows(f"Group: {group}"))
    await tab.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27)
    await tab.wait(CURVES)


# Not the seed: a tag of the same name stands in the table below.
PARAMETERS = """[...document.querySelectorAll("tr")].map((row) => [...row.cells].map((cell) => cell.innerText.trim()))
    .filter((cells) => /^(backbone|compat|dataset|head|method|positions|tokenizer|train)\\b/.test(cells[0] ?? ""))"""


# The switch stands beside its label.
DIFF_ONLY = """[...document.querySelectorAll("*")].filter((e) => e.innerText?.trim() === "Show diff only"
    && e.parentElement.querySelector("button, input")).at(0).parentElement.querySelector("button, input").click()"""


async def compared(tab: browser.Page, server: str, experiment: str, runs: list[str]) -> dict[str, list[str]]:
    """Parameters and their values as the page that compares runs shows them, those that differ."""
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    await tab.open(f"{server}/#/compare-runs?{query}", shows("Show diff only"))
    await tab.wait(f"{PARAMETERS}.length > 0")
    before = len(await tab.evaluate(PARAMETERS))
    await tab.evaluate(DIFF_ONLY)
    await tab.wait(f"{PARAMETERS}.length < {before}")
    return {name: values for name, *values in await tab.evaluate(PARAMETERS)}


def test_runs_are_grouped_by_row_with_curves_and_compared_by_what_differs(store, tmp_path, capsys):
    (tmp_path / "shown.yaml").write_text(SWEEP)
    assert main([str(tmp_path / "shown.yaml"), "--inline"]) == 0, capsys.readouterr()
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{store}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("shown").experiment_id
    found = client.search_runs([experiment], "tags.`pointsweep.kind` = 'trial' and tags.seed = '0'")
    values = [dict(run.data.params) for run in found]
    differing = {name for each in values for name in each if len({other.get(name) for other in values}) > 1}

    async def look(server: str) -> None:
        async with browser.page(1600, 1000) as tab:
            await grouped(tab, server, experiment, "lora")
            seen = await tab.evaluate("document.body.innerText")
            assert {"Group: lora", "Group: head_only", "lora / tiny 1d / seed 0"} & set(seen.splitlines()) >= {
                "Group: lora",
                "Group: head_only",
            }
            assert "test/accuracy" in seen
            shown = await compared(tab, server, experiment, [run.info.run_id for run in found])
            assert set(shown) == differing

    with mlflow_server(uri, tmp_path, workers=1) as server:
        asyncio.run(look(server))


def test_the_printed_link_opens_a_page_with_all_trials_and_their_metrics(store, tmp_path, capsys):
    (tmp_path / "shown.yaml").write_text(SWEEP)
    assert main([str(tmp_path / "shown.yaml"), "--inline"]) == 0
    [address] = re.findall(r"opens at http://127\.0\.0\.1:5000(/#/\S+)", capsys.readouterr().out)
    # A finished sweep prints it again, without having asked MLflow.
    assert main([str(tmp_path / "shown.yaml"), "--inline"]) == 0
    assert f"opens at http://127.0.0.1:5000{address}" in capsys.readouterr().out
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{store}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("shown").experiment_id
    runs = client.search_runs([experiment], "tags.`pointsweep.kind` = 'trial'")
    assert len(runs) == 4

    async def look(server: str) -> None:
        async with browser.page(1900, 1000) as tab:
            await tab.open(f"{server}{address}", shows("4 matching runs"))
            for run in runs:
                await tab.wait(shows(run.info.run_name))
            assert "No data available" not in await tab.evaluate("document.body.innerText")
            await tab.wait(shows("test/accuracy_at_last"))
            for run in runs:
                value = await tab.evaluate(CELL % json.dumps(run.data.metrics["test/accuracy_at_last"]))
                assert value, run.info.run_name

    with mlflow_server(uri, tmp_path, workers=1) as server:
        asyncio.run(look(server))


# A cell of the table of runs with this number, as MLflow rounds it.
CELL = """(() => [...document.querySelectorAll("[role=gridcell]")].some(
    (cell) => cell.innerText.trim() && Math.abs(Number(cell.innerText) - %s) < 1e-3))()"""


async def photograph(server: str, experiment: str, group: str, path: Path) -> None:
    """The picture of docs/tracking-server.md."""
    async with browser.page(1400, 900) as tab:
        await grouped(tab, server, experiment, group)
        # Without what covers the charts; the grouping outlives the reload.
        await tab.evaluate("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
        await tab.call("Page.reload")
        await asyncio.sleep(10)
        await tab.wait(CURVES)
        await tab.evaluate(
            "document.head.append(Object.assign(document.createElement('style'), {textContent: '.modebar{display:none}'}))"
        )
        await asyncio.sleep(5)  # charts are drawn one after the other
        await tab.picture(path)


if __name__ == "__main__":
    database, number, first, picture = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(database, place)
        copy = f"sqlite:///{Path(place) / Path(database).name}"
        with mlflow_server(copy, Path(place), workers=1) as address:
            asyncio.run(photograph(address, number, first, Path(picture)))
