"""The page in a real browser, its network off: no complaint, everything opens, nothing wider than a phone, the counts right."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from pointsweep.reporting.build import build
from pointsweep.reporting.compare import p_value
from pointsweep.reporting.html.evidence import Evidence, Truth
from pointsweep.reporting.html.page import page
from pointsweep.statistics.paired_objects import mcnemar
from pointsweep.statistics.seeds import holm
from tests.reporting.test_tables import failures, layout, records

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
OFFLINE = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=4000",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
)  # fmt: skip
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
# Looks at the page in a frame of a phone's width, as a reader would, and writes what it saw into its own body.
LOOK = """
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, at = (id) => page.getElementById(id);
  const pick = (id, name) => {
    at(id).value = [...at(id).options].findIndex((option) => option.text === name);
    at(id).dispatchEvent(new Event("change"));
  };
  for (const details of page.querySelectorAll("details")) details.open = true;
  const seen = { title: page.title, width: frame.contentWindow.innerWidth, content: page.documentElement.scrollWidth };
  seen.open = [...page.querySelectorAll("details > :last-child")].every((element) => element.checkVisibility());
  pick("first", "full / a");
  pick("second", "prompt / a");
  const count = (name) => Number(page.querySelector(`[data-count=${name}]`).textContent);
  Object.assign(seen, { gain: count("gain"), loss: count("loss") });
  const number = (text) => text === "null" ? null : Number(text);
  seen.tests = [...page.querySelectorAll(".tests li")].map((line) => [line.textContent, number(line.dataset.p), number(line.dataset.adjusted)]);
  seen.classes = Object.fromEntries([...page.querySelectorAll(".flip")].map((line) =>
    [line.children[0].textContent, [line.children[4], line.children[1]].map((element) => Number(element.textContent))]));
  seen.settings = [...page.querySelectorAll("#settings tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
  pick("confused", "full / a");
  seen.confusions = [...page.querySelectorAll("#confusion rect title")].map((title) => title.textContent);
  seen.clouds = page.querySelectorAll("canvas").length;
  const [canvas] = page.querySelectorAll("canvas"), before = canvas.toDataURL();
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
  seen.turned = before !== canvas.toDataURL();
  const light = getComputedStyle(page.body).backgroundColor;
  at("theme").click();
  seen.dark = light !== getComputedStyle(page.body).backgroundColor;
  const result = document.createElement("output");
  result.textContent = JSON.stringify(seen);
  document.body.replaceChildren(result);
});
"""
LABELS = np.arange(30) % 5
SAID = {key: np.random.default_rng(i).integers(0, 5, 30).astype(np.uint8) for i, key in enumerate(sorted(records()))}
SAID["full/a/0"] = np.where(np.arange(30) < 24, LABELS, SAID["full/a/0"]).astype(np.uint8)  # a model that a test tells apart
SAID["full/a/1"] = np.where(np.arange(30) < 2, LABELS, SAID["prompt/a/1"]).astype(np.uint8)  # and one that differs too little for any


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    shape = layout(title=f"A title {EVIL}", notes=(EVIL, "a" * 400))
    configs = {"full": {"method": {"name": "full"}, "compat": EVIL}, "prompt": {"method": {"name": "prompt", "num_prompts": 4}}}
    found = {key: replace(r, config=configs.get(key.split("/")[0], {})) for key, r in records().items()}
    clouds = np.random.default_rng(0).normal(size=(30, 64, 3))
    truth = Truth("d" * 64, LABELS.astype(np.uint8), ("cup", "car", EVIL, "bed", "tent"), clouds)
    curves = {f"full/a/{seed}": [0.2, 0.5, 0.8] for seed in range(3)}
    source = page(build(shape, found, failures()), found, curves, Evidence(SAID, dict.fromkeys(SAID, truth)))
    folder = tmp_path_factory.mktemp("browser")
    frame = f"<iframe style='width:400px;height:800px;border:0' srcdoc=\"{html.escape(source)}\"></iframe>"
    (folder / "look.html").write_text(f"<!doctype html><meta charset='utf-8'><body>{frame}<script>{LOOK}</script></body>")
    command = [CHROMIUM, *OFFLINE, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{folder / 'look.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<output>(.*?)</output>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return {**json.loads(html.unescape(found.group(1))), "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


def counted() -> tuple[np.ndarray, np.ndarray]:
    """By object, over the two seeds that both arms have: only full is right, only prompt is right."""
    right = {arm: np.stack([SAID[f"{arm}/a/{seed}"] == LABELS for seed in (0, 1)]) for arm in ("full", "prompt")}
    return (right["full"] & ~right["prompt"]).sum(axis=0), (~right["full"] & right["prompt"]).sum(axis=0)


def test_nothing_is_complained_of_and_no_label_is_run(seen):
    assert seen["console"] == []
    assert seen["title"] == f"A title {EVIL}"


def test_it_is_no_wider_than_a_phone_with_everything_open(seen):
    assert seen["width"] == 400
    assert seen["content"] <= 400
    assert seen["open"]


def test_gains_and_losses_are_those_of_the_predictions(seen):
    gain, loss = counted()
    assert (seen["gain"], seen["loss"]) == (gain.sum(), loss.sum())
    names = ("cup", "car", EVIL, "bed", "tent")
    wanted = {name: [int(gain[i == LABELS].sum()), int(loss[i == LABELS].sum())] for i, name in enumerate(names)}
    assert seen["classes"] == {name: counts for name, counts in wanted.items() if any(counts)}


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
    wanted = {f"{names[i]} taken for {names[j]}: {int(table[i, j])} of 18" for i in range(5) for j in range(5) if table[i, j]}
    assert set(seen["confusions"]) == wanted


def test_clouds_turn_and_the_page_turns_dark(seen):
    gain, loss = counted()
    assert seen["clouds"] == min(6, (gain > 0).sum()) + min(6, (loss > 0).sum())
    assert seen["turned"]
    assert seen["dark"]
