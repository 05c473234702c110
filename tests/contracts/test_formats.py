"""What every registered output format keeps: the same table gives the same bytes, labels survive, and no table breaks it."""

from __future__ import annotations

import html
import importlib.util
import io
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import pointsweep.reporting.formats as package
from pointsweep.cli import tables
from pointsweep.reporting.build import every_format
from pointsweep.reporting.formats.registry import FORMATS, format_name, load, render, render_bytes
from pointsweep.reporting.table import Table, TableCell

# What needs a package that is not installed is left out.
NEEDS = {"excel": "openpyxl"}
HERE = [form for form in FORMATS if form not in NEEDS or importlib.util.find_spec(NEEDS[form])]
LABELS = ("50 % of a_b & <c> {d}", "漢字 é $x$ ~e^ #1", r"\back | [q] `r`")


def cell(row: int, column: int, *values: float) -> TableCell:
    seeds = tuple(enumerate(values))
    keys = tuple((seed, f"{row}{column}{seed}") for seed in range(3))
    if not values:
        return TableCell(row, column, None, None, 0, 3, None, None, (), keys)
    return TableCell(row, column, sum(values) / len(values), 0.01, len(values), 3, None, None, seeds, keys)


def made(rows: tuple[str, ...] = LABELS, *values: float) -> Table:
    cells = tuple(cell(row, 0, *values) for row in range(len(rows)))
    labels = tuple((row,) for row in rows)
    return Table("t", "Title", "test/accuracy", "last", ("method",), labels, ("tiny",), cells)


def content(data: bytes) -> str:
    """All that stands in a file; of a workbook, in its parts."""
    if not data.startswith(b"PK"):
        return data.decode()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return "\n".join(html.unescape(archive.read(name).decode()) for name in sorted(archive.namelist()))


@pytest.mark.parametrize("form", HERE)
def test_the_same_table_gives_the_same_bytes_in_every_process(form):
    table = made(LABELS, 0.5, 0.6, 0.7)
    code = (
        "import sys\n"
        "from tests.contracts.test_formats import LABELS, made\n"
        "from pointsweep.reporting.formats.registry import render_bytes\n"
        f"sys.stdout.buffer.write(render_bytes(made(LABELS, 0.5, 0.6, 0.7), {form!r}))\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=root, env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    )
    assert run.stdout == render_bytes(table, form) == render_bytes(table, form)


@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("label", LABELS)
def test_labels_with_special_characters_survive(form, label):
    words = re.findall(r"[^\W_]+", label)
    shown = content(render_bytes(made((label,), 0.5), form))
    assert re.search(".*?".join(words), shown), shown


@pytest.mark.parametrize("form", HERE)
def test_labels_that_differ_only_in_special_characters_stay_apart(form):
    labels = ("a_b", "a-b", "a b", "a|b", "a&b", "a%b")
    files = {render_bytes(made((label,), 0.5), form) for label in labels}
    assert len(files) == len(labels)


@pytest.mark.parametrize("form", HERE)
def test_a_table_of_which_nothing_is_finished_is_printed(form):
    assert "tiny" in content(render_bytes(made(), form))


@pytest.mark.parametrize("form", HERE)
def test_a_table_of_one_row_and_one_seed_is_printed(form):
    single = made(("alone",), 0.5)
    single = replace(single, cells=(replace(single.cells[0], sd=None, expected=1),))
    assert "alone" in content(render_bytes(single, form))


@pytest.mark.parametrize("form", HERE)
def test_text_ends_with_one_line_break(form):
    data = render_bytes(made(LABELS, 0.5), form)
    assert data.startswith(b"PK") or re.search(rb"[^\n]\n\Z", data)


@pytest.mark.parametrize("form", HERE)
def test_a_format_is_found_by_its_name_and_by_its_file_ending(form):
    assert format_name(form) == format_name(load(form).suffix) == form


def test_every_file_of_the_folder_is_registered():
    folder = Path(package.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "registry"}
    assert {place.partition(":")[0].rpartition(".")[2] for place in FORMATS.values()} == files


def test_the_command_lists_every_format_and_refuses_others(store, capsys):
    assert tables.main(["--help"]) == 0
    assert ", ".join(FORMATS) in " ".join(capsys.readouterr().out.split())
    assert tables.main(["t", "--format", "markdwn"]) == 2
    assert "Did you mean 'markdown'?" in capsys.readouterr().err


def test_what_is_stored_is_written_under_its_ending():
    stored = [form for form in FORMATS if load(form).stored]
    assert sorted(every_format(made())) == sorted(f"table.{load(form).suffix}" for form in stored)


def test_a_name_that_no_format_has_is_refused():
    with pytest.raises(ValueError, match=r"unknown format 'markdow'\. Did you mean 'markdown'\?"):
        render(made(), "markdow")
