"""HTML: the table of the report page (reporting/html), alone."""

from __future__ import annotations

from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.html.page import page
from pointsweep.reporting.table import Table


def html(table: Table, options: TableOptions) -> str:
    """Return the report page without what it shows beside the table."""
    return page(table, {}, {})


FORMAT = Format(suffix="html", render=html)
