"""Charts as inline SVG: no script, colours from the page's CSS variables, every mark with its
numbers as a <title>.

Values come in as they are shown (percent). Coordinates are the SVG's own, the origin at the top
left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

Item = TypeVar("Item")

SLOTS = 8  # colours there are; further series repeat them, dashed
LETTER = 7.0  # about the width of a letter of the words beside marks
MOST_POINTS = 100  # of a line
MOST_DOTS = 25  # of a line that carry their numbers; a line of 300 epochs needs not 300
SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - 5:.1f} {y:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    lambda x, y: f"M{x - 4.5:.1f} {y - 4.5:.1f}h9v9h-9z",
    lambda x, y: f"M{x:.1f} {y - 6:.1f}l5.5 10h-11z",
    lambda x, y: f"M{x:.1f} {y - 6.5:.1f}l6 6.5l-6 6.5l-6 -6.5z",
    lambda x, y: f"M{x:.1f} {y + 6:.1f}l5.5 -10h-11z",
    lambda x, y: f"M{x - 1.7:.1f} {y - 6:.1f}h3.4v4.3h4.3v3.4h-4.3v4.3h-3.4v-4.3h-4.3v-3.4h4.3z",
)


@dataclass(frozen=True)
class Point:
    """One value of a series with the range it is drawn with, and the words of its <title>."""

    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Series:
    """A line: its name, its colour (and from SLOTS on its dashes), its points in the order of x."""

    name: str
    slot: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Frame:
    """Frame of a chart: where values lie on the drawing. `ticks` are (value, word)."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    left: int = 34
    bottom: int = 34
    top: int = 10
    right: int = 10

    def x(self, value: float) -> float:
        """The horizontal place of a value."""
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return self.left + (self.width - self.left - self.right) * share

    def y(self, value: float) -> float:
        """The vertical place of a value."""
        low, high = self.y_range
        share = (value - low) / (high - low) if high > low else 0.5
        return self.height - self.bottom - (self.height - self.bottom - self.top) * share


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Round numbers from at most `low` to at least `high`, about `most` of them."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [(i * step, f"{i * step:.10g}") for i in range(first, max(last, first + 1) + 1)]


def whole_ticks(low: int, high: int, most: int = 6) -> list[tuple[float, str]]:
    """The first, the last, and round whole numbers between that stand clear of both."""
    step = max(1, math.ceil(ticks(low, high, most)[1][0] - ticks(low, high, most)[0][0]))
    inner = [
        i
        for i in range(low - low % step + step, high, step)
        if high - i >= 0.6 * step and i - low >= 0.6 * step
    ]
    return [(float(i), str(i)) for i in dict.fromkeys((low, *inner, high))]


def classes(slot: int) -> str:
    """The CSS classes of a series' colour and dashes."""
    return f"s{slot % SLOTS}" + " dashed" * (slot >= SLOTS)


def svg(frame: Frame, label: str, body: str, x_label: str = "", y_label: str = "") -> str:
    """The whole drawing: grid, words of both axes, then `body`."""
    left, right, floor = frame.left, frame.width - frame.right, frame.height - frame.bottom
    lines = "".join(
        f"<line class='grid' x1='{left}' x2='{right}' y1='{frame.y(value):.1f}'"
        f" y2='{frame.y(value):.1f}'/><text class='axis' x='{left - 6}'"
        f" y='{frame.y(value) + 3.5:.1f}' text-anchor='end'>{escape(word)}</text>"
        for value, word in frame.y_ticks
    )
    words = "".join(
        f"<text class='axis' x='{frame.x(value):.1f}' y='{floor + 15}'"
        f" text-anchor='middle'>{escape(word)}</text>"
        for value, word in frame.x_ticks
    )
    if x_label:
        words += (
            f"<text class='axis name' x='{right}' y='{frame.height - 4}'"
            f" text-anchor='end'>{escape(x_label)}</text>"
        )
    if y_label:
        words += (
            f"<text class='axis name' x='{left + 2}' y='{frame.top - 4}'>{escape(y_label)}</text>"
        )
    size = f"viewBox='0 0 {frame.width} {frame.height}'"
    return f"<svg {size} role='img' aria-label='{escape(label)}'>{lines}{words}{body}</svg>"


def lines(
    frame: Frame, label: str, series: Sequence[Series], x_label: str = "", dots: bool = False
) -> str:
    """Lines with bands; the points show their numbers under the pointer, or always (`dots`)."""
    bands = "".join(_band(frame, one) for one in series if len(one.points) > 1)
    body = "".join(_line(frame, one, dots) for one in series)
    return svg(frame, label, bands + body, x_label)


