"""LaTeX, with booktabs."""

from __future__ import annotations

from pointsweep.reporting.cell_text import footnotes, grid, headings, headline
from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table
from pointsweep.utils.console import one_line


def latex(table: Table, options: TableOptions) -> str:
    """A table environment for booktabs."""
    subs, labels = headings(table), len(table.row_headers)
    tops = [f"\\multicolumn{{{len(subs)}}}{{c}}{{{_tex(column)}}}" for column in table.columns]
    starts = range(labels + 1, labels + 1 + len(subs) * len(tops), len(subs))
    rows = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in grid(table)]
    notes = [f"{_tex(note)}\\par" for note in footnotes(table)] if options.notes else []
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering",
        f"\\caption{{{_tex(table.title)}. {_tex(headline(table))}.}}",
        f"\\begin{{tabular}}{{{'l' * labels}{'r' * (len(subs) * len(tops))}}}", r"\toprule",
        " & ".join([""] * labels + tops) + r" \\", "".join(f"\\cmidrule(lr){{{at}-{at + len(subs) - 1}}}" for at in starts),
        rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}",
        *([r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", *notes, r"\end{minipage}"] if notes else []),
        r"\end{table}",
    ]) + "\n"  # fmt: skip


# A bracket at the start of a row would be read as the argument of the line break before it.
TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"$\sim$", "^": r"\textasciicircum{}", "±": r"$\pm$", "—": "---", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "§": r"\S{}", "¶": r"\P{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def _tex(value: str) -> str:
    return "".join(TEX.get(char, char) for char in " ".join(one_line(value).split()))


FORMAT = Format(suffix="tex", render=latex, options=("notes",))
