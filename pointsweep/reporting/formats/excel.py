"""An Excel workbook: the table with numbers as numbers, its notes, and a line each cell in full
precision.

Needs openpyxl, which `pip install pointsweep[excel]` brings.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pointsweep.errors import MissingPackageError
from pointsweep.reporting.best_cells import legend, standings
from pointsweep.reporting.cell_text import (
    footnotes,
    headings,
    headline,
    instead_of_a_mean,
    measure,
    num_seeds,
    paper,
    symbols,
    trained,
)
from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.formats.csv import cell_lines
from pointsweep.reporting.table import Table, TableCell
from pointsweep.utils.console import visible

# of every workbook: the same table gives the same bytes
MADE = datetime(2000, 1, 1, tzinfo=UTC)
MODIFIED = re.compile(rb"(<dcterms:modified[^>]*>)[^<]*")
FIRST_ROW = 4  # of the headings; above them stand title and protocol
PERCENT, COUNT = "0.0%", "#,##0"  # how numbers are shown


def excel(table: Table, options: TableOptions) -> bytes:
    """Return the workbook. Raises MissingPackageError."""
    try:
        import openpyxl
    except ImportError as error:
        raise MissingPackageError(
            "the format excel needs openpyxl: pip install 'pointsweep[excel]'"
        ) from error

    book = openpyxl.Workbook()
    book.properties.creator = "pointsweep"
    book.properties.created = MADE
    sheet = book.active
    sheet.title = "table"
    _fill_table(sheet, table, options)

    if options.notes:
        notes = book.create_sheet("notes")
        for row, note in enumerate(_notes(table, options), start=1):
            _write(notes, row, 1, note)

        notes.column_dimensions["A"].width = 120

    cells = book.create_sheet("cells")
    for row, line in enumerate(cell_lines(table), start=1):
        for column, value in enumerate(line, start=1):
            _write(cells, row, column, value)

    return _fixed(book)


def _notes(table: Table, options: TableOptions) -> list[str]:
    notes = footnotes(table)
    marks = legend(table, options.mark)
    if marks:
        notes.insert(0, marks)

    return notes


def _fill_table(sheet: Any, table: Table, options: TableOptions) -> None:
    """Write the table as one prints it: two rows of headings, then a row each."""
    labels = len(table.row_headers)
    titles = _titles(table, options)
    _write_headings(sheet, table, titles, options)
    ranks = standings(table, options.mark)

    for row, names in enumerate(table.rows):
        line = FIRST_ROW + 2 + row
        for position, name in enumerate(names, start=1):
            _write(sheet, line, position, name)

        for column in range(len(table.columns)):
            first = labels + 1 + column * len(titles)
            _write_cell(
                sheet,
                (line, first),
                table,
                table.cell(row, column),
                titles,
                ranks.get((row, column), ""),
            )

    first_column, *_ = zip(table.row_headers, *table.rows, strict=True)
    longest = max(map(len, first_column))
    sheet.column_dimensions["A"].width = min(max(longest + 2, 12), 60)
    sheet.freeze_panes = sheet.cell(FIRST_ROW + 2, labels + 1)


def _write_headings(
    sheet: Any, table: Table, titles: Sequence[str], options: TableOptions
) -> None:
    from openpyxl.styles import Alignment, Font

    bold = Font(bold=True)
    _write(sheet, 1, 1, table.title).font = Font(bold=True, size=13)
    _write(sheet, 2, 1, headline(table, options.without))

    for position, header in enumerate(table.row_headers, start=1):
        _write(sheet, FIRST_ROW + 1, position, header).font = bold

    for column, name in enumerate(table.columns):
        first = len(table.row_headers) + 1 + column * len(titles)
        top = _write(sheet, FIRST_ROW, first, name)
        top.font = bold
        top.alignment = Alignment(horizontal="center")
        sheet.merge_cells(
            start_row=FIRST_ROW,
            end_row=FIRST_ROW,
            start_column=first,
            end_column=first + len(titles) - 1,
        )

        for position, title in enumerate(titles):
            _write(sheet, FIRST_ROW + 1, first + position, title).font = bold


def _write_cell(
    sheet: Any,
    position: tuple[int, int],
    table: Table,
    cell: TableCell,
    titles: Sequence[str],
    rank: str,
) -> None:
    """Write what the table has of a cell, from the row and column `position` on."""
    from openpyxl.styles import Font

    fonts = {"best": Font(bold=True), "second": Font(underline="single")}
    values = _values(table, cell)

    for number, title in enumerate(titles):
        excel_cell = _write(sheet, position[0], position[1] + number, values[title])
        if title in (measure(table), "sd", "paper"):
            excel_cell.number_format = PERCENT
        elif title in ("params", "paper params"):
            excel_cell.number_format = COUNT

        if title == measure(table) and rank:
            excel_cell.font = fonts[rank]


def _titles(table: Table, options: TableOptions) -> list[str]:
    """Return the sub-columns: as in every format, but with the spread and what belongs to a cell in
    columns of their own.
    """
    titles: list[str] = []
    for title, _ in headings(table, options.without):
        titles.append(title)
        if title == measure(table):
            titles += ["sd", "seeds"]
            if symbols(table):
                titles.append("notes")

    return titles


def _values(table: Table, cell: TableCell) -> dict[str, object]:
    """Return what stands under each title of a cell. Shares are fractions, which Excel shows as
    percent.
    """
    signs = ""
    if cell.values:
        for mark, sign in symbols(table).items():
            if mark in cell.marks:
                signs += sign

    mean: float | str = instead_of_a_mean(cell)
    if cell.mean is not None:
        mean = cell.mean

    published, published_m = paper(cell)
    published_params = None
    if published_m:
        published_params = round(float(published_m.removesuffix("M")) * 1e6)

    seeds = num_seeds(cell)
    return {
        measure(table): mean,
        "sd": cell.sd,
        "seeds": seeds.removeprefix("n=") if seeds else cell.n,
        "notes": signs,
        "params": trained(cell),
        "paper": float(published) / 100 if published else None,
        "paper params": published_params,
    }


def _write(sheet: Any, row: int, column: int, value: object) -> Any:
    """Write a value; a text is a text, also where it looks like a formula."""
    excel_cell = sheet.cell(row, column)
    if isinstance(value, str):
        excel_cell.value = visible(value, keep="\n\t")
        excel_cell.data_type = "s"
    else:
        excel_cell.value = value

    return excel_cell


def _fixed(book: Any) -> bytes:
    """Return a workbook's bytes without the time at which they were made."""
    saved = io.BytesIO()
    book.save(saved)
    out = io.BytesIO()
    made = MADE.strftime("%Y-%m-%dT%H:%M:%SZ").encode()

    with (
        zipfile.ZipFile(saved) as before,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after,
    ):
        for name in sorted(before.namelist(), key=_part_order):
            data = before.read(name)
            if name == "docProps/core.xml":
                data = MODIFIED.sub(rb"\g<1>" + made, data)

            entry = zipfile.ZipInfo(name, date_time=(2000, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            after.writestr(entry, data)

    return out.getvalue()


def _part_order(name: str) -> tuple[bool, str]:
    """Return a key by which the list of parts comes first, as readers expect."""
    return (name != "[Content_Types].xml", name)


FORMAT = Format(
    suffix="xlsx", render=excel, options=("mark", "notes", "without"), stored=False
)
