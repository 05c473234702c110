"""What a table shows of its cells, as text: words and numbers that all output formats share.

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
    return METRICS[name].title if name in METRICS else name.replace("_", " ")


def accuracy(cell: TableCell) -> str:
    """Return "81.2 ± 0.4", with n where seeds are missing."""
    if cell.mean is None:
        return instead_of_a_mean(cell)
    spread = f"± {percent(cell.sd)}" if cell.sd is not None else ""
    seeds = num_seeds(cell)
    number = f"({seeds})" if seeds else ""
    return " ".join(part for part in (percent(cell.mean), spread, number) if part)


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
    return f"{decimals(number, 1, shift=-3)}k" if number >= 1000 else str(number)


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
        return f"{decimals(number, self.digits, shift=-self.power)}{self.letter}" if number else "0"


def unit(cells: Sequence[TableCell]) -> Unit:
    """Return one unit for the cells of a column: millions where one has them or the paper prints
    them, else thousands.

    As many decimals as show the smallest, but no more than three for its sake alone.
    """
    counts = [number for cell in cells if (number := trained(cell))]
    if not counts:
        return Unit("", 0, 0)
    in_paper = any(
        cell.published is not None and cell.published.params_m is not None for cell in cells
    )
    letter, power, most = ("M", 6, 3) if in_paper or max(counts) >= 10**6 else ("k", 3, 1)
    if max(counts) < 1000 and not in_paper:
        return Unit("", 0, 0)
    # the decimal of the smallest count's first digit
    leading = math.ceil(power - math.log10(min(counts)))
    return Unit(letter, power, max(min(leading + 2, most), leading, 1))


def paper(cell: TableCell) -> tuple[str, str]:
    """The published value and parameter count, as printed there (papers print at least one decimal,
    and so does str).
    """
    if cell.published is None:
        return "", ""
    value, params = cell.published.value, cell.published.params_m
    return "" if value is None else str(float(value)), "" if params is None else f"{float(params)}M"


def symbols(table: Table) -> dict[str, str]:
    """A footnote symbol for each mark that some cells have and others do not."""
    marks = [set(cell.marks) for cell in table.cells if cell.values]
    if not marks:
        return {}
    partial = sorted(marks[0].union(*marks) - marks[0].intersection(*marks))
    return {
        mark: SYMBOLS[i % len(SYMBOLS)] * (1 + i // len(SYMBOLS)) for i, mark in enumerate(partial)
    }


def marked(table: Table, cell: TableCell, known: Mapping[str, str] | None = None) -> str:
    """The accuracy with the symbols of its footnotes; who shows many cells hands in the table's
    symbols.
    """
    found = symbols(table) if known is None else known
    return accuracy(cell) + "".join(
        symbol for mark, symbol in found.items() if mark in cell.marks and cell.values
    )


def headline(table: Table, without: Collection[str] = ()) -> str:
    """Return protocol and unit in one line."""
    params = "" if "params" in without else "; params: trainable, without the head"
    return (
        f"{table.metric} in %, protocol: {PROTOCOLS[table.protocol]}, {over_seeds(table)}{params}"
    )


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
    yield from (f"{symbol} {mark}" for mark, symbol in symbols(table).items())
    filled = [cell for cell in table.cells if cell.values]
    everywhere = sorted({mark for cell in filled for mark in cell.marks} - symbols(table).keys())
    if everywhere:
        yield f"all cells: {', '.join(everywhere)}"
    yield from comparison_notes(table)
    yield from object_notes(table)
    optimism = [cell.optimism for cell in filled if cell.optimism is not None]
    if optimism:
        verb = "adds" if table.protocol == "best_test" else "would add"
        mean = percent(sum(sorted(optimism)) / len(optimism), signed=True)
        yield (
            f"choosing the epoch on the test set {verb} {mean} over the last epoch, in the mean of"
            " the cells"
        )
    yield from (
        f"— {table.place(cell)}: {cell.excluded}"
        for cell in table.cells
        if cell.excluded is not None
    )
    yield from (
        f"failed: {table.place(cell)}, seed {seed}: {why}"
        for cell in table.cells
        for seed, why in cell.failures
    )
    yield from survivor_note(table)
    for cell in filled:
        known = {seed for seed, _ in (*cell.values, *cell.failures)}
        if absent := [str(seed) for seed, _ in cell.keys if seed not in known]:
            yield f"not finished: {table.place(cell)}, seed {', '.join(absent)}"
    sources = sorted({cell.published.source for cell in table.cells if cell.published})
    if sources:
        yield f"paper: {'; '.join(sources)}"
    yield from verdict_notes(table)
    yield from table.notes


# of a sub-column: its title, and what it shows of a cell
Heading = tuple[str, Callable[[TableCell], str]]


def headings(table: Table, without: Collection[str] = ()) -> list[Heading]:
    """Return the sub-columns of every column, but for some; those of the paper only where it
    printed something.
    """
    known = symbols(table)
    units = [
        unit([cell for cell in table.cells if cell.column == column])
        for column in range(len(table.columns))
    ]
    found: list[Heading] = [
        (measure(table), lambda cell: marked(table, cell, known)),
        ("params", lambda cell: units[cell.column].shown(trained(cell))),
    ]
    if any(paper(cell)[0] for cell in table.cells):
        found.append(("paper", lambda cell: paper(cell)[0]))
    if any(paper(cell)[1] for cell in table.cells):
        found.append(("paper params", lambda cell: paper(cell)[1]))
    return [heading for heading in found if heading[0] not in without]


def grid(table: Table, without: Collection[str] = ()) -> list[list[str]]:
    """Return the second heading row and the body, as strings."""
    subs = headings(table, without)
    columns = range(len(table.columns))
    second = list(table.row_headers) + [title for _ in columns for title, _ in subs]
    cells = {(cell.row, cell.column): cell for cell in table.cells}
    lines = [second]
    for number, row in enumerate(table.rows):
        shown = [show(cells[number, column]) for column in columns for _, show in subs]
        lines.append([*row, *shown])
    return lines
