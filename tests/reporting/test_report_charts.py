"""What the report draws is what the records say: marks, lines, fronts, axes and bars, read back from the page."""

from __future__ import annotations

import base64
import itertools
import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsweep.reporting.build import build
from pointsweep.reporting.html.axes import axes, numeric_axes
from pointsweep.reporting.html.comparison import as_script, payload
from pointsweep.reporting.html.evidence import Evidence, Truth
from pointsweep.reporting.html.numbers import cost, optimism
from pointsweep.reporting.html.sections import flat, front, learning, pareto
from pointsweep.reporting.html.svg_charts import Frame, thinned, ticks, whole_ticks
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import CellLayout, Layout
from tests.reporting.test_tables import failures, layout, record, records

CURVES = {f"full/a/{seed}": [0.2, 0.5, 0.8 + seed / 50] for seed in range(3)}


def titles(source: str) -> list[str]:
    return [unescape(title) for title in re.findall(r"<title>(.*?)</title>", source)]


def made() -> Table:
    return build(layout(), records(), failures())


def numbered(rows=("2", "4", "8"), header="num_prompts", configs=None) -> tuple[Table, dict]:
    """A table of one column with an arm for each label, three seeds each: 0.5 + 0.01 * arm + 0.001 * seed."""
    cells = tuple(CellLayout(i, 0, tuple((seed, f"{label}/{seed}") for seed in range(3))) for i, label in enumerate(rows))
    shape = Layout("numbers", "Numbers", (header,), tuple((label,) for label in rows), ("tiny",), cells)
    found = {
        f"{label}/{seed}": record(f"{label}/{seed}", 0.5 + 0.01 * i + 0.001 * seed, config=configs[i] if configs else {})
        for i, label in enumerate(rows)
        for seed in range(3)
    }
    return build(shape, found, {}), found


def test_a_learning_curve_has_the_mean_and_the_range_of_the_seeds():
    source = learning(made(), records(), CURVES)
    assert titles(source) == [  # the last epoch first: it is the one that the table shows
        "full / a, epoch 3: 82.0 (80.0 to 84.0, 3 seeds)",
        "full / a, epoch 2: 50.0 (50.0 to 50.0, 3 seeds)",
        "full / a, epoch 1: 20.0 (20.0 to 20.0, 3 seeds)",
    ]
    [line] = re.findall(r"<polyline[^>]* points='([^']+)'", source)
    heights = [float(point.split(",")[1]) for point in line.split()]
    # The scale is linear: 20, 50 and 82 lie at 0, 30 and 62 sixty-seconds of the way.
    assert (heights[0] - heights[1]) / (heights[0] - heights[2]) == pytest.approx(30 / 62, abs=0.005)
    [band] = re.findall(r"<polygon[^>]* points='([^']+)'", source)
    places = [tuple(map(float, point.split(","))) for point in band.split()]
    assert places[2][1] < heights[2] < places[3][1], "84 above the mean and 80 below it"


def test_a_trial_under_way_does_not_bend_the_curve_of_the_finished_ones():
    source = learning(
        made(), records(), {**CURVES, "prompt/a/0": [0.3, 0.4, 0.71], "prompt/a/1": [0.1, 0.2, 0.73], "prompt/a/2": [0.9]}
    )
    assert "prompt / a, epoch 3: 72.0 (71.0 to 73.0, 2 seeds)" in titles(source)


def test_the_scatter_plot_shows_every_filled_cell_with_its_parameters():
    source = pareto(made())
    assert sorted(titles(source)) == [
        "adapter / a: 72.3 ± 2.5, 306,560 parameters",
        "full / a: 82.0 ± 2.0, 22,100,000 parameters",
        "full / b: 50.0, 22,100,000 parameters",
        "prompt / a: 72.0 ± 1.4, 9,216 parameters",
    ]
    assert "higher mean than <b>prompt / a</b>, <b>adapter / a</b>, <b>full / a</b>." in source


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=12))
def test_the_front_is_what_no_cell_beats(pairs):
    cells = [
        TableCell(i, 0, mean / 100, None, 1, 1, None, None, (), (), parameters={"trainable_without_head": size})
        for i, (size, mean) in enumerate(pairs)
    ]
    places = {(size, mean) for size, mean in pairs}
    unbeaten = {
        (size, mean) for size, mean in places if not any((s <= size and m >= mean) and (s, m) != (size, mean) for s, m in places)
    }
    chosen = [(cell.parameters["trainable_without_head"], round(100 * cell.mean)) for cell in front(cells)]
    assert set(chosen) == unbeaten
    assert len(chosen) == len(unbeaten)
    assert chosen == sorted(chosen)


