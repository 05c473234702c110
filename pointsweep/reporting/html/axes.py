"""The report's curves over a number: rows or columns that stand for a length, a rank, a share.

A numeric axis is recognised by its labels, or by the one setting in which its arms differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsweep.reporting.html.charts import Chart, Choice, figure, legend_height, with_band
from pointsweep.reporting.html.sections import Section, flat
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record
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
    found = []
    for position in (*range(len(table.row_headers)), None):
        labels = (
            list(dict.fromkeys(row[position] for row in table.rows))
            if position is not None
            else list(table.columns)
        )
        header = table.row_headers[position] if position is not None else ""
        axis = _by_label(header, position, labels) or _by_setting(table, records, position, labels)
        if axis is not None and len(set(axis.values.values())) >= 3:
            found.append(axis)
    return found


def _by_label(header: str, position: int | None, labels: Sequence[str]) -> NumericAxis | None:
    """Labels that are the same but for one number: 1, 2, 6 or "M = 1", "M = 2"."""
    numbers = [NUMBER.findall(label) for label in labels]
    rests = {NUMBER.sub("", label).strip(" =:") for label in labels}
    if len(rests) != 1 or any(len(found) != 1 for found in numbers):
        return None
    values = {label: float(found[0]) for label, found in zip(labels, numbers, strict=True)}
    return NumericAxis(header or rests.pop() or "column", position, values)


def _by_setting(
    table: Table, records: Mapping[str, Record], position: int | None, labels: Sequence[str]
) -> NumericAxis | None:
    settings: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    for cell in table.cells:
        found = next((flat(records[key].config) for _, key in cell.keys if key in records), None)
        if found is not None:
            settings[
                (
                    table.rows[cell.row][position]
                    if position is not None
                    else table.columns[cell.column]
                )
            ].append(found)
    first = [configs[0] for configs in settings.values() if configs]
    keys = {key for config in first for key in config if key != "seed"}
    differing = [key for key in keys if len({repr(config.get(key)) for config in first}) > 1]
    if len(first) < len(labels) or len(differing) != 1:
        return None
    key = differing[0]
    values = {label: {config.get(key) for config in configs} for label, configs in settings.items()}
    numbers = {
        label: v
        for label, found in values.items()
        for v in found
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    if any(len(found) != 1 for found in values.values()) or len(numbers) < len(labels):
        return None
    return NumericAxis(
        key.rpartition(".")[2],
        position,
        {label: float(number) for label, number in numbers.items()},
    )


def axes(table: Table, records: Mapping[str, Record]) -> Section | None:
    """Return the section of every numeric axis: the means with their 95 % intervals, one line for
    each of the other labels.
    """
    found = [_axis(table, axis) for axis in numeric_axes(table, records)]
    charts = [made for made in found if made is not None]
    if not charts:
        return None
    lead = f"{table.metric} in %: means, and bands of the 95 % t-intervals over the seeds."
    return Section("axes", "Over a number", lead, "charts.html", {"charts": charts})


def _axis(table: Table, axis: NumericAxis) -> Chart | Choice | None:
    """Return one chart, or one for each column (over columns: each last label of the rows) where
    one would hold too many lines.
    """
    groups: dict[tuple[str, ...], list[TableCell]] = {}
    for cell in table.cells:
        if cell.mean is not None:
            column = [table.columns[cell.column]] if axis.position is not None else []
            labels = table.rows[cell.row]
            others = (label for i, label in enumerate(labels) if i != axis.position)
            groups.setdefault((*others, *column), []).append(cell)
    numbers = {_number(table, axis, cell) for cells in groups.values() for cell in cells}
    if len(numbers) < 3:
        return None

    if len(groups) <= MOST_LINES or any(len(names) < 2 for names in groups):
        return _chart(table, axis, "", groups)
    charts: dict[tuple[str, ...], Chart] = {}
    panels = list(dict.fromkeys(names[-1] for names in groups))
    for panel in panels[:MOST_PANELS]:
        mine = {names[:-1]: cells for names, cells in groups.items() if names[-1] == panel}
        charts[(panel,)] = _chart(table, axis, panel, mine)
    return Choice(("Column" if axis.position is not None else table.row_headers[-1],), charts)


def _chart(
    table: Table,
    axis: NumericAxis,
    panel: str,
    groups: Mapping[tuple[str, ...], Sequence[TableCell]],
) -> Chart:
    traces, rows = [], []
    shown = list(groups.items())[:MOST_TRACES]
    for slot, (names, cells) in enumerate(shown):
        ordered = sorted(cells, key=lambda cell: _number(table, axis, cell))
        name = " / ".join(names) or table.metric
        points = [(_number(table, axis, cell), *_values(cell)) for cell in ordered]
        traces += with_band(name, slot, points, markers=True)
        rows += [(name, f"{_number(table, axis, cell):g}", _words(cell)) for cell in ordered]
    numbers = sorted({_number(table, axis, cell) for cells in groups.values() for cell in cells})
    wide = numbers[0] > 0 and numbers[-1] >= WIDE * numbers[0]
    title = f"{axis.name} (logarithmic)" if wide else axis.name
    drawn = figure(traces, title, f"{table.metric} in %", crosshair=True)
    ticks = {"tickvals": numbers, "ticktext": [f"{number:g}" for number in numbers]}
    if wide or len(numbers) <= 12:
        drawn.update_layout(xaxis={"type": "log" if wide else "linear", **ticks})
    return Chart(
        f"{table.metric} by {axis.name}" + (f", {panel}" if panel else ""),
        drawn,
        f"{_counted(len(shown), len(groups))} over {len(numbers)} values from {numbers[0]:g} to"
        f" {numbers[-1]:g}.",
        ("", axis.name, f"{table.metric} in % (interval)"),
        rows,
        440 + legend_height(len(shown)),
    )


def _counted(drawn: int, there: int) -> str:
    return f"{drawn} lines" if drawn == there else f"The first {drawn} of {there} lines"


def _number(table: Table, axis: NumericAxis, cell: TableCell) -> float:
    if axis.position is None:
        return axis.values[table.columns[cell.column]]
    return axis.values[table.rows[cell.row][axis.position]]


def _values(cell: TableCell) -> tuple[float, float, float]:
    """Return mean, low and high in percent; the mean thrice where there is no interval."""
    mean = cell.mean or 0.0
    if cell.low is None or cell.high is None:
        return 100 * mean, 100 * mean, 100 * mean
    return 100 * mean, 100 * cell.low, 100 * cell.high


def _words(cell: TableCell) -> str:
    span = f" ({percent(cell.low)} to {percent(cell.high)})" if cell.low is not None else ""
    return f"{percent(cell.mean)}{span}"
