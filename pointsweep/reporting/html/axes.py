"""The report's curves over a number: rows or columns that stand for a length, a rank, a share.

A numeric axis is recognised by its labels, or by the one setting in which its arms differ.
"""

from __future__ import annotations

import itertools
import re
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
    numbered = []
    for position in (*range(len(table.row_headers)), None):
        if position is None:
            header, labels = "", list(table.columns)
        else:
            header = table.row_headers[position]
            labels = list(dict.fromkeys(row[position] for row in table.rows))

        axis = _by_label(header, position, labels) or _by_setting(
            table, records, position, labels
        )
        if axis is not None and len(set(axis.values.values())) >= 3:
            numbered.append(axis)

    return numbered


def _by_label(
    header: str, position: int | None, labels: Sequence[str]
) -> NumericAxis | None:
    """Labels that are the same but for one number: 1, 2, 6 or "M = 1", "M = 2"."""
    values = {}
    for label in labels:
        numbers = NUMBER.findall(label)
        if len(numbers) != 1:
            return None

        values[label] = float(numbers[0])

    names = {NUMBER.sub("", label).strip(" =:") for label in labels}
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
        for record in records_by_seed(cell.keys, records).values():
            configs_of[_label(table, position, cell)].append(flat(record.config))
            break

    if not all(configs_of.values()):
        return None

    key = _differing_key([configs[0] for configs in configs_of.values()])
    if key is None:
        return None

    values = {}
    for label, configs in configs_of.items():
        numbers = {config.get(key) for config in configs}
        number = numbers.pop()
        if numbers or isinstance(number, bool) or not isinstance(number, (int, float)):
            return None

        values[label] = float(number)

    return NumericAxis(key.rpartition(".")[2], position, values)


def _differing_key(configs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the one key in which configurations differ, the seed aside; None if there are more, or
    none.
    """
    keys = {key for config in configs for key in config if key != "seed"}
    differing = []

    for key in keys:
        values = {repr(config.get(key)) for config in configs}
        if len(values) > 1:
            differing.append(key)

    return differing[0] if len(differing) == 1 else None


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
    lines: dict[
        tuple[str, ...], list[TableCell]
    ] = {}  # cells by their labels on the other axes
    numbers = set()

    for cell in table.cells:
        if cell.mean is None:
            continue

        labels = list(table.rows[cell.row])
        if axis.position is not None:
            del labels[axis.position]
            labels.append(table.columns[cell.column])

        lines.setdefault(tuple(labels), []).append(cell)
        numbers.add(_number(table, axis, cell))

    if len(numbers) < 3:
        return None

    if len(lines) <= MOST_LINES or any(len(labels) < 2 for labels in lines):
        return _chart(table, axis, "", lines)

    charts: dict[tuple[str, ...], Chart] = {}
    panels = list(dict.fromkeys(labels[-1] for labels in lines))
    for panel in panels[:MOST_PANELS]:
        of_panel = {
            labels[:-1]: cells for labels, cells in lines.items() if labels[-1] == panel
        }
        charts[(panel,)] = _chart(table, axis, panel, of_panel)

    name = table.row_headers[-1] if axis.position is None else "Column"
    return Choice((name,), charts)


def _chart(
    table: Table,
    axis: NumericAxis,
    panel: str,
    lines: Mapping[tuple[str, ...], Sequence[TableCell]],
) -> Chart:
    drawn_lines = list(lines.items())[:MOST_TRACES]
    traces, rows = [], []
    for slot, (labels, cells) in enumerate(drawn_lines):
        name = " / ".join(labels) or table.metric
        points = []
        for cell in sorted(cells, key=lambda cell: _number(table, axis, cell)):
            number = _number(table, axis, cell)
            points.append((number, *_values(cell)))
            rows.append((name, f"{number:g}", _words(cell)))

        traces += with_band(name, slot, points, markers=True)

    all_cells = itertools.chain.from_iterable(lines.values())
    numbers = sorted({_number(table, axis, cell) for cell in all_cells})
    logarithmic = numbers[0] > 0 and numbers[-1] >= WIDE * numbers[0]
    axis_title = f"{axis.name} (logarithmic)" if logarithmic else axis.name
    drawn = figure(traces, axis_title, f"{table.metric} in %", crosshair=True)

    if logarithmic or len(numbers) <= 12:
        drawn.update_layout(
            xaxis={
                "type": "log" if logarithmic else "linear",
                "tickvals": numbers,
                "ticktext": [f"{number:g}" for number in numbers],
            }
        )

    title = f"{table.metric} by {axis.name}"
    if panel:
        title += f", {panel}"

    counted = _counted(len(drawn_lines), len(lines))
    return Chart(
        title,
        drawn,
        f"{counted} over {len(numbers)} values from {numbers[0]:g} to {numbers[-1]:g}.",
        ("", axis.name, f"{table.metric} in % (interval)"),
        rows,
        440 + legend_height(len(drawn_lines)),
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
    span = (
        f" ({percent(cell.low)} to {percent(cell.high)})"
        if cell.low is not None
        else ""
    )
    return f"{percent(cell.mean)}{span}"
