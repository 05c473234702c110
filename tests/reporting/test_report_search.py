"""The report's section of a search: what stands in search.json is what is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pointsweep.reporting.html.charts import Chart
from pointsweep.reporting.html.search import read_searches
from pointsweep.reporting.html.search_charts import searches
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


def charts(store) -> dict[str, Chart]:
    """Title -> chart."""
    [(_, found)] = searches(read_searches(store, "s")).values["arms"]
    return {chart.title: chart for chart in found}


def changed(store, **parts) -> None:
    """Add to the suggestions of the search: what `parts` gives by number."""
    data = json.loads(store.read("sweeps/s/search.json"))
    for name, by_number in parts.items():
        for number, value in by_number.items():
            data["arms"][0]["suggestions"][number][name] = value
    store.write("sweeps/s/search.json", json.dumps(data).encode())


def test_a_sweep_that_is_no_search_has_no_section(tmp_path):
    assert searches(read_searches(FileStore(tmp_path), "s")) is None


def test_every_figure_of_optuna_is_there_and_no_axis_is_called_trial(store):
    changed(store, curve={1: [[1, 0.2], [2, 0.4]]}, times={i: [1.7e9 + i, 1.7e9 + 9 * i + 1] for i in range(5)})
    found = charts(store)
    each = ["Optimization history", "Importance of the keys", "Parallel coordinates", "Slices", "Contours"]
    wanted = ["Pareto front", *(f"{title}, val/accuracy" for title in each), *(f"{title}, parameters" for title in each)]
    wanted.remove("Importance of the keys, parameters")  # the search has none of it
    assert list(found)[: len(wanted)] == wanted
    assert [title.split(":")[0] for title in list(found)[len(wanted) :]] == ["Validation accuracy by epoch", "Timeline"]
    for chart in found.values():
        titles = [axis.title.text or "" for axis in (*chart.figure.select_xaxes(), *chart.figure.select_yaxes())]
        names = [trace.name or "" for trace in chart.figure.data]
        assert not [text for text in (*titles, *names) if "trial" in text.lower()], chart.title


def test_the_history_has_every_value_and_the_best_until_then(store):
    drawn = {trace.name: trace for trace in charts(store)["Optimization history, val/accuracy"].figure.data}
    assert list(drawn["val/accuracy in %"].y) == pytest.approx([10, 50, 30, 20])
    assert list(drawn["the best until then"].y) == pytest.approx([10, 50, 50, 50, 50]), "the last one was stopped"
    smallest = {trace.name: trace for trace in charts(store)["Optimization history, parameters"].figure.data}
    assert list(smallest["the best until then"].y) == [100, 100, 50, 50, 50]


def test_what_a_scheduler_stopped_ends_at_its_last_epoch_and_the_best_lies_on_top(store):
    changed(store, curve={1: [[1, 0.2], [2, 0.4], [3, 0.5]], 2: [[1, 0.1], [2, 0.2], [3, 0.3]]})
    [chart] = [chart for title, chart in charts(store).items() if title.startswith("Validation accuracy by epoch")]
    stopped, other, best = chart.figure.data
    assert [trace.name for trace in (stopped, other, best)] == [
        "suggestion 4, stopped",
        "suggestion 2, complete",
        "suggestion 1, complete",
    ]
    assert list(stopped.x) == [1, 2] and list(stopped.y) == pytest.approx([10, 30])
    assert list(best.x) == [1, 2, 3] and list(best.y) == pytest.approx([20, 40, 50])


def test_a_slice_shows_the_trials_that_have_its_key(store):
    chart = charts(store)["Slices, val/accuracy"]
    shown = [(list(trace.x), list(trace.y)) for trace in chart.figure.data]
    by_axis = {axis.title.text: i for i, axis in enumerate(chart.figure.select_xaxes())}
    methods, ranks, rates = (shown[by_axis[key]] for key in ("method", "method.rank", "train.lr"))
    assert sorted(zip(*ranks, strict=True)) == [(2, pytest.approx(10)), (8, pytest.approx(50))]
    assert sorted(rates[0]) == [1e-4, 1e-3, 1e-3, 1e-2]
    assert set(methods[0]) == {"lora", "&lt;prompt&gt;"}, "as Plotly writes <prompt>"
    assert [axis.type for axis in chart.figure.select_xaxes()][by_axis["train.lr"]] == "log"


def test_the_front_holds_the_trials_that_no_other_beats(store):
    drawn = {trace.name: set(zip(np.round(trace.x, 3), trace.y, strict=True)) for trace in charts(store)["Pareto front"].figure.data}
    assert drawn == {"on the front": {(50.0, 400), (30.0, 50)}, "not on the front": {(10.0, 100), (20.0, 60)}}


def test_bars_are_as_long_as_the_importances(store):
    chart = charts(store)["Importance of the keys, val/accuracy"]
    [bars] = chart.figure.data
    assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx({"train.lr": 0.7, "method": 0.3})
    assert chart.rows == [("train.lr", "0.700"), ("method", "0.300")]


def test_the_timeline_has_a_bar_for_every_suggestion_that_was_trained(store):
    assert "Timeline" not in charts(store), "a file of an older version has no times"
    changed(store, times={0: [1_700_000_000, 1_700_000_060], 4: [1_700_000_030, 1_700_000_040]})
    bars = {trace.name: trace for trace in charts(store)["Timeline"].figure.data}
    assert {name: list(trace.x) for name, trace in bars.items()} == {"complete": [60_000.0], "stopped": [10_000.0]}  # ms


@pytest.mark.parametrize("count", [2000])
def test_a_large_search_is_drawn_with_few_lines_and_by_webgl(store, count):
    data = json.loads(store.read("sweeps/s/search.json"))
    rng = np.random.default_rng(0)
    data["objectives"] = {"val/accuracy": "maximize"}
    data["arms"][0]["suggestions"] = [
        {
            **suggestion(i, "lora", float(10 ** rng.uniform(-4, -2)), int(rng.integers(1, 9)), float(rng.random()), 0),
            "values": [float(rng.random())],
        }
        for i in range(count)
    ]
    store.write("sweeps/s/search.json", json.dumps(data).encode())
    found = charts(store)
    assert len(found["Parallel coordinates"].figure.data) == 301, "300 lines and the scale of their colours"
    assert "scattergl" in {trace.type for trace in found["Optimization history"].figure.data}
    assert "the 300 best are drawn" in found["Parallel coordinates"].summary
