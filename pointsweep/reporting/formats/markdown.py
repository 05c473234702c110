"""Markdown, as GitHub reads it."""

from __future__ import annotations

import re

from pointsweep.reporting.cell_text import footnotes, grid, headings, headline
from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import one_line

SPECIAL = re.compile(r"([\\|*_<>`~#$&\[\]])")
LIST_ITEM = re.compile(r"^(\d+(?=[.)])|(?=[-+]))")  # a number or a bullet, which would make a list within the list of notes


def escaped(value: str) -> str:
    """Return a text so that Markdown shows it as it is."""
    return SPECIAL.sub(r"\\\1", " ".join(one_line(value).split()))


def markdown(table: Table, options: TableOptions) -> str:
    """Return the table; the column's name stands before every sub-column's."""
    titles = [title for title, _ in headings(table)]
    heads = list(table.row_headers)
    for column in table.columns:
        heads += [f"{column} {title}" for title in titles]
    rule = ["---"] * len(table.row_headers) + ["---:"] * (len(table.columns) * len(titles))

    rows = [[escaped(value) for value in heads], rule]
    rows += [[escaped(value) for value in row] for row in grid(table)[1:]]
    lines = [f"**{escaped(table.title)}**", "", escaped(headline(table)), ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]

    notes = footnotes(table) if options.notes else []
    if notes:
        lines.append("")
    for note in notes:
        item = LIST_ITEM.sub(r"\1\\", escaped(note))
        lines.append(f"- {item}")
    return "\n".join(lines) + "\n"


FORMAT = Format(suffix="md", render=markdown, options=("notes",))
