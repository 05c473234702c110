"""Text of a table's cells: words and numbers that all output formats share.

Numbers are fractions everywhere but here and in footnotes.py, which print percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pointsweep.reporting.footnotes import (
    comparison_notes,
    object_notes,
    survivor_note,
    verdict_notes,
)
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import METRICS
from pointsweep.utils.console import visible
from pointsweep.utils.numbers import decimals, percent

SYMBOLS = "*†‡§¶"
PROTOCOLS = {
    "last": "last epoch",
    "best_val": "best epoch on validation",
    "best_test": "best epoch on the test set",
}


def measure(table: Table) -> str:
    """The metric without its split, in words: accuracy, instance miou."""
    name = table.metric.rpartition("/")[2]
    if name in METRICS:
        return METRICS[name].title

    return name.replace("_", " ")


def accuracy(cell: TableCell) -> str:
    """Return "81.2 ± 0.4", with n where seeds are missing."""
    if cell.mean is None:
        return instead_of_a_mean(cell)

    parts = [percent(cell.mean)]
    if cell.sd is not None:
        parts.append(f"± {percent(cell.sd)}")

    seeds = num_seeds(cell)
    if seeds:
        parts.append(f"({seeds})")

    return " ".join(parts)


def instead_of_a_mean(cell: TableCell) -> str:
    """Return what stands in a cell without a value: a dash, "failed", or "0/3" of the seeds."""
    if cell.excluded is not None:
        return "—"

    return "failed" if cell.failures else f"0/{cell.expected}"


def num_seeds(cell: TableCell) -> str:
    """Return "n=1/3" where seeds are missing, "n=5" where their number was chosen by the values,
    else nothing.
    """
    if cell.n < cell.expected:
        return f"n={cell.n}/{cell.expected}"

    return f"n={cell.n}" if cell.stopped else ""


def count(number: int | None) -> str:
    """A number of parameters by itself: 948,312 -> 0.948M, 12,345 -> 12.3k."""
    if number is None:
        return ""
    if number >= 10_000_000:
        return f"{decimals(number, 1, shift=-6)}M"
    if number >= 100_000:
        return f"{decimals(number, 3, shift=-6)}M"
    if number >= 1000:
        return f"{decimals(number, 1, shift=-3)}k"

    return str(number)


def trained(cell: TableCell) -> int | None:
    """The trainable parameters without the head."""
    return cell.parameters["trainable_without_head"] if cell.parameters else None


@dataclass(frozen=True)
class Unit:
    """Unit that the parameters of one column are printed in: a letter, the power of ten it stands
    for, and decimals.
    """

    letter: str
    power: int
    digits: int

    def shown(self, number: int | None) -> str:
        """Return a number of parameters in this unit; what is zero, or not known, without it."""
        if number is None:
            return ""
        if number == 0:
            return "0"

        return f"{decimals(number, self.digits, shift=-self.power)}{self.letter}"


def unit(cells: Sequence[TableCell]) -> Unit:
    """Return one unit for the cells of a column: millions where one has them or the paper prints
    them, else thousands.

    As many decimals as show the smallest, but no more than three for its sake alone.
    """
    counts = []
    in_paper = False

    for cell in cells:
        number = trained(cell)
        if number:
            counts.append(number)

        if cell.published is not None and cell.published.params_m is not None:
            in_paper = True

    if not counts:
        return Unit("", 0, 0)

    if in_paper or max(counts) >= 10**6:
        letter = "M"
        power = 6
        most_digits = 3
    elif max(counts) >= 1000:
        letter = "k"
        power = 3
        most_digits = 1
    else:
        return Unit("", 0, 0)

    # the decimal of the smallest count's first digit
    leading = math.ceil(power - math.log10(min(counts)))
    return Unit(letter, power, max(min(leading + 2, most_digits), leading, 1))


def paper(cell: TableCell) -> tuple[str, str]:
    """The published value and parameter count, as printed there (papers print at least one decimal,
    and so does str).
    """
    value = params = ""
    if cell.published is not None and cell.published.value is not None:
        value = str(float(cell.published.value))

    if cell.published is not None and cell.published.params_m is not None:
        params = f"{float(cell.published.params_m)}M"

    return value, params


def symbols(table: Table) -> dict[str, str]:
    """A footnote symbol for each mark that some cells have and others do not."""
    marks = [set(cell.marks) for cell in table.cells if cell.values]
    if not marks:
        return {}

    everywhere = set.intersection(*marks)
    partial = sorted(set.union(*marks) - everywhere)
    symbol_of = {}

    for i, mark in enumerate(partial):
        repeats = 1 + i // len(SYMBOLS)
        symbol_of[mark] = SYMBOLS[i % len(SYMBOLS)] * repeats

    return symbol_of


def marked(
    table: Table, cell: TableCell, known: Mapping[str, str] | None = None
) -> str:
    """The accuracy with the symbols of its footnotes; who shows many cells hands in the table's
    symbols.
    """
    symbol_of = symbols(table) if known is None else known
    shown = accuracy(cell)

    if cell.values:
        for mark, symbol in symbol_of.items():
            if mark in cell.marks:
                shown += symbol

    return shown


def headline(table: Table, without: Collection[str] = ()) -> str:
    """Return protocol and unit in one line."""
    params = "" if "params" in without else "; params: trainable, without the head"
    protocol = PROTOCOLS[table.protocol]
    return f"{table.metric} in %, protocol: {protocol}, {over_seeds(table)}{params}"


def over_seeds(table: Table) -> str:
    """Return over how many seeds the means are, in words."""
    seeds = sorted({cell.expected for cell in table.cells if cell.expected})
    if not seeds:
        return "no trials"
    if seeds == [1]:
        return "one seed, so no sd"

    return f"mean ± sd over {' or '.join(map(str, seeds))} seeds"


def footnotes(table: Table) -> list[str]:
    """Everything a reader must know beside the numbers, in a fixed order, one line each."""
    return [visible(" ".join(line.split())) for line in _notes(table)]


def _notes(table: Table) -> Iterator[str]:
    symbol_of = symbols(table)
    for mark, symbol in symbol_of.items():
        yield f"{symbol} {mark}"

    marks: set[str] = set()
    optimism = []
    for cell in table.cells:
        if cell.values:
            marks.update(cell.marks)
            if cell.optimism is not None:
                optimism.append(cell.optimism)

    everywhere = sorted(marks - symbol_of.keys())
    if everywhere:
        yield f"all cells: {', '.join(everywhere)}"

    yield from comparison_notes(table)
    yield from object_notes(table)

    if optimism:
        verb = "adds" if table.protocol == "best_test" else "would add"
        # Sorted: the sum of floats depends on their order, the note must not on the cells'.
        mean = percent(sum(sorted(optimism)) / len(optimism), signed=True)
        yield (
            f"choosing the epoch on the test set {verb} {mean} over the last epoch, in the mean of"
            " the cells"
        )

    yield from _missing_notes(table)

    sources = sorted({cell.published.source for cell in table.cells if cell.published})
    if sources:
        yield f"paper: {'; '.join(sources)}"

    yield from verdict_notes(table)
    yield from table.notes


def _missing_notes(table: Table) -> Iterator[str]:
    """Yield the cells and seeds that have no value: excluded, failed or not finished."""
    for cell in table.cells:
        if cell.excluded is not None:
            yield f"— {table.cell_name(cell)}: {cell.excluded}"

    for cell in table.cells:
        for seed, reason in cell.failures:
            yield f"failed: {table.cell_name(cell)}, seed {seed}: {reason}"

    yield from survivor_note(table)
    for cell in table.cells:
        ended = dict(cell.values).keys() | dict(cell.failures).keys()
        absent = [str(seed) for seed, _ in cell.keys if seed not in ended]
        if cell.values and absent:
            yield f"not finished: {table.cell_name(cell)}, seed {', '.join(absent)}"


# of a sub-column: its title, and what it shows of a cell
Heading = tuple[str, Callable[[TableCell], str]]


def headings(table: Table, without: Collection[str] = ()) -> list[Heading]:
    """Return the sub-columns of every column, but for some; those of the paper only where it
    printed something.
    """
    symbol_of = symbols(table)
    units = []

    for column in range(len(table.columns)):
        units.append(unit(table.cells_of_column(column)))

    sub_columns: list[Heading] = [
        (measure(table), lambda cell: marked(table, cell, symbol_of)),
        ("params", lambda cell: units[cell.column].shown(trained(cell))),
    ]

    prints_value = prints_params = False
    for cell in table.cells:
        value, params = paper(cell)
        prints_value = prints_value or bool(value)
        prints_params = prints_params or bool(params)

    if prints_value:
        sub_columns.append(("paper", lambda cell: paper(cell)[0]))

    if prints_params:
        sub_columns.append(("paper params", lambda cell: paper(cell)[1]))

    return [(title, show) for title, show in sub_columns if title not in without]


def grid(table: Table, without: Collection[str] = ()) -> list[list[str]]:
    """Return the second heading row and the body, as strings."""
    sub_columns = headings(table, without)
    num_columns = len(table.columns)
    titles = [title for title, _ in sub_columns]
    cells = table.cells_by_position()
    lines = [[*table.row_headers, *titles * num_columns]]

    for row, labels in enumerate(table.rows):
        line = list(labels)
        for column in range(num_columns):
            line += [show(cells[row, column]) for _, show in sub_columns]

        lines.append(line)

    return lines
