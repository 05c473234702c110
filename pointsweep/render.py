"""A table as text, Markdown, LaTeX, CSV or JSON. The same table gives the same bytes. Only here do fractions become percent."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pointsweep.records import Published
from pointsweep.stats import Difference

WIDTH = 118  # of a terminal; a wider table is printed one column below the other
SYMBOLS = "*†‡§¶"


@dataclass(frozen=True)
class TableCell:
    """One cell. `values` holds (seed, value) of the finished trials, `failures` (seed, reason) of those that failed."""

    row: int
    column: int
    mean: float | None
    sd: float | None
    n: int
    expected: int
    low: float | None
    high: float | None
    values: tuple[tuple[int, float], ...]
    keys: tuple[tuple[int, str], ...]
    failures: tuple[tuple[int, str], ...] = ()
    parameters: Mapping[str, int] | None = None
    published: Published | None = None
    excluded: str | None = None
    marks: tuple[str, ...] = ()
    optimism: float | None = None  # mean of best_test minus mean of last


@dataclass(frozen=True)
class Table:
    """What is printed. `steps` ranks the rows of every column: (row, difference to the next row or None)."""

    name: str
    title: str
    metric: str
    protocol: str
    row_headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[TableCell, ...]
    steps: tuple[tuple[tuple[str, Difference | None], ...], ...]  # one entry a column
    notes: tuple[str, ...] = ()

    def cell(self, row: int, column: int) -> TableCell:
        """The cell at a place."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))


def render(table: Table, form: str) -> str:
    """The table in one of FORMATS, with a line break at its end."""
    return FORMATS[form](table)


