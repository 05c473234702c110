"""A table without some of its columns, or without some of what every column shows, as a paper
leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pointsweep.errors import unknown
from pointsweep.reporting.cell_text import headings
from pointsweep.reporting.table import Table


def left_out(table: Table, names: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """Return the table without the named columns, and those names that are of sub-columns. Raises
    ValueError.

    Tests and intervals stay those of the whole table: they hold for all of its comparisons at once,
    so for the rest too.
    """
    shown = [title for title, _ in headings(table)]
    for name in names:
        if name not in table.columns and name not in shown:
            raise ValueError(
                f"--drop: {unknown('column', name, [*table.columns, *shown], 'Allowed')}"
            )

    columns = [i for i, title in enumerate(table.columns) if title not in names]
    # A name that is both a column's and a sub-column's is the column's.
    dropped = set(names).difference(table.columns)
    without = tuple(title for title in shown if title in dropped)

    if not columns or len(without) == len(shown):
        raise ValueError("--drop: nothing of the table is left")

    return _of_columns(table, columns), without


def _of_columns(table: Table, columns: Sequence[int]) -> Table:
    """Return the table with these columns alone; families that compare columns stay if all of
    theirs do.
    """
    if len(columns) == len(table.columns):
        return table

    new_number = {column: number for number, column in enumerate(columns)}
    cells = []
    for cell in table.cells:
        if cell.column in new_number:
            cells.append(replace(cell, column=new_number[cell.column]))

    titles = [table.columns[column] for column in columns]
    families = []
    for number, family in enumerate(table.comparisons):
        if number < len(table.columns):  # a family of one column's rows
            stays = number in new_number
        else:
            stays = set(titles).issuperset(family.arms)

        if stays:
            families.append(family)

    models = table.models
    if models:
        models = tuple(models[column] for column in columns)

    return replace(
        table,
        columns=tuple(titles),
        cells=tuple(cells),
        comparisons=tuple(families),
        models=models,
    )
