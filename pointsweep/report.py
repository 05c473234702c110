"""One HTML file per sweep that opens offline: the table, every cell opening its runs and learning curves, how to run it again.

No script and nothing from the network; light and dark follow the reader's system, narrow screens scroll inside the table.
"""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from html import escape

from pointsweep.records import Record
from pointsweep.render import count, footnotes, headings, headline, marked, percent
from pointsweep.table import Table, TableCell

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee6; --page: #fbfcfd; --card: #fff;
  --accent: #2f6fb3; --bad: #b3382f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa5b5; --line: #343c48; --page: #14181e; --card: #1b2028;
    --accent: #79b0e8; --bad: #f0857c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p.sub, .notes { color: var(--soft) } .notes { padding-left: 1.1rem; font-size: .92rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .55rem .8rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line); white-space: nowrap }
thead tr:first-child th { border-top: 0 } thead th.first[colspan] { text-align: center }
th.label { text-align: left; font-weight: 600 }
td.soft { color: var(--soft) }
td.first, th.first { border-left: 1px solid var(--line) }
summary { cursor: pointer; font-weight: 600 } summary::marker { color: var(--accent) } .bad { color: var(--bad) }
details[open] > div { margin-top: .6rem; text-align: left; white-space: normal; min-width: 17rem; max-width: 26rem }
.run { font-size: .85rem; overflow-wrap: anywhere; border-top: 1px solid var(--line); padding: .4rem 0 }
code { font-size: .85em; overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto } .axis { fill: var(--soft); font-size: 9px } .grid { stroke: var(--line) }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.5; opacity: .8; vector-effect: non-scaling-stroke }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem; overflow-x: auto }
@media (max-width: 40rem) {
  body { font-size: 14px } main { padding: 1rem .6rem 3rem } th, td { padding: .4rem .5rem }
  td.first, thead th.first { text-align: left }
  details[open] > div { min-width: 13rem; max-width: 62vw } }
"""


CURVE = (260, 112, 34, 18)  # width, height, left and bottom margin of a plot
RERUN = "What is finished is not trained again; to train it anew, delete its folder under trials/ in the store first."
ORIGIN = ("version.pointsweep", "version.torch", "version.numpy", "version.ray", "python", "device", "platform")


def page(table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    """The whole page. `curves` holds the table's metric (fraction) by epoch, by trial key; without records only the table."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(table))
    title = escape(table.title)
    head = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style></head>"
    )
    body = (
        f"<h1>{title}</h1><p class='sub'>{escape(headline(table))}.{' A cell opens its runs.' if records else ''}</p>"
        f"<div class='scroll' tabindex='0'>{_table(table, records, curves)}</div>"
        f"<h2>Notes</h2><ul class='notes'>{notes}</ul>"
    )
    return f"{head}<body><main>{body}{_rest(table, records) if records else ''}</main></body></html>\n"


def rerun(table: Table, cell: TableCell) -> str:
    """The command that runs one cell; FILE stands for the sweep's file, which the table does not know."""
    row = shlex.quote("row=" + glob.escape(" / ".join(table.rows[cell.row])))
    column = shlex.quote("column=" + glob.escape(table.columns[cell.column]))
    return f"python -m pointsweep.run FILE --only {row} --only {column}"


def _rest(table: Table, records: Mapping[str, Record]) -> str:
    command = escape("python -m pointsweep.run FILE")
    file = f"<p>FILE is the sweep's file; a copy is in the store, sweeps/{escape(table.name)}/sweep.yaml. {RERUN}</p>"
    return f"<h2>Run it again</h2><pre>{command}</pre>{file}<h2>Where the numbers come from</h2>{_origins(table, records)}"


