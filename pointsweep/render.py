"""A table as text, Markdown, LaTeX, CSV or JSON. The same table gives the same bytes. Only here and in notes.py is there percent."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from pointsweep.notes import LEGEND, object_notes, verdict_notes
from pointsweep.notes import order as order
from pointsweep.notes import percent as percent
from pointsweep.records import Published
from pointsweep.table import Table, TableCell

WIDTH = 118  # of a terminal; columns that do not fit beside the others are printed below them
SYMBOLS = "*†‡§¶"
PROTOCOLS = {"last": "last epoch", "best_val": "best epoch on validation", "best_test": "best epoch on the test set"}


def render(table: Table, form: str) -> str:
    """The table in one of FORMATS, with a line break at its end."""
    return FORMATS[form](table)


# Words that all formats share


def measure(table: Table) -> str:
    """The metric without its split, in words: accuracy, instance miou."""
    return table.metric.rpartition("/")[2].replace("_", " ")


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
    """A number of parameters: 948,312 -> 0.948M, 12,345 -> 12.3k."""
    if number is None:
        return ""
    if number >= 10_000_000:
        return f"{number / 1e6:.1f}M"
    if number >= 100_000:
        return f"{number / 1e6:.3f}M"
    return f"{number / 1e3:.1f}k" if number >= 1000 else str(number)


def trained(cell: TableCell) -> str:
    """The trainable parameters without the head."""
    return count(cell.parameters["trainable_without_head"]) if cell.parameters else ""


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
    return [" ".join(line.split()) for line in _notes(table)]


def _notes(table: Table) -> Iterator[str]:
    yield from (f"{symbol} {mark}" for mark, symbol in symbols(table).items())
    filled = [cell for cell in table.cells if cell.values]
    everywhere = sorted({mark for cell in filled for mark in cell.marks} - symbols(table).keys())
    if everywhere:
        yield f"all cells: {', '.join(everywhere)}"
    orders = [line for steps, column in zip(table.steps, table.columns, strict=True) if (line := order(steps, column))]
    if any(step is not None and step.low is not None for steps in table.steps for _, step in steps):
        yield LEGEND
    yield from orders
    yield from object_notes(table)
    optimism = [cell.optimism for cell in filled if cell.optimism is not None]
    if optimism:
        verb = "adds" if table.protocol == "best_test" else "would add"
        mean = percent(sum(sorted(optimism)) / len(optimism), signed=True)
        yield f"choosing the epoch on the test set {verb} {mean} over the last epoch, in the mean of the cells"
    yield from (f"— {table.place(cell)}: {cell.excluded}" for cell in table.cells if cell.excluded is not None)
    yield from (f"failed: {table.place(cell)}, seed {seed}: {why}" for cell in table.cells for seed, why in cell.failures)
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
    found: list[Heading] = [
        (measure(table), lambda cell: marked(table, cell, known)),
        ("params", trained),
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


def text(table: Table) -> str:
    """For a terminal: as many columns side by side as fit, the others below."""
    blocks: list[list[str]] = []
    group: list[int] = []
    texts = list(zip(*grid(table), strict=True))
    for column in range(len(table.columns)):
        block = _block(table, [*group, column], texts)
        if group and max(map(len, block)) > WIDTH:
            group, block = [], _block(table, [column], texts)
            blocks.append(block)
        elif not group:
            blocks.append(block)
        group.append(column)
        blocks[-1] = block
    parts = [_wrapped([table.title, headline(table)]), *blocks, _wrapped(footnotes(table))]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _wrapped(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in _wrap(line)]


def _wrap(line: str) -> list[str]:
    """What `textwrap.wrap` makes of a line, in a quarter of the time where it is plain words; notes may have ten thousand."""
    words = line.split(" ")
    if len(line.split()) < len(words) or max(map(len, words)) > WIDTH - 2:
        return textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    parts, at = [words[0]], len(words[0])
    for word in words[1:]:
        at += 1 + len(word)
        if at > WIDTH:
            parts.append(f"\n  {word}")
            at = 2 + len(word)
        else:
            parts.append(word)
    return " ".join(parts).split(" \n")


def _block(table: Table, group: Sequence[int], texts: Sequence[Sequence[str]]) -> list[str]:
    """Some columns with the rows' labels: labels left, numbers right, a wider gap before each column's first number.

    `texts` are the columns of `grid`, of the whole table.
    """
    labels = len(table.row_headers)
    size = (len(texts) - labels) // len(table.columns)
    parts = [_side_by_side(texts[:labels], str.ljust)]
    top = [" " * len(parts[0][0])]
    for column in group:
        at = labels + column * size
        part = _side_by_side(texts[at : at + size], str.rjust)
        span = max(len(part[0]), len(table.columns[column]))
        top.append(table.columns[column].ljust(len(part[0])))
        parts.append([line.rjust(span) for line in part])
    body = ["    ".join(line).rstrip() for line in zip(*parts, strict=True)]
    first = "    ".join(top).rstrip()
    return [first, body[0], "-" * max(map(len, [first, *body])), *body[1:]]


def _side_by_side(texts: Sequence[Sequence[str]], aligned: Callable[[str, int], str]) -> list[str]:
    """Columns -> lines, each column as wide as its widest text."""
    widths = [max(map(len, column)) for column in texts]
    columns = [[aligned(each, width) for each in column] for column, width in zip(texts, widths, strict=True)]
    return ["  ".join(line) for line in zip(*columns, strict=True)]


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
    return re.sub(r"([\\|*_<>`~#$&\[\]])", r"\\\1", " ".join(value.split()))


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
    return "".join(TEX.get(char, char) for char in " ".join(value.split()))


def comma_separated(table: Table) -> str:
    """One line a cell, full precision, fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    labels = [header or f"row{i or ''}" for i, header in enumerate(table.row_headers)]
    counts = ("trainable", "trainable_without_head", "total")
    writer.writerow([
        *labels, "column", "metric", "protocol", "mean", "sd", "n", "expected", "low", "high", "values", *counts,
        "published", "published_params_m", "source", "marks", "status", "reason", "interval", "verdict", "verdict_reason",
    ])  # fmt: skip
    for cell in table.cells:
        published = cell.published or Published(None, None, "")
        reason = cell.excluded or "; ".join(f"seed {seed}: {why}" for seed, why in cell.failures)
        writer.writerow([
            *table.rows[cell.row], table.columns[cell.column], table.metric, table.protocol, cell.mean, cell.sd, cell.n,
            cell.expected, cell.low, cell.high, " ".join(f"{seed}:{value!r}" for seed, value in cell.values),
            *((cell.parameters or {}).get(kind) for kind in counts), published.value, published.params_m, published.source,
            "; ".join(cell.marks), cell.status, reason, cell.interval,
            *((cell.verdict.kind, cell.verdict.reason) if cell.verdict else ("", "")),
        ])  # fmt: skip
    return out.getvalue()


def as_json(table: Table) -> str:
    """Everything, sorted keys."""
    cells = [{**asdict(cell), "status": cell.status} for cell in table.cells]
    return json.dumps({**asdict(table), "cells": cells}, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": text, "md": markdown, "tex": latex, "csv": comma_separated, "json": as_json,
}  # fmt: skip