def _band(frame: Frame, series: Series) -> str:
    if all(point.low == point.high for point in series.points):
        return ""
    upper = [f"{frame.x(point.x):.1f},{frame.y(point.high):.1f}" for point in series.points]
    lower = [
        f"{frame.x(point.x):.1f},{frame.y(point.low):.1f}" for point in reversed(series.points)
    ]
    return f"<polygon class='band {classes(series.slot)}' points='{' '.join(upper + lower)}'/>"


def _line(frame: Frame, series: Series, dots: bool) -> str:
    places = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in series.points)
    step = max(1, math.ceil(len(series.points) / MOST_DOTS))
    # Counted from the end: the last value is the one that the table shows.
    told = list(series.points)[::-1][::step]
    circles = "".join(
        f"<circle class='{'dot' if dots else 'dot hidden'} {classes(series.slot)}'"
        f" cx='{frame.x(point.x):.1f}' cy='{frame.y(point.y):.1f}'"
        f" r='{3.5 if dots else 5}'><title>{escape(point.words)}</title></circle>"
        for point in told
    )
    return f"<polyline class='line {classes(series.slot)}' points='{places}'/>{circles}"


@dataclass(frozen=True)
class Mark:
    """A point of a scatter plot: its colour and shape; `label` stands beside it if there is one."""

    point: Point
    slot: int
    shape: int
    label: str = ""


def scatter(
    frame: Frame, label: str, marks: Sequence[Mark], front: Sequence[Point], names: tuple[str, str]
) -> str:
    """Points with their ranges, and the steps of the front through `front` (from left to right).
    `names` are those of the axes.
    """
    path = ""
    for i, point in enumerate(front):
        place = f"{frame.x(point.x):.1f} {frame.y(point.y):.1f}"
        path += f"M{place}" if i == 0 else f"H{frame.x(point.x):.1f}V{frame.y(point.y):.1f}"
    if front:
        path += f"H{frame.width - frame.right}"
    body = f"<path class='front' d='{path}'/>" if front else ""
    for mark in marks:
        x, y = frame.x(mark.point.x), frame.y(mark.point.y)
        reach = f"M{x:.1f} {frame.y(mark.point.low):.1f}V{frame.y(mark.point.high):.1f}"
        body += (
            f"<g class='mark {classes(mark.slot)}'><title>{escape(mark.point.words)}</title><path"
            f" class='reach' d='{reach}'/><path class='shape'"
            f" d='{SHAPES[mark.shape % len(SHAPES)](x, y)}'/></g>"
        )
    return svg(frame, label, body + _labels(frame, marks, names[1]), *names)


def _labels(frame: Frame, marks: Sequence[Mark], name: str) -> str:
    """The words above marks, or below, to the side where the drawing has room; where they would
    cover others there are <title>s.

    `name`: of the vertical axis, which stands above it.
    """
    out = ""
    # left, right, baseline
    taken = [(frame.left + 2.0, frame.left + 2 + LETTER * len(name), frame.top - 4.0)]
    for mark in sorted((mark for mark in marks if mark.label), key=lambda mark: -mark.point.y):
        x = frame.x(mark.point.x)
        end = x > frame.width * 0.6
        width = LETTER * len(mark.label)
        left, right = (x - 7 - width, x - 7) if end else (x + 7, x + 7 + width)
        places = (frame.y(mark.point.y) - 9, frame.y(mark.point.y) + 18)
        free = [
            y
            for y in places
            if not any(abs(y - each) < 15 and left < b and a < right for a, b, each in taken)
        ]
        if not free:
            continue
        y = free[0]
        taken.append((left, right, y))
        anchor = "end" if end else "start"
        out += (
            f"<text class='word' x='{right if end else left:.1f}' y='{y:.1f}'"
            f" text-anchor='{anchor}'>{escape(mark.label)}</text>"
        )
    return out


def thinned(points: Sequence[Item]) -> list[Item]:
    """Return at most MOST_POINTS of them, evenly, the last one among them: more is not seen on a
    drawing of this size.
    """
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    return list(points)[::-1][::step][::-1]


def legend(names: Mapping[str, int], shape: bool = False) -> str:
    """Return which colour is whose; with `shape`, which shape."""
    items = "".join(
        f"<li>{_swatch(slot, shape)}{escape(name)}</li>" for name, slot in names.items()
    )
    return f"<ul class='legend'>{items}</ul>"


def _swatch(slot: int, shape: bool) -> str:
    if shape:
        return (
            "<svg viewBox='0 0 16 16' aria-hidden='true'><path class='key'"
            f" d='{SHAPES[slot % len(SHAPES)](8, 8)}'/></svg>"
        )
    return (
        f"<svg viewBox='0 0 16 16' aria-hidden='true'><path class='line {classes(slot)}' d='M0"
        " 8H16'/></svg>"
    )
