"""Interface of an output format: a file ending, and a function that makes of a table what stands in
the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pointsweep.reporting.table import Table


@dataclass(frozen=True)
class TableOptions:
    """Options of a printed table. A format lists in `Format.options` which of these it heeds."""

    # which cells are shown as the best and the second: best_cells.MARKS
    mark: str = "tests"
    notes: bool = True  # what a reader must know beside the numbers, under the table
    label: str = ""  # by which a paper refers to the table
    # the sub-columns that are left out: params, paper, paper params
    without: tuple[str, ...] = ()


DEFAULTS = TableOptions()


@dataclass(frozen=True)
class Format:
    """An output format. `render` gives the same for the same table and options: text, or the bytes
    of a binary format.

    What is `stored` is written at the end of every launch, as table.SUFFIX, and lies in bundles.
    """

    suffix: str
    render: Callable[[Table, TableOptions], str | bytes]
    options: tuple[str, ...] = ()
    stored: bool = True

    def unheeded(self, options: TableOptions) -> list[str]:
        """Return the options that were chosen and that this format does not heed."""
        names = []
        for field in fields(options):
            is_chosen = getattr(options, field.name) != getattr(DEFAULTS, field.name)
            if is_chosen and field.name not in self.options:
                names.append(field.name)

        return names
