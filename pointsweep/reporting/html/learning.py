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
            by_name[name] = {key: kept[name] for key, kept in histories.items() if name in kept}

    charts: dict[tuple[str, ...], Chart] = {}
    cut = False
    for name, found in by_name.items():
        for column, title in enumerate(table.columns):
            cells = [
                (cell, seeds)
                for cell in table.cells
                if cell.column == column and (seeds := seeds_of(cell, records, found))
            ]
            if max((len(seeds[0]) for _, seeds in cells), default=0) < 2:
                continue
            cut = cut or len(cells) > MOST_LINES
            charts[name, title] = _chart(table, name, title, cells)
    if not charts:
        return None
    lead = "By epoch: the mean of the seeds, and the band from the lowest to the highest of them."
    if cut:
        lead += f" Of more rows, the {MOST_LINES} with the best means."
    choice = Choice(("Curve", "Column"), charts)
    return Section("curves", "Learning curves", lead, "charts.html", {"charts": [choice]})


def quantities(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return what can be drawn by epoch: accuracies, losses, the learning rate."""
    names = {name for kept in histories.values() for name in kept}
    return sorted(names, key=lambda name: (name == RATE, name.rpartition("/")[2], name))


def seeds_of(
    cell: TableCell, records: Mapping[str, Record], curves: Curves
) -> list[Sequence[float]]:
    """Return the curves of a cell's finished trials (of those under way if none is finished), cut
    to the shortest.
    """
    begun = [(key, curves[key]) for _, key in cell.keys if len(curves.get(key, ()))]
    chosen = [curve for key, curve in begun if key in records] or [curve for _, curve in begun]
    shortest = min(map(len, chosen), default=0)
    return [curve[:shortest] for curve in chosen]


def _chart(
    table: Table, name: str, title: str, cells: Sequence[tuple[TableCell, list[Sequence[float]]]]
) -> Chart:
    curves = {cell.row: (cell, seeds) for cell, seeds in cells}
    best = ordered(table, [cell for cell, _ in cells if cell.mean is not None])
    under_way = [cell for cell, _ in cells if cell.mean is None]
    rows = sorted(cell.row for cell in [*best, *under_way][:MOST_LINES])

    fraction = name != RATE and not name.endswith("/loss")
    traces, lines = [], []
    for row in rows:
        cell, seeds = curves[row]
        points = [
            _point(epoch, values, fraction)
            for epoch, values in thinned(list(enumerate(zip(*seeds, strict=True), 1)))
        ]
        # Rows keep their colours in every column; of many rows those that are shown have their own.
        slot = row if len(table.rows) <= MOST_LINES else rows.index(row)
        form = ".1f" if fraction else ".4g"
        traces += with_band(row_name(table, cell), slot, points, form=form)
        epoch, y, low, high = points[-1]
        lines.append(
            (
                row_name(table, cell),
                str(int(epoch)),
                format(y, form),
                f"{low:{form}} to {high:{form}}",
                str(len(seeds)),
            )
        )
    drawn = figure(traces, "epoch", f"{name} in %" if fraction else name, crosshair=True)
    if name == RATE:
        drawn.update_layout(yaxis={"exponentformat": "power"})
    return Chart(
        f"{name} by epoch, {title}",
        drawn,
        f"{len(rows)} lines over {max(len(seeds[0]) for _, seeds in cells)} epochs.",
        ("", "last epoch", name, "lowest to highest", "seeds"),
        lines,
        460 + legend_height(len(rows)),
    )


def _point(
    epoch: int, values: Sequence[float], fraction: bool
) -> tuple[float, float, float, float]:
    scale = 100 if fraction else 1
    mean = summary(values).mean
    return epoch, scale * mean, scale * min(values), scale * max(values)
