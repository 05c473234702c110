"""Marks of the best and the second cell of each column of a table.

By the tests: the best is what the table's own tests (statistics/all_pairs.py) tell apart from every
other row of its column; the second what they tell apart from every row below it, where there is a
best. Where seeds do not tell rows apart nothing is marked. By the means: the best mean and the one
after it, whatever the spread.
"""

from __future__ import annotations

from collections.abc import Sequence

from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import higher_is_better
from pointsweep.statistics.all_pairs import Family
from pointsweep.statistics.seeds import DIGITS

MARKS = ("tests", "mean", "none")
Ranks = dict[tuple[int, int], str]  # (row, column) -> "best" or "second"


def standings(table: Table, mark: str) -> Ranks:
    """Return the cells that are marked, by one of MARKS."""
    ranks: Ranks = {}
    for column in range(len(table.columns)):
        rank_of: dict[str, str] = {}
        if mark == "mean":
            rank_of = _by_mean(table, column)
        # there are none where seeds are adaptive
        elif mark == "tests" and table.comparisons:
            # the families of the columns' rows come first
            rank_of = _by_tests(table.comparisons[column])

        for row, name in enumerate(table.row_names()):
            if name in rank_of:
                ranks[row, column] = rank_of[name]

    return ranks


def best_mean(table: Table) -> TableCell | None:
    """Return the cell with the best mean, whatever the tests say; None where nothing is
    finished.
    """
    filled = [cell for cell in table.cells if cell.mean is not None]
    if not filled:
        return None

    return ordered(table, filled)[0]


def legend(
    table: Table, mark: str, bold: str = "bold", underlined: str = "underlined"
) -> str:
    """Return the sentence that says what the marks mean; empty where nothing is marked."""
    ranks = set(standings(table, mark).values())
    if not ranks:
        return ""

    second = ""
    if mark == "mean":
        if "second" in ranks:
            second = f", {underlined}: the one after it"

        word = "highest" if higher_is_better(table.metric) else "lowest"
        return f"{bold}: the {word} mean of its column{second}; no test"

    if "second" in ranks:
        second = f", {underlined}: the second, from every row below it"

    return (
        f"{bold}: the best of its column, told apart from every other row by the table's"
        f" tests{second}"
    )


def _by_tests(family: Family) -> dict[str, str]:
    """Return what the tests of one column's rows allow to be marked, by the row's name."""
    resolved = {(pair.first, pair.second) for pair in family.pairs if pair.resolved}
    marked: dict[str, str] = {}

    for position, rank in enumerate(("best", "second")):
        if len(family.arms) < position + 2:
            break

        arm, *below = family.arms[position:]
        if not all((arm, other) in resolved for other in below):
            break

        marked[arm] = rank

    return marked


def _by_mean(table: Table, column: int) -> dict[str, str]:
    """Return the best mean of a column and the one after it, by the row's name; equal ones share
    their place.
    """
    cells = table.cells_of_column(column)
    filled = ordered(table, [cell for cell in cells if cell.mean is not None])
    marked: dict[str, str] = {}

    if len(filled) < 2:
        return marked

    means = [round(cell.mean or 0.0, DIGITS) for cell in filled]
    distinct_means = list(dict.fromkeys(means))
    best = distinct_means[0]
    # Of two cells the second is the last, which is nothing to mark.
    has_second = means.count(best) == 1 and len(filled) > 2
    names = table.row_names()

    for cell, mean in zip(filled, means, strict=True):
        if mean == best:
            marked[names[cell.row]] = "best"
        elif has_second and mean == distinct_means[1]:
            marked[names[cell.row]] = "second"

    return marked


def ordered(table: Table, cells: Sequence[TableCell]) -> list[TableCell]:
    """Return cells with a mean from the best on; of equal ones the first in the table."""
    sign = -1 if higher_is_better(table.metric) else 1
    return sorted(cells, key=lambda cell: sign * (cell.mean or 0.0))


def tied(table: Table) -> set[tuple[int, int]]:
    """Return the cells that share the first place of their column by the tests: the highest mean,
    and what the tests do not tell apart from it. None where there is a best, or no test.
    """
    if not table.comparisons:  # adaptive seeds
        return set()

    cells: set[tuple[int, int]] = set()
    names = table.row_names()
    row_of = dict(zip(names, range(len(names)), strict=True))

    for column in range(len(table.columns)):
        family = table.comparisons[column]
        for pair in family.pairs:
            is_separable = pair.low is None or pair.resolved
            if pair.first == family.arms[0] and not is_separable:
                cells.add((row_of[pair.first], column))
                cells.add((row_of[pair.second], column))

    return cells
