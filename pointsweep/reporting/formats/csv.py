"""CSV: one line a cell, full precision; no text of it is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import TextIO

from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.frames import label_columns
from pointsweep.reporting.table import Table
from pointsweep.results.records import Published
from pointsweep.statistics.seeds import Verdict
from pointsweep.utils.console import visible

COUNTS = ("trainable", "trainable_without_head", "total")
COLUMNS = (
    "column",
    "metric",
    "protocol",
    "mean",
    "sd",
    "n",
    "expected",
    "low",
    "high",
    "values",
    *COUNTS,
    "published",
    "published_params_m",
    "source",
    "marks",
    "status",
    "reason",
    "interval",
    "verdict",
    "verdict_reason",
    "verdict_difference",
    "verdict_low",
    "verdict_high",
    "verdict_margin",
)
# What a spreadsheet takes for the beginning of a formula, also in its wide forms and after blanks.
FORMULA = re.compile(r"[\t\r\n]|\s*[-=+@\uFF1D\uFF0B\uFF20\uFF0D]")
# A minus that is none of a formula: a number, or words as in "- adapter".
MINUS = re.compile(r"-\s*\d+(\.\d+)?(e[-+]?\d+)?|- [^=+*/^&|!()@<>]*", re.IGNORECASE)


def spreadsheet_text(value: object) -> object:
    """Return a field of a CSV so that every spreadsheet takes a text for a text: with an apostrophe
    where it needs one.
    """
    if not isinstance(value, str):
        return value

    shown = visible(value, keep="\n\t")
    if FORMULA.match(shown) and not MINUS.fullmatch(shown):
        return f"'{shown}"

    return shown


class _SpreadsheetWriter:
    """A CSV writer whose texts are no formulas."""

    def __init__(self, file: TextIO) -> None:
        self.writer = csv.writer(file, lineterminator="\n")

    def writerow(self, fields: Sequence[object]) -> None:
        """Write a line."""
        self.writer.writerow([spreadsheet_text(field) for field in fields])


def cell_lines(table: Table) -> list[list[object]]:
    """Return a heading and a line for each cell: all its numbers as fractions in full precision."""
    labels = label_columns(table.row_headers)
    lines: list[list[object]] = [[*labels, *COLUMNS]]

    for cell in table.cells:
        published = cell.published or Published(None, None, "")
        values = [f"{seed}:{value!r}" for seed, value in cell.values]
        failures = [f"seed {seed}: {reason}" for seed, reason in cell.failures]
        counts = cell.parameters or {}

        line: list[object] = list(table.rows[cell.row])
        line += [table.columns[cell.column], table.metric, table.protocol]
        line += [cell.mean, cell.sd, cell.n, cell.expected]
        line += [cell.low, cell.high, " ".join(values)]
        line += map(counts.get, COUNTS)
        line += [published.value, published.params_m, published.source]
        line += ["; ".join(cell.marks), cell.status]
        line += [cell.excluded or "; ".join(failures), cell.interval]
        line += _verdict_fields(cell.verdict)
        lines.append(line)

    return lines


def comma_separated(table: Table, options: TableOptions) -> str:
    """Return one line a cell, full precision, fractions."""
    out = io.StringIO()
    writer = _SpreadsheetWriter(out)

    for line in cell_lines(table):
        writer.writerow(line)

    return out.getvalue()


def _verdict_fields(verdict: Verdict | None) -> tuple[object, ...]:
    if verdict is None:
        return ("",) * 6
    return (
        verdict.kind,
        verdict.reason,
        verdict.difference,
        verdict.low,
        verdict.high,
        verdict.margin,
    )


FORMAT = Format(suffix="csv", render=comma_separated)