def test_an_arm_that_trains_nothing_has_its_place_on_the_logarithmic_scale():
    found = records()
    found |= {
        k: replace(r, parameters={**r.parameters, "trainable_without_head": 0}) for k, r in found.items() if k.startswith("prompt")
    }
    source = pareto(build(layout(), found, failures()))
    assert "prompt / a: 72.0 ± 1.4, 0 parameters" in titles(source)
    assert ">0</text>" in source


@pytest.mark.parametrize(
    "rows, header, name, values",
    [
        (("2", "4", "8"), "num_prompts", "num_prompts", [2, 4, 8]),
        (("M = 1", "M = 2", "M = 6"), "", "M", [1, 2, 6]),
        (("0.1", "0.01", "1e-3"), "lr", "lr", [0.1, 0.01, 0.001]),
    ],
)
def test_labels_that_differ_in_one_number_are_an_axis(rows, header, name, values):
    [axis] = numeric_axes(*numbered(rows, header))
    assert (axis.name, list(axis.values.values())) == (name, values)


@pytest.mark.parametrize("rows", [("2", "4"), ("1d", "2d", "3d"), ("full", "adapter", "prompt"), ("2 of 3", "3 of 4", "4 of 5")])
def test_other_labels_are_no_axis(rows):
    assert numeric_axes(*numbered(rows)) == []


def test_a_setting_in_which_alone_the_arms_differ_is_an_axis():
    configs = [{"method": {"name": "prompt", "num_prompts": n}, "positions": {"line": [[0, 1]]}, "seed": n} for n in (5, 10, 50)]
    [axis] = numeric_axes(*numbered(("few", "some", "many"), "", configs))
    assert (axis.name, axis.values) == ("num_prompts", {"few": 5, "some": 10, "many": 50})
    other = [{**config, "compat": str(i)} for i, config in enumerate(configs)]
    assert numeric_axes(*numbered(("few", "some", "many"), "", other)) == []
    switched = [{"method": {"local": on}} for on in (True, False, True)]
    assert numeric_axes(*numbered(("few", "some", "many"), "", switched)) == []


def test_the_curve_over_an_axis_has_means_and_intervals():
    half = 4.302652729911275 * 0.001 / 3**0.5
    assert titles(axes(*numbered())) == [
        f"{label} / tiny: {100 * mean:.1f} ({100 * (mean - half):.1f} to {100 * (mean + half):.1f})"
        for label, mean in (("8", 0.521), ("4", 0.511), ("2", 0.501))
    ]
    assert axes(made(), records()) == ""


def test_optimism_and_cost_are_those_of_the_records():
    row = re.search(r"full / a</th>(.*?)</tr>", optimism(made(), records())).group(1)
    assert re.findall(r">([^<]+)<", row) == ["82.0", "83.0", "+1.0", "2, 2, 2"]
    found = {key: replace(r, clouds_per_s=40.0, peak_memory_bytes=2**31, attempts=2) for key, r in records().items()}
    row = re.search(r"full / a</th>(.*?)</tr>", cost(made(), found)).group(1)
    hours = sum(found[f"full/a/{seed}"].seconds["total"] for seed in range(3)) / 3600
    assert re.findall(r">([^<]+)<", row) == ["12 s", "40", "2.00", "2", f"{hours:.3g}"]


