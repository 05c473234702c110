"""LaTeX as papers print tables: written by hand for a small table, its grammar for drawn ones, and compiled where TeX is."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pointsweep.reporting.build import build
from pointsweep.reporting.formats.base import TableOptions
from pointsweep.reporting.formats.latex import PACKAGES, TEX
from pointsweep.reporting.formats.registry import render
from pointsweep.reporting.table import Table
from pointsweep.statistics.all_pairs import Family, Pair
from pointsweep.sweep.sweep import load
from tests.reporting.test_formats import cell, filled, nasty, table

SWEEPS = Path(__file__).parents[2] / "sweeps"
APART = Family("vit", ("lora", "any2point"), (Pair("lora", "any2point", 3, 0.1, 0.05, 0.15, 0.01),))

BY_HAND = r"""% \usepackage{booktabs,siunitx,threeparttable}
\begin{table}
\centering
\setlength{\belowcaptionskip}{6pt}
\caption{Title. Test accuracy in \%, mean $\pm$ sd over 3 seeds, last epoch; params: trainable, without the head.}
\label{tab:t}
\sisetup{table-number-alignment=right,table-text-alignment=right}
\begin{threeparttable}
\begin{tabular}{lS[table-format=2.1]@{\,}>{\scriptsize}lS[table-format=1.3]S[table-format=2.1]S[table-format=1.1]S[table-format=2.1]@{\,}>{\scriptsize}l}
\toprule
 & \multicolumn{5}{c}{minilm} & \multicolumn{2}{c}{vit} \\
\cmidrule(lr){2-6}\cmidrule(lr){7-8}
 & \multicolumn{2}{c}{accuracy} & {params} & {paper} & {paper} & \multicolumn{2}{c}{accuracy} \\
