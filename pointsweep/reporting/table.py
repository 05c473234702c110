"""Table and cells as plain values. `build.py` builds them, `formats` and `html` show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pointsweep.results.records import Published
from pointsweep.statistics.all_pairs import Family
from pointsweep.statistics.paired_objects import ModelTest
from pointsweep.statistics.seeds import Verdict

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TableCell:
    """One cell. `values` holds (seed, value) of the finished trials, `failures` (seed, reason) of
    those that failed.
    """

    row: int
    column: int
    mean: float | None
    sd: float | None
    n: int
    expected: int
    low: float | None
    high: float | None
    values: tuple[tuple[int, float], ...]
    keys: tuple[tuple[int, str], ...]
    failures: tuple[tuple[int, str], ...] = ()
    parameters: Mapping[str, int] | None = None
    published: Published | None = None
    excluded: str | None = None
    marks: tuple[str, ...] = ()
    optimism: float | None = None  # mean of best_test minus mean of last
    # what `low` and `high` are: "seeds" (t-interval of the mean), "objects" (Wilson, of one seed)
    # or nothing
    interval: str = ""
    verdict: Verdict | None = None  # on the published value
    unjudged: str = ""  # why there is no verdict on the published value
    stopped: str = ""  # of adaptive seeds: why there are so many

    @property
    def status(self) -> str:
        """complete, incomplete, failed or excluded."""
        if self.excluded is not None:
            return "excluded"
        if self.failures:
            return "failed"

        return "complete" if self.n == self.expected else "incomplete"


def cells_by_column(cells: Iterable[TableCell]) -> dict[int, list[TableCell]]:
    """Return the cells of each column that has any, in their order. One pass: a table may have a
    thousand columns and a hundred thousand cells.
    """
    columns: dict[int, list[TableCell]] = {}
    for cell in cells:
        columns.setdefault(cell.column, []).append(cell)

    return columns


@dataclass(frozen=True)
class Table:
    """Table to be printed."""

    name: str
    title: str
    metric: str
    protocol: str
    row_headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[TableCell, ...]
    # the rows of each column, then the columns; none where seeds are adaptive
    comparisons: tuple[Family, ...] = ()
    notes: tuple[str, ...] = ()
    # one entry a column: the rows in that order, object by object
    models: tuple[tuple[ModelTest, ...], ...] = ()
    per_hour: float | None = None  # the price of an hour of one device

    def cell(self, row: int, column: int) -> TableCell:
        """The cell of a row and a column."""
        for cell in self.cells:
            if cell.row == row and cell.column == column:
                return cell

        raise LookupError(f"no cell in row {row}, column {column}")

    def cells_of_column(self, column: int) -> list[TableCell]:
        """Return the cells of a column, in the order of the rows."""
        return list(self._cells_by_column.get(column, ()))

    @cached_property
    def _cells_by_column(self) -> dict[int, list[TableCell]]:
        return cells_by_column(self.cells)

    def cells_by_position(self) -> dict[tuple[int, int], TableCell]:
        """Return the cells by row and column."""
        return {(cell.row, cell.column): cell for cell in self.cells}

    def row_names(self) -> list[str]:
        """Return the name of every row: its labels, joined."""
        return [" / ".join(labels) for labels in self.rows]

    def trial_keys(self) -> list[str]:
        """Return the keys of all trials that the cells show, each once, sorted."""
        keys: set[str] = set()
        for cell in self.cells:
            keys.update(key for _, key in cell.keys)

        return sorted(keys)

    def cell_name(self, cell: TableCell) -> str:
        """Return a cell's name, "row / column"."""
        return " / ".join((*self.rows[cell.row], self.columns[cell.column]))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table with a line each cell (frames.py describes the columns). Accuracies are
        fractions.
        """
        from pointsweep.reporting.frames import table_frame

        return table_frame(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from pointsweep.reporting.frames import notebook_html

        return notebook_html(self)
