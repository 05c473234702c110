"""The report's chart of the metric against trainable parameters, with its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from markupsafe import Markup, escape

from pointsweep.reporting.cell_text import count
from pointsweep.reporting.html.charts import (
    SYMBOLS,
    Chart,
    figure,
    label,
    legend_height,
    marks,
    words,
)
from pointsweep.reporting.html.sections import Section
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import higher_is_better
from pointsweep.utils.numbers import percent

MOST_LABELS = 6  # names written beside points of the front
SIZES = "trainable parameters"


def pareto(table: Table) -> Section | None:
    """Return the section: every cell by its trainable parameters and its mean, and the cells that
    no other beats in both. None where all have as many.
    """
    cells = [cell for cell in table.cells if cell.mean is not None and cell.parameters]
    sizes = {size_of(cell) for cell in cells}
    if len(sizes) < 2:
        return None
    higher = higher_is_better(table.metric)
    best = front(cells, higher)
    zero = min(sizes - {0}) / 10**0.5  # no parameters at all: left of the logarithmic scale
    places = {size: float(size) if size else zero for size in sizes}
    traces = _traces(table, cells, places)
    traces += _front(table, best, places)

    drawn = figure(traces, f"{SIZES} (logarithmic)", f"{table.metric} in %")
    low, high = math.log10(min(places.values())), math.log10(max(places.values()))
    pad = 0.05 * (high - low)
    drawn.update_layout(xaxis={"type": "log", "range": [low - pad, high + pad]})
    if 0 in sizes:
        powers = [10**power for power in range(12) if min(sizes - {0}) <= 10**power <= max(sizes)]
        ticks = powers or sorted({min(sizes - {0}), max(sizes)})
        drawn.update_layout(
            xaxis={"tickvals": [zero, *ticks], "ticktext": ["0", *map(count, ticks)]}
        )
    else:
        drawn.update_layout(xaxis={"dtick": "D2" if high - low < 1 else 1, "exponentformat": "SI"})

    names = Markup(", ").join(
        Markup("<b>{}</b>").format(table.place(cell)) for cell in best[-MOST_LABELS:]
    )
    if len(best) > MOST_LABELS:
        names += escape(f" and {len(best) - MOST_LABELS} smaller ones")
    lead = Markup(
        "The dashed line is the Pareto front by the means: no cell has fewer parameters and a {}"
        " mean than {}. Parameters are those without the head, bars are ± one"
        " standard deviation over the seeds."
    ).format("higher" if higher else "lower", names)
    chart = Chart(
        f"{table.metric} against trainable parameters",
        drawn,
        f"{len(cells)} cells, {len(best)} of them on the front.",
        ("on the front", SIZES, f"{table.metric} in %"),
        [(table.place(cell), f"{size_of(cell):,}", _mean(cell)) for cell in best],
        480 + legend_height(len(traces)),
    )
    return Section(
        "pareto", "Accuracy against parameters", lead, "charts.html", {"charts": [chart]}
    )


def front(cells: Sequence[TableCell], higher: bool = True) -> list[TableCell]:
    """Return the cells that no other beats: by growing parameters, each with a better mean than all
    before it.

    `higher`: the higher mean is the better one.
    """
    sign = 1 if higher else -1

    def gain(cell: TableCell) -> float:
        return sign * (cell.mean or 0.0)

    found: list[TableCell] = []
    for cell in sorted(cells, key=lambda cell: (size_of(cell), -gain(cell))):
        if not found or gain(cell) > gain(found[-1]):
            found.append(cell)
    return found


def size_of(cell: TableCell) -> int:
    """Return a cell's trainable parameters without the head."""
    return int((cell.parameters or {})["trainable_without_head"])


def _traces(table: Table, cells: Sequence[TableCell], places: dict[int, float]) -> list[go.Scatter]:
    """Return a trace for each column, in its colour; rows have the shape of their first label."""
    kind = marks(len(cells))
    firsts = list(dict.fromkeys(row[0] for row in table.rows))
    shapes = (
        {name: SYMBOLS[i] for i, name in enumerate(firsts)} if len(firsts) <= len(SYMBOLS) else {}
    )
    traces = []
    for column, title in enumerate(table.columns):
        mine = [cell for cell in cells if cell.column == column]
        if not mine:
            continue
        spread = [100 * cell.sd if cell.sd is not None else 0.0 for cell in mine]
        bars = {"type": "data", "array": spread, "thickness": 1, "width": 0}
        traces.append(
            kind(
                x=[places[size_of(cell)] for cell in mine],
                y=[100 * (cell.mean or 0.0) for cell in mine],
                error_y=bars if any(spread) else None,
                mode="markers",
                marker={
                    "size": 10,
                    "symbol": [shapes.get(table.rows[cell.row][0], "circle") for cell in mine],
                },
                name=label(title),
                text=[words(_told(table, cell)) for cell in mine],
                hovertemplate="%{text}<extra></extra>",
                meta={"slot": column},
            )
        )
    return traces


def _front(table: Table, best: Sequence[TableCell], places: dict[int, float]) -> list[go.Scatter]:
    """Return the steps of the front, and the names of its last cells."""
    x, y = [places[size_of(cell)] for cell in best], [100 * (cell.mean or 0.0) for cell in best]
    named = best[-MOST_LABELS:]
    middle = (math.log10(min(places.values())) + math.log10(max(places.values()))) / 2
    sides = [math.log10(places[size_of(cell)]) > middle for cell in named]
    return [
        go.Scatter(
            x=[*x, max(places.values())],
            y=[*y, y[-1]],
            mode="lines",
            line={"shape": "hv", "dash": "dash", "width": 1.5},
            name="Pareto front",
            hoverinfo="skip",
            meta={"slot": 7},
        ),
        go.Scatter(
            x=x[-MOST_LABELS:],
            y=y[-MOST_LABELS:],
            mode="text",
            text=[f"\u2002{words(table.place(cell))}\u2002" for cell in named],
            textposition=["top left" if side else "top right" for side in sides],
            hoverinfo="skip",
            showlegend=False,
            meta={"wide": True},
        ),
    ]


def _mean(cell: TableCell) -> str:
    return percent(cell.mean) + (f" ± {percent(cell.sd)}" if cell.sd is not None else "")


def _told(table: Table, cell: TableCell) -> str:
    return f"{table.place(cell)}: {_mean(cell)}, {size_of(cell):,} parameters"
