"""Adaptive number of seeds for every cell of a table, where the file says `seeds: {min: 3, max: 10,
until: decided}`.

Every row is compared with one of them by the sequential test of sequential.py, with Holm's
correction over the rows of a column. All rows get the fewest seeds; a further seed goes to the
comparisons that are still open. What a cell gets is a function of the records of its column alone,
so whoever asks again, in the middle or at the end, gets the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pointsweep.config import scalars
from pointsweep.errors import unknown
from pointsweep.results.records import Adaptive, CellLayout, Layout, Record, value
from pointsweep.statistics.seeds import DIGITS, LEVEL, Summary, holm, summary
from pointsweep.statistics.sequential import (
    UNLIKELY,
    chance,
    evidence,
    last_level,
    sequential_p,
)
from pointsweep.utils.numbers import percent

KEYS = ("min", "max", "until", "against")
# so that of 2,000 simulated sweeps, a count with a spread of half a point, at most 5 % are wrong
ALPHA = 0.9 * (1 - LEVEL)


@dataclass
class Comparison:
    """A row against the reference, in one column. `state`: open, decided, unlikely, spent (all
    seeds) or waiting (for a record).
    """

    row: int
    column: int
    n: int
    evidence: float = float("inf")  # the strongest so far; smaller is stronger
    differences: Summary | None = None
    adjusted: float | None = None
    state: str = "open"


def parse(
    data: Mapping[str, Any], most_seeds: int
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong with the `seeds:` mapping of a file, each with its path in it."""
    for key in data:
        if key not in KEYS:
            yield (key,), unknown("key", key, KEYS, "Allowed")

    if not _is_integer(data.get("min")) or data["min"] < 2:
        yield (
            ("min",),
            (
                "must be a whole number from 2 on (one seed has no spread), got"
                f" {scalars.shown(data.get('min'))}"
            ),
        )
    elif (
        not _is_integer(data.get("max")) or not data["min"] < data["max"] <= most_seeds
    ):
        yield (
            ("max",),
            (
                f"must be a whole number above min ({data['min']}), at most {most_seeds}, got"
                f" {scalars.shown(data.get('max'))}"
            ),
        )

    if data.get("until") != "decided":
        yield ("until",), unknown("end", data.get("until"), ["decided"], "Allowed")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def settle(
    layout: Layout, records: Mapping[str, Record]
) -> tuple[Layout, list[Comparison]]:
    """The layout with the seeds that every cell is to have by these records, and the comparisons. A
    fixed layout stays as it is.
    """
    if layout.adaptive is None:
        return layout, []

    values = {}
    cells_of: list[list[CellLayout]] = [[] for _ in layout.columns]
    for cell in layout.cells:
        if cell.keys:
            cells_of[cell.column].append(cell)
        for _, key in cell.keys:
            if key in records:
                values[key] = value(records[key], layout.protocol, layout.metric)

    least = layout.adaptive.least
    comparisons: list[Comparison] = []
    num_seeds: dict[tuple[int, int], int] = {}

    for column, column_cells in enumerate(cells_of):
        column_comparisons = _column(column_cells, layout.adaptive, values)
        comparisons += column_comparisons
        for comparison in column_comparisons:
            num_seeds[comparison.row, column] = comparison.n

        counts = [comparison.n for comparison in column_comparisons]
        num_seeds[layout.adaptive.against, column] = max(counts, default=least)

    cells = []
    for cell in layout.cells:
        count = num_seeds.get((cell.row, cell.column), least)
        cells.append(replace(cell, keys=cell.keys[:count]))

    return replace(layout, cells=tuple(cells)), comparisons


def _column(
    cells: Sequence[CellLayout], rule: Adaptive, values: Mapping[str, float]
) -> list[Comparison]:
    """The comparisons of one column, as far as the records reach."""
    reference = next((cell for cell in cells if cell.row == rule.against), None)
    if reference is None:
        return []

    arms = {}
    comparisons = []
    for cell in cells:
        if cell.keys != reference.keys:
            arms[cell.row] = cell
            comparisons.append(Comparison(cell.row, cell.column, rule.least))

    for n in range(rule.least, rule.most + 1):
        p_values = []
        for comparison in comparisons:
            if comparison.state == "open":
                comparison.n = n
                _update(comparison, arms[comparison.row], reference, rule, values)

            p = None
            if comparison.differences:
                p = sequential_p(comparison.evidence, rule.least, rule.most)

            p_values.append(p)

        for comparison, p in zip(comparisons, holm(p_values), strict=True):
            comparison.adjusted = p
            if p is not None and p < ALPHA:
                comparison.state = "decided"

        _give_up(comparisons, n, rule)

    return comparisons


