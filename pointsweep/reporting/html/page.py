"""One HTML file per sweep that opens offline: the table, every cell opening its runs, and what the
sweep has to show beside it.

Nothing from the network: the page's policy allows its own style and its one script (report.css,
report.js), named by its digest, and nothing else. Light and dark follow the reader's system or the
button; narrow screens scroll inside tables.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from pointsweep.reporting.best_cells import best_mean, standings
from pointsweep.reporting.cell_text import count, footnotes, headings, headline, marked
from pointsweep.reporting.html.axes import axes
from pointsweep.reporting.html.comparison import (
    as_script,
    commands,
    comparison,
    configs,
    confusions,
    payload,
)
from pointsweep.reporting.html.evidence import Evidence
from pointsweep.reporting.html.numbers import cost, duration, optimism
from pointsweep.reporting.html.search import searches
from pointsweep.reporting.html.sections import learning, pareto, section
from pointsweep.reporting.html.svg_charts import thinned
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record
from pointsweep.utils.console import visible
from pointsweep.utils.numbers import percent

CURVE = (260, 112, 34, 18)  # width, height, left and bottom margin of a plot
RERUN = "What is finished is not trained again by it."
REPLAY = (
    "One cell again, beside the store: every seed is trained anew from its recorded configuration"
    " and compared, equal bit for bit, within the interval that a further run is expected in, or"
    " outside. The command of each cell stands in the cell."
)
# a sha256, of which a cell shows the first digits
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
ORIGIN = (
    "version.pointsweep",
    "version.torch",
    "version.numpy",
    "version.ray",
    "python",
    "device",
    "platform",
)


def page(
    table: Table,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[float]],
    evidence: Evidence | None = None,
) -> str:
    """The whole page. `curves` holds the table's metric (fraction) by epoch, by trial key; without
    records only the table.
    """
    lead = (
        "A cell opens its runs; coloured is what the table's tests tell apart from every other row"
        " of its column as the best."
    )
    parts = [
        section("results", "Results", lead if records else "", _results(table, records, curves)),
        *(_sections(table, records, curves, evidence or Evidence()) if records else []),
    ]
    body = "".join(parts)
    script = f"<script>{_file('report.js')}</script>" if records else ""
    facts = _facts(table, records) if records else ""
    head = (
        f"<header><h1>{escape(table.title)}</h1><p"
        f" class='sub'>{escape(headline(table))}.</p>{facts}</header>"
    )
    navigation = _navigation(body) if records else ""
    made = (
        f"{_head(table.title)}<body>{head}{navigation}<main>{body}</main>{script}</body></html>\n"
    )
    return visible(made, keep="\n\t")


@functools.cache
def _file(name: str) -> str:
    return resources.files("pointsweep.reporting.html").joinpath(name).read_text(encoding="utf-8")


def _head(title: str) -> str:
    digest = base64.b64encode(hashlib.sha256(_file("report.js").encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri"
        " 'none'; form-action 'none'"
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_file('report.css')}</style></head>"
    )


def _navigation(body: str) -> str:
    """Links to the sections that there are, and the button for light and dark (shown by the script
    that makes it work).
    """
    names = re.findall(r"<section id='(\w+)'>", body)
    links = "".join(f"<a href='#{name}'>{name.capitalize()}</a>" for name in names)
    button = "<button type='button' id='theme' aria-label='light or dark' hidden>◐</button>"
    return f"<nav aria-label='sections'><div><p>{links}</p>{button}</div></nav>"


def _facts(table: Table, records: Mapping[str, Record]) -> str:
    """The few numbers that a reader wants before the table."""
    keys = {key for cell in table.cells for _, key in cell.keys}
    done = [records[key] for key in sorted(keys & records.keys())]
    best = best_mean(table)
    facts = [("trials finished", f"{len(done)} of {len(keys)}")]
    if best is not None:
        facts.append((f"best mean: {table.place(best)}", f"{percent(best.mean)} %"))
    if seconds := sum(record.seconds.get("total", 0.0) for record in done):
        facts.append(("of training and testing", duration(seconds)))
    if objects := {int(record.dataset["num_test"]) for record in done}:
        facts.append(("test clouds", " or ".join(f"{number:,}" for number in sorted(objects))))
    shown = "".join(
        f"<div><dt>{escape(word)}</dt><dd>{escape(value)}</dd></div>" for word, value in facts
    )
    return f"<dl class='facts'>{shown}</dl>"


def _results(
    table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]
) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(table))
    return (
        f"<div class='scroll' tabindex='0'>{_table(table, records, curves)}</div><h3>Notes</h3><ul"
        f" class='notes'>{notes}</ul>"
    )


def _sections(
    table: Table,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[float]],
    evidence: Evidence,
) -> list[str]:
    """Return what follows the table; a section is left out where the sweep has nothing to show in
    it.
    """
    data = payload(table, records, evidence)
    command = "<pre>pointsweep run FILE</pre>"
    again = (
        f"<p>{REPLAY}</p><pre>pointsweep replay {escape(shlex.quote(table.name))} ROW COLUMN</pre>"
    )
    file = (
        "<p>FILE is the sweep's file; a copy is in the store,"
        f" sweeps/{escape(table.name)}/sweep.yaml. {RERUN}</p>"
    )
    return [
        pareto(table), searches(evidence.searches), axes(table, records),
        learning(table, records, curves),
        comparison(table, data), confusions(data),
        optimism(table, records), cost(table, records), configs(table, records),
        section(
            "rerun", "Run it again",
            "All of it, or one cell to see whether it comes out the same.", command + file + again,
        ),
        section("origin", "Where the numbers come from", "Data, code and machines of the trials.",
        _origins(table, records)),
        as_script(data),
    ]  # fmt: skip


def _table(
    table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]
) -> str:
    subs = headings(table)
    labels = "".join(
        f"<th class='label' rowspan='2' scope='col'>{escape(header)}</th>"
        for header in table.row_headers
    )
    tops = "".join(
        f"<th class='first' colspan='{len(subs)}' scope='colgroup'>{escape(c)}</th>"
        for c in table.columns
    )
    first = "<th class='first' scope='col'>"
    seconds = "".join(
        f"{'<th>' if i else first}{sub}</th>"
        for _ in table.columns
        for i, (sub, _) in enumerate(subs)
    )
    rows = []
    places = standings(table, "tests")
    for i, row in enumerate(table.rows):
        heads = "".join(f"<th class='label' scope='row'>{escape(label)}</th>" for label in row)
        cells = ""
        for c in range(len(table.columns)):
            cell = table.cell(i, c)
            cells += _cell(table, cell, records, curves, places.get((i, c)) == "best")
            cells += "".join(f"<td class='soft'>{escape(show(cell))}</td>" for _, show in subs[1:])
        rows.append(f"<tr>{heads}{cells}</tr>")
    top = f"<thead><tr>{labels}{tops}</tr><tr>{seconds}</tr></thead>"
    return f"<table>{top}<tbody>{''.join(rows)}</tbody></table>"


def _cell(
    table: Table,
    cell: TableCell,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[float]],
    best: bool,
) -> str:
    """Return a cell with what opens below it; the `best` of its column is coloured."""
    shown = escape(marked(table, cell))
    if cell.keys and records:
        bad = " class='bad'" if cell.failures else ""
        runs = _runs(table, cell, records, curves)
        shown = f"<details><summary{bad}>{shown}</summary><div>{runs}</div></details>"
    return f"<td class='{'first best' if best else 'first'}'>{shown}</td>"


def _runs(
    table: Table,
    cell: TableCell,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[float]],
) -> str:
    parts = [_plot([curves[key] for _, key in cell.keys if curves.get(key)], table.metric)]
    if cell.low is not None:
        kind = (
            "interval over the test objects (Wilson; one seed)"
            if cell.interval == "objects"
            else "t-interval of the mean"
        )
        interval = f"95 % {kind}: {percent(cell.low)} to {percent(cell.high)}"
        parts.append(f"<div class='run'>{interval}</div>")
    failed = dict(cell.failures)
    for seed, key in cell.keys:
        if key in records:
            parts.append(_run(seed, records[key], table.metric))
        else:
            reason = escape(failed.get(seed, "not finished"))
            parts.append(
                f"<div class='run bad'><b>seed {seed}</b>"
                f" {reason}<br><code>{escape(key)}</code></div>"
            )
    lines = commands(table, cell).strip().splitlines()
    return "".join(
        [*parts, *(f"<div class='run'><code>{escape(line)}</code></div>" for line in lines)]
    )


def _run(seed: int, record: Record, metric: str) -> str:
    """One trial: its value by every protocol, its parameters and where it comes from."""
    values = [
        f"{protocol} {percent(chosen[metric])} (epoch {int(chosen['epoch'])})"
        for protocol, chosen in sorted(
            record.metrics.items(), key=lambda item: (item[0] != "last", item[0])
        )
        if metric in chosen
    ]
    sizes = record.parameters
    trained = (
        f"{count(sizes['trainable'])} trained, {count(sizes['trainable_without_head'])} without the"
        " head"
    )
    seconds = f"; {record.seconds['total']:.0f} s" if "total" in record.seconds else ""
    weights = DIGEST.sub(r"\1", record.weights_origin)
    lines = [
        ", ".join(values),
        f"{trained}, of {count(sizes['total'])}{seconds}",
        f"weights: {weights}; data: {record.dataset['digest'][:12]}; code: {code(record)}",
    ]
    shown = "<br>".join(escape(line) for line in lines)
    return f"<div class='run'><b>seed {seed}</b> {shown}<br><code>{escape(record.key)}</code></div>"


def code(record: Record) -> str:
    """The commit (12 hex digits, "+" if files differed from it) and the tree's digest, as far as
    the record has them.
    """
    commit = record.origin.get("code", "unknown")
    short = commit[:12] + "+" * commit.endswith("+") if len(commit) >= 40 else commit
    return (
        short
        if short.startswith("tree") or "tree" not in record.origin
        else f"{short}, tree {record.origin['tree']}"
    )


def _plot(series: Sequence[Sequence[float]], metric: str) -> str:
    """The metric over epochs, one line a seed, on one scale from the least to the greatest value in
    percent.
    """
    longest = max((len(values) for values in series), default=0)
    if longest < 2:
        return ""
    width, height, left, bottom = CURVE
    low, high = min(map(min, series)), max(map(max, series))
    floor, right = height - bottom, width - 8

    def point(epoch: int, value: float) -> str:
        up = (value - low) / (high - low) if high > low else 0.5
        return f"{left + (right - left) * epoch / (longest - 1):.1f},{floor - (floor - 8) * up:.1f}"

    lines = (
        "<polyline class='curve'"
        f" points='{' '.join(point(e, v) for e, v in thinned(list(enumerate(values))))}'/>"
        for values in series
    )
    grid = (
        f"<line class='grid' x1='{left}' x2='{right}' y1='{y}' y2='{y}'/>"
        for y in ((8, floor) if high > low else ())
    )
    words = [(0, 11, "start", percent(high)), (0, floor + 3, "start", percent(low))][
        : 2 if high > low else 1
    ]
    words += [(left, height - 3, "start", "epoch 1"), (right, height - 3, "end", str(longest))]
    texts = (
        f"<text class='axis' x='{x}' y='{y}' text-anchor='{anchor}'>{word}</text>"
        for x, y, anchor, word in words
    )
    label = escape(f"{metric} by epoch")
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img'"
        f" aria-label='{label}'>{''.join((*grid, *lines, *texts))}</svg>"
    )


def _origins(table: Table, records: Mapping[str, Record]) -> str:
    """Each distinct data set, code and machine of the table's trials once."""
    used = [records[key] for cell in table.cells for _, key in cell.keys if key in records]
    lines: set[tuple[int, str]] = set()
    for record in used:
        data = record.dataset
        sizes = (
            f"{data['num_train']} training, {data['num_val']} validation and {data['num_test']}"
            " test clouds"
        )
        lines.add((0, f"{data['name']}: {sizes}, digest {data['digest']}"))
        lines.add((1, f"code: {code(record)}"))
        lines.add(
            (
                2,
                ", ".join(
                    f"{name.removeprefix('version.')} {record.origin[name]}"
                    for name in ORIGIN
                    if name in record.origin
                ),
            )
        )
    items = "".join(f"<li>{escape(line)}</li>" for _, line in sorted(lines) if line)
    return f"<ul class='notes'>{items}</ul>"
