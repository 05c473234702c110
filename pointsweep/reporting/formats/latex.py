r"""LaTeX as papers print tables: booktabs rules, numbers aligned by siunitx, notes by
threeparttable, the caption above.

A cell's mean and its smaller ± stand in two columns of the tabular, so that a bold or underlined
mean, which siunitx does not parse, is aligned with the others: all means have one decimal, and
stand at the right edge of their column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pointsweep.reporting.best_cells import Places, legend, standings
from pointsweep.reporting.cell_text import (
    PROTOCOLS,
    footnotes,
    headings,
    instead_of_a_mean,
    measure,
    num_seeds,
    over_seeds,
    paper,
    symbols,
    trained,
    unit,
)
from pointsweep.reporting.formats.base import Format, TableOptions
from pointsweep.reporting.table import Table, TableCell
from pointsweep.utils.console import one_line
from pointsweep.utils.numbers import percent

PACKAGES = ("booktabs", "siunitx", "threeparttable")
MARKUP = {"best": r"{{\textbf{{{}}}}}", "second": r"{{\underline{{{}}}}}"}
# Characters of a line -> how the table is set so that it fits a page of one column; more do not
# fit.
SIZES = (
    (64, ""),
    (72, r"\small\setlength{\tabcolsep}{4pt}"),
    (80, r"\footnotesize\setlength{\tabcolsep}{3pt}"),
    (96, r"\scriptsize\setlength{\tabcolsep}{1.8pt}"),
)

# A bracket at the start of a row would be read as the argument of the line break before it.
TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}",
    "~": r"$\sim$", "^": r"\textasciicircum{}", "±": r"$\pm$", "—": "---", "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}", "¶": r"\P{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}",
    "×": r"$\times$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$", "–": "--",
    "²": "$^2$", "³": "$^3$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$",
    "λ": r"$\lambda$", "μ": r"$\mu$", "σ": r"$\sigma$",
}  # fmt: skip
MINUS = re.compile(r"(?<![\w.)-])-(?=\d)")


def escaped(value: str) -> str:
    """Return a text so that LaTeX prints it as it is."""
    return "".join(TEX.get(char, char) for char in " ".join(one_line(value).split()))


def sentence(value: str) -> str:
    """Return a note so that LaTeX prints it, with signs of numbers as minus signs."""
    return MINUS.sub("$-$", escaped(value))


@dataclass(frozen=True)
class SubColumn:
    """A sub-column of the table: its heading, the columns of the tabular that it takes, and its
    cells.
    """

    heading: tuple[str, str]  # in two lines: what, and its unit
    types: str
    cells: tuple[str, ...]  # with an & between the columns that it takes
    width: int = 1
    characters: int = 0  # of its widest line

    def titles(self) -> tuple[str, str]:
        """Return the heading's lines as they stand in the tabular."""
        first, second = (escaped(line) for line in self.heading)
        if self.width == 1:
            return f"{{{first}}}", f"{{{second}}}"
        opening = f"\\multicolumn{{{self.width}}}{{c}}"
        return f"{opening}{{{first}}}", f"{opening}{{{second}}}"


def latex(table: Table, options: TableOptions) -> str:
    """Return a table environment."""
    columns = [_sub_columns(table, column, options) for column in range(len(table.columns))]
    characters = _characters(table, columns)
    size = next((size for most, size in SIZES if characters <= most), None)
    lines = [f"% \\usepackage{{{','.join(PACKAGES)}}}"]
    if size is None:
        lines.append("% wider than a page of one column: --drop leaves columns out")
    lines += [r"\begin{table}", r"\centering", r"\setlength{\belowcaptionskip}{6pt}"]
    lines += [f"\\caption{{{_caption(table, columns)}}}", f"\\label{{{_label(table, options)}}}"]
    lines.append(r"\sisetup{table-number-alignment=right,table-text-alignment=right}")
    size = SIZES[-1][1] if size is None else size
    if size:
        lines.append(size)
    tabular = _tabular(table, columns)
    notes = [
        note
        for note in (legend(table, options.mark, "Bold", "underlined"), *footnotes(table))
        if note
    ]
    if options.notes and notes:
        lines += [
            r"\begin{threeparttable}",
            *tabular,
            *_table_notes(table, options),
            r"\end{threeparttable}",
            r"\end{table}",
        ]
    else:
        # What a reader of the file must know does not get lost.
        lines += [
            *tabular,
            r"\end{table}",
            *(f"% {' '.join(one_line(note).split())}" for note in notes),
        ]
    return "\n".join(lines) + "\n"


def _caption(table: Table, columns: Sequence[Sequence[SubColumn]]) -> str:
    split, _, _ = table.metric.partition("/")
    shown = any("params" in " ".join(sub.heading) for subs in columns for sub in subs)
    params = "; params: trainable, without the head" if shown else ""
    what = (
        f"{split.capitalize()} {measure(table)} in %, {over_seeds(table)},"
        f" {PROTOCOLS[table.protocol]}{params}."
    )
    title = escaped(table.title)
    return f"{title}{'' if title.endswith(('.', '!', '?')) else '.'} {escaped(what)}"


def _label(table: Table, options: TableOptions) -> str:
    return options.label or "tab:" + re.sub(r"[^A-Za-z0-9]+", "-", table.name).strip("-")


def _table_notes(table: Table, options: TableOptions) -> list[str]:
    signs = list(symbols(table).items())
    lines = [r"\begin{tablenotes}[flushleft]", r"\footnotesize"]
    lines += [f"\\item[{escaped(symbol)}] {sentence(mark)}" for mark, symbol in signs]
    marks = legend(table, options.mark, "Bold", "underlined")
    for note in [*([marks] if marks else []), *footnotes(table)[len(signs) :]]:
        lines.append(f"\\item {sentence(note)}")
    return [*lines, r"\end{tablenotes}"]


