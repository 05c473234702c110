r"""LaTeX as papers print tables: booktabs rules, numbers aligned by siunitx, notes by
threeparttable, the caption above.

A column of the table has sub-columns: means, trainable parameters, the paper's values. The
sub-column of means takes two columns of the tabular, one for the mean and one for its ± in smaller
print, so that a bold or underlined mean, which siunitx does not parse, is aligned with the others:
all means have one decimal, and stand at the right edge of their column.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pointsweep.reporting.best_cells import Ranks, legend, standings
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
# (most characters of a line, the commands with which lines up to that length fit a page of one
# column); longer lines do not fit.
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
    text = " ".join(one_line(value).split())
    return "".join(TEX.get(char, char) for char in text)


def sentence(value: str) -> str:
    """Return a note so that LaTeX prints it, with signs of numbers as minus signs."""
    return MINUS.sub("$-$", escaped(value))


@dataclass(frozen=True)
class SubColumn:
    """A sub-column of the table: its heading, its cells, and how many columns of the tabular it
    takes.
    """

    heading: tuple[str, str]  # in two lines: the quantity, and its unit
    column_types: str  # as in the argument of \begin{tabular}
    # LaTeX, one a row, with an & between the columns of the tabular
    cells: tuple[str, ...]
    num_columns: int = 1  # of the tabular
    characters: int = 0  # about how many its widest line has in print

    def titles(self) -> tuple[str, str]:
        """Return the heading's lines as cells of the tabular."""
        first, second = map(escaped, self.heading)
        if self.num_columns == 1:
            # siunitx prints what stands in braces as text
            return f"{{{first}}}", f"{{{second}}}"

        opening = f"\\multicolumn{{{self.num_columns}}}{{c}}"
        return f"{opening}{{{first}}}", f"{opening}{{{second}}}"


def latex(table: Table, options: TableOptions) -> str:
    """Return a table environment."""
    columns = []
    for column in range(len(table.columns)):
        columns.append(_sub_columns(table, column, options))

    lines = [f"% \\usepackage{{{','.join(PACKAGES)}}}"]
    size = _size(_characters(table, columns))
    if size is None:
        lines.append("% wider than a page of one column: --drop leaves columns out")
        size = SIZES[-1][1]

    lines += [r"\begin{table}", r"\centering", r"\setlength{\belowcaptionskip}{6pt}"]
    lines.append(f"\\caption{{{_caption(table, columns)}}}")
    lines.append(f"\\label{{{_label(table, options)}}}")
    lines.append(r"\sisetup{table-number-alignment=right,table-text-alignment=right}")

    if size:
        lines.append(size)

    tabular = _tabular(table, columns)
    notes = _notes(table, options)
    if options.notes and notes:
        lines += [r"\begin{threeparttable}", *tabular, *_table_notes(table, options)]
        lines += [r"\end{threeparttable}", r"\end{table}"]
    else:
        # Without notes in print, comments still give them to a reader of the file.
        lines += [*tabular, r"\end{table}"]
        for note in notes:
            comment = " ".join(one_line(note).split())
            lines.append(f"% {comment}")

    return "\n".join(lines) + "\n"


def _size(characters: int) -> str | None:
    """Return the commands with which so many characters a line fit a page; None if none do."""
    for most, size in SIZES:
        if characters <= most:
            return size

    return None


def _notes(table: Table, options: TableOptions) -> list[str]:
    """Return all notes as plain text, first the one that explains bold and underlined means."""
    marks = legend(table, options.mark, "Bold", "underlined")
    return [note for note in (marks, *footnotes(table)) if note]


def _caption(table: Table, columns: Sequence[Sequence[SubColumn]]) -> str:
    params = ""
    for sub in itertools.chain.from_iterable(columns):
        if any("params" in line for line in sub.heading):
            params = "; params: trainable, without the head"

    split, _, _ = table.metric.partition("/")
    description = (
        f"{split.capitalize()} {measure(table)} in %, {over_seeds(table)},"
        f" {PROTOCOLS[table.protocol]}{params}."
    )

    title = escaped(table.title)

    if not title.endswith((".", "!", "?")):
        title += "."

    return f"{title} {escaped(description)}"


