"""The Excel workbook as openpyxl and a zip reader see it."""

from __future__ import annotations

import io
import time

import pytest

from pointsweep.reporting.formats.base import TableOptions
from pointsweep.reporting.formats.registry import render_bytes
from pointsweep.reporting.table import Table
from tests.reporting.test_formats import table

openpyxl = pytest.importorskip("openpyxl")


def opened(made: Table, options: TableOptions | None = None):
    return openpyxl.load_workbook(io.BytesIO(render_bytes(made, "excel", options or TableOptions())))


def test_numbers_are_numbers_and_shown_as_percent():
    sheet = opened(table())["table"]
    rows = [[cell.value for cell in row] for row in sheet.iter_rows(min_row=4)]
    titles = ["accuracy", "sd", "seeds", "notes", "params", "paper", "paper params"]
    assert rows[0][1] == "minilm"
    assert rows[0][8] == "vit"
    assert rows[1] == ["method", *titles, *titles]
    assert rows[2] == ["any2point", 0.812, 0.004, 3, None, 306_560, 0.919, 800_000, 0.812, 0.004, 3, "*", None, None, None]
    assert rows[3][:5] == ["lora", 0.0567, None, "1/3", None]
    assert rows[3][8] == "—"
    assert sheet.cell(6, 2).number_format == "0.0%"
    assert sheet.cell(6, 6).number_format == "#,##0"


def test_notes_and_exact_values_have_sheets_of_their_own():
    book = opened(table())
    assert book["notes"].cell(1, 1).value == "* synthetic data"
    header, first, *_ = [[cell.value for cell in row] for row in book["cells"].iter_rows()]
    assert dict(zip(header, first, strict=True))["mean"] == 0.812
    assert opened(table(), TableOptions(notes=False)).sheetnames == ["table", "cells"]


def test_the_best_is_bold_as_in_the_other_formats():
    sheet = opened(table(), TableOptions(mark="mean"))["table"]
    assert sheet.cell(6, 2).font.bold
    assert not sheet.cell(7, 2).font.bold


@pytest.mark.parametrize("label", ["=1+1", "+cmd", "@SUM(A1)", "-2+3"])
def test_a_label_is_no_formula(label):
    book = opened(table(rows=((label,), ("x",)), columns=(label, "vit"), notes=(label,)))
    for sheet in book:
        assert not [cell for row in sheet.iter_rows() for cell in row if cell.data_type == "f"]
    assert book["table"].cell(6, 1).value == label


def test_a_workbook_made_later_has_the_same_bytes():
    before = render_bytes(table(), "excel")
    time.sleep(2.1)  # a zip's times have steps of two seconds
    assert render_bytes(table(), "excel") == before
