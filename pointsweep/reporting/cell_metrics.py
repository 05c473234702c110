"""A table as plain names and numbers, as a tracker keeps them beside the runs of its trials."""

from __future__ import annotations

import re

from pointsweep.reporting.best_cells import best_mean
from pointsweep.reporting.table import Table

LONGEST = 240  # characters of a name


def cell_metrics(table: Table) -> dict[str, float]:
    """Return the best mean of a table, and of each cell mean/ROW/COLUMN, sd/ROW/COLUMN and
    n/ROW/COLUMN. Accuracies are fractions.

    Characters that a tracker refuses in a name become _; names that are then the same are numbered.
    """
    metrics: dict[str, float] = {}
    best = best_mean(table)

    if best is not None and best.mean is not None:
        metrics["best_mean"] = best.mean

    for cell in table.cells:
        if cell.mean is None:
            continue

        row = _plain(" ".join(table.rows[cell.row]))
        column = _plain(table.columns[cell.column])
        name = f"{row}/{column}"[:LONGEST]
        number = 1

        while f"mean/{name}" in metrics:
            number += 1
            name = f"{name.removesuffix(f' {number - 1}')} {number}"

        metrics[f"mean/{name}"] = cell.mean
        metrics[f"n/{name}"] = float(cell.n)
        if cell.sd is not None:
            metrics[f"sd/{name}"] = cell.sd

    return metrics


def _plain(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-. ]", "_", label).strip(". ") or "_"
