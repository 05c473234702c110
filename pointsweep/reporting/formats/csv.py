"""CSV: one line a cell, full precision; no text of it is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import TextIO

from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.results.records import Published
from pointsweep.statistics.seeds import Verdict
from pointsweep.utils.console import visible

# What a spreadsheet takes for the beginning of a formula, also in its wide forms and after blanks.
FORMULA = re.compile(r"[\t\r\n]|\s*[-=+@\uFF1D\uFF0B\uFF20\uFF0D]")
# A minus that is none of a formula: a number, or words as in "- adapter".
MINUS = re.compile(r"-\s*\d+(\.\d+)?(e[-+]?\d+)?|- [^=+*/^&|!()@<>]*", re.IGNORECASE)


def spreadsheet_text(value: object) -> object:
    """Return a field of a CSV so that every spreadsheet takes a text for a text: with an apostrophe where it needs one."""
    if not isinstance(value, str):
        return value
    shown = visible(value, keep="\n\t")
    return f"'{shown}" if FORMULA.match(shown) and not MINUS.fullmatch(shown) else shown


class _SpreadsheetWriter:
    """A CSV writer whose texts are no formulas."""

    def __init__(self, file: TextIO) -> None:
        self.writer = csv.writer(file, lineterminator="\n")

    def writerow(self, fields: Sequence[object]) -> None:
        """Write a line."""
        self.writer.writerow([spreadsheet_text(field) for field in fields])


def comma_separated(table: Table, options: TableOptions) -> str:
    """Return one line a cell, full precision, fractions."""
    out = io.StringIO()
    writer = _SpreadsheetWriter(out)
    labels = [header or f"row{i or ''}" for i, header in enumerate(table.row_headers)]
    counts = ("trainable", "trainable_without_head", "total")
    writer.writerow([
        *labels, "column", "metric", "protocol", "mean", "sd", "n", "expected", "low", "high", "values", *counts,
        "published", "published_params_m", "source", "marks", "status", "reason", "interval", "verdict", "verdict_reason",
        "verdict_difference", "verdict_low", "verdict_high", "verdict_margin",
    ])  # fmt: skip
    for cell in table.cells:
        published = cell.published or Published(None, None, "")
        reason = cell.excluded or "; ".join(f"seed {seed}: {why}" for seed, why in cell.failures)
        writer.writerow([
            *table.rows[cell.row], table.columns[cell.column], table.metric, table.protocol, cell.mean, cell.sd, cell.n,
            cell.expected, cell.low, cell.high, " ".join(f"{seed}:{value!r}" for seed, value in cell.values),
            *((cell.parameters or {}).get(kind) for kind in counts), published.value, published.params_m, published.source,
            "; ".join(cell.marks), cell.status, reason, cell.interval,
            *_verdict_fields(cell.verdict),
        ])  # fmt: skip
    return out.getvalue()


def _verdict_fields(found: Verdict | None) -> tuple[object, ...]:
    if found is None:
        return ("",) * 6
    return found.kind, found.reason, found.difference, found.low, found.high, found.margin


FORMAT = Format(suffix="csv", render=comma_separated)
