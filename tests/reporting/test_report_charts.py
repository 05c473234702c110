"""What the report draws is what the records say: marks, lines, fronts, axes and bars, read back from the figures."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsweep.reporting.build import build
from pointsweep.reporting.html.axes import axes, numeric_axes
from pointsweep.reporting.html.charts import DARK, LIGHT, Chart, as_json, thinned, with_band, words
from pointsweep.reporting.html.comparison import payload
from pointsweep.reporting.html.contents import with_chart
from pointsweep.reporting.html.evidence import Evidence, Truth
from pointsweep.reporting.html.learning import learning
from pointsweep.reporting.html.numbers import cost, optimism
from pointsweep.reporting.html.pareto import _x_axis, front, pareto
from pointsweep.reporting.html.sections import Section, flat
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import CellLayout, Layout
from tests.reporting.test_tables import failures, layout, record, records

CURVES = {f"full/a/{seed}": [0.2, 0.5, 0.8 + seed / 50] for seed in range(3)}


def charts(section: Section) -> dict[tuple[str, ...], Chart]:
    """Every chart of a section, by what is chosen."""
    found = {}
    for one in section.values["charts"]:
        found |= {(one.title,): one} if isinstance(one, Chart) else dict(one.charts)
    return found


def only(section: Section) -> Chart:
    [chart] = charts(section).values()
    return chart


def lines(chart: Chart) -> list:
    return [trace for trace in chart.figure.data if "lines" in (trace.mode or "")]


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
    chart = only(learning(made(), records(), CURVES, {}))
    band, line = chart.figure.data
    assert line.x.tolist() == [1, 2, 3]
    assert line.y == pytest.approx([20, 50, 82])
    assert line.customdata == pytest.approx(np.array([[20, 20], [50, 50], [80, 84]]))
    assert line.hovertemplate == "%{y:.1f} (%{customdata[0]:.1f} to %{customdata[1]:.1f})"
    assert band.x.tolist() == [1, 2, 3, 3, 2, 1]
    assert band.y == pytest.approx([20, 50, 84, 80, 50, 20])
    assert chart.figure.layout.hovermode == "x unified", "the crosshair"
    assert chart.rows == [("full", "3", "82.0", "80.0 to 84.0", "3")]


def test_losses_and_the_rate_are_drawn_beside_the_metric():
    histories = {
        "full/a/0": {"test/accuracy": [0.9, 0.9], "train/loss": [2.0, 1.5], "test/loss": [2.5, 1.8], "learning rate": [1e-3, 5e-4]}
    }
    found = charts(learning(made(), records(), CURVES, histories))
    assert list(found) == [(name, "a") for name in ("test/accuracy", "test/loss", "train/loss", "learning rate")]
    assert lines(found["test/accuracy", "a"])[0].y == pytest.approx([20, 50, 82]), "that of the table"
    assert lines(found["train/loss", "a"])[0].y == pytest.approx([2.0, 1.5]), "not in percent"
    assert found["train/loss", "a"].figure.layout.yaxis.title.text == "train/loss"
    assert lines(found["learning rate", "a"])[0].y == pytest.approx([1e-3, 5e-4])


def test_a_trial_under_way_does_not_bend_the_curve_of_the_finished_ones():
    curves = {**CURVES, "prompt/a/0": [0.3, 0.4, 0.71], "prompt/a/1": [0.1, 0.2, 0.73], "prompt/a/2": [0.9]}
    chart = only(learning(made(), records(), curves, {}))
    [line] = [line for line in lines(chart) if line.name == "prompt"]
    assert line.y == pytest.approx([20, 30, 72])


def test_of_many_rows_the_best_are_drawn():
    table, found = numbered([str(n) for n in range(40)], "n")
    curves = {key: [0.1, one.metrics["last"]["test/accuracy"]] for key, one in found.items()}
    section = learning(table, found, curves, {})
    assert {line.name for line in lines(only(section))} == {str(n) for n in range(16, 40)}
    assert "the 24 with the best means" in section.lead


def test_the_scatter_plot_shows_every_filled_cell_with_its_parameters():
    section = pareto(made())
    chart = only(section)
    marks = [trace for trace in chart.figure.data if trace.mode == "markers"]
    shown = {
        text: (x, y, sd)
        for trace in marks
        for text, x, y, sd in zip(trace.text, trace.x, trace.y, trace.error_y.array or [0] * 9, strict=False)
    }
    assert {text: (x, round(y, 1)) for text, (x, y, _) in shown.items()} == {
        "adapter / a: 72.3 ± 2.5, 306,560 parameters": (306_560, 72.3),
        "full / a: 82.0 ± 2.0, 22,100,000 parameters": (22_100_000, 82.0),
        "full / b: 50.0, 22,100,000 parameters": (22_100_000, 50.0),
        "prompt / a: 72.0 ± 1.4, 9,216 parameters": (9_216, 72.0),
    }
    assert shown["full / a: 82.0 ± 2.0, 22,100,000 parameters"][2] == pytest.approx(2.0)
    [steps] = [trace for trace in chart.figure.data if trace.mode == "lines"]
    assert list(zip(steps.x, np.round(steps.y, 1), strict=True))[:3] == [(9_216, 72.0), (306_560, 72.3), (22_100_000, 82.0)]
    assert "higher mean than <b>prompt / a</b>, <b>adapter / a</b>, <b>full / a</b>." in section.lead
    assert chart.figure.layout.xaxis.type == "log"


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


def test_few_cells_are_all_named_the_beaten_ones_below_their_points():
    table = build(layout(), records(), failures())
    cells = [cell for cell in table.cells if cell.mean is not None and cell.parameters]
    assert len(cells) == 4
    [names] = [trace for trace in only(pareto(table)).figure.data if trace.mode == "text"]
    assert {str(text).strip() for text in names.text} == {words(table.cell_name(cell)) for cell in cells}
    above = {str(text).strip() for text, place in zip(names.text, names.textposition, strict=True) if place.startswith("top")}
    assert above == {words(table.cell_name(cell)) for cell in front(cells)}


def test_of_many_cells_the_front_alone_is_named(monkeypatch):
    monkeypatch.setattr("pointsweep.reporting.html.pareto.MOST_LABELS", 3)
    table = build(layout(), records(), failures())
    best = front([cell for cell in table.cells if cell.mean is not None and cell.parameters])
    assert len(best) <= 3
    [names] = [trace for trace in only(pareto(table)).figure.data if trace.mode == "text"]
    assert [str(text).strip() for text in names.text] == [words(table.cell_name(cell)) for cell in best]


def test_an_arm_that_trains_nothing_has_its_place_on_the_logarithmic_scale():
    found = records()
    found |= {
        k: replace(r, parameters={**r.parameters, "trainable_without_head": 0}) for k, r in found.items() if k.startswith("prompt")
    }
    chart = only(pareto(build(layout(), found, failures())))
    [place] = [
        x
        for trace in chart.figure.data
        if trace.mode == "markers"
        for x, text in zip(trace.x, trace.text, strict=True)
        if " 0 parameters" in text
    ]
    axis = chart.figure.layout.xaxis
    assert 0 < place < 306_560
    assert (axis.tickvals[0], axis.ticktext[0]) == (place, "0")


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((496_000, 509_100), ["0.496M", "0.509M"]),
        ((84_600, 84_900, 92_300, 97_700, 238_000), ["84.6k", "97.7k", "0.238M"]),
        ((10_000, 12_000), ["10.0k", "12.0k"]),
    ],
)
def test_sizes_of_a_few_decades_are_ticks_themselves(sizes, shown):
    """Powers of ten would leave such an axis with one number or none; those that would touch are left out, never the outermost."""
    axis = _x_axis(set(sizes), {size: float(size) for size in sizes})
    assert axis["ticktext"] == shown
    assert {axis["tickvals"][0], axis["tickvals"][-1]} == {min(sizes), max(sizes)}


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
    band, line = only(axes(*numbered())).figure.data
    means = 100 * np.array([0.501, 0.511, 0.521])
    assert line.x.tolist() == [2, 4, 8]
    assert line.y == pytest.approx(means, rel=1e-5)
    assert band.y == pytest.approx([*(means + 100 * half), *(means - 100 * half)[::-1]], rel=1e-5)
    assert axes(made(), records()) is None


def row_of(section: Section, name: str) -> list[str]:
    [row] = [row for row in section.values["rows"] if row[0] == name]
    return [cell if isinstance(cell, str) else cell.word for cell in row[1:]]


def test_optimism_and_cost_are_those_of_the_records():
    assert row_of(optimism(made(), records()), "full / a") == ["82.0", "83.0", "+1.0", "2, 2, 2"]
    found = {key: replace(r, clouds_per_s=40.0, peak_memory_bytes=2**31, attempts=2) for key, r in records().items()}
    section = with_chart(made(), found, cost(made(), found))
    hours = sum(found[f"full/a/{seed}"].seconds["total"] for seed in range(3)) / 3600
    assert row_of(section, "full / a") == ["12 s", "40", "2.00", "2", f"{hours:.3g}"]
    [bars] = only(section).figure.data
    assert bars.x[list(bars.customdata).index("full / a")] == pytest.approx(12.5)


def test_the_page_carries_predictions_and_truth_as_they_are():
    truth = Truth(
        "d" * 64, np.array([0, 1, 2, 1], dtype=np.uint8), ("cup", "car", "bed"), np.random.default_rng(0).normal(size=(4, 50, 3))
    )
    said = {key: np.array([0, 1, 2, seed], dtype=np.uint8) for seed, key in enumerate(sorted(records()))}
    data = json.loads(as_json(payload(made(), records(), Evidence(said, dict.fromkeys(said, truth)))))
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


def test_predictions_of_many_arms_are_those_of_the_best(monkeypatch):
    monkeypatch.setattr("pointsweep.reporting.html.comparison.PREDICTION_BYTES", 8)
    truth = Truth("d" * 64, np.array([0, 1, 2, 1], dtype=np.uint8), ("cup", "car", "bed"), None)
    said = {key: np.array([0, 1, 2, 0], dtype=np.uint8) for key in sorted(records())}
    data = payload(made(), records(), Evidence(said, dict.fromkeys(said, truth)))
    assert [arm["name"] for arm in data["arms"] if arm["predictions"]] == ["full / a", "adapter / a"]
    assert not data["whole"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '<b>x</b> & "y"', "a\u202eb", "提示调优"])
def test_text_reaches_a_figure_as_it_stands(text):
    """Plotly reads <b> and entities; what it is given must come out as the text that went in."""
    given = words(text)
    assert "<" not in given
    assert unescape(given) == text.replace("\u202e", "\\u202e")
    data = as_json({"name": text})
    assert not set("<>&") & set(data)
    assert json.loads(data) == {"name": text}


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colors, card", [(LIGHT, "#ffffff"), (DARK, "#181e26")])
def test_colours_stand_out_from_the_page(colors, card):
    for color in colors:
        high, low = sorted((luminance(color), luminance(card)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, color


def test_more_lines_than_colours_are_told_apart_by_their_dashes():
    traces = [with_band("x", slot, [(1, 1, 1, 1), (2, 2, 2, 2)])[-1] for slot in range(24)]
    assert len({(trace.meta["slot"] % len(LIGHT), trace.line.dash) for trace in traces}) == 24


@pytest.mark.parametrize("count", [1, 2, 120, 121, 300, 1000])
def test_a_long_line_is_thinned_evenly_to_its_last_point(count):
    kept = thinned(range(count))
    assert kept[-1] == count - 1 and len(kept) == count if count <= 120 else 60 <= len(kept) <= 120
    assert len({b - a for a, b in itertools.pairwise(kept)}) <= 1


def test_many_lines_over_an_axis_are_split_by_column():
    rows = [(method, str(number)) for method in ("a", "b", "c", "d", "e") for number in (1, 4, 100)]
    cells = tuple(
        CellLayout(i, j, ((0, f"{'/'.join(row)}/{column}"),)) for i, row in enumerate(rows) for j, column in enumerate(("x", "y"))
    )
    shape = Layout("many", "Many", ("method", "rank"), tuple(rows), ("x", "y"), cells)
    found = {key: record(key, 0.5) for cell in cells for _, key in cell.keys}
    found_charts = charts(axes(build(shape, found, {}), found))
    assert list(found_charts) == [("x",), ("y",)]
    assert [len(lines(chart)) for chart in found_charts.values()] == [5, 5]
    for chart in found_charts.values():
        assert chart.figure.layout.xaxis.type == "log"
        assert chart.figure.layout.xaxis.title.text == "rank (logarithmic)"
        assert all(line.x.tolist() == [1, 4, 100] for line in lines(chart))
