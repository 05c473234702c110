"""The report's learning curves: accuracy, loss and learning rate by epoch, a line for every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pointsweep.reporting.best_cells import ordered
from pointsweep.reporting.html.charts import (
    Chart,
    Choice,
    figure,
    legend_height,
    thinned,
    with_band,
)
from pointsweep.reporting.html.evidence import RATE
from pointsweep.reporting.html.sections import Section, row_name
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record
from pointsweep.statistics.seeds import summary

MOST_LINES = 24  # of a chart: those of the best means

Curves = Mapping[str, Sequence[float]]  # by trial key


def learning(
    table: Table,
    records: Mapping[str, Record],
    curves: Curves,
    histories: Mapping[str, Mapping[str, Sequence[float]]],
) -> Section | None:
    """Return the section: one chart for each quantity and column; None without two epochs."""
    by_name: dict[str, Curves] = {table.metric: curves}
    for name in quantities(histories):
        if name != table.metric:
            by_name[name] = _curves_of(name, histories)

    charts: dict[tuple[str, ...], Chart] = {}
    is_cut = False
    for name, curves_by_key in by_name.items():
        for column, title in enumerate(table.columns):
            column_cells = table.cells_of_column(column)
            cells = _with_curves(column_cells, records, curves_by_key)
            num_epochs = max((len(seeds[0]) for _, seeds in cells), default=0)

            if num_epochs >= 2:
                is_cut = is_cut or len(cells) > MOST_LINES
                charts[name, title] = _chart(table, name, title, cells)

    if not charts:
        return None

    lead = "By epoch: the mean of the seeds, and the band from the lowest to the highest of them."
    if is_cut:
        lead += f" Of more rows, the {MOST_LINES} with the best means."

    choice = Choice(("Curve", "Column"), charts)
    return Section(
        "curves", "Learning curves", lead, "charts.html", {"charts": [choice]}
    )


def _curves_of(
    name: str, histories: Mapping[str, Mapping[str, Sequence[float]]]
) -> Curves:
    """Return the curves of one quantity, of the trials that have it."""
    curves = {}
    for key, history in histories.items():
        if name in history:
            curves[key] = history[name]

    return curves


def _with_curves(
    cells: Sequence[TableCell], records: Mapping[str, Record], curves: Curves
) -> list[tuple[TableCell, list[Sequence[float]]]]:
    """Return the cells that have curves, with these."""
    drawn = []
    for cell in cells:
        seeds = seeds_of(cell, records, curves)
        if seeds:
            drawn.append((cell, seeds))

    return drawn


def quantities(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return what can be drawn by epoch: accuracies, losses, the learning rate."""
    names: set[str] = set()
    names.update(*histories.values())
    # The learning rate last, and a metric of all splits side by side.
    return sorted(names, key=lambda name: (name == RATE, name.rpartition("/")[2], name))


def seeds_of(
    cell: TableCell, records: Mapping[str, Record], curves: Curves
) -> list[Sequence[float]]:
    """Return the curves of a cell's finished trials (of those under way if none is finished), cut
    to the shortest.
    """
    finished = []
    under_way = []

    for _, key in cell.keys:
        curve = curves.get(key, ())
        if not len(curve):  # an array has no truth of its own
            continue

        if key in records:
            finished.append(curve)
        else:
            under_way.append(curve)

    chosen = finished or under_way
    shortest = min(map(len, chosen), default=0)
    return [curve[:shortest] for curve in chosen]


def _chart(
    table: Table,
    name: str,
    title: str,
    cells: Sequence[tuple[TableCell, list[Sequence[float]]]],
) -> Chart:
    best = ordered(table, [cell for cell, _ in cells if cell.mean is not None])
    under_way = [cell for cell, _ in cells if cell.mean is None]
    shown = sorted(cell.row for cell in [*best, *under_way][:MOST_LINES])
    seeds_of_row = {cell.row: (cell, seeds) for cell, seeds in cells}

    y_title = name
    scale = 1
    number_format = ".4g"

    if name != RATE and not name.endswith("/loss"):  # a fraction, shown in percent
        y_title = f"{name} in %"
        scale = 100
        number_format = ".1f"

    traces = []
    lines = []

    for position, row in enumerate(shown):
        cell, seeds = seeds_of_row[row]
        by_epoch = list(enumerate(zip(*seeds, strict=True), 1))
        points = []

        for epoch, values in thinned(by_epoch):
            points.append(_point(epoch, values, scale))

        # Rows keep their colours in every column; of many rows those that are shown have their own.
        slot = row if len(table.rows) <= MOST_LINES else position
        label = row_name(table, cell)
        traces += with_band(label, slot, points, number_format=number_format)

        last_epoch, y, low, high = points[-1]
        span = f"{low:{number_format}} to {high:{number_format}}"
        mean = format(y, number_format)
        lines.append((label, str(int(last_epoch)), mean, span, str(len(seeds))))

    drawn = figure(traces, "epoch", y_title, crosshair=True)
    if name == RATE:
        drawn.update_layout(yaxis={"exponentformat": "power"})

    num_epochs = max(len(seeds[0]) for _, seeds in cells)
    return Chart(
        title=f"{name} by epoch, {title}",
        figure=drawn,
        summary=f"{len(shown)} lines over {num_epochs} epochs.",
        heads=("", "last epoch", name, "lowest to highest", "seeds"),
        rows=lines,
        height=460 + legend_height(len(shown)),
    )


def _point(
    epoch: int, values: Sequence[float], scale: int
) -> tuple[float, float, float, float]:
    mean = summary(values).mean
    return epoch, scale * mean, scale * min(values), scale * max(values)
