"""Plain text: for a terminal of any width and encoding, and for a file."""

from __future__ import annotations

import itertools
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
    size = columns or WIDTH
    head = [table.title, headline(table, options.without)]
    lines = _encodable(grid(table, options.without), encoding)
    (tops,) = _encodable([table.columns], encoding)
    paragraphs = [_sentences(head, size, encoding)]
    paragraphs += _blocks(lines, len(table.row_headers), tops, columns)

    if options.notes:
        paragraphs.append(_sentences(footnotes(table), size, encoding))

    texts = ["\n".join(paragraph) for paragraph in paragraphs if paragraph]
    return "\n\n".join(texts) + "\n"


def half_filled(table: Table, columns: int, encoding: str) -> list[str]:
    """Return the lines of a table that is not finished, for a terminal: without the sentences under
    it.
    """
    lines = _encodable(grid(table), encoding)
    (tops,) = _encodable([table.columns], encoding)
    shown = _sentences([f"{table.title}: {table.metric} in %"], columns, encoding)

    for block in _blocks(lines, len(table.row_headers), tops, columns):
        shown += ["", *block]

    return shown


def _encodable(lines: Sequence[Sequence[str]], encoding: str) -> list[list[str]]:
    """Return lines of texts with the signs that an encoding has."""
    shown = []
    for line in lines:
        shown.append([encodable(one_line(text), encoding) for text in line])

    return shown


def _sentences(sentences: Sequence[str], size: int, encoding: str) -> list[str]:
    """Return sentences in lines of at most `size` cells."""
    lines = []
    for sentence in sentences:
        lines += wrapped(encodable(one_line(sentence), encoding), size)

    return lines


def _blocks(
    lines: Sequence[Sequence[str]],
    num_labels: int,
    tops: Sequence[str],
    size: int | None,
) -> list[list[str]]:
    """Lay a grid out in blocks of at most `size` cells, each with the rows' labels; in one block
    without a size.

    `tops` are the headings over the grid's columns after its labels, which they share evenly.
    """
    grid_columns = list(zip(*lines, strict=True))
    label_columns = grid_columns[:num_labels]
    number_columns = grid_columns[num_labels:]
    per_top = len(number_columns) // len(tops)
    columns_of = []

    for i in range(len(tops)):
        columns_of.append(number_columns[i * per_top : (i + 1) * per_top])

    groups = []
    for top, columns in zip(tops, columns_of, strict=True):
        groups.append(_ColumnGroup(top, _side_by_side(columns, right)))

    if size is None:
        return [_block(_labels(label_columns), groups)]

    widest = max(group.size for group in groups)
    labels = _labels(label_columns, max(size - widest - GAP, NARROWEST))
    if labels.size + GAP + widest > size:
        # Not even one column fits beside the labels: its numbers go below each other too.
        groups = []
        for top, columns in zip(tops, columns_of, strict=True):
            groups += [_ColumnGroup(top, column) for column in columns]

    blocks: list[list[_ColumnGroup]] = []
    remaining = 0
    for group in groups:
        if GAP + group.size > remaining:
            blocks.append([])
            remaining = size - labels.size

        blocks[-1].append(group)
        remaining -= GAP + group.size

    return [_block(labels, block) for block in blocks]


GAP = 4  # cells before a column's first number


class _ColumnGroup:
    """Some of a table's columns: a heading over them, and a line for the second heading and each
    row, all of one width.
    """

    def __init__(self, top: str, lines: Sequence[str]) -> None:
        widest = max(map(width, lines))
        self.size = max(width(top), widest)
        self.top = left(top, widest)
        self.lines = [right(line, self.size) for line in lines]


class _Labels:
    """The rows' labels: some lines for the heading and for each row, all of one width."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.rows = rows
        self.size = max(map(width, itertools.chain.from_iterable(rows)))


def _labels(columns: Sequence[Sequence[str]], size: int | None = None) -> _Labels:
    """Lay the columns of labels side by side; where they take more than `size` cells the widest are
    wrapped.
    """
    between = 2 * (len(columns) - 1)
    widths = [max(map(width, column)) for column in columns]

    if size is not None:
        while sum(widths) + between > size and max(widths) > NARROWEST // 2:
            widths[widths.index(max(widths))] -= 1

    rows = [_row_of_labels(labels, widths) for labels in zip(*columns, strict=True)]
    return _Labels(rows)


def _row_of_labels(labels: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return the lines of one row's labels, each label in a column as wide as given."""
    columns = []
    for label, size in zip(labels, widths, strict=True):
        columns.append(wrapped(label, size) if label else [""])

    lines = []
    for texts in itertools.zip_longest(*columns, fillvalue=""):
        lines.append("  ".join(map(left, texts, widths)))

    return lines


def _block(labels: _Labels, groups: Sequence[_ColumnGroup]) -> list[str]:
    """Some columns with the rows' labels: labels left, numbers right, a wider gap before each
    column's first number.
    """
    gap = " " * GAP
    tops = [group.top for group in groups]
    first = gap.join([" " * labels.size, *tops]).rstrip()
    heading = _block_row(labels.rows[0], groups, 0)
    body = []

    for number, row_labels in enumerate(labels.rows[1:], start=1):
        body += _block_row(row_labels, groups, number)

    rule = "-" * max(map(width, [first, *heading, *body]))
    return [first, *heading, rule, *body]


def _block_row(
    labels: Sequence[str], groups: Sequence[_ColumnGroup], number: int
) -> list[str]:
    """Return the lines of one row: its numbers stand beside the first line of its labels."""
    gap = " " * GAP
    numbers = gap.join(group.lines[number] for group in groups)
    lines = [f"{labels[0]}{gap}{numbers}", *labels[1:]]

    return [line.rstrip() for line in lines]


def _side_by_side(
    columns: Sequence[Sequence[str]], aligned: Callable[[str, int], str]
) -> list[str]:
    """Return the lines of columns, each column as wide as its widest text."""
    filled = []
    for column in columns:
        size = max(map(width, column))
        filled.append([aligned(text, size) for text in column])

    return ["  ".join(line) for line in zip(*filled, strict=True)]


def render(table: Table, options: TableOptions) -> str:
    """Return the table as it stands in a file."""
    return text(table, options=options)


FORMAT = Format(suffix="txt", render=render, options=("notes", "without"))