method & \multicolumn{2}{c}{(\%)} & {(M)} & {(\%)} & {params (M)} & \multicolumn{2}{c}{(\%)} \\
\midrule
any2point & 81.2 & $\pm$\,0.4 & 0.307 & 91.9 & 0.8 & 81.2 & $\pm$\,0.4\tnote{*} \\
lora & 5.7 & ($n=1/3$) &  &  &  & {---} & \\
\bottomrule
\end{tabular}
\begin{tablenotes}[flushleft]
\footnotesize
\item[*] synthetic data
\item --- lora / vit: why not
\item not finished: lora / minilm, seed 1, 2
\item paper: Paper
\end{tablenotes}
\end{threeparttable}
\end{table}
"""


def test_the_latex_equals_what_was_written_by_hand():
    assert render(table(), "latex") == BY_HAND


def test_the_best_is_bold_and_the_second_underlined_and_both_stay_aligned():
    rows = ("a", "b", "c")
    cells = tuple(cell(row, 0, mean) for row, mean in enumerate((0.95, 0.5, 0.081)))
    made = table(rows=tuple((row,) for row in rows), columns=("vit",), cells=cells)
    source = render(made, "latex", TableOptions(mark="mean"))
    assert r"a & {\textbf{95.0}} & $\pm$\,0.4 \\" in source
    assert r"b & {\underline{50.0}} & $\pm$\,0.4 \\" in source
    assert r"c & 8.1 & $\pm$\,0.4 \\" in source
    # Numbers that siunitx parses and those in braces stand at the same edge.
    assert "table-number-alignment=right,table-text-alignment=right" in source
    assert r"\item Bold: the highest mean of its column, underlined: the one after it; no test" in source
    assert "textbf" not in render(made, "latex")


def test_bold_by_the_tests_stands_only_where_they_tell_rows_apart():
    cells = (cell(0, 0, 0.7), cell(1, 0, 0.8))
    made = table(columns=("vit",), cells=cells, comparisons=(APART,))
    assert r"lora & {\textbf{80.0}} &" in render(made, "latex")
    assert "textbf" not in render(replace(made, comparisons=()), "latex")


def test_notes_that_are_left_out_stay_in_the_file_as_comments():
    source = render(table(), "latex", TableOptions(notes=False))
    body, _, rest = source.partition("\\end{table}\n")
    assert r"\tnote" not in body
    assert "threeparttable}" not in body.splitlines()[-1]
    assert r"\begin{threeparttable}" not in body
    assert rest.splitlines() == [
        "% * synthetic data", "% — lora / vit: why not", "% not finished: lora / minilm, seed 1, 2", "% paper: Paper",
    ]  # fmt: skip


def test_a_label_of_ones_own_and_columns_that_are_left_out():
    source = render(table(), "latex", TableOptions(label="tab:mine", without=("params", "paper params")))
    assert "\\label{tab:mine}\n" in source
    assert "params" not in source


def test_latex_escapes_everything():
    source = render(nasty(), "latex")
    assert r"a\_b \& 100\% \textbar{} \textless{}b\textgreater{}*x*" in source
    assert r"\$y\$ \#1 \{z\} \textbackslash{}back $\sim$t\textasciicircum{} `c` {[}q{]}" in source
    assert "\n{[}1{]} x & " in source, "a bracket after a line break would be its argument"
    # Every special character of the labels stands escaped: what is left of them has none.
    for row in rows_of(source):
        assert not re.search(r"(?<!\\)[%#_~]", row)


def test_negative_numbers_in_notes_have_minus_signs():
    source = render(table(notes=("vit: a-b lies -1.2 (-2.0 to -0.4) below",)), "latex")
    assert r"\item vit: a-b lies $-$1.2 ($-$2.0 to $-$0.4) below" in source


# Grammar


def tabular_of(source: str) -> tuple[str, str]:
    """The column types and the body of the one tabular."""
    [found] = re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", source, re.DOTALL)
    return found


def types_of(spec: str) -> list[str]:
    """The columns of a tabular: l, r or S with its format."""
    rest = re.sub(r"@\{\\,\}|>\{\\scriptsize\}", "", spec)
    found = re.findall(r"l|r|S\[table-format=\d+(?:\.\d+)?\]", rest)
    assert "".join(found) == rest
    return found


def rows_of(source: str) -> list[str]:
    return [line.removesuffix(r"\\") for line in tabular_of(source)[1].splitlines() if line.endswith(r"\\")]


def cells_of(row: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<!\\)&", row)]


def check(source: str) -> None:
    """What a compiler would complain of: columns that do not add up, braces, environments, text where siunitx wants a number."""
    columns = types_of(tabular_of(source)[0])
    for row in rows_of(source):
        at = 0
        for text in cells_of(row):
            spanned = re.match(r"\\multicolumn\{(\d+)\}", text)
            if spanned is None and columns[at].startswith("S"):
                assert re.fullmatch(r"(\d+(\.\d+)?)?|\{.*\}", text), (columns[at], text)
                if text and not text.startswith("{"):
                    before, behind = re.findall(r"\d+", columns[at] + ".0")[:2]
                    whole, _, part = text.partition(".")
                    assert len(whole) <= int(before)
                    assert len(part) <= int(behind)
            at += int(spanned[1]) if spanned else 1
        assert at == len(columns)
    bare = re.sub(r"\\[{}\\]", "", source)
    assert bare.count("{") == bare.count("}")
    assert re.sub(r"\\\$", "", source).count("$") % 2 == 0
    opened: list[str] = []
    for verb, name in re.findall(r"^\\(begin|end)\{(\w+)\}", source, re.MULTILINE):
        if verb == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("options", [TableOptions(), TableOptions(mark="mean", notes=False, without=("params",))], ids=["all", "few"])
def test_every_row_fills_the_columns_and_numbers_stand_where_siunitx_wants_them(seed, options):
    check(render(filled(seed), "latex", options))


@pytest.mark.parametrize("seed", range(20))
def test_latex_prints_the_numbers_of_the_table(seed):
    made = filled(seed)
    shown = " ".join(rows_of(render(made, "latex"))[3:])
    means = [f"{100 * one.mean:.1f}" for one in made.cells if one.mean is not None]
    assert all(re.search(rf"(?<![\d.]){re.escape(mean)}(?!\d)", shown) for mean in means)
    back = {made: char for char, made in TEX.items()}
    first = [cells_of(row)[0] for row in rows_of(render(made, "latex"))[3:]]
    longest = re.compile("|".join(re.escape(text) for text in sorted(back, key=len, reverse=True)))
    assert [longest.sub(lambda found: back[found[0]], label) for label in first] == [row[0] for row in made.rows]


# Compiled

TABLES = ("quickstart", "any2point_scanobjectnn", "ablation_table5", "point_peft_scanobjectnn")
WIDE = ("ablation_table5", "point_peft_scanobjectnn", "nasty")  # as their files say in a comment


def drawn(name: str) -> Table:
    """A shipped sweep's table with drawn numbers."""
    draw = random.Random(name)
    made = build(load(str(SWEEPS / f"{name}.yaml")).layout(), {}, {})
    cells = []
    for one in made.cells:
        if one.excluded is None:
            mean = 0.7 + draw.random() / 5
            size = draw.randrange(10**5, 10**6)
            parameters = {"trainable": size, "trainable_without_head": size, "total": size}
            values = tuple((seed, mean) for seed, _ in one.keys)
            one = replace(one, mean=mean, sd=draw.random() / 50, n=len(values), values=values, parameters=parameters)
        cells.append(one)
    return replace(made, cells=tuple(cells))


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_shipped_sweeps_have_the_grammar_of_latex(name):
    for mark in ("tests", "mean"):
        check(render(drawn(name), "latex", TableOptions(mark=mark)))


ENGINE = shutil.which("pdflatex")


def compiled(source: str, folder: Path) -> str:
    """The log of a document with this table."""
    preamble = f"\\documentclass{{article}}\\usepackage{{{','.join(PACKAGES)}}}"
    (folder / "t.tex").write_text(f"{preamble}\\begin{{document}}\n{source}\\end{{document}}\n")
    command = [ENGINE, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    for _ in range(2):  # labels are known the second time
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "t.log").read_text(errors="replace")


@pytest.mark.skipif(ENGINE is None, reason="no pdflatex here")
@pytest.mark.parametrize("name", [*TABLES, "by hand", "nasty"])
def test_latex_compiles_without_a_warning(name, tmp_path):
    made = {"by hand": table, "nasty": nasty}.get(name, lambda: drawn(name))()
    source = render(made, "latex", TableOptions(mark="mean"))
    source += render(made, "latex", TableOptions(notes=False, label="tab:other"))
    log = compiled(source, tmp_path)
    assert "Warning" not in log, log[-3000:]
    assert ("Overfull" in log) == ("% wider than a page" in source) == (name in WIDE), log[-3000:]