def _tabular(table: Table, columns: Sequence[Sequence[SubColumn]]) -> list[str]:
    labels = len(table.row_headers)
    types = "l" * labels + "".join(sub.types for subs in columns for sub in subs)
    tops = [""] * labels
    rules = []
    first = labels + 1
    for title, subs in zip(table.columns, columns, strict=True):
        width = sum(sub.width for sub in subs)
        tops.append(f"\\multicolumn{{{width}}}{{c}}{{{escaped(title)}}}")
        rules.append(f"\\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    heads = [[""] * labels, [escaped(header) for header in table.row_headers]]
    for subs in columns:
        for sub in subs:
            first_line, second_line = sub.titles()
            heads[0].append(first_line)
            heads[1].append(second_line)
    lines = [
        f"\\begin{{tabular}}{{{types}}}",
        r"\toprule",
        f"{' & '.join(tops)} \\\\",
        "".join(rules),
    ]
    lines += [f"{' & '.join(line)} \\\\" for line in heads]
    lines.append(r"\midrule")
    for row, names in enumerate(table.rows):
        if row and labels > 1 and names[0] != table.rows[row - 1][0]:
            lines.append(r"\addlinespace")
        cells = [escaped(name) for name in names]
        cells += [sub.cells[row] for subs in columns for sub in subs]
        lines.append(f"{' & '.join(cells)} \\\\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _sub_columns(table: Table, column: int, options: TableOptions) -> list[SubColumn]:
    """Return what one column of the table shows; what all its cells lack is left out."""
    cells = [table.cell(row, column) for row in range(len(table.rows))]
    places = standings(table, options.mark)
    made: list[SubColumn] = []
    for title, _ in headings(table, options.without):
        if title == measure(table):
            made.append(_means(table, cells, places, options))
        elif title == "params":
            counted = unit(cells)
            numbers = [counted.shown(trained(cell)).removesuffix(counted.letter) for cell in cells]
            made.append(
                _numbers(("params", f"({counted.letter})" if counted.letter else ""), numbers)
            )
        elif title == "paper":
            made.append(_numbers(("paper", "(%)"), [paper(cell)[0] for cell in cells]))
        elif title == "paper params":
            made.append(
                _numbers(
                    ("paper", "params (M)"), [paper(cell)[1].removesuffix("M") for cell in cells]
                )
            )
    filled = [sub for sub in made if any(re.search(r"\w", cell) for cell in sub.cells)]
    return filled or made[:1] or [_numbers(("", ""), [""] * len(cells))]


def _means(
    table: Table, cells: Sequence[TableCell], places: Places, options: TableOptions
) -> SubColumn:
    """Return the means, and behind each what belongs to it: its ±, missing seeds, footnotes."""
    known = symbols(table) if options.notes else {}
    numbers: list[str] = []
    behind: list[str] = []
    widest = 0
    for cell in cells:
        if cell.mean is None:
            numbers.append(f"{{{escaped(instead_of_a_mean(cell))}}}")
            behind.append("")
            continue
        number = percent(cell.mean)
        numbers.append(MARKUP.get(places.get((cell.row, cell.column), ""), "{}").format(number))
        spread = f"$\\pm$\\,{percent(cell.sd)}" if cell.sd is not None else ""
        seeds = num_seeds(cell)
        short = f"(${seeds}$)" if seeds else ""
        signs = "".join(
            f"\\tnote{{{escaped(symbol)}}}" for mark, symbol in known.items() if mark in cell.marks
        )
        behind.append("\\,".join(part for part in (spread, short) if part) + signs)
        widest = max(widest, len(number) + (4 if spread else 0) + len(seeds) + (1 if signs else 0))
    heading = (measure(table), "(%)")
    types = _number_type([percent(cell.mean) for cell in cells if cell.mean is not None])
    characters = max(widest, len(measure(table)))
    if not any(behind):
        return SubColumn(heading, types, tuple(numbers), 1, characters)
    both = tuple(
        f"{number} & {more}".rstrip() for number, more in zip(numbers, behind, strict=True)
    )
    return SubColumn(heading, rf"{types}@{{\,}}>{{\scriptsize}}l", both, 2, characters)


def _numbers(heading: tuple[str, str], values: Sequence[str]) -> SubColumn:
    """Return a sub-column of numbers, some of which may be missing."""
    characters = max(len(text) for text in (*heading, *values))
    return SubColumn(
        heading, _number_type([value for value in values if value]), tuple(values), 1, characters
    )


def _number_type(numbers: Sequence[str]) -> str:
    """Return siunitx' column type for numbers: with room for the most digits before and behind the
    decimal point.
    """
    if not numbers:
        return "r"
    before = max(len(number.partition(".")[0]) for number in numbers)
    behind = max(len(number.partition(".")[2]) for number in numbers)
    return f"S[table-format={before}.{behind}]" if behind else f"S[table-format={before}]"


def _characters(table: Table, columns: Sequence[Sequence[SubColumn]]) -> int:
    """Return about how many characters a line of the table has."""
    total = 0
    for place, header in enumerate(table.row_headers):
        total += max([len(header), *(len(row[place]) for row in table.rows)]) + 2
    for title, subs in zip(table.columns, columns, strict=True):
        total += max(sum(sub.characters + 2 for sub in subs), len(title) + 2)
    return total


FORMAT = Format(suffix="tex", render=latex, options=("mark", "notes", "label", "without"))
