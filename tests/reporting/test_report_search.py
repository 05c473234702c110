"""The report's section of a search: what stands in search.json is what is drawn."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from pointsweep.reporting.html.search import Axis, read_searches, searches
from pointsweep.storage.base import FileStore

PARAMETERS = [
    {"key": "method", "kind": "choice", "log": False, "labels": ["lora", "<prompt>"]},
    {"key": "train.lr", "kind": "float", "log": True, "labels": []},
    {"key": "method.rank", "kind": "int", "log": False, "labels": []},
]
TRIALS = [
    ("lora", 1e-4, 2, 0.10, 100),
    ("lora", 1e-3, 8, 0.50, 400),
    ("<prompt>", 1e-2, None, 0.30, 50),
    ("<prompt>", 1e-3, None, 0.20, 60),
]  # method, rate, rank, accuracy, parameters: the front is the second and the third


def suggestion(number, method, rate, rank, accuracy, parameters):
    drawn = {"method": method, "train.lr": rate} | ({"method.rank": rank} if rank else {})
    return {"number": number, "state": "complete", "drawn": drawn, "values": [accuracy, parameters], "known": False}


@pytest.fixture
def store(tmp_path):
    arm = {
        "name": "s",
        "study": "s",
        "importances": {"val/accuracy": {"train.lr": 0.7, "method": 0.3}},
        "suggestions": [
            *(suggestion(i, *trial) for i, trial in enumerate(TRIALS)),
            {"number": 4, "state": "stopped", "drawn": {}, "values": [], "known": False, "curve": [[1, 0.1], [2, 0.3]]},
        ],
    }
    objectives = {"val/accuracy": "maximize", "parameters": "minimize"}
    made = FileStore(tmp_path)
    made.write("sweeps/s/search.json", json.dumps({"objectives": objectives, "parameters": PARAMETERS, "arms": [arm]}).encode())
    return made


def drawings(html: str) -> dict[str, ElementTree.Element]:
    """Caption -> the drawing below it."""
    found = re.findall(r"<figure[^>]*><figcaption>(.*?)</figcaption>(<svg.*?</svg>)", html)
    return {caption: ElementTree.fromstring(svg) for caption, svg in found}


def test_a_sweep_that_is_no_search_has_no_section(tmp_path):
    assert searches(read_searches(FileStore(tmp_path), "s")) == ""


def test_every_trial_is_a_line_and_the_best_is_the_darkest_and_on_top(store):
    html = searches(read_searches(store, "s"))
    assert "4 finished, 1 stopped" in html
    lines = drawings(html)["Parallel coordinates"].findall("polyline")
    titles = [line.find("title").text for line in lines]
    assert [title.split(":")[0] for title in titles] == ["trial 0", "trial 3", "trial 2", "trial 1"]
    assert titles[-1] == "trial 1: val/accuracy 50, parameters 400; method lora, train.lr 0.001, method.rank 8"
    opacity = [float(line.get("stroke-opacity")) for line in lines]
    assert opacity == sorted(opacity) and opacity[-1] == 1


def test_what_a_scheduler_stopped_ends_with_a_dot_at_its_last_epoch(store):
    data = json.loads(store.read("sweeps/s/search.json"))
    data["arms"][0]["suggestions"][1]["curve"] = [[1, 0.2], [2, 0.4], [3, 0.5]]
    store.write("sweeps/s/search.json", json.dumps(data).encode())
    html = searches(read_searches(store, "s"))
    drawn = drawings(html)["Validation accuracy by epoch; a dot where the scheduler stopped a trial"]
    stopped, whole = drawn.findall("polyline")
    assert [line.find("title").text for line in (stopped, whole)] == ["trial 4, stopped", "trial 1, complete"]
    assert [len(line.get("points").split()) for line in (stopped, whole)] == [2, 3]
    (dot,) = drawn.findall("circle")
    assert f"{dot.get('cx')},{dot.get('cy')}" == stopped.get("points").split()[-1]


def test_a_slice_shows_the_trials_that_have_its_key(store):
    drawn = drawings(searches(read_searches(store, "s")))
    assert len(drawn["val/accuracy over method.rank"].findall("circle")) == 2
    across = [float(dot.get("cx")) for dot in drawn["parameters over train.lr"].findall("circle")]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # a logarithmic scale


def test_the_front_goes_through_the_trials_that_no_other_beats(store):
    drawn = drawings(searches(read_searches(store, "s")))["Pareto front"]
    places = {}
    for mark in drawn.findall("g"):
        left, y = re.match(r"M([\d.]+) ([\d.]+)", mark.find("path[@class='shape']").get("d")).groups()
        places[mark.find("title").text.split(":")[0]] = (f"{float(left) + 5:.1f}", y)
    path = drawn.find("path[@class='front']").get("d")
    assert path.startswith("M{} {}H{}V{}H".format(*places["trial 2"], *places["trial 1"]))


def test_bars_are_as_long_as_the_importances(store):
    bars = drawings(searches(read_searches(store, "s")))["Importance for val/accuracy"].findall("rect")
    assert [bar.find("title").text for bar in bars] == ["train.lr: 0.700", "method: 0.300"]
    assert float(bars[0].get("width")) / float(bars[1].get("width")) == pytest.approx(7 / 3, rel=1e-2)


def test_places_on_an_axis():
    rate = Axis("train.lr", "float", True, (), 1e-4, 1e-2)
    assert [rate.place(value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert [word for _, word in rate.words()] == ["0.0001", "0.001", "0.01"]
    assert Axis("a", "choice", False, ("x", "y"), 0, 0).words() == [(0.25, "x"), (0.75, "y")]
    assert Axis("a", "int", False, (), 3, 3).words() == [(0.5, "3")]
