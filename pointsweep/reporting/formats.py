"""A table as text, Markdown, LaTeX, CSV or JSON. The same table gives the same bytes.

Numbers are fractions everywhere but here and in footnotes.py, which print percent.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from pointsweep.reporting.footnotes import comparison_notes, object_notes, survivor_note, verdict_notes
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import METRICS
from pointsweep.results.records import Published
from pointsweep.statistics.seeds import Verdict
from pointsweep.utils.console import HIDDEN, columns_of, encodable, encoding_of, left, one_line, right, visible, width, wrapped
from pointsweep.utils.numbers import decimals, percent

WIDTH = 118  # of the sentences in a file; a terminal has its own width
NARROWEST = 12  # cells that a row's label keeps beside a wide column
SYMBOLS = "*†‡§¶"
PROTOCOLS = {"last": "last epoch", "best_val": "best epoch on validation", "best_test": "best epoch on the test set"}


def render(table: Table, form: str) -> str:
    """The table in one of FORMATS, with a line break at its end."""
    return FORMATS[form](table)


def render_for(stream: TextIO, table: Table) -> str:
    """Return the table as text for a stream: as wide as its terminal, with the signs that it can show."""
    return text(table, columns_of(stream), encoding_of(stream))


def render_here(table: Table) -> str:
    """Return the table as text for standard output."""
    return render_for(sys.stdout, table)


# Words that all formats share


def measure(table: Table) -> str:
    """The metric without its split, in words: accuracy, instance miou."""
    name = table.metric.rpartition("/")[2]
    return METRICS[name].title if name in METRICS else name.replace("_", " ")


def accuracy(cell: TableCell) -> str:
    """ "81.2 ± 0.4", with n where seeds are missing."""
    if cell.excluded is not None:
        return "—"
    if cell.mean is None:
        return "failed" if cell.failures else f"0/{cell.expected}"
    spread = f" ± {percent(cell.sd)}" if cell.sd is not None else ""
    short = f" (n={cell.n}/{cell.expected})" if cell.n < cell.expected else f" (n={cell.n})" if cell.stopped else ""
    return percent(cell.mean) + spread + short


def count(number: int | None) -> str:
    """A number of parameters by itself: 948,312 -> 0.948M, 12,345 -> 12.3k."""
    if number is None:
        return ""
    if number >= 10_000_000:
        return f"{decimals(number, 1, shift=-6)}M"
    if number >= 100_000:
        return f"{decimals(number, 3, shift=-6)}M"
    return f"{decimals(number, 1, shift=-3)}k" if number >= 1000 else str(number)


def trained(cell: TableCell) -> int | None:
    """The trainable parameters without the head."""
    return cell.parameters["trainable_without_head"] if cell.parameters else None


@dataclass(frozen=True)
class Unit:
    """In what the parameters of one column are printed: a letter, the power of ten it stands for, and decimals."""

    letter: str
    power: int
    digits: int

    def shown(self, number: int | None) -> str:
        """Return a number of parameters in this unit; what is zero, or not known, without it."""
        if number is None:
            return ""
        return f"{decimals(number, self.digits, shift=-self.power)}{self.letter}" if number else "0"


def unit(cells: Sequence[TableCell]) -> Unit:
    """Return one unit for the cells of a column: millions where one has them or the paper prints them, else thousands.

    As many decimals as show the smallest, but no more than three for its sake alone.
    """
    counts = [number for cell in cells if (number := trained(cell))]
    if not counts:
        return Unit("", 0, 0)
    in_paper = any(cell.published is not None and cell.published.params_m is not None for cell in cells)
    letter, power, most = ("M", 6, 3) if in_paper or max(counts) >= 10**6 else ("k", 3, 1)
    if max(counts) < 1000 and not in_paper:
        return Unit("", 0, 0)
    leading = math.ceil(power - math.log10(min(counts)))  # the decimal of the smallest count's first digit
    return Unit(letter, power, max(min(leading + 2, most), leading, 1))


def paper(cell: TableCell) -> tuple[str, str]:
    """The published value and parameter count, as printed there (papers print at least one decimal, and so does str)."""
    if cell.published is None:
        return "", ""
    value, params = cell.published.value, cell.published.params_m
    return "" if value is None else str(float(value)), "" if params is None else f"{float(params)}M"


def symbols(table: Table) -> dict[str, str]:
    """A footnote symbol for each mark that some cells have and others do not."""
    filled = [cell for cell in table.cells if cell.values]
    marks = sorted({mark for cell in filled for mark in cell.marks})
    partial = [mark for mark in marks if not all(mark in cell.marks for cell in filled)]
    return {mark: SYMBOLS[i % len(SYMBOLS)] * (1 + i // len(SYMBOLS)) for i, mark in enumerate(partial)}


def marked(table: Table, cell: TableCell, known: Mapping[str, str] | None = None) -> str:
    """The accuracy with the symbols of its footnotes; who shows many cells hands in the table's symbols."""
    found = symbols(table) if known is None else known
    return accuracy(cell) + "".join(symbol for mark, symbol in found.items() if mark in cell.marks and cell.values)


