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

MOST_LINES = 24  # of a chart, whose lines are those of the best means

Curves = Mapping[str, Sequence[float]]  # of one quantity: trial key -> values by epoch


def learning(
    table: Table,
    records: Mapping[str, Record],
    curves: Curves,
    histories: Mapping[str, Mapping[str, Sequence[float]]],
) -> Section | None:
    """Return the section, with a chart for each quantity and column; None if no chart has a line of
    two epochs or more.

    `curves` are those of the table's metric, `histories` the other quantities of each trial (key ->
    quantity -> values by epoch).
    """
    curves_of: dict[str, Curves] = {table.metric: curves}
    for name in quantities(histories):
        if name != table.metric:
            curves_of[name] = _curves_of(name, histories)

    charts: dict[tuple[str, ...], Chart] = {}
    is_any_cut = False
    for name, curves_of_name in curves_of.items():
        for column, title in enumerate(table.columns):
            column_cells = table.cells_of_column(column)
            cells = _with_curves(column_cells, records, curves_of_name)
            # One epoch is a point, which a chart does not show better than the table.
            if _num_epochs(cells) >= 2:
                is_any_cut = is_any_cut or len(cells) > MOST_LINES
                charts[name, title] = _chart(table, name, title, cells)

    if not charts:
        return None

    lead = "By epoch: the mean of the seeds, and the band from the lowest to the highest of them."
    if is_any_cut:
        lead += f" Of more rows, the {MOST_LINES} with the best means."

    choice = Choice(("Curve", "Column"), charts)
    return Section(
        "curves", "Learning curves", lead, "charts.html", {"charts": [choice]}
    )


def _curves_of(
    name: str, histories: Mapping[str, Mapping[str, Sequence[float]]]
) -> Curves:
    """Return the curves of one quantity, by the keys of the trials that have it."""
    curves = {}
    for key, history in histories.items():
        if name in history:
            curves[key] = history[name]

    return curves


def _with_curves(
    cells: Sequence[TableCell], records: Mapping[str, Record], curves: Curves
) -> list[tuple[TableCell, list[Sequence[float]]]]:
    """Return the cells that have curves, each with those of its seeds."""
    drawn = []
    for cell in cells:
        seed_curves = seeds_of(cell, records, curves)
        if seed_curves:
            drawn.append((cell, seed_curves))

    return drawn


def _num_epochs(cells: Sequence[tuple[TableCell, list[Sequence[float]]]]) -> int:
    """Return the epochs of the longest line; the seeds of a cell are cut to one length."""
    return max((len(seed_curves[0]) for _, seed_curves in cells), default=0)


def quantities(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return the names of what can be drawn by epoch: accuracies, losses, the learning rate."""
    names: set[str] = set()
    names.update(*histories.values())
    # The learning rate last, and the same metric of all splits ("train/loss", "test/loss") side by
    # side.
    return sorted(names, key=lambda name: (name == RATE, name.rpartition("/")[2], name))


def seeds_of(
    cell: TableCell, records: Mapping[str, Record], curves: Curves
) -> list[Sequence[float]]:
    """Return the curves of a cell's finished trials, one a seed, or of the running ones if none is
    finished. All are cut to the shortest, so that every mean is one of the same seeds.
    """
    finished = []
    running = []

    for _, key in cell.keys:
        curve = curves.get(key, ())
        if not len(curve):  # not `not curve`: it may be an array
            continue

        if key in records:
            finished.append(curve)
        else:
            running.append(curve)

    chosen = finished or running
    shortest = min(map(len, chosen), default=0)
    return [curve[:shortest] for curve in chosen]


def _chart(
    table: Table,
    name: str,
    title: str,
    cells: Sequence[tuple[TableCell, list[Sequence[float]]]],
) -> Chart:
    best_first = ordered(table, [cell for cell, _ in cells if cell.mean is not None])
    without_mean = [cell for cell, _ in cells if cell.mean is None]
    shown_rows = sorted(cell.row for cell in [*best_first, *without_mean][:MOST_LINES])
    cell_of_row = {cell.row: (cell, seed_curves) for cell, seed_curves in cells}

    y_title = name
    scale = 1
    number_format = ".4g"

    if name != RATE and not name.endswith("/loss"):  # a fraction, shown in percent
        y_title = f"{name} in %"
        scale = 100
        number_format = ".1f"

    traces = []
    lines = []

    for position, row in enumerate(shown_rows):
        cell, seed_curves = cell_of_row[row]
        by_epoch = list(enumerate(zip(*seed_curves, strict=True), 1))
        points = []

        for epoch, values in thinned(by_epoch):
            points.append(_point(epoch, values, scale))

        # A row has the same colour in every chart; in a table with more rows than a chart shows,
        # the lines of one chart have different colours instead.
        colour = row if len(table.rows) <= MOST_LINES else position
        label = row_name(table, cell)
        traces += with_band(label, colour, points, number_format=number_format)

        last_epoch, y, low, high = points[-1]
        span = f"{low:{number_format}} to {high:{number_format}}"
        mean = format(y, number_format)
        lines.append((label, str(int(last_epoch)), mean, span, str(len(seed_curves))))

    drawn = figure(traces, "epoch", y_title, crosshair=True)
    if name == RATE:
        drawn.update_layout(yaxis={"exponentformat": "power"})

    return Chart(
        title=f"{name} by epoch, {title}",
        figure=drawn,
        summary=f"{len(shown_rows)} lines over {_num_epochs(cells)} epochs.",
        heads=("", "last epoch", name, "lowest to highest", "seeds"),
        rows=lines,
        height=460 + legend_height(len(shown_rows)),
    )


def _point(
    epoch: int, values: Sequence[float], scale: int
) -> tuple[float, float, float, float]:
    """Return the epoch, and the mean, the lowest and the highest value of the seeds, scaled."""
    mean = summary(values).mean
    return epoch, scale * mean, scale * min(values), scale * max(values)
