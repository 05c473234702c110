"""Which cells are shown as the best and the second: by the tests of the table, by the means, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pointsweep.reporting.best_cells import best_mean, legend, standings
from pointsweep.reporting.build import comparisons
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import METRICS, Metric
from pointsweep.results.records import CellLayout, Layout
from pointsweep.statistics.all_pairs import Family, Pair

ROWS = ("a", "b", "c")


def apart(first: str, second: str) -> Pair:
    return Pair(first, second, 3, 0.1, 0.05, 0.15, 0.01)


def tied(first: str, second: str) -> Pair:
    return Pair(first, second, 3, 0.1, -0.05, 0.25, 0.4)


def table(values: dict[str, tuple[float, ...]], *pairs: Pair, metric: str = "test/accuracy") -> Table:
    """A table of one column; a family of its rows where there are pairs."""
    cells = []
    for row, name in enumerate(ROWS):
        own = values.get(name, ())
        mean = sum(own) / len(own) if own else None
        keys = tuple((seed, f"{name}{seed}") for seed in range(3))
        cells.append(TableCell(row, 0, mean, 0.01, len(own), 3, None, None, tuple(enumerate(own)), keys))
    arms = tuple(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    families = (Family("vit", arms, pairs),) if pairs else ()
    rows = tuple((name,) for name in ROWS)
    return Table("t", "T", metric, "last", ("",), rows, ("vit",), tuple(cells), families)


VALUES = {"a": (0.7, 0.7, 0.7), "b": (0.8, 0.8, 0.8), "c": (0.6, 0.6, 0.6)}


def test_a_row_that_is_apart_from_all_others_is_the_best_and_the_next_one_the_second():
    made = table(VALUES, apart("b", "a"), apart("b", "c"), apart("a", "c"))
    assert standings(made, "tests") == {(1, 0): "best", (0, 0): "second"}


def test_nothing_is_marked_where_the_best_mean_is_not_told_apart():
    made = table(VALUES, tied("b", "a"), apart("b", "c"), apart("a", "c"))
    assert standings(made, "tests") == {}
    assert legend(made, "tests") == ""


def test_there_is_no_second_where_the_second_mean_is_not_told_apart_from_the_third():
    made = table(VALUES, apart("b", "a"), apart("b", "c"), tied("a", "c"))
    assert standings(made, "tests") == {(1, 0): "best"}
    assert legend(made, "tests") == "bold: the best of its column, told apart from every other row by the table's tests"


def test_a_row_that_was_set_aside_leaves_no_best():
    made = table(VALUES, replace(apart("b", "a"), low=None, high=None, p=None, reason="set aside"), apart("b", "c"), apart("a", "c"))
    assert standings(made, "tests") == {}


def test_without_tests_as_with_adaptive_seeds_nothing_is_marked_but_by_the_means():
    made = table(VALUES)
    assert standings(made, "tests") == {}
    assert standings(made, "none") == {}
    assert standings(made, "mean") == {(1, 0): "best", (0, 0): "second"}
    assert legend(made, "mean") == "bold: the highest mean of its column, underlined: the one after it; no test"


def test_of_a_metric_that_is_better_when_lower_the_lowest_mean_is_best(monkeypatch):
    monkeypatch.setitem(METRICS, "error", Metric("error", "share of wrong classes", direction="minimize"))
    made = table(VALUES, metric="test/error")
    assert standings(made, "mean") == {(2, 0): "best", (0, 0): "second"}
    assert best_mean(made).row == 2
    assert legend(made, "mean").startswith("bold: the lowest mean")

    # The tests order rows by the metric's direction too.
    values = {"a": (0.7, 0.715, 0.69), "b": (0.8, 0.805, 0.79), "c": (0.2, 0.21, 0.205)}
    filled = table(values, metric="test/error")
    cells = tuple(CellLayout(cell.row, 0, cell.keys) for cell in filled.cells)
    layout = Layout("t", "T", ("",), filled.rows, ("vit",), cells, metric="test/error")
    tested = replace(filled, comparisons=comparisons(layout, filled.cells, {}))
    assert standings(tested, "tests") == {(2, 0): "best", (0, 0): "second"}


def test_equal_means_share_the_first_place():
    made = table({"a": (0.7,), "b": (0.7,), "c": (0.1,)})
    assert standings(made, "mean") == {(0, 0): "best", (1, 0): "best"}


@pytest.mark.parametrize("mark", ["tests", "mean", "none"])
def test_a_column_with_one_filled_row_has_no_best(mark):
    assert standings(table({"b": (0.7,)}), mark) == {}