def headline(table: Table) -> str:
    """Protocol and unit in one line."""
    seeds = sorted({cell.expected for cell in table.cells if cell.expected})
    over = f"mean ± sd over {' or '.join(map(str, seeds))} seeds" if seeds else "no trials"
    over = "one seed, so no sd" if seeds == [1] else over
    return f"{table.metric} in %, protocol: {PROTOCOLS[table.protocol]}, {over}; params: trainable, without the head"


def footnotes(table: Table) -> list[str]:
    """Everything a reader must know beside the numbers, in a fixed order, one line each."""
    return [visible(" ".join(line.split())) for line in _notes(table)]


def _notes(table: Table) -> Iterator[str]:
    yield from (f"{symbol} {mark}" for mark, symbol in symbols(table).items())
    filled = [cell for cell in table.cells if cell.values]
    everywhere = sorted({mark for cell in filled for mark in cell.marks} - symbols(table).keys())
    if everywhere:
        yield f"all cells: {', '.join(everywhere)}"
    yield from comparison_notes(table)
    yield from object_notes(table)
    optimism = [cell.optimism for cell in filled if cell.optimism is not None]
    if optimism:
        verb = "adds" if table.protocol == "best_test" else "would add"
        mean = percent(sum(sorted(optimism)) / len(optimism), signed=True)
        yield f"choosing the epoch on the test set {verb} {mean} over the last epoch, in the mean of the cells"
    yield from (f"— {table.place(cell)}: {cell.excluded}" for cell in table.cells if cell.excluded is not None)
    yield from (f"failed: {table.place(cell)}, seed {seed}: {why}" for cell in table.cells for seed, why in cell.failures)
    yield from survivor_note(table)
    for cell in filled:
        known = {seed for seed, _ in (*cell.values, *cell.failures)}
        if absent := [str(seed) for seed, _ in cell.keys if seed not in known]:
            yield f"not finished: {table.place(cell)}, seed {', '.join(absent)}"
    sources = sorted({cell.published.source for cell in table.cells if cell.published})
    if sources:
        yield f"paper: {'; '.join(sources)}"
    yield from verdict_notes(table)
    yield from table.notes


Heading = tuple[str, Callable[[TableCell], str]]  # of a sub-column: its title, and what it shows of a cell


def headings(table: Table) -> list[Heading]:
    """The sub-columns of every column; those of the paper only where it printed something."""
    known = symbols(table)
    units = [unit([cell for cell in table.cells if cell.column == column]) for column in range(len(table.columns))]
    found: list[Heading] = [
        (measure(table), lambda cell: marked(table, cell, known)),
        ("params", lambda cell: units[cell.column].shown(trained(cell))),
    ]
    if any(paper(cell)[0] for cell in table.cells):
        found.append(("paper", lambda cell: paper(cell)[0]))
    if any(paper(cell)[1] for cell in table.cells):
        found.append(("paper params", lambda cell: paper(cell)[1]))
    return found


def grid(table: Table) -> list[list[str]]:
    """The second heading row and the body, as strings."""
    subs = headings(table)
    columns = range(len(table.columns))
    second = list(table.row_headers) + [title for _ in columns for title, _ in subs]
    cells = {(cell.row, cell.column): cell for cell in table.cells}
    return [second, *([*row, *(show(cells[i, c]) for c in columns for _, show in subs)] for i, row in enumerate(table.rows))]