def _label(table: Table, options: TableOptions) -> str:
    if options.label:
        return options.label

    name = re.sub(r"[^A-Za-z0-9]+", "-", table.name).strip("-")
    return f"tab:{name}"


def _table_notes(table: Table, options: TableOptions) -> list[str]:
    """Return the lines of the tablenotes environment: an item for each footnote symbol, and below
    the notes without a symbol.
    """
    symbol_of = symbols(table)
    lines = [r"\begin{tablenotes}[flushleft]", r"\footnotesize"]
    for mark, symbol in symbol_of.items():
        lines.append(f"\\item[{escaped(symbol)}] {sentence(mark)}")

    # The first footnotes are the symbols', which are items already.
    notes = footnotes(table)[len(symbol_of) :]
    marks = legend(table, options.mark, "Bold", "underlined")
    if marks:
        notes.insert(0, marks)

    lines += [f"\\item {sentence(note)}" for note in notes]
    return [*lines, r"\end{tablenotes}"]


def _tabular(table: Table, columns: Sequence[Sequence[SubColumn]]) -> list[str]:
    """Return the lines of the tabular: the columns' titles, each above a rule over its sub-columns,
    two lines of headings, and the rows.
    """
    num_labels = len(table.row_headers)
    column_types = "l" * num_labels
    titles = [""] * num_labels
    rules = ""
    # The headings of the labels stand in the lower of the two lines.
    upper_headings = [""] * num_labels
    lower_headings = list(map(escaped, table.row_headers))
    # of the tabular, counted from 1: where the sub-columns of the next title begin
    first_column = num_labels + 1

    for title, sub_columns in zip(table.columns, columns, strict=True):
        num_columns = sum(sub.num_columns for sub in sub_columns)
        titles.append(f"\\multicolumn{{{num_columns}}}{{c}}{{{escaped(title)}}}")
        last_column = first_column + num_columns - 1
        rules += f"\\cmidrule(lr){{{first_column}-{last_column}}}"
        first_column = last_column + 1

        for sub in sub_columns:
            upper, lower = sub.titles()
            upper_headings.append(upper)
            lower_headings.append(lower)
            column_types += sub.column_types

    lines = [f"\\begin{{tabular}}{{{column_types}}}", r"\toprule", _line(titles), rules]
    lines += [_line(upper_headings), _line(lower_headings), r"\midrule"]
    for row, labels in enumerate(table.rows):
        # Rows with several labels are grouped by the first; a space separates the groups.
        if row and num_labels > 1 and labels[0] != table.rows[row - 1][0]:
            lines.append(r"\addlinespace")

        cells = list(map(escaped, labels))
        for sub in itertools.chain.from_iterable(columns):
            cells.append(sub.cells[row])

        lines.append(_line(cells))

    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _line(cells: Sequence[str]) -> str:
    """Return a line of a tabular."""
    return f"{' & '.join(cells)} \\\\"


def _sub_columns(table: Table, column: int, options: TableOptions) -> list[SubColumn]:
    """Return the sub-columns of one column of the table, without those that are empty in every row.
    At least one is left, so that the column's title has something to stand above.
    """
    cells = [table.cell(row, column) for row in range(len(table.rows))]
    values = []
    millions = []

    for cell in cells:
        value, params = paper(cell)
        values.append(value)
        millions.append(params.removesuffix("M"))

    subs: list[SubColumn] = []
    for title, _ in headings(table, options.without):
        if title == measure(table):
            subs.append(_means(table, cells, standings(table, options.mark), options))
        elif title == "params":
            subs.append(_params(cells))
        elif title == "paper":
            subs.append(_numbers(("paper", "(%)"), values))
        elif title == "paper params":
            subs.append(_numbers(("paper", "params (M)"), millions))

    filled = [sub for sub in subs if re.search(r"\w", " ".join(sub.cells))]
    return filled or subs[:1] or [_numbers(("", ""), [""] * len(cells))]


