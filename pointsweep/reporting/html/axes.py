"""The report's curves over a number: rows or columns that stand for a length, a rank, a share.

An axis is told by its labels, or by the one setting in which its arms differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pointsweep.reporting.html.sections import flat, section
from pointsweep.reporting.html.svg_charts import Frame, Point, Series, legend, lines, ticks
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record
from pointsweep.utils.numbers import percent

# standing alone: not the 3 of "3d"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
MOST_LINES = 6  # in one drawing; of more, one drawing a column
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
    """Every axis with at least three numbers, told by its labels, or by the one number in which its
    arms' settings differ.
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


def axes(table: Table, records: Mapping[str, Record]) -> str:
    """The drawings of every numeric axis: the means with their 95 % intervals, one line for each of
    the other labels.
    """
    body = "".join(_axis(table, axis) for axis in numeric_axes(table, records))
    lead = f"{escape(table.metric)} in %: means, and bands of the 95 % t-intervals over the seeds."
    return section("axes", "Over a number", lead, body)


def _axis(table: Table, axis: NumericAxis) -> str:
    """One drawing, or one for each column (over columns: each last label of the rows) where one
    would hold too many lines.
    """
    groups: dict[tuple[str, ...], list[TableCell]] = {}
    for cell in table.cells:
        if cell.mean is not None:
            column = [table.columns[cell.column]] if axis.position is not None else []
            others = (
                *(label for i, label in enumerate(table.rows[cell.row]) if i != axis.position),
                *column,
            )
            groups.setdefault(others, []).append(cell)
    if (
        len({axis.values[_label(table, axis, cell)] for cells in groups.values() for cell in cells})
        < 3
    ):
        return ""
    split = len(groups) > MOST_LINES and all(len(names) > 1 for names in groups)
    panels = list(dict.fromkeys(names[-1] for names in groups)) if split else [axis.name]
    slots = {
        name: i
        for i, name in enumerate(
            dict.fromkeys(" / ".join(names[:-1] if split else names) for names in groups)
        )
    }
    size = (280, 225) if split else (720, 360)
    frame, place = _frame(table, axis, [cell for cells in groups.values() for cell in cells], size)
    figures = ""
    for panel in panels:
        chosen = {
            names[:-1] if split else names: cells
            for names, cells in groups.items()
            if not split or names[-1] == panel
        }
        series = [
            _line(table, axis, place, slots[" / ".join(names)], cells)
            for names, cells in chosen.items()
        ]
        scale = " (logarithmic)" if place is math.log10 else ""
        drawn = lines(frame, f"{table.metric} by {axis.name}", series, axis.name + scale, dots=True)
        opened = "<figure>" if split else "<figure class=wide>"
        figures += f"{opened}<figcaption>{escape(panel)}</figcaption>{drawn}</figure>"
    keys = legend(slots) if len(slots) > 1 else ""
    return f"<div class='panels'>{figures}</div>{keys}" if split else figures + keys


def _frame(
    table: Table, axis: NumericAxis, cells: Sequence[TableCell], size: tuple[int, int]
) -> tuple[Frame, Callable[[float], float]]:
    numbers = sorted({axis.values[_label(table, axis, cell)] for cell in cells})
    place: Callable[[float], float] = (
        math.log10 if numbers[0] > 0 and numbers[-1] >= WIDE * numbers[0] else float
    )
    points = [_point(table, axis, place, cell) for cell in cells]
    y_ticks = ticks(min(point.low for point in points), max(point.high for point in points), 6)
    x_ticks = [(place(number), f"{number:g}") for number in numbers]
    if len(numbers) > 12 and place is float:
        x_ticks = ticks(numbers[0], numbers[-1], 8)
    spans = (x_ticks[0][0], x_ticks[-1][0]), (y_ticks[0][0], y_ticks[-1][0])
    return Frame(*size, *spans, x_ticks, y_ticks, left=40, bottom=42, right=20), place


def _line(
    table: Table,
    axis: NumericAxis,
    place: Callable[[float], float],
    slot: int,
    cells: Sequence[TableCell],
) -> Series:
    points = sorted((_point(table, axis, place, cell) for cell in cells), key=lambda point: point.x)
    return Series(table.place(cells[0]), slot, points)


def _label(table: Table, axis: NumericAxis, cell: TableCell) -> str:
    return (
        table.rows[cell.row][axis.position]
        if axis.position is not None
        else table.columns[cell.column]
    )


def _point(
    table: Table, axis: NumericAxis, place: Callable[[float], float], cell: TableCell
) -> Point:
    mean = cell.mean or 0.0
    low, high = (mean, mean) if cell.low is None or cell.high is None else (cell.low, cell.high)
    span = f" ({percent(low)} to {percent(high)})" if cell.low is not None else ""
    words = f"{table.place(cell)}: {percent(mean)}{span}"
    return Point(
        place(axis.values[_label(table, axis, cell)]), 100 * mean, 100 * low, 100 * high, words
    )
