"""The table of the report as its template shows it: every cell with its mark, its value for
sorting, and the runs that it opens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
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
MOST_OPEN = 1500  # trials whose runs stand in the page's markup; of more, report.js writes them
LEAD = "A cell opens its runs; a heading sorts by its column."
TIED = (
    "≈: shares the first place of its column, the tests do not tell it apart from the highest mean"
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
    runs: tuple[Run, ...]
    commands: tuple[str, ...]
    beside: tuple[str, ...]  # what the further sub-columns show


def results(table: Table, records: Mapping[str, Record], links: Mapping[str, str]) -> Section:
    """Return the section of the table."""
    rows = list(_rows(table, records, links))
    later = sum(len(cell.keys) for cell in table.cells) > MOST_OPEN
    values: dict[str, Any] = {
        "table": table,
        "subs": [name for name, _ in headings(table)],
        "rows": rows,
        "notes": footnotes(table),
        "legend": _legend(table),
        "later": later,
        "runs": [asdict(cell) for _, cells in rows for cell in cells if cell.runs] if later else [],
        "exports": {
            f"{table.name}.csv": comma_separated(table, DEFAULTS),
            f"{table.name}.tex": latex(table, DEFAULTS),
        },
    }
    return Section("results", "Results", LEAD if records else "", "results.html", values)


def _legend(table: Table) -> str:
    parts = [legend(table, "tests", "coloured"), TIED if tied(table) else ""]
    return "; ".join(part for part in parts if part)


def _rows(
    table: Table, records: Mapping[str, Record], links: Mapping[str, str]
) -> Iterator[tuple[tuple[str, ...], list[ShownCell]]]:
    cells = {(cell.row, cell.column): cell for cell in table.cells}
    places = standings(table, "tests") | dict.fromkeys(tied(table), "tied")
    subs, known = headings(table)[1:], symbols(table)
    for row, labels in enumerate(table.rows):
        shown = []
        for column in range(len(table.columns)):
            cell = cells[row, column]
            opened = bool(cell.keys and records)
            shown.append(
                ShownCell(
                    marked(table, cell, known),
                    cell.mean,
                    places.get((row, column), ""),
                    bool(cell.failures),
                    _interval(cell),
                    tuple(_runs(table, cell, records, links)) if opened else (),
                    tuple(commands(table, cell).strip().splitlines()) if opened else (),
                    tuple(show(cell) for _, show in subs),
                )
            )
        yield labels, shown


def _interval(cell: TableCell) -> str:
    if cell.low is None:
        return ""
    kind = "t-interval of the mean"
    if cell.interval == "objects":
        kind = "interval over the test objects (Wilson; one seed)"
    return f"95 % {kind}: {percent(cell.low)} to {percent(cell.high)}"


def _runs(
    table: Table, cell: TableCell, records: Mapping[str, Record], links: Mapping[str, str]
) -> Iterator[Run]:
    failed = dict(cell.failures)
    for seed, key in cell.keys:
        link = links.get(key, "")
        if key in records:
            lines = tuple(_lines(records[key], table.metric))
            yield Run(seed, lines, key, link=link)
        else:
            yield Run(seed, (failed.get(seed, "not finished"),), key, bad=True, link=link)


def _lines(record: Record, metric: str) -> Iterator[str]:
    """Yield a trial's value by every protocol, its parameters and where it comes from."""
    chosen = sorted(record.metrics.items(), key=lambda item: (item[0] != "last", item[0]))
    yield ", ".join(
        f"{protocol} {percent(values[metric])} (epoch {int(values['epoch'])})"
        for protocol, values in chosen
        if metric in values
    )
    sizes = record.parameters
    seconds = f"; {record.seconds['total']:.0f} s" if "total" in record.seconds else ""
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
    short = commit[:12] + "+" * commit.endswith("+") if len(commit) >= 40 else commit
    if short.startswith("tree") or "tree" not in record.origin:
        return short
    return f"{short}, tree {record.origin['tree']}"