def _give_up(comparisons: Sequence[Comparison], n: int, rule: Adaptive) -> None:
    """Close the open comparisons that have no seeds left, or will hardly be decided by them."""
    num_undecided = sum(comparison.state != "decided" for comparison in comparisons)
    for comparison in comparisons:
        if comparison.state != "open":
            continue
        if n == rule.most:
            comparison.state = "spent"
        elif _is_unlikely(comparison, num_undecided, rule):
            comparison.state = "unlikely"


def _update(
    comparison: Comparison,
    arm: CellLayout,
    reference: CellLayout,
    rule: Adaptive,
    values: Mapping[str, float],
) -> None:
    """Compare the first `n` seeds of an arm with those of the reference, and keep the strongest
    evidence so far. The comparison waits where a value is missing.
    """
    arm_keys = [key for _, key in arm.keys[: comparison.n]]
    reference_keys = [key for _, key in reference.keys[: comparison.n]]

    if any(key not in values for key in (*arm_keys, *reference_keys)):
        comparison.state = "waiting"
        return

    differences = []
    for key, other in zip(arm_keys, reference_keys, strict=True):
        differences.append(round(values[key] - values[other], DIGITS))

    comparison.differences = summary(differences)
    strength = evidence(comparison.differences, rule.most)
    comparison.evidence = min(comparison.evidence, strength)


def _is_unlikely(comparison: Comparison, left: int, rule: Adaptive) -> bool:
    assert comparison.differences is not None
    level = last_level(ALPHA / left, rule.least, rule.most)
    return chance(comparison.differences, rule.most, level) < UNLIKELY


# What the table says


def reasons(
    layout: Layout, comparisons: Sequence[Comparison]
) -> dict[tuple[int, int], str]:
    """Return why the seeds of each cell ended where they did, by (row, column)."""
    if layout.adaptive is None:
        return {}

    words = {
        "decided": "told apart",
        "unlikely": (
            f"chance of a decision by {layout.adaptive.most} seeds below {100 * UNLIKELY:.0f} %"
        ),
        "spent": "the most seeds",
        "waiting": "waits for its seeds",
    }

    result = {}
    for cell in layout.cells:
        if cell.keys:
            result[cell.row, cell.column] = "nothing to compare with"

    reference = layout.adaptive.against
    for comparison in comparisons:
        result[reference, comparison.column] = "as many as its comparisons asked for"

    for comparison in comparisons:
        result[comparison.row, comparison.column] = words[comparison.state]

    return result


def notes(layout: Layout, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The comparisons of each column in words."""
    rule = layout.adaptive
    if rule is None:
        return

    names = [" / ".join(row) for row in layout.rows]
    yield (
        f"adaptive seeds, {rule.least} to {rule.most}: every row against {names[rule.against]},"
        " paired by seed, by a sequential t-test that may look after every seed, 5 % over the"
        " column (Holm); > and < the seeds tell the two apart, ~ they do not; intervals of the"
        " cells do not know that the number of seeds was chosen by the values"
    )

    why = reasons(layout, comparisons)

    for column, title in enumerate(layout.columns):
        texts = []
        for comparison in comparisons:
            if comparison.column == column:
                row = comparison.row
                texts.append(_text(comparison, names[row], why[row, column]))

        if texts:
            yield f"{title}, against {names[rule.against]}: {'; '.join(texts)}"


def _text(comparison: Comparison, name: str, why: str) -> str:
    if comparison.differences is None or comparison.adjusted is None:
        return f"{name} ? {comparison.n} seeds, {why}"

    mean, adjusted = comparison.differences.mean, comparison.adjusted
    if comparison.state != "decided":
        sign = "~"
    elif mean > 0:
        sign = ">"
    else:
        sign = "<"

    p = f"p {adjusted:.3f}" if adjusted >= 0.001 else "p below 0.001"
    return (
        f"{sign} {name} {percent(mean, signed=True)} ({p}, {comparison.n} seeds, {why})"
    )