def _table(table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    subs = headings(table)
    labels = "".join(f"<th class='label' rowspan='2' scope='col'>{escape(header)}</th>" for header in table.row_headers)
    tops = "".join(f"<th class='first' colspan='{len(subs)}' scope='colgroup'>{escape(c)}</th>" for c in table.columns)
    first = "<th class='first' scope='col'>"
    seconds = "".join(f"{'<th>' if i else first}{sub}</th>" for _ in table.columns for i, (sub, _) in enumerate(subs))
    rows = []
    for i, row in enumerate(table.rows):
        heads = "".join(f"<th class='label' scope='row'>{escape(label)}</th>" for label in row)
        cells = "".join(_cell(table, table.cell(i, c), records, curves) for c in range(len(table.columns)))
        rows.append(f"<tr>{heads}{cells}</tr>")
    return f"<table><thead><tr>{labels}{tops}</tr><tr>{seconds}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(table: Table, cell: TableCell, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    shown = escape(marked(table, cell))
    if cell.keys and records:
        bad = " class='bad'" if cell.failures else ""
        shown = f"<details><summary{bad}>{shown}</summary><div>{_runs(table, cell, records, curves)}</div></details>"
    others = "".join(f"<td class='soft'>{escape(show(cell))}</td>" for _, show in headings(table)[1:])
    return f"<td class='first'>{shown}</td>{others}"


def _runs(table: Table, cell: TableCell, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    parts = [_plot([curves[key] for _, key in cell.keys if curves.get(key)], table.metric)]
    if cell.low is not None:
        kind = "interval over the test objects (Wilson; one seed)" if cell.interval == "objects" else "t-interval of the mean"
        interval = f"95 % {kind}: {percent(cell.low)} to {percent(cell.high)}"
        parts.append(f"<div class='run'>{interval}</div>")
    failed = dict(cell.failures)
    for seed, key in cell.keys:
        if key in records:
            parts.append(_run(seed, records[key], table.metric))
        else:
            reason = escape(failed.get(seed, "not finished"))
            parts.append(f"<div class='run bad'><b>seed {seed}</b> {reason}<br><code>{escape(key)}</code></div>")
    return "".join([*parts, f"<div class='run'><code>{escape(rerun(table, cell))}</code></div>"])


def _run(seed: int, record: Record, metric: str) -> str:
    """One trial: its value by every protocol, its parameters and where it comes from."""
    values = [
        f"{protocol} {percent(chosen[metric])} (epoch {int(chosen['epoch'])})"
        for protocol, chosen in sorted(record.metrics.items(), key=lambda item: (item[0] != "last", item[0]))
        if metric in chosen
    ]
    sizes = record.parameters
    trained = f"{count(sizes['trainable'])} trained, {count(sizes['trainable_without_head'])} without the head"
    seconds = f"; {record.seconds['total']:.0f} s" if "total" in record.seconds else ""
    lines = [
        ", ".join(values),
        f"{trained}, of {count(sizes['total'])}{seconds}",
        f"weights: {record.weights_origin}; data: {record.dataset['digest'][:12]}; code: {code(record)}",
    ]
    shown = "<br>".join(escape(line) for line in lines)
    return f"<div class='run'><b>seed {seed}</b> {shown}<br><code>{escape(record.key)}</code></div>"


def code(record: Record) -> str:
    """The commit (12 hex digits, "+" if files differed from it) and the tree's digest, as far as the record has them."""
    commit = record.origin.get("code", "unknown")
    short = commit[:12] + "+" * commit.endswith("+") if len(commit) >= 40 else commit
    return short if short.startswith("tree") or "tree" not in record.origin else f"{short}, tree {record.origin['tree']}"


def _plot(series: Sequence[Sequence[float]], metric: str) -> str:
    """The metric over epochs, one line a seed, on one scale from the least to the greatest value in percent."""
    longest = max((len(values) for values in series), default=0)
    if longest < 2:
        return ""
    width, height, left, bottom = CURVE
    low, high = min(map(min, series)), max(map(max, series))
    floor, right = height - bottom, width - 8

    def point(epoch: int, value: float) -> str:
        up = (value - low) / (high - low) if high > low else 0.5
        return f"{left + (right - left) * epoch / (longest - 1):.1f},{floor - (floor - 8) * up:.1f}"

    lines = (f"<polyline class='curve' points='{' '.join(point(e, v) for e, v in enumerate(values))}'/>" for values in series)
    grid = (f"<line class='grid' x1='{left}' x2='{right}' y1='{y}' y2='{y}'/>" for y in ((8, floor) if high > low else ()))
    words = [(0, 11, "start", percent(high)), (0, floor + 3, "start", percent(low))][: 2 if high > low else 1]
    words += [(left, height - 3, "start", "epoch 1"), (right, height - 3, "end", str(longest))]
    texts = (f"<text class='axis' x='{x}' y='{y}' text-anchor='{anchor}'>{word}</text>" for x, y, anchor, word in words)
    label = escape(f"{metric} by epoch")
    return f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{label}'>{''.join((*grid, *lines, *texts))}</svg>"


def _origins(table: Table, records: Mapping[str, Record]) -> str:
    """Each distinct data set, code and machine of the table's trials once."""
    used = [records[key] for cell in table.cells for _, key in cell.keys if key in records]
    lines: set[tuple[int, str]] = set()
    for record in used:
        data = record.dataset
        sizes = f"{data['num_train']} training, {data['num_val']} validation and {data['num_test']} test clouds"
        lines.add((0, f"{data['name']}: {sizes}, digest {data['digest']}"))
        lines.add((1, f"code: {code(record)}"))
        lines.add(
            (2, ", ".join(f"{name.removeprefix('version.')} {record.origin[name]}" for name in ORIGIN if name in record.origin))
        )
    return f"<ul class='notes'>{''.join(f'<li>{escape(line)}</li>' for _, line in sorted(lines) if line)}</ul>"