# Words that all formats share


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as percent with one decimal."""
    if value is None:
        return ""
    rounded = round(100 * value, 1) + 0.0  # no "-0.0"
    return f"{rounded:+.1f}" if signed else f"{rounded:.1f}"


def accuracy(cell: TableCell) -> str:
    """ "81.2 ± 0.4", with n where seeds are missing."""
    if cell.excluded is not None:
        return "—"
    if cell.mean is None:
        return "failed" if cell.failures else f"0/{cell.expected}"
    spread = f" ± {percent(cell.sd)}" if cell.sd is not None else ""
    return percent(cell.mean) + spread + (f" (n={cell.n}/{cell.expected})" if cell.n < cell.expected else "")


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
    """The published value and parameter count, as printed there."""
    if cell.published is None:
        return "", ""
    value, params = cell.published.value, cell.published.params_m
    return "" if value is None else f"{value:g}", "" if params is None else f"{params:g}M"


def symbols(table: Table) -> dict[str, str]:
    """A footnote symbol for each mark that some cells have and others do not."""
    filled = [cell for cell in table.cells if cell.values]
    marks = sorted({mark for cell in filled for mark in cell.marks})
    partial = [mark for mark in marks if not all(mark in cell.marks for cell in filled)]
    return {mark: SYMBOLS[i % len(SYMBOLS)] * (1 + i // len(SYMBOLS)) for i, mark in enumerate(partial)}


def headline(table: Table) -> str:
    """Protocol and unit in one line."""
    words = {"last": "last epoch", "best_val": "best epoch on validation", "best_test": "best epoch on the test set"}
    seeds = sorted({cell.expected for cell in table.cells if cell.expected})
    over = f"mean ± sd over {' or '.join(map(str, seeds))} seed{'' if seeds == [1] else 's'}" if seeds else "no trials"
    return f"{table.metric} in %, {words[table.protocol]}, {over}; params: trainable, without the head"


def footnotes(table: Table) -> list[str]:
    """Everything a reader must know beside the numbers, in a fixed order."""
    lines = [f"{symbol} {mark}" for mark, symbol in symbols(table).items()]
    filled = [cell for cell in table.cells if cell.values]
    lines += [f"all cells: {m}" for m in sorted({m for c in filled for m in c.marks} - symbols(table).keys())]
    lines += [line for i, column in enumerate(table.columns) if (line := order(table.steps[i], column))]
    optimism = [cell.optimism for cell in filled if cell.optimism is not None]
    if optimism and table.protocol == "best_test":
        mean = sum(sorted(optimism)) / len(optimism)
        lines.append(f"choosing the epoch on the test set adds {percent(mean, signed=True)} over the last epoch, in the mean of the cells")
    lines += [f"—  {name(table, cell)}: {cell.excluded}" for cell in table.cells if cell.excluded]
    lines += [f"failed  {name(table, cell)}, seed {seed}: {reason}" for cell in table.cells for seed, reason in cell.failures]
    sources = sorted({cell.published.source for cell in table.cells if cell.published})
    lines += [f"paper: {', '.join(sources)}"] if sources else []
    return [*lines, *table.notes]


def order(steps: Sequence[tuple[str, Difference | None]], column: str) -> str:
    """The rows from best to worst; > where the seeds tell two neighbours apart, ~ where they do not."""
    if len(steps) < 2:
        return ""
    if all(step is None or step.low is None for _, step in steps):
        return f"{column}: one seed shows no order"
    text = f"{column}: {steps[0][0]}"
    for (_, step), (following, _) in zip(steps, steps[1:], strict=False):
        if step is None or step.low is None or step.high is None:
            text += f" ? {following} (one seed shows no order)"
        elif step.low == step.high:
            text += f" ~ {following} ({percent(step.mean, True)} with every seed: no spread to judge by)"
        else:
            sign = ">" if step.resolved else "~"
            text += f" {sign} {following} ({percent(step.mean, True)}, 95 % interval {percent(step.low, True)} to {percent(step.high, True)})"
    return text


def name(table: Table, cell: TableCell) -> str:
    """ "row / column" of a cell."""
    return f"{' / '.join(table.rows[cell.row])} / {table.columns[cell.column]}"


def headings(table: Table) -> list[tuple[str, Callable[[TableCell], str]]]:
    """The sub-columns of every column; those of the paper only where it printed something."""
    found: list[tuple[str, Callable[[TableCell], str]]] = [("accuracy", lambda cell: _marked(table, cell)), ("params", trained)]
    if any(paper(cell)[0] for cell in table.cells):
        found.append(("paper", lambda cell: paper(cell)[0]))
    if any(paper(cell)[1] for cell in table.cells):
        found.append(("paper params", lambda cell: paper(cell)[1]))
    return found


def _marked(table: Table, cell: TableCell) -> str:
    return accuracy(cell) + "".join(symbol for mark, symbol in symbols(table).items() if mark in cell.marks and cell.values)


# Formats


def text(table: Table) -> str:
    """For a terminal: all columns side by side where they fit, else one below the other."""
    wide = _blocks(table, [range(len(table.columns))])
    blocks = wide if max(map(len, wide)) <= WIDTH else _blocks(table, [range(i, i + 1) for i in range(len(table.columns))])
    notes = [line for note in footnotes(table) for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False)]
    return "\n".join([table.title, headline(table), "", *blocks, "", *notes]).rstrip() + "\n"


def _blocks(table: Table, groups: Sequence[Sequence[int]]) -> list[str]:
    lines: list[str] = []
    for group in groups:
        grid = _grid(table, group)
        widths = [max(map(len, column)) for column in zip(*grid[1:], strict=True)]
        labels, subs = len(table.row_headers), len(headings(table))
        spans = [sum(widths[at : at + subs]) + 2 * (subs - 1) for at in range(labels, len(widths), subs)]
        for i, column in enumerate(group):
            short = len(table.columns[column]) - spans[i]
            if short > 0:
                widths[labels + i * subs] += short
                spans[i] += short
        left = sum(widths[:labels]) + 2 * labels
        top = " " * left + "  ".join(table.columns[c].ljust(span) for c, span in zip(group, spans, strict=True))
        body = ["  ".join(_pad(cells, widths, labels)).rstrip() for cells in grid[1:]]
        rule = "-" * max(map(len, [top.rstrip(), *body]))
        lines += [*([""] if lines else []), top.rstrip(), body[0], rule, *body[1:]]
    return lines


def _pad(cells: Sequence[str], widths: Sequence[int], labels: int) -> Iterator[str]:
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.ljust(width) if i < labels else cell.rjust(width)


def _grid(table: Table, group: Sequence[int]) -> list[list[str]]:
    """Two heading rows and the body, as strings."""
    subs = headings(table)
    top = ["" for _ in table.row_headers] + [table.columns[c] if i == 0 else "" for c in group for i in range(len(subs))]
    second = list(table.row_headers) + [title for _ in group for title, _ in subs]
    body = [[*row, *(show(table.cell(i, c)) for c in group for _, show in subs)] for i, row in enumerate(table.rows)]
    return [top, second, *body]


def markdown(table: Table) -> str:
    """For GitHub; the column's name stands before every sub-column's."""
    subs = headings(table)
    heads = [*table.row_headers, *(f"{c} {s}".strip() for c in table.columns for s, _ in subs)]
    rule = ["---"] * len(table.row_headers) + ["---:"] * (len(table.columns) * len(subs))
    rows = [[_md(cell) for cell in row] for row in ([heads, rule, *_grid(table, range(len(table.columns)))[2:]])]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [f"- {_md(note)}" for note in footnotes(table)]
    return "\n".join([f"**{_md(table.title)}**", "", _md(headline(table)), "", *lines, "", *notes]).rstrip() + "\n"


def _md(value: str) -> str:
    for char in "\\|*_<>`":
        value = value.replace(char, f"\\{char}")
    return value.replace("\n", " ")


def latex(table: Table) -> str:
    """A table environment for booktabs."""
    subs, labels = headings(table), len(table.row_headers)
    spec = "l" * labels + "r" * (len(subs) * len(table.columns))
    tops = [f"\\multicolumn{{{len(subs)}}}{{c}}{{{_tex(column)}}}" for column in table.columns]
    rules = [f"\\cmidrule(lr){{{labels + 1 + i * len(subs)}-{labels + (i + 1) * len(subs)}}}" for i in range(len(tops))]
    grid = _grid(table, range(len(table.columns)))[1:]
    rows = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in grid]
    caption = f"{_tex(table.title)}. {_tex(headline(table))}."
    return "\n".join([
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", f"\\caption{{{caption}}}",
        f"\\begin{{tabular}}{{{spec}}}", r"\toprule", " & ".join([""] * labels + tops) + r" \\", "".join(rules), rows[0], r"\midrule",
        *rows[1:], r"\bottomrule", r"\end{tabular}", *(f"\\\\ {{\\footnotesize {_tex(note)}}}" for note in footnotes(table)),
        r"\end{table}",
    ]) + "\n"  # fmt: skip


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "—": "---", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "§": r"\S{}", "¶": r"\P{}", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " ",
}  # fmt: skip


def _tex(value: str) -> str:
    return "".join(TEX.get(char, char) for char in value)


def comma_separated(table: Table) -> str:
    """One line a cell, full precision, fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    labels = [header or f"row{i if i else ''}" for i, header in enumerate(table.row_headers)]
    writer.writerow([
        *labels, "column", "metric", "protocol", "mean", "sd", "n", "expected", "low", "high", "values", "trainable",
        "trainable_without_head", "total", "published", "published_params_m", "source", "marks", "status",
    ])  # fmt: skip
    for cell in table.cells:
        counts = cell.parameters or {}
        published = cell.published or Published(None, None, "")
        writer.writerow([
            *table.rows[cell.row], table.columns[cell.column], table.metric, table.protocol, *map(_raw, (cell.mean, cell.sd)), cell.n,
            cell.expected, *map(_raw, (cell.low, cell.high)), " ".join(f"{seed}:{value!r}" for seed, value in cell.values),
            *(counts.get(kind, "") for kind in ("trainable", "trainable_without_head", "total")), _raw(published.value),
            _raw(published.params_m), published.source, "; ".join(cell.marks), status(cell),
        ])  # fmt: skip
    return out.getvalue()


def _raw(value: float | None) -> str:
    return "" if value is None else repr(value)


def status(cell: TableCell) -> str:
    """complete, incomplete, failed or excluded."""
    if cell.excluded is not None:
        return "excluded"
    if cell.failures:
        return "failed"
    return "complete" if cell.n == cell.expected else "incomplete"


def as_json(table: Table) -> str:
    """Everything, sorted keys."""
    data: dict[str, Any] = asdict(table)
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": text, "md": markdown, "tex": latex, "csv": comma_separated, "json": as_json,
}  # fmt: skip