# Formats


def text(table: Table, columns: int | None = None, encoding: str = "utf-8") -> str:
    """Return the table as plain text; of a terminal's `columns` what does not fit side by side is printed below."""

    def shown(value: str) -> str:
        return encodable(one_line(value), encoding)

    size = columns or WIDTH
    lines = [[shown(value) for value in line] for line in grid(table)]
    tops = [shown(column) for column in table.columns]
    blocks = _blocks(lines, len(table.row_headers), tops, columns)
    head = [table.title, headline(table)]
    parts = [_sentences([shown(line) for line in head], size), *blocks]
    parts.append(_sentences([shown(line) for line in footnotes(table)], size))
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def half_filled(table: Table, columns: int, encoding: str) -> list[str]:
    """Return the lines of a table that is not finished, for a terminal: without the sentences under it."""

    def shown(value: str) -> str:
        return encodable(one_line(value), encoding)

    lines = [[shown(value) for value in line] for line in grid(table)]
    blocks = _blocks(lines, len(table.row_headers), [shown(column) for column in table.columns], columns)
    made = wrapped(shown(f"{table.title}: {table.metric} in %"), columns)
    for block in blocks:
        made += ["", *block]
    return made


def _sentences(lines: Sequence[str], size: int) -> list[str]:
    found = []
    for line in lines:
        found += wrapped(line, size)
    return found


def _blocks(lines: Sequence[Sequence[str]], labels: int, tops: Sequence[str], size: int | None) -> list[list[str]]:
    """Lay a grid out in blocks of at most `size` cells, each with the rows' labels; in one block without a size.

    `tops` are the headings over the grid's columns after its `labels`, which they share evenly.
    """
    columns = list(zip(*lines, strict=True))
    each = (len(columns) - labels) // len(tops)
    numbers = [columns[labels + i * each : labels + (i + 1) * each] for i in range(len(tops))]
    parts = [_Part(top, _side_by_side(mine, right)) for top, mine in zip(tops, numbers, strict=True)]
    if size is None:
        return [_block(_labels(columns[:labels]), parts)]
    widest = max(part.size for part in parts)
    names = _labels(columns[:labels], max(size - widest - GAP, NARROWEST))
    if names.size + GAP + widest > size:
        # Not even one column fits beside the labels: its numbers go below each other too.
        parts = [_Part(top, list(one)) for top, mine in zip(tops, numbers, strict=True) for one in mine]
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
    """Some of a table's columns: a heading over them, and a line for the second heading and each row, all of one width."""

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
    """Lay the columns of labels side by side; where they take more than `size` cells the widest are wrapped."""
    between = 2 * (len(columns) - 1)
    widths = [max(map(width, column)) for column in columns]
    while size is not None and sum(widths) + between > size and max(widths) > NARROWEST // 2:
        widths[widths.index(max(widths))] -= 1
    rows = []
    for labels in zip(*columns, strict=True):
        parts = [wrapped(label, width) if label else [""] for label, width in zip(labels, widths, strict=True)]
        height = max(map(len, parts))
        filled = [[*part, *[""] * (height - len(part))] for part in parts]
        lines = []
        for line in zip(*filled, strict=True):
            lines.append("  ".join(left(label, width) for label, width in zip(line, widths, strict=True)))
        rows.append(lines)
    return _Labels(rows)


def _block(names: _Labels, parts: Sequence[_Part]) -> list[str]:
    """Some columns with the rows' labels: labels left, numbers right, a wider gap before each column's first number."""
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


def _side_by_side(columns: Sequence[Sequence[str]], aligned: Callable[[str, int], str]) -> list[str]:
    """Columns -> lines, each column as wide as its widest text."""
    widths = [max(map(width, column)) for column in columns]
    filled = []
    for column, size in zip(columns, widths, strict=True):
        filled.append([aligned(value, size) for value in column])
    return ["  ".join(line) for line in zip(*filled, strict=True)]


