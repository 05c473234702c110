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
            with_name = {
                key: history for key, history in histories.items() if name in history
            }
            by_name[name] = {key: history[name] for key, history in with_name.items()}

    charts: dict[tuple[str, ...], Chart] = {}
    is_cut = False
    for name, curves_of_name in by_name.items():
        for column, title in enumerate(table.columns):
            cells = []
            for cell in table.cells:
                if cell.column == column:
                    cells.append((cell, seeds_of(cell, records, curves_of_name)))

            cells = [(cell, seeds) for cell, seeds in cells if seeds]
            num_epochs = max((len(seeds[0]) for _, seeds in cells), default=0)
            if num_epochs < 2:
                continue

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


def quantities(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return what can be drawn by epoch: accuracies, losses, the learning rate."""
    names = {name for history in histories.values() for name in history}
    return sorted(names, key=lambda name: (name == RATE, name.rpartition("/")[2], name))


def seeds_of(
    cell: TableCell, records: Mapping[str, Record], curves: Curves
) -> list[Sequence[float]]:
    """Return the curves of a cell's finished trials (of those under way if none is finished), cut
    to the shortest.
    """
    begun = {key: curves[key] for _, key in cell.keys if len(curves.get(key, ()))}
    finished = [curve for key, curve in begun.items() if key in records]
    chosen = finished or list(begun.values())
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

    is_fraction = name != RATE and not name.endswith("/loss")
    number_format = ".1f" if is_fraction else ".4g"
    traces, lines = [], []

    for row in shown:
        cell, seeds = seeds_of_row[row]
        by_epoch = list(enumerate(zip(*seeds, strict=True), 1))
        points = [
            _point(epoch, values, is_fraction) for epoch, values in thinned(by_epoch)
        ]
        # Rows keep their colours in every column; of many rows those that are shown have their own.
        slot = row if len(table.rows) <= MOST_LINES else shown.index(row)
        traces += with_band(
            row_name(table, cell), slot, points, number_format=number_format
        )
        epoch, y, low, high = points[-1]
        lines.append(
            (
                row_name(table, cell),
                str(int(epoch)),
                format(y, number_format),
                f"{low:{number_format}} to {high:{number_format}}",
                str(len(seeds)),
            )
        )

    y_title = f"{name} in %" if is_fraction else name
    drawn = figure(traces, "epoch", y_title, crosshair=True)
    if name == RATE:
        drawn.update_layout(yaxis={"exponentformat": "power"})

    num_epochs = max(len(seeds[0]) for _, seeds in cells)
    return Chart(
        f"{name} by epoch, {title}",
        drawn,
        f"{len(shown)} lines over {num_epochs} epochs.",
        ("", "last epoch", name, "lowest to highest", "seeds"),
        lines,
        460 + legend_height(len(shown)),
    )


def _point(
    epoch: int, values: Sequence[float], fraction: bool
) -> tuple[float, float, float, float]:
    scale = 100 if fraction else 1
    mean = summary(values).mean
    return epoch, scale * mean, scale * min(values), scale * max(values)
