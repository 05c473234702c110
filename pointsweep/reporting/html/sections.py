"""The report's drawn sections: learning curves, and accuracy against parameters; and what all
sections share.

A section is "" where the sweep has nothing to show in it. Fractions become percent here, as in
render.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pointsweep.reporting.cell_text import count
from pointsweep.reporting.html.svg_charts import (
    SHAPES,
    SLOTS,
    Frame,
    Mark,
    Point,
    Series,
    legend,
    lines,
    scatter,
    thinned,
    ticks,
    whole_ticks,
)
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import higher_is_better
from pointsweep.results.records import Record
from pointsweep.statistics.seeds import summary
from pointsweep.utils.numbers import percent

MOST_LABELS = 6  # names written beside points of the front


def section(name: str, title: str, lead: str, body: str) -> str:
    """A section of the page under its heading; `lead` and `body` are HTML."""
    return (
        f"<section id='{name}'><h2>{escape(title)}</h2><p class='lead'>{lead}</p>{body}</section>"
        if body
        else ""
    )


def row_name(table: Table, cell: TableCell) -> str:
    """The row's labels in one."""
    return " / ".join(table.rows[cell.row])


# Learning curves


def learning(
    table: Table, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]
) -> str:
    """One panel a column with a line for every row (or turned round, whichever needs fewer
    colours), all on one scale.
    """
    cells = [(cell, done) for cell in table.cells if (done := _seeds(cell, records, curves))]
    values = [100 * value for _, seeds in cells for curve in seeds for value in curve]
    longest = max((len(seeds[0]) for _, seeds in cells), default=0)
    if longest < 2:
        return ""
    turned = len(table.rows) > SLOTS and len(table.columns) < len(table.rows)
    scale = ticks(min(values), max(values), 5)
    frame = Frame(
        280, 205, (1, longest), (scale[0][0], scale[-1][0]), whole_ticks(1, longest), scale
    )
    panels = ""
    for index, name in enumerate(
        [" / ".join(row) for row in table.rows] if turned else table.columns
    ):
        chosen = [
            (cell, seeds) for cell, seeds in cells if (cell.row if turned else cell.column) == index
        ]
        series = [
            _curve(table, cell, seeds, cell.column if turned else cell.row)
            for cell, seeds in chosen
        ]
        if series:
            drawn = lines(frame, f"{table.metric} by epoch, {name}", series, "epoch")
            panels += f"<figure><figcaption>{escape(name)}</figcaption>{drawn}</figure>"
    labels = list(table.columns) if turned else [" / ".join(row) for row in table.rows]
    lead = (
        f"{escape(table.metric)} in % by epoch: the mean of the seeds, and the band from the lowest"
        " to the highest of them."
    )
    names = {label: i for i, label in enumerate(labels)}
    return section(
        "curves", "Learning curves", lead, f"<div class='panels'>{panels}</div>{legend(names)}"
    )


def _seeds(
    cell: TableCell, records: Mapping[str, Record], curves: Mapping[str, Sequence[float]]
) -> list[Sequence[float]]:
    """The curves of a cell's finished trials (of those under way if none is finished), cut to the
    shortest.
    """
    begun = [(key, curves[key]) for _, key in cell.keys if curves.get(key)]
    chosen = [curve for key, curve in begun if key in records] or [curve for _, curve in begun]
    shortest = min(map(len, chosen), default=0)
    return [curve[:shortest] for curve in chosen]


def _curve(table: Table, cell: TableCell, seeds: Sequence[Sequence[float]], slot: int) -> Series:
    points = []
    for i, values in enumerate(zip(*seeds, strict=True)):
        mean, low, high = summary(values).mean, min(values), max(values)
        span = (
            f" ({percent(low)} to {percent(high)}, {len(values)} seeds)" if len(values) > 1 else ""
        )
        words = f"{table.place(cell)}, epoch {i + 1}: {percent(mean)}{span}"
        points.append(Point(i + 1, 100 * mean, 100 * low, 100 * high, words))
    return Series(row_name(table, cell), slot, thinned(points))


# Accuracy against trainable parameters


