"""Markdown, as GitHub reads it."""

from __future__ import annotations

import re

from pointsweep.reporting.best_cells import legend, standings
from pointsweep.reporting.cell_text import footnotes, headings, headline, measure
from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import one_line

SPECIAL = re.compile(r"([\\|*_<>`~#$&\[\]])")
# a number or a bullet, which would make a list within the list of notes
LIST_ITEM = re.compile(r"^(\d+(?=[.)])|(?=[-+]))")
MARKUP = {"best": "**{}**", "second": "<u>{}</u>"}


def escaped(value: str) -> str:
    """Return a text so that Markdown shows it as it is."""
    return SPECIAL.sub(r"\\\1", " ".join(one_line(value).split()))


def markdown(table: Table, options: TableOptions) -> str:
    """Return the table; the column's name stands before every sub-column's."""
    titles = [title for title, _ in headings(table, options.without)]
    heads = list(table.row_headers)

    for column in table.columns:
        heads += [f"{column} {title}" for title in titles]

    num_labels = len(table.row_headers)
    rule = ["---"] * num_labels + ["---:"] * (len(heads) - num_labels)

    lines = [
        f"**{escaped(table.title)}**",
        "",
        escaped(headline(table, options.without)),
        "",
    ]

    escaped_heads = [escaped(head) for head in heads]

    for row in [escaped_heads, rule, *_body(table, options)]:
        lines.append(f"| {' | '.join(row)} |")

    if options.notes:
        lines.append("")
        for note in (legend(table, options.mark), *footnotes(table)):
            if note:
                item = LIST_ITEM.sub(r"\1\\", escaped(note))
                lines.append(f"- {item}")

    return "\n".join(lines).rstrip("\n") + "\n"


def _body(table: Table, options: TableOptions) -> list[list[str]]:
    """Return the rows, with the best and the second of each column marked."""
    shown = headings(table, options.without)
    ranks = standings(table, options.mark)
    cells = table.cells_by_position()
    body = []

    for row, labels in enumerate(table.rows):
        line = [escaped(label) for label in labels]
        for column in range(len(table.columns)):
            markup = MARKUP.get(ranks.get((row, column), ""), "{}")
            for title, show in shown:
                value = escaped(show(cells[row, column]))
                if title == measure(table):
                    value = markup.format(value)

                line.append(value)

        body.append(line)

    return body


FORMAT = Format(suffix="md", render=markdown, options=("mark", "notes", "without"))
