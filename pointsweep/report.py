"""One HTML file per sweep that opens offline: the table, every cell opening its runs and learning curves, and how to run it again.

No script and nothing from the network; light and dark follow the reader's system, narrow screens scroll inside the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pointsweep.records import Record
from pointsweep.render import Table, TableCell, accuracy, count, footnotes, headline, paper, percent, symbols, trained

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee6; --page: #fbfcfd; --card: #fff; --accent: #2f6fb3; --bad: #b3382f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa5b5; --line: #343c48; --page: #14181e; --card: #1b2028; --accent: #79b0e8; --bad: #f0857c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p.sub, .notes { color: var(--soft) } .notes { padding-left: 1.1rem; font-size: .92rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .55rem .8rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line); white-space: nowrap }
thead tr:first-child th { border-top: 0 } th.label { text-align: left; font-weight: 600 } td.paper, td.params { color: var(--soft) }
td.first, th.first { border-left: 1px solid var(--line) }
summary { cursor: pointer; font-weight: 600 } summary::marker { color: var(--accent) } .bad { color: var(--bad) }
details[open] > div { margin-top: .6rem; text-align: left; white-space: normal; min-width: 17rem; max-width: 26rem }
.run { font-size: .85rem; border-top: 1px solid var(--line); padding: .4rem 0 } code { font-size: .85em; overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto } .axis { fill: var(--soft); font-size: 9px } .grid { stroke: var(--line) }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.5; opacity: .8 }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem; overflow-x: auto }
"""


def page(table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    """The whole page. `curves` holds test accuracy (fraction) by epoch for every trial's key."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(table))
    title = escape(table.title)
    command = escape(f"python -m pointsweep.run sweeps/{table.name}.yaml --only row='ROW' --only column='COLUMN' --only seed=0")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{title}</h1><p class='sub'>{escape(headline(table))}. A cell opens its runs.</p>"
        f"<div class='scroll'>{_table(table, records, curves)}</div>"
        f"<h2>Notes</h2><ul class='notes'>{notes}</ul>"
        f"<h2>Run a cell again</h2><p>What is finished is not trained again; delete its folder in the store first.</p><pre>{command}</pre>"
        f"<h2>Where the numbers come from</h2>{_origins(records)}</main></body></html>\n"
    )


def _table(table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    published = any(cell.published for cell in table.cells)
    subs = ["accuracy", "params", *(["paper", "paper params"] if published else [])]
    labels = "".join(f"<th class='label' rowspan='2'>{escape(header)}</th>" for header in table.row_headers)
    tops = "".join(f"<th class='first' colspan='{len(subs)}'>{escape(column)}</th>" for column in table.columns)
    seconds = "".join(f"<th class='{'first' if i == 0 else ''}'>{sub}</th>" for _ in table.columns for i, sub in enumerate(subs))
    rows = []
    for i, row in enumerate(table.rows):
        heads = "".join(f"<th class='label'>{escape(label)}</th>" for label in row)
        cells = "".join(_cell(table, table.cell(i, c), records, curves, published) for c in range(len(table.columns)))
        rows.append(f"<tr>{heads}{cells}</tr>")
    return f"<table><thead><tr>{labels}{tops}</tr><tr>{seconds}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(
    table: Table, cell: TableCell, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]], published: bool
) -> str:
    marks = "".join(symbol for mark, symbol in symbols(table).items() if mark in cell.marks)
    shown = f"{escape(accuracy(cell))}{marks}"
    if cell.keys:
        bad = " class='bad'" if cell.failures else ""
        shown = f"<details><summary{bad}>{shown}</summary><div>{_runs(cell, records, curves)}</div></details>"
    extra = "".join(f"<td class='paper'>{escape(value)}</td>" for value in paper(cell)) if published else ""
    return f"<td class='first'>{shown}</td><td class='params'>{escape(trained(cell))}</td>{extra}"


def _runs(cell: TableCell, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]) -> str:
    parts = [_plot([curves[key] for _, key in cell.keys if curves.get(key)])]
    if cell.low is not None:
        parts.append(f"<div class='run'>95 % t-interval of the mean: {percent(cell.low)} to {percent(cell.high)}</div>")
    failed = dict(cell.failures)
    for seed, key in cell.keys:
        record = records.get(key)
        if record is None:
            parts.append(f"<div class='run bad'>seed {seed}: {escape(failed.get(seed, 'not run'))}<br><code>{key}</code></div>")
            continue
        values = ", ".join(
            f"{protocol} {percent(chosen['test/accuracy'])} (epoch {int(chosen['epoch'])})" for protocol, chosen in sorted(record.metrics.items())
        )
        counts = f"{count(record.parameters['trainable'])} trained of {count(record.parameters['total'])}"
        facts = f"{counts}; {record.seconds['total']:.0f} s; weights: {record.weights_origin}"
        parts.append(f"<div class='run'>seed {seed}: {escape(values)}<br>{escape(facts)}<br><code>{key}</code></div>")
    return "".join(parts)


def _plot(series: Sequence[Sequence[float]]) -> str:
    """Test accuracy over epochs, one line a seed."""
    longest = max((len(values) for values in series), default=0)
    if longest < 2:
        return ""
    width, height, left, bottom = 260.0, 110.0, 26.0, 16.0
    high = max(max(values) for values in series)
    low = min(min(values) for values in series)
    span = (high - low) or 1.0

    def point(epoch: int, value: float) -> str:
        x = left + (width - left - 4) * epoch / (longest - 1)
        return f"{x:.1f},{4 + (height - bottom - 4) * (1 - (value - low) / span):.1f}"

    lines = "".join(f"<polyline class='curve' points='{' '.join(point(e, v) for e, v in enumerate(values))}'/>" for values in series)
    grid = "".join(f"<line class='grid' x1='{left}' x2='{width - 4}' y1='{y}' y2='{y}'/>" for y in (4.0, height - bottom))
    words = (
        f"<text class='axis' x='0' y='10'>{percent(high)}</text><text class='axis' x='0' y='{height - bottom}'>{percent(low)}</text>"
        f"<text class='axis' x='{left}' y='{height - 3}'>epoch 1</text>"
        f"<text class='axis' x='{width - 4}' y='{height - 3}' text-anchor='end'>{longest}</text>"
    )
    return f"<svg viewBox='0 0 {width:.0f} {height:.0f}' role='img' aria-label='test accuracy by epoch'>{grid}{lines}{words}</svg>"


def _origins(records: Mapping[str, Record]) -> str:
    """Each distinct data set, device and set of versions once."""
    data = sorted({f"{r.dataset['name']}: {r.dataset['num_train']} training and {r.dataset['num_test']} test clouds, digest "
                   f"{r.dataset['digest'][:16]}" for r in records.values()})  # fmt: skip
    wanted = ("code", "version.pointsweep", "version.torch", "version.ray", "python", "device", "platform")
    made = sorted({", ".join(f"{k} {r.origin[k]}" for k in wanted if k in r.origin) for r in records.values()})
    return f"<ul class='notes'>{''.join(f'<li>{escape(line)}</li>' for line in [*data, *made])}</ul>"
