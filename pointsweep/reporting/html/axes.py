"""The report's curves over a number: rows or columns that stand for a length, a rank, a share.

A numeric axis is recognised by its labels, or by the one setting in which its arms differ.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsweep.reporting.html.charts import (
    Chart,
    Choice,
    figure,
    legend_height,
    with_band,
)
from pointsweep.reporting.html.sections import Section, flat
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record, records_by_seed
from pointsweep.utils.numbers import percent

# standing alone: not the 3 of "3d"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
MOST_PANELS = 12  # charts of an axis
MOST_TRACES = 24  # drawn in a chart
MOST_LINES = 8  # in one chart; of more, one chart a column
WIDE = 16  # the largest number over the smallest from which on the scale is logarithmic


@dataclass(frozen=True)
class NumericAxis:
    """Axis of numbers: labels of a table that stand for numbers: the row's label at `position`, or
    the column (None). `values`: label -> number.
    """

    name: str
    position: int | None
    values: Mapping[str, float]


def numeric_axes(table: Table, records: Mapping[str, Record]) -> list[NumericAxis]:
    """Every axis with at least three numbers, recognised by its labels, or by the one number in
    which the settings of its arms differ.
    """
    labelled: list[tuple[str, int | None, list[str]]] = []
    for position, header in enumerate(table.row_headers):
        labels = dict.fromkeys(row[position] for row in table.rows)
        labelled.append((header, position, list(labels)))

    labelled.append(("", None, list(table.columns)))

    numeric = []
    for header, label_position, axis_labels in labelled:
        axis = _by_label(header, label_position, axis_labels)
        if axis is None:
            axis = _by_setting(table, records, label_position, axis_labels)

        if axis is not None and len(set(axis.values.values())) >= 3:
            numeric.append(axis)

    return numeric


def _by_label(
    header: str, position: int | None, labels: Sequence[str]
) -> NumericAxis | None:
    """Labels that are the same but for one number: 1, 2, 6 or "M = 1", "M = 2"."""
    values = {}
    names = set()

    for label in labels:
        numbers = NUMBER.findall(label)
        if len(numbers) != 1:
            return None

        values[label] = float(numbers[0])
        names.add(NUMBER.sub("", label).strip(" =:"))

    if len(names) != 1:
        return None

    return NumericAxis(header or names.pop() or "column", position, values)


def _by_setting(
    table: Table,
    records: Mapping[str, Record],
    position: int | None,
    labels: Sequence[str],
) -> NumericAxis | None:
    """Return the axis of the one setting in which the arms of different labels differ, if it is a
    number and all arms of a label have the same.
    """
    configs_of: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    for cell in table.cells:
        finished = list(records_by_seed(cell.keys, records).values())
        if finished:  # its trials differ in their seeds alone
            label = _label(table, position, cell)
            configs_of[label].append(flat(finished[0].config))

    if not all(configs_of.values()):
        return None

    key = _differing_key([configs[0] for configs in configs_of.values()])
    if key is None:
        return None

    values = {}
    for label, configs in configs_of.items():
        numbers = {config.get(key) for config in configs}
        if len(numbers) > 1:
            return None

        (number,) = numbers
        # To Python a bool is an int.
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return None

        values[label] = float(number)

    return NumericAxis(key.rpartition(".")[2], position, values)


def _differing_key(configs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the one key in which configurations differ, the seed aside; None if there are more, or
    none.
    """
    keys: set[str] = set()
    keys.update(*configs)
    keys.discard("seed")
    differing = []

    for key in keys:
        values = {repr(config.get(key)) for config in configs}
        if len(values) > 1:
            differing.append(key)

    if len(differing) != 1:
        return None

    return differing[0]


def _label(table: Table, position: int | None, cell: TableCell) -> str:
    """Return a cell's label on the axis at `position`."""
    if position is None:
        return table.columns[cell.column]

    return table.rows[cell.row][position]


def axes(table: Table, records: Mapping[str, Record]) -> Section | None:
    """Return the section of every numeric axis: the means with their 95 % intervals, one line for
    each of the other labels.
    """
    charts = []
    for axis in numeric_axes(table, records):
        chart = _axis(table, axis)
        if chart is not None:
            charts.append(chart)

    if not charts:
        return None

    lead = (
        f"{table.metric} in %: means, and bands of the 95 % t-intervals over the seeds."
    )
    return Section("axes", "Over a number", lead, "charts.html", {"charts": charts})


