"""The report's chart of the metric against trainable parameters, with its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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

# names written beside points: of all, or of the front alone where there are more
MOST_LABELS = 6
SIZES = "trainable parameters"
# fewer have a power of ten or two: the sizes themselves are ticks
FEW_DECADES = 2
NEAREST_TICKS = 0.1  # of the axis, so that their numbers do not touch


def pareto(table: Table) -> Section | None:
    """Return the section: every cell by its trainable parameters and its mean, and the cells that
    no other beats in both. None where all have as many.
    """
    cells = [cell for cell in table.cells if cell.mean is not None and cell.parameters]
    sizes = set(map(size_of, cells))

    if len(sizes) < 2:
        return None

    higher = higher_is_better(table.metric)
    best = front(cells, higher)
    positions = _positions(sizes)
    named = cells if len(cells) <= MOST_LABELS else best[-MOST_LABELS:]
    traces = _traces(table, cells, positions)
    # those of beaten cells stand on the other side of their points than the front
    beaten_side = "bottom" if higher else "top"
    sides = ["top" if cell in best else beaten_side for cell in named]
    traces += [_front(best, positions), _names(table, named, sides, positions)]
    drawn = figure(traces, f"{SIZES} (logarithmic)", f"{table.metric} in %")
    drawn.update_layout(xaxis=_x_axis(sizes, positions))

    rows = []

    for cell in best:
        rows.append((table.cell_name(cell), f"{size_of(cell):,}", _mean(cell)))

    chart = Chart(
        title=f"{table.metric} against trainable parameters",
        figure=drawn,
        summary=f"{len(cells)} cells, {len(best)} of them on the front.",
        heads=("on the front", SIZES, f"{table.metric} in %"),
        rows=rows,
        height=480 + legend_height(len(traces)),
    )

    return Section(
        name="pareto",
        title="Accuracy against parameters",
        lead=_lead(table, best, higher),
        template="charts.html",
        values={"charts": [chart]},
    )


def _positions(sizes: Collection[int]) -> dict[int, float]:
    """Return where on the logarithmic scale each number of parameters is drawn: none at all left of
    all others.
    """
    positions = {size: float(size) for size in sizes}
    if 0 in positions:
        positions[0] = min(set(sizes) - {0}) / 10**0.5

    return positions


def _x_axis(sizes: set[int], positions: Mapping[int, float]) -> dict[str, Any]:
    low = math.log10(min(positions.values()))
    high = math.log10(max(positions.values()))
    margin = 0.05 * (high - low)
    axis: dict[str, Any] = {"type": "log", "range": [low - margin, high + margin]}

    if 0 in sizes:
        smallest, largest = min(sizes - {0}), max(sizes)
        powers = [10**exponent for exponent in range(12)]
        ticks = [power for power in powers if smallest <= power <= largest]

        if not ticks:
            ticks = sorted({smallest, largest})

        axis["tickvals"] = [positions[0], *ticks]
        axis["ticktext"] = ["0", *map(count, ticks)]
    elif high - low < FEW_DECADES:
        ticks = _apart(sorted(sizes), (high - low) * NEAREST_TICKS)
        axis["tickvals"] = ticks
        axis["ticktext"] = [count(tick) for tick in ticks]
    else:
        axis["dtick"] = 1
        axis["exponentformat"] = "SI"

    return axis


def _apart(sizes: Sequence[int], least: float) -> list[int]:
    """Return those of ascending sizes whose logarithms lie so far apart; the first and the last are
    among them.
    """
    chosen = [sizes[0]]
    last = math.log10(sizes[-1])

    for size in sizes[1:-1]:
        place = math.log10(size)
        if place - math.log10(chosen[-1]) >= least and last - place >= least:
            chosen.append(size)

    return [*chosen, sizes[-1]]


def _lead(table: Table, best: Sequence[TableCell], higher: bool) -> Markup:
    """Return the sentence above the chart, which names the largest cells of the front."""
    bold = []
    for cell in best[-MOST_LABELS:]:
        bold.append(Markup("<b>{}</b>").format(table.cell_name(cell)))

    names = Markup(", ").join(bold)
    if len(best) > MOST_LABELS:
        names += escape(f" and {len(best) - MOST_LABELS} smaller ones")

    return Markup(
        "The dashed line is the Pareto front by the means: no cell has fewer parameters and a {}"
        " mean than {}. Parameters are those without the head, bars are ± one"
        " standard deviation over the seeds."
    ).format("higher" if higher else "lower", names)


def front(cells: Sequence[TableCell], higher: bool = True) -> list[TableCell]:
    """Return the cells that no other beats: by growing parameters, each with a better mean than all
    before it.

    `higher`: the higher mean is the better one.
    """
    sign = 1 if higher else -1

    def gain(cell: TableCell) -> float:
        return sign * (cell.mean or 0.0)

    best: list[TableCell] = []
    for cell in sorted(cells, key=lambda cell: (size_of(cell), -gain(cell))):
        if not best or gain(cell) > gain(best[-1]):
            best.append(cell)

    return best


def size_of(cell: TableCell) -> int:
    """Return a cell's trainable parameters without the head."""
    return int((cell.parameters or {})["trainable_without_head"])


