"""Columns that a table is printed without, and tables by a template of one's own, as the command gives them."""

from __future__ import annotations

import pytest

from pointsweep.cli.tables import main
from pointsweep.reporting.cell_text import footnotes
from pointsweep.reporting.formats.base import TableOptions
from pointsweep.reporting.formats.registry import render
from pointsweep.reporting.left_out import left_out
from pointsweep.reporting.table import Table
from pointsweep.reporting.template import from_template
from pointsweep.statistics.all_pairs import Family, Pair
from tests.reporting.test_formats import table


def compared() -> Table:
    pair = Pair("any2point", "lora", 3, 0.1, 0.05, 0.15, 0.01)
    columns = Pair("vit", "minilm", 3, 0.1, 0.05, 0.15, 0.01)
    families = (
        Family("minilm", ("any2point", "lora"), (pair,)),
        Family("vit", ("any2point", "lora"), (pair,)),
        Family("columns, mean of 2 rows", ("vit", "minilm"), (columns,)),
    )
    return table(comparisons=families, models=((), ()))


def test_a_column_that_is_left_out_takes_its_cells_and_comparisons_along():
    made, without = left_out(compared(), ["minilm"])
    assert without == ()
    assert made.columns == ("vit",)
    assert [(cell.row, cell.column) for cell in made.cells] == [(0, 0), (1, 0)]
    assert [family.title for family in made.comparisons] == ["vit"]
    assert len(made.models) == 1
    assert not any("minilm" in note for note in footnotes(made))


def test_what_every_column_shows_can_be_left_out():
    made, without = left_out(table(), ["params", "paper"])
    assert made == table()
    shown = render(made, "text", TableOptions(without=without))
    assert "params: trainable" not in shown
    assert shown.splitlines()[4].split() == ["method", "accuracy", "paper", "params", "accuracy", "paper", "params"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vitt"], "--drop: unknown column 'vitt'. Did you mean 'vit'\\?"),
        (["minilm", "vit"], "nothing of the table is left"),
        (["accuracy", "params", "paper", "paper params"], "nothing of the table is left"),
    ],
)
def test_what_cannot_be_left_out_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        left_out(table(), names)


TEMPLATE = """\
{% for row in rows %}
{{ row.labels[0]|tex }}: {% for cell in row.cells %}{{ cell.mean or cell.status }} {% endfor %}

{% endfor %}
{{ columns|join(", ") }}
"""


def test_a_template_prints_the_table(tmp_path):
    (tmp_path / "mine.txt").write_text(TEMPLATE)
    made = from_template(table(rows=(("a_b",), ("lora",))), tmp_path / "mine.txt", TableOptions())
    assert made == "a\\_b: 81.2 81.2 \nlora: 5.7 excluded \nminilm, vit\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ tilte }}", "'tilte' is undefined; a template sees: name, title"),
        ("\n{% for %}", "mine.txt, line 2"),
        ("{{ title.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(tmp_path, template, message):
    (tmp_path / "mine.txt").write_text(template)
    with pytest.raises(ValueError, match=message):
        from_template(table(), tmp_path / "mine.txt", TableOptions())


def test_the_command_takes_them(trained, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("{{ name }}: {{ columns|join(', ') }}\n")
    own = ["tiny", "--store", str(trained)]
    assert main([*own, "--template", str(tmp_path / "mine.txt")]) == 0
    assert capsys.readouterr().out.startswith("tiny: ")

    path = tmp_path / "new" / "table.tex"
    assert main([*own, "--format", "latex", "--drop", "params", "--label", "tab:x", "--no-notes", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert "\\label{tab:x}" in path.read_text()
    assert "params" not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "csv", "--mark", "mean"], "--mark changes nothing of csv; it does of markdown, latex, excel"),
        (["--format", "json", "--drop", "params"], "--drop of what every column shows changes nothing of json"),
        (["--label", "tab:x"], "--label changes nothing of text; it does of latex"),
        (["--format", "latex", "--label", "a}b"], "'a}b' is no label of LaTeX"),
        (["--mark", "best"], "unknown mark 'best'"),
        (["--template", "nowhere.tex"], "--template: nowhere.tex: No such file or directory"),
        (["--format", "latex", "-o", "."], "cannot be written: Is a directory"),
    ],
)
def test_options_without_effect_and_files_that_are_not_there_are_refused(trained, capsys, arguments, message):
    assert main(["tiny", "--store", str(trained), *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