def pareto(table: Table) -> str:
    """Every cell by its trainable parameters and its mean, and the cells that no other beats in
    both.
    """
    cells = [cell for cell in table.cells if cell.mean is not None and cell.parameters]
    sizes = [_size(cell) for cell in cells]
    if len(set(sizes)) < 2:
        return ""
    better = "higher" if higher_is_better(table.metric) else "lower"
    best, rows = front(cells, better == "higher"), _shapes(table)
    frame, places = _scatter_frame(cells)
    named = {(cell.row, cell.column) for cell in best[-MOST_LABELS:]}
    marks = []
    for cell in cells:
        label = table.place(cell) if (cell.row, cell.column) in named else ""
        marks.append(
            Mark(
                _placed(table, cell, places[_size(cell)]),
                cell.column,
                rows.get(table.rows[cell.row][0], 0),
                label,
            )
        )
    steps = [_placed(table, cell, places[_size(cell)]) for cell in best]
    label = f"{table.metric} against trainable parameters"
    drawn = scatter(
        frame,
        label,
        marks,
        steps,
        ("trainable parameters without the head", f"{table.metric} in %"),
    )
    columns = {name: i for i, name in enumerate(table.columns)}
    names = ", ".join(f"<b>{escape(table.place(cell))}</b>" for cell in best[-MOST_LABELS:])
    names += f" and {len(best) - MOST_LABELS} smaller ones" if len(best) > MOST_LABELS else ""
    lead = (
        "The dashed line is the Pareto front by the means: no cell has fewer parameters and a"
        f" {better} mean than {names}."
    )
    keys = (
        "<div"
        f" class='keys'>{legend(columns)}{legend(rows, shape=True) if len(rows) > 1 else ''}</div>"
    )
    bars = (
        "<p class='small'>Bars are ± one standard deviation over the seeds; the scale of the"
        " parameters is logarithmic.</p>"
    )
    return section(
        "pareto",
        "Accuracy against parameters",
        lead,
        f"<figure class='wide'>{drawn}{keys}</figure>{bars}",
    )


def _scatter_frame(cells: Sequence[TableCell]) -> tuple[Frame, dict[int, float]]:
    """The drawing's scales, and where on the horizontal one every number of parameters lies."""
    sizes = {_size(cell) for cell in cells}
    positive = sorted(sizes - {0})
    zero = math.log10(positive[0]) - 0.5  # no parameters at all: left of the logarithmic scale
    places = {size: math.log10(size) if size else zero for size in sizes}
    reach = [100 * edge for cell in cells for edge in _spread(cell)]
    y_ticks = ticks(min(reach), max(reach), 6)
    pad = 0.06 * (max(places.values()) - min(places.values()))
    span = (min(places.values()) - pad, max(places.values()) + pad)
    x_ticks = [*([(zero, "0")] if 0 in sizes else []), *_decades(positive[0], positive[-1])]
    return (
        Frame(
            720,
            400,
            span,
            (y_ticks[0][0], y_ticks[-1][0]),
            x_ticks,
            y_ticks,
            left=40,
            bottom=42,
            top=20,
            right=14,
        ),
        places,
    )


def _shapes(table: Table) -> dict[str, int]:
    """The rows' first labels with their shapes; none (all are circles) where there are more of them
    than shapes.
    """
    names = list(dict.fromkeys(row[0] for row in table.rows))
    return {name: i for i, name in enumerate(names)} if len(names) <= len(SHAPES) else {}


def front(cells: Sequence[TableCell], higher: bool = True) -> list[TableCell]:
    """Return the cells that no other beats: by growing parameters, each with a better mean than all
    before it.

    `higher`: the higher mean is the better one.
    """
    sign = 1 if higher else -1

    def gain(cell: TableCell) -> float:
        return sign * (cell.mean or 0.0)

    found: list[TableCell] = []
    for cell in sorted(cells, key=lambda cell: (_size(cell), -gain(cell))):
        if not found or gain(cell) > gain(found[-1]):
            found.append(cell)
    return found


def _size(cell: TableCell) -> int:
    return int((cell.parameters or {})["trainable_without_head"])


def _spread(cell: TableCell) -> tuple[float, float]:
    mean, sd = cell.mean or 0.0, cell.sd or 0.0
    return mean - sd, mean + sd


def _placed(table: Table, cell: TableCell, place: float) -> Point:
    low, high = _spread(cell)
    spread = f" ± {percent(cell.sd)}" if cell.sd is not None else ""
    words = f"{table.place(cell)}: {percent(cell.mean)}{spread}, {_size(cell):,} parameters"
    return Point(place, 100 * (cell.mean or 0.0), 100 * low, 100 * high, words)


def _decades(low: int, high: int) -> list[tuple[float, str]]:
    """1, 2 and 5 times the powers of ten (only the powers over a wide range) between two counts, or
    the counts themselves.
    """
    factors = (1, 2, 5) if high < 300 * low else (1,)
    found = [f * 10**power for power in range(12) for f in factors if low <= f * 10**power <= high]
    words = [
        (
            f"{value // 10**6}M"
            if value >= 10**6
            else f"{value // 1000}k"
            if value >= 1000
            else str(value)
        )
        for value in found
    ]
    round_ones = [(math.log10(value), word) for value, word in zip(found, words, strict=True)]
    return round_ones or [(math.log10(value), count(value)) for value in dict.fromkeys((low, high))]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config with dotted keys: {"method.rank": 4, ...}; lists become tuples, which can be kept in
    sets.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _frozen(value)
    return found


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