def _params(cells: Sequence[TableCell]) -> SubColumn:
    """Return the sub-column of trainable parameters, whose unit stands in its heading."""
    column_unit = unit(cells)
    letter = column_unit.letter
    numbers = []

    for cell in cells:
        number = column_unit.shown(trained(cell))
        numbers.append(number.removesuffix(letter))

    unit_heading = f"({letter})" if letter else ""
    return _numbers(("params", unit_heading), numbers)


def _means(
    table: Table, cells: Sequence[TableCell], ranks: Ranks, options: TableOptions
) -> SubColumn:
    """Return the sub-column of means; where any mean has a ±, missing seeds or footnote symbols, a
    second column of the tabular holds these.
    """
    symbol_of = symbols(table) if options.notes else {}
    means: list[str] = []
    suffixes: list[str] = []
    numbers: list[str] = []
    widest = len(measure(table))

    for cell in cells:
        if cell.mean is None:
            means.append(f"{{{escaped(instead_of_a_mean(cell))}}}")
            suffixes.append("")
            continue

        number = percent(cell.mean)
        markup = MARKUP.get(ranks.get((cell.row, cell.column), ""), "{}")
        suffix, characters = _suffix(cell, symbol_of)

        means.append(markup.format(number))
        suffixes.append(suffix)
        numbers.append(number)
        widest = max(widest, len(number) + characters)

    heading = (measure(table), "(%)")
    column_types = _number_type(numbers)
    if not any(suffixes):
        return SubColumn(heading, column_types, tuple(means), characters=widest)

    pairs = []
    for mean, suffix in zip(means, suffixes, strict=True):
        pairs.append(f"{mean} & {suffix}".rstrip())

    # a thin space between the two, and the second in small print
    column_types += r"@{\,}>{\scriptsize}l"
    return SubColumn(
        heading, column_types, tuple(pairs), num_columns=2, characters=widest
    )


def _suffix(cell: TableCell, symbol_of: Mapping[str, str]) -> tuple[str, int]:
    """Return a mean's ±, number of seeds where some are missing, and footnote symbols, and about
    how many characters wide they are in small print.
    """
    parts = []
    characters = 0

    if cell.sd is not None:
        parts.append(f"$\\pm$\\,{percent(cell.sd)}")
        characters += 4

    seeds = num_seeds(cell)
    if seeds:
        parts.append(f"(${seeds}$)")
        characters += len(seeds)

    text = "\\,".join(parts)
    marks = [mark for mark in symbol_of if mark in cell.marks]
    for mark in marks:
        text += f"\\tnote{{{escaped(symbol_of[mark])}}}"

    if marks:
        characters += 1

    return text, characters


def _numbers(heading: tuple[str, str], values: Sequence[str]) -> SubColumn:
    """Return a sub-column of numbers, some of which may be missing."""
    characters = max(map(len, [*heading, *values]))
    column_types = _number_type([value for value in values if value])
    return SubColumn(heading, column_types, tuple(values), characters=characters)


def _number_type(numbers: Sequence[str]) -> str:
    """Return siunitx' column type for numbers, with room for the most digits on either side of the
    decimal point, or a plain right-aligned column if there are none.
    """
    if not numbers:
        return "r"

    num_digits = num_decimals = 0
    for number in numbers:
        digits, _, decimals = number.partition(".")
        num_digits = max(num_digits, len(digits))
        num_decimals = max(num_decimals, len(decimals))

    if num_decimals:
        return f"S[table-format={num_digits}.{num_decimals}]"

    return f"S[table-format={num_digits}]"


def _characters(table: Table, columns: Sequence[Sequence[SubColumn]]) -> int:
    """Return about how many characters a line of the table has in print, with two between
    columns.
    """
    total = 0
    for labels in zip(table.row_headers, *table.rows, strict=True):
        total += max(map(len, labels)) + 2

    for title, subs in zip(table.columns, columns, strict=True):
        numbers = sum(sub.characters + 2 for sub in subs)
        total += max(numbers, len(title) + 2)

    return total


FORMAT = Format(
    suffix="tex", render=latex, options=("mark", "notes", "label", "without")
)
