"""Plain text: for a terminal of any width and encoding, and for a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from pointsweep.reporting.cell_text import footnotes, grid, headline
from pointsweep.reporting.formats.base import DEFAULTS, Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import (
    columns_of,
    encodable,
    encoding_of,
    left,
    one_line,
    right,
    width,
    wrapped,
)

WIDTH = 118  # of the sentences in a file; a terminal has its own width
NARROWEST = 12  # cells that a row's label keeps beside a wide column


def render_for(stream: TextIO, table: Table, options: TableOptions = DEFAULTS) -> str:
    """Return the table as text for a stream: as wide as its terminal, with the signs that it can
    show.
    """
    return text(table, columns_of(stream), encoding_of(stream), options)


def render_here(table: Table, options: TableOptions = DEFAULTS) -> str:
    """Return the table as text for standard output."""
    return render_for(sys.stdout, table, options)


def text(
    table: Table,
    columns: int | None = None,
    encoding: str = "utf-8",
    options: TableOptions = DEFAULTS,
) -> str:
    """Return the table as plain text; of a terminal's `columns` what does not fit side by side is
    printed below.
    """

    def shown(value: str) -> str:
        return encodable(one_line(value), encoding)

    size = columns or WIDTH
    lines = [[shown(value) for value in line] for line in grid(table, options.without)]
    tops = [shown(column) for column in table.columns]
    blocks = _blocks(lines, len(table.row_headers), tops, columns)
    head = [table.title, headline(table, options.without)]
    parts = [_sentences([shown(line) for line in head], size), *blocks]
    if options.notes:
        parts.append(_sentences([shown(line) for line in footnotes(table)], size))
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def half_filled(table: Table, columns: int, encoding: str) -> list[str]:
    """Return the lines of a table that is not finished, for a terminal: without the sentences under
    it.
    """

    def shown(value: str) -> str:
        return encodable(one_line(value), encoding)

    lines = [[shown(value) for value in line] for line in grid(table)]
    blocks = _blocks(
        lines, len(table.row_headers), [shown(column) for column in table.columns], columns
    )
    made = wrapped(shown(f"{table.title}: {table.metric} in %"), columns)
    for block in blocks:
        made += ["", *block]
    return made


def _sentences(lines: Sequence[str], size: int) -> list[str]:
    found = []
    for line in lines:
        found += wrapped(line, size)
    return found


def _blocks(
    lines: Sequence[Sequence[str]], labels: int, tops: Sequence[str], size: int | None
) -> list[list[str]]:
    """Lay a grid out in blocks of at most `size` cells, each with the rows' labels; in one block
    without a size.

    `tops` are the headings over the grid's columns after its `labels`, which they share evenly.
    """
    columns = list(zip(*lines, strict=True))
    each = (len(columns) - labels) // len(tops)
    numbers = [columns[labels + i * each : labels + (i + 1) * each] for i in range(len(tops))]
    parts = [
        _Part(top, _side_by_side(mine, right)) for top, mine in zip(tops, numbers, strict=True)
    ]
    if size is None:
        return [_block(_labels(columns[:labels]), parts)]
    widest = max(part.size for part in parts)
    names = _labels(columns[:labels], max(size - widest - GAP, NARROWEST))
    if names.size + GAP + widest > size:
        # Not even one column fits beside the labels: its numbers go below each other too.
        parts = [
            _Part(top, list(one)) for top, mine in zip(tops, numbers, strict=True) for one in mine
        ]
    blocks: list[list[_Part]] = []
    left_over = 0
    for part in parts:
        if GAP + part.size > left_over:
            blocks.append([])
            left_over = size - names.size
        blocks[-1].append(part)
        left_over -= GAP + part.size
    return [_block(names, block) for block in blocks]


GAP = 4  # cells before a column's first number


class _Part:
    """Some of a table's columns: a heading over them, and a line for the second heading and each
    row, all of one width.
    """

    def __init__(self, top: str, lines: Sequence[str]) -> None:
        self.size = max(width(top), *(width(line) for line in lines))
        self.top = left(top, max(width(line) for line in lines))
        self.lines = [right(line, self.size) for line in lines]


class _Labels:
    """The rows' labels: some lines for the heading and for each row, all of one width."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.rows = rows
        self.size = max(width(line) for row in rows for line in row)


def _labels(columns: Sequence[Sequence[str]], size: int | None = None) -> _Labels:
    """Lay the columns of labels side by side; where they take more than `size` cells the widest are
    wrapped.
    """
    between = 2 * (len(columns) - 1)
    widths = [max(map(width, column)) for column in columns]
    while size is not None and sum(widths) + between > size and max(widths) > NARROWEST // 2:
        widths[widths.index(max(widths))] -= 1
    rows = []
    for labels in zip(*columns, strict=True):
        parts = [
            wrapped(label, width) if label else [""]
            for label, width in zip(labels, widths, strict=True)
        ]
        height = max(map(len, parts))
        filled = [[*part, *[""] * (height - len(part))] for part in parts]
        lines = []
        for line in zip(*filled, strict=True):
            lines.append(
                "  ".join(left(label, width) for label, width in zip(line, widths, strict=True))
            )
        rows.append(lines)
    return _Labels(rows)


def _block(names: _Labels, parts: Sequence[_Part]) -> list[str]:
    """Some columns with the rows' labels: labels left, numbers right, a wider gap before each
    column's first number.
    """
    gap = " " * GAP
    first = gap.join([" " * names.size, *(part.top for part in parts)]).rstrip()
    body: list[str] = []
    for number, labels in enumerate(names.rows):
        numbers = gap.join(part.lines[number] for part in parts)
        body.append(f"{labels[0]}{gap}{numbers}".rstrip())
        body += [label.rstrip() for label in labels[1:]]
    heading = body[: len(names.rows[0])]
    rule = "-" * max(map(width, [first, *body]))
    return [first, *heading, rule, *body[len(heading) :]]


def _side_by_side(
    columns: Sequence[Sequence[str]], aligned: Callable[[str, int], str]
) -> list[str]:
    """Columns -> lines, each column as wide as its widest text."""
    widths = [max(map(width, column)) for column in columns]
    filled = []
    for column, size in zip(columns, widths, strict=True):
        filled.append([aligned(value, size) for value in column])
    return ["  ".join(line) for line in zip(*filled, strict=True)]


def render(table: Table, options: TableOptions) -> str:
    """Return the table as it stands in a file."""
    return text(table, options=options)


FORMAT = Format(suffix="txt", render=render, options=("notes", "without"))
