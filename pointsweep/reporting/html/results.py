"""The table of the report as its template shows it: every cell with its mark, its value for
sorting, and the runs that it opens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pointsweep.reporting.best_cells import legend, standings, tied
from pointsweep.reporting.cell_text import count, footnotes, headings, marked, symbols
from pointsweep.reporting.formats.base import DEFAULTS
from pointsweep.reporting.formats.csv import comma_separated
from pointsweep.reporting.formats.latex import latex
from pointsweep.reporting.html.comparison import commands
from pointsweep.reporting.html.sections import Section
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record
from pointsweep.utils.numbers import percent

# a sha256, of which a cell shows the first digits
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
# trials whose runs stand in the page's markup; of more, report.js writes them
MOST_OPEN = 1500
# of a seed's curve in an opened cell, and the same of a page with more trials than MOST_OPEN
CURVE_POINTS = (60, 20)
KEY = "{key}"  # in the place of a trial's key, in a link that is kept once
LEAD = "A cell opens its runs; a heading sorts by its column."
TIED = (
    "≈: shares the first place of its column, "
    "the tests do not tell it apart from the highest mean"
)


@dataclass(frozen=True)
class Run:
    """One trial in an opened cell: its lines, its key, and the page of its run in MLflow."""

    seed: int
    lines: tuple[str, ...]
    key: str
    bad: bool = False
    link: str = ""


@dataclass(frozen=True)
class ShownCell:
    """A cell: its words, the number that it is sorted by, its mark, and what it opens."""

    words: str
    value: float | None
    place: str  # best, second, tied or nothing
    bad: bool
    interval: str
    beside: tuple[str, ...]  # what the further sub-columns show
    runs: tuple[Run, ...] = ()
    commands: tuple[str, ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()  # the metric by epoch, of every seed


def results(
    table: Table,
    records: Mapping[str, Record],
    links: Mapping[str, str],
    curves: Mapping[str, Sequence[float]],
) -> Section:
    """Return the section of the table."""
    num_trials = sum(len(cell.keys) for cell in table.cells)
    by_script = num_trials > MOST_OPEN  # then report.js writes the runs
    rows = []
    opened = []

    for labels, cells in _rows(table, records, links, curves, CURVE_POINTS[by_script]):
        rows.append((labels, cells))
        opened += [cell for cell in cells if cell.runs]

    cell_curves = [cell.curves for cell in opened]
    values: dict[str, Any] = {
        "table": table,
        "subs": [name for name, _ in headings(table)],
        "rows": rows,
        "notes": footnotes(table),
        "legend": _legend(table),
        "later": by_script,
        "runs": _packed_runs(opened) if by_script else {},
        "curves": cell_curves if any(cell_curves) else [],
        "exports": {
            f"{table.name}.csv": comma_separated(table, DEFAULTS),
            f"{table.name}.tex": latex(table, DEFAULTS),
        },
    }

    return Section(
        "results", "Results", LEAD if records else "", "results.html", values
    )


def _legend(table: Table) -> str:
    sentences = []
    marks = legend(table, "tests", "coloured")
    if marks:
        sentences.append(marks)

    if tied(table):
        sentences.append(TIED)

    return "; ".join(sentences)


def _rows(
    table: Table,
    records: Mapping[str, Record],
    links: Mapping[str, str],
    curves: Mapping[str, Sequence[float]],
    most_points: int,
) -> Iterator[tuple[tuple[str, ...], list[ShownCell]]]:
    cells = table.cells_by_position()
    ranks = standings(table, "tests") | dict.fromkeys(tied(table), "tied")
    symbol_of = symbols(table)
    _, *sub_columns = headings(table)

    for row, labels in enumerate(table.rows):
        shown = []
        for column in range(len(table.columns)):
            cell = cells[row, column]
            shown_cell = ShownCell(
                words=marked(table, cell, symbol_of),
                value=cell.mean,
                place=ranks.get((row, column), ""),
                bad=bool(cell.failures),
                interval=_interval(cell),
                beside=tuple(show(cell) for _, show in sub_columns),
            )
            if cell.keys and records:
                shown_cell = replace(
                    shown_cell,
                    runs=tuple(_runs(table, cell, records, links)),
                    commands=tuple(commands(table, cell).strip().splitlines()),
                    curves=tuple(_curves(cell, curves, most_points)),
                )

            shown.append(shown_cell)

        yield labels, shown


def _packed_runs(cells: Sequence[ShownCell]) -> dict[str, Any]:
    """Return what report.js writes when a cell opens. Most lines stand in many trials: each is
    kept once, and a trial has their numbers.
    """
    numbers: dict[str, int] = {}

    def number(line: str) -> int:
        return numbers.setdefault(line, len(numbers))

    packed = []
    for cell in cells:
        runs = []
        for run in cell.runs:
            lines = [number(line) for line in run.lines]
            values = [run.seed, run.key, lines, int(run.bad)]
            if run.link:
                values.append(number(run.link.replace(run.key, KEY)))

            runs.append(values)

        packed.append([cell.interval, runs, cell.commands])

    return {"lines": list(numbers), "cells": packed}


def _curves(
    cell: TableCell, curves: Mapping[str, Sequence[float]], most_points: int
) -> Iterator[dict[str, Any]]:
    """Yield the metric by epoch of each seed with two epochs: every `step`-th value up to the
    epoch `last`, in hundredths of a percent.
    """
    for seed, key in cell.keys:
        values = curves.get(key, ())
        if len(values) < 2 or not all(map(math.isfinite, values)):
            continue

        step = math.ceil(len(values) / most_points)
        every_step = values[::-1][::step][::-1]  # counted from the last one
        shown = [round(10_000 * value) for value in every_step]
        yield {"seed": seed, "last": len(values), "step": step, "values": shown}


def _interval(cell: TableCell) -> str:
    if cell.low is None:
        return ""

    kind = "t-interval of the mean"
    if cell.interval == "objects":
        kind = "interval over the test objects (Wilson; one seed)"

    return f"95 % {kind}: {percent(cell.low)} to {percent(cell.high)}"


def _runs(
    table: Table,
    cell: TableCell,
    records: Mapping[str, Record],
    links: Mapping[str, str],
) -> Iterator[Run]:
    failure_of = dict(cell.failures)
    for seed, key in cell.keys:
        link = links.get(key, "")
        if key in records:
            lines = tuple(_lines(records[key], table.metric))
            yield Run(seed, lines, key, link=link)
        else:
            reason = failure_of.get(seed, "not finished")
            yield Run(seed, (reason,), key, bad=True, link=link)


def _lines(record: Record, metric: str) -> Iterator[str]:
    """Yield a trial's value by every protocol, its parameters and where it comes from."""
    values = []
    for protocol in sorted(record.metrics, key=lambda name: (name != "last", name)):
        metrics = record.metrics[protocol]
        if metric in metrics:
            epoch = int(metrics["epoch"])
            values.append(f"{protocol} {percent(metrics[metric])} (epoch {epoch})")

    yield ", ".join(values)

    seconds = ""
    if "total" in record.seconds:
        seconds = f"; {record.seconds['total']:.0f} s"

    sizes = record.parameters
    yield (
        f"{count(sizes['trainable'])} trained, {count(sizes['trainable_without_head'])} without the"
        f" head, of {count(sizes['total'])}{seconds}"
    )

    weights = DIGEST.sub(r"\1", record.weights_origin)
    yield f"weights: {weights}; data: {record.dataset['digest'][:12]}; code: {code(record)}"


def code(record: Record) -> str:
    """Return the commit (12 hex digits, "+" if files differed from it) and the tree's digest, as
    far as the record has them.
    """
    commit = record.origin.get("code", "unknown")
    if len(commit) >= 40:
        is_changed = commit.endswith("+")
        commit = f"{commit[:12]}+" if is_changed else commit[:12]

    if commit.startswith("tree") or "tree" not in record.origin:
        return commit

    return f"{commit}, tree {record.origin['tree']}"