def test_the_page_carries_predictions_and_truth_as_they_are():
    truth = Truth(
        "d" * 64, np.array([0, 1, 2, 1], dtype=np.uint8), ("cup", "car", "bed"), np.random.default_rng(0).normal(size=(4, 50, 3))
    )
    said = {key: np.array([0, 1, 2, seed], dtype=np.uint8) for seed, key in enumerate(sorted(records()))}
    data = json.loads(
        re.sub("^<script[^>]*>|</script>$", "", as_script(payload(made(), records(), Evidence(said, dict.fromkeys(said, truth)))))
    )
    unpacked = lambda text, kind="u1": np.frombuffer(base64.b64decode(text), kind).tolist()  # noqa: E731
    arms = {arm["name"]: arm for arm in data["arms"]}
    assert arms["full / a"]["seeds"] == [0, 1, 2]
    assert [unpacked(values) for values in arms["full / a"]["predictions"]] == [said[f"full/a/{seed}"].tolist() for seed in range(3)]
    assert data["arms"][data["first"]]["name"] == "full / a", "the best one"
    assert data["arms"][data["second"]]["name"] == "adapter / a", "the next in its column"
    [stored] = data["truths"]
    assert unpacked(stored["labels"]) == [0, 1, 2, 1]
    assert stored["classes"][:3] == ["cup", "car", "bed"]
    points = np.array(unpacked(stored["clouds"]["bytes"], "i1")).reshape(4, 50, 3)
    assert np.linalg.norm(points, axis=2).max(axis=1) == pytest.approx([127] * 4, abs=1)


@pytest.mark.parametrize("largest", [255, 256, 70_000])
def test_the_page_carries_classes_of_any_number(largest):
    labels = np.array([0, 1, largest, 1])
    truth = Truth("d" * 64, labels, ("cup", "car", "bed"), None)
    said = {key: np.array([0, 1, 2, largest - seed]) for seed, key in enumerate(sorted(records()))}
    data = payload(made(), records(), Evidence(said, dict.fromkeys(said, truth)))
    kind = {1: "u1", 4: "<i4"}[data["class_bytes"]]
    assert kind == ("u1" if largest == 255 else "<i4")
    assert np.frombuffer(base64.b64decode(data["truths"][0]["labels"]), kind).tolist() == labels.tolist()
    arm = next(arm for arm in data["arms"] if arm["name"] == "full / a")
    found = [np.frombuffer(base64.b64decode(values), kind).tolist() for values in arm["predictions"]]
    assert found == [said[f"full/a/{seed}"].tolist() for seed in range(3)]


def test_settings_are_flat_and_lists_can_be_compared():
    assert flat({"a": {"b": 1, "c": {"d": [1, [2]]}}, "e": None}) == {"a.b": 1, "a.c.d": (1, (2,)), "e": None}


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e3))
def test_ticks_span_the_values_and_stay_few(low, span):
    values = [value for value, _ in ticks(low, low + span)]
    assert values[0] <= low + 1e-6 * span and values[-1] >= low + span - 1e-6 * span - 1e-9 * abs(low)
    assert 2 <= len(values) <= 8


@given(st.integers(0, 50), st.integers(1, 2000))
def test_whole_ticks_hold_both_ends_and_no_fraction(low, span):
    values = [value for value, _ in whole_ticks(low, low + span)]
    assert values[0] == low and values[-1] == low + span
    assert values == sorted(set(values)) and all(value == int(value) for value in values) and len(values) <= 9


def test_a_frame_of_one_value_draws_it_in_the_middle():
    frame = Frame(100, 50, (1, 1), (5, 5), (), (), left=0, right=0, top=0, bottom=0)
    assert (frame.x(1), frame.y(5)) == (50, 25)


@pytest.mark.parametrize("count", [1, 2, 100, 101, 300, 1000])
def test_a_long_line_is_thinned_evenly_to_its_last_point(count):
    kept = thinned(range(count))
    assert kept[-1] == count - 1 and len(kept) == count if count <= 100 else 50 <= len(kept) <= 100
    assert len({b - a for a, b in itertools.pairwise(kept)}) <= 1


def test_many_lines_over_an_axis_are_split_by_column():
    rows = [(method, str(number)) for method in ("a", "b", "c", "d") for number in (1, 4, 100)]
    cells = tuple(
        CellLayout(i, j, ((0, f"{'/'.join(row)}/{column}"),)) for i, row in enumerate(rows) for j, column in enumerate(("x", "y"))
    )
    shape = Layout("many", "Many", ("method", "rank"), tuple(rows), ("x", "y"), cells)
    found = {key: record(key, 0.5) for cell in cells for _, key in cell.keys}
    source = axes(build(shape, found, {}), found)
    assert re.findall(r"<figcaption>(.)</figcaption>", source) == ["x", "y"]
    assert source.count("<polyline") == 8
    assert source.count("rank (logarithmic)") == 2
    [first, middle, last] = sorted({float(x) for x in re.findall(r"cx='([0-9.]+)'", source)})
    assert (middle - first) / (last - first) == pytest.approx(np.log(4) / np.log(100), abs=0.01)