def markdown(table: Table) -> str:
    """For GitHub; the column's name stands before every sub-column's."""
    subs = headings(table)
    heads = [*table.row_headers, *(f"{column} {sub}" for column in table.columns for sub, _ in subs)]
    rule = ["---"] * len(table.row_headers) + ["---:"] * (len(table.columns) * len(subs))
    rows = [[_md(cell) for cell in row] for row in [heads, *grid(table)[1:]]]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]]
    # A number or a bullet at its start would make a list within the list.
    notes = [re.sub(r"^(\d+(?=[.)])|(?=[-+]))", r"\1\\", _md(note)) for note in footnotes(table)]
    head = [f"**{_md(table.title)}**", "", _md(headline(table)), "", *lines]
    return "\n".join([*head, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def _md(value: str) -> str:
    return re.sub(r"([\\|*_<>`~#$&\[\]])", r"\\\1", " ".join(one_line(value).split()))


def latex(table: Table) -> str:
    """A table environment for booktabs."""
    subs, labels = headings(table), len(table.row_headers)
    tops = [f"\\multicolumn{{{len(subs)}}}{{c}}{{{_tex(column)}}}" for column in table.columns]
    starts = range(labels + 1, labels + 1 + len(subs) * len(tops), len(subs))
    rows = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in grid(table)]
    notes = [f"{_tex(note)}\\par" for note in footnotes(table)]
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


# What a spreadsheet takes for the beginning of a formula, also in its wide forms and after blanks.
FORMULA = re.compile(r"[\t\r\n]|\s*[-=+@\uFF1D\uFF0B\uFF20\uFF0D]")
# A minus that is none of a formula: a number, or words as in "- adapter".
MINUS = re.compile(r"-\s*\d+(\.\d+)?(e[-+]?\d+)?|- [^=+*/^&|!()@<>]*", re.IGNORECASE)


def spreadsheet_text(value: object) -> object:
    """Return a field of a CSV so that every spreadsheet takes a text for a text: with an apostrophe where it needs one."""
    if not isinstance(value, str):
        return value
    shown = visible(value, keep="\n\t")
    return f"'{shown}" if FORMULA.match(shown) and not MINUS.fullmatch(shown) else shown


class _SpreadsheetWriter:
    """A CSV writer whose texts are no formulas."""

    def __init__(self, file: TextIO) -> None:
        self.writer = csv.writer(file, lineterminator="\n")

    def writerow(self, fields: Sequence[object]) -> None:
        """Write a line."""
        self.writer.writerow([spreadsheet_text(field) for field in fields])


def comma_separated(table: Table) -> str:
    """One line a cell, full precision, fractions."""
    out = io.StringIO()
    writer = _SpreadsheetWriter(out)
    labels = [header or f"row{i or ''}" for i, header in enumerate(table.row_headers)]
    counts = ("trainable", "trainable_without_head", "total")
    writer.writerow([
        *labels, "column", "metric", "protocol", "mean", "sd", "n", "expected", "low", "high", "values", *counts,
        "published", "published_params_m", "source", "marks", "status", "reason", "interval", "verdict", "verdict_reason",
        "verdict_difference", "verdict_low", "verdict_high", "verdict_margin",
    ])  # fmt: skip
    for cell in table.cells:
        published = cell.published or Published(None, None, "")
        reason = cell.excluded or "; ".join(f"seed {seed}: {why}" for seed, why in cell.failures)
        writer.writerow([
            *table.rows[cell.row], table.columns[cell.column], table.metric, table.protocol, cell.mean, cell.sd, cell.n,
            cell.expected, cell.low, cell.high, " ".join(f"{seed}:{value!r}" for seed, value in cell.values),
            *((cell.parameters or {}).get(kind) for kind in counts), published.value, published.params_m, published.source,
            "; ".join(cell.marks), cell.status, reason, cell.interval,
            *_verdict_fields(cell.verdict),
        ])  # fmt: skip
    return out.getvalue()


def _verdict_fields(found: Verdict | None) -> tuple[object, ...]:
    if found is None:
        return ("",) * 6
    return found.kind, found.reason, found.difference, found.low, found.high, found.margin


def as_json(table: Table) -> str:
    """Everything, sorted keys."""
    cells = [{**asdict(cell), "status": cell.status} for cell in table.cells]
    made = json.dumps({**asdict(table), "cells": cells}, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], made) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": text, "md": markdown, "tex": latex, "csv": comma_separated, "json": as_json,
}  # fmt: skip