def _traces(
    table: Table, cells: Sequence[TableCell], positions: Mapping[int, float]
) -> list[go.Scatter]:
    """Return a trace for each column, in its colour; rows have the shape of their first label."""
    trace_type = marks(len(cells))
    symbol_of = {}
    first_labels = list(dict.fromkeys(row[0] for row in table.rows))

    if len(first_labels) <= len(SYMBOLS):
        symbol_of = dict(zip(first_labels, SYMBOLS, strict=False))

    traces = []
    for column, title in enumerate(table.columns):
        x = []
        y = []
        deviations = []
        symbols = []
        texts = []

        for cell in cells:
            if cell.column == column:
                x.append(positions[size_of(cell)])
                y.append(100 * (cell.mean or 0.0))
                deviations.append(100 * cell.sd if cell.sd is not None else 0.0)
                symbols.append(symbol_of.get(table.rows[cell.row][0], "circle"))
                texts.append(words(_hover_text(table, cell)))

        if not x:
            continue

        bars = None
        if any(deviations):
            bars = {"type": "data", "array": deviations, "thickness": 1, "width": 0}

        traces.append(
            trace_type(
                x=x,
                y=y,
                error_y=bars,
                mode="markers",
                marker={"size": 10, "symbol": symbols},
                name=label(title),
                text=texts,
                hovertemplate="%{text}<extra></extra>",
                meta={"slot": column},
            )
        )

    return traces


def _front(best: Sequence[TableCell], positions: Mapping[int, float]) -> go.Scatter:
    """Return the steps of the front."""
    x = [positions[size_of(cell)] for cell in best]
    y = [100 * (cell.mean or 0.0) for cell in best]

    return go.Scatter(
        x=[*x, max(positions.values())],
        y=[*y, y[-1]],
        mode="lines",
        line={"shape": "hv", "dash": "dash", "width": 1.5},
        name="Pareto front",
        hoverinfo="skip",
        meta={"slot": 7},
    )


def _names(
    table: Table,
    named: Sequence[TableCell],
    sides: Sequence[str],
    positions: Mapping[int, float],
) -> go.Scatter:
    """Return the names of cells beside their points, above or below them."""
    smallest, largest = min(positions.values()), max(positions.values())
    middle = (math.log10(smallest) + math.log10(largest)) / 2
    names = []
    places = []

    for cell, side in zip(named, sides, strict=True):
        names.append(f"\u2002{words(table.cell_name(cell))}\u2002")
        # A name extends towards the middle, where there is room.
        in_right_half = math.log10(positions[size_of(cell)]) > middle
        places.append(f"{side} left" if in_right_half else f"{side} right")

    return go.Scatter(
        x=[positions[size_of(cell)] for cell in named],
        y=[100 * (cell.mean or 0.0) for cell in named],
        mode="text",
        text=names,
        textposition=places,
        hoverinfo="skip",
        showlegend=False,
        meta={"wide": True},
    )


def _mean(cell: TableCell) -> str:
    if cell.sd is None:
        return percent(cell.mean)
    return f"{percent(cell.mean)} ± {percent(cell.sd)}"


def _hover_text(table: Table, cell: TableCell) -> str:
    return f"{table.cell_name(cell)}: {_mean(cell)}, {size_of(cell):,} parameters"