def _axis(table: Table, axis: NumericAxis) -> Chart | Choice | None:
    """Return one chart, or one for each column (over columns: each last label of the rows) where
    one would hold too many lines.
    """
    # cells by their labels on the other axes
    lines: dict[tuple[str, ...], list[TableCell]] = defaultdict(list)
    numbers = set()

    for cell in table.cells:
        if cell.mean is None:
            continue

        labels = list(table.rows[cell.row])
        if axis.position is not None:
            del labels[axis.position]
            labels.append(table.columns[cell.column])

        lines[tuple(labels)].append(cell)
        numbers.add(_number(table, axis, cell))

    if len(numbers) < 3:
        return None

    if len(lines) <= MOST_LINES or any(len(labels) < 2 for labels in lines):
        return _chart(table, axis, "", lines)

    panels: dict[str, dict[tuple[str, ...], list[TableCell]]] = defaultdict(dict)
    for (*others, panel), cells in lines.items():
        panels[panel][tuple(others)] = cells

    charts: dict[tuple[str, ...], Chart] = {}
    for panel in list(panels)[:MOST_PANELS]:
        charts[(panel,)] = _chart(table, axis, panel, panels[panel])

    name = table.row_headers[-1] if axis.position is None else "Column"
    return Choice((name,), charts)


def _chart(
    table: Table,
    axis: NumericAxis,
    panel: str,
    lines: Mapping[tuple[str, ...], Sequence[TableCell]],
) -> Chart:
    def number_of(cell: TableCell) -> float:
        return _number(table, axis, cell)

    drawn_lines = list(lines.items())[:MOST_TRACES]
    traces = []
    rows = []

    for slot, (labels, cells) in enumerate(drawn_lines):
        name = " / ".join(labels) or table.metric
        points = []
        for cell in sorted(cells, key=number_of):
            points.append((number_of(cell), *_values(cell)))
            rows.append((name, f"{number_of(cell):g}", _words(cell)))

        traces += with_band(name, slot, points, markers=True)

    all_cells = itertools.chain.from_iterable(lines.values())
    numbers = sorted(set(map(number_of, all_cells)))
    lowest, highest = numbers[0], numbers[-1]
    scale = "linear"
    axis_title = axis.name

    if lowest > 0 and highest >= WIDE * lowest:
        scale = "log"
        axis_title += " (logarithmic)"

    drawn = figure(traces, axis_title, f"{table.metric} in %", crosshair=True)
    if scale == "log" or len(numbers) <= 12:
        ticks = [f"{number:g}" for number in numbers]
        x_axis = {"type": scale, "tickvals": numbers, "ticktext": ticks}
        drawn.update_layout(xaxis=x_axis)

    title = f"{table.metric} by {axis.name}"
    if panel:
        title += f", {panel}"

    counted = _counted(len(drawn_lines), len(lines))
    return Chart(
        title=title,
        figure=drawn,
        summary=f"{counted} over {len(numbers)} values from {lowest:g} to {highest:g}.",
        heads=("", axis.name, f"{table.metric} in % (interval)"),
        rows=rows,
        height=440 + legend_height(len(drawn_lines)),
    )


def _counted(num_drawn: int, num_lines: int) -> str:
    if num_drawn == num_lines:
        return f"{num_drawn} lines"
    return f"The first {num_drawn} of {num_lines} lines"


def _number(table: Table, axis: NumericAxis, cell: TableCell) -> float:
    return axis.values[_label(table, axis.position, cell)]


def _values(cell: TableCell) -> tuple[float, float, float]:
    """Return mean, low and high in percent; the mean thrice where there is no interval."""
    mean = cell.mean or 0.0
    if cell.low is None or cell.high is None:
        return 100 * mean, 100 * mean, 100 * mean

    return 100 * mean, 100 * cell.low, 100 * cell.high


def _words(cell: TableCell) -> str:
    if cell.low is None:
        return percent(cell.mean)

    return f"{percent(cell.mean)} ({percent(cell.low)} to {percent(cell.high)})"
