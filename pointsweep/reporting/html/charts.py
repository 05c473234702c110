"""The report's charts as figures of Plotly: their form, their two templates, and how text enters
them.

Plotly is imported here and in the modules that draw, which only the making of a report imports.
Values come in as they are shown (percent). A trace carries the number of its colour as
`meta.slot`; report.js paints it in the colours of the page, light or dark.
"""

from __future__ import annotations

import functools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeVar

import numpy as np
import plotly.graph_objects as go
import plotly.io

from pointsweep.utils.console import one_line

Item = TypeVar("Item")

# Eight colours that stand 3:1 against the page (WCAG 1.4.11); further traces repeat them, dashed.
LIGHT = (
    "#2a6fbb",
    "#b85c00",
    "#2c8a57",
    "#8a4fb5",
    "#c53d35",
    "#0f7f89",
    "#8a6c05",
    "#66707f",
)
DARK = (
    "#6fb0f2",
    "#f5a04f",
    "#68c793",
    "#c294e8",
    "#f07d76",
    "#4fc6d0",
    "#d9b94a",
    "#a5afbd",
)
INK = {"light": "#18202b", "dark": "#e7ebf1"}
GRID = {"light": "#dde2e9", "dark": "#2e3643"}
CARD = {"light": "#ffffff", "dark": "#181e26"}
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
SLOTS = len(LIGHT)
MOST_POINTS = 120  # of a line
MOST_SVG = 1500  # marks of a chart; more are drawn by WebGL
MOST_ROWS = 60  # of a chart's text
LABEL_WIDTH = 36  # letters of a line of a label
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclass(frozen=True)
class Chart:
    """A figure with its title, what it shows in a sentence, and its numbers as a table."""

    title: str
    figure: go.Figure
    summary: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    height: int = 420
    min_width: int = 0  # on a narrower page the chart is moved sideways

    def as_json(self) -> str:
        """Return the figure as JSON that no text inside can end an element with."""
        data = json.loads(self.figure.to_json())
        data["layout"].pop("template", None)
        return as_json(data)


@dataclass(frozen=True)
class Choice:
    """Choice among charts, of which a reader sees one: by one label for each of `names`."""

    names: Sequence[str]
    charts: Mapping[tuple[str, ...], Chart] = field(default_factory=dict)

    @property
    def options(self) -> list[tuple[str, list[str]]]:
        """Return every name with its labels."""
        options = []
        for i, name in enumerate(self.names):
            labels = dict.fromkeys(labels[i] for labels in self.charts)
            options.append((name, list(labels)))

        return options


def as_json(data: Any) -> str:
    """Return data as JSON for a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")

    return text


def words(text: object, width: int = 0) -> str:
    """Return text for a figure, where Plotly reads tags: as it stands, in lines of `width`."""
    shown = one_line(str(text))
    lines = textwrap.wrap(shown, width) if width else [shown]
    return "<br>".join(escape(line, quote=False) for line in lines)


def label(text: object) -> str:
    """Return the name of a trace, broken into short lines."""
    return words(text, LABEL_WIDTH)


@functools.cache
def themes() -> dict[str, Any]:
    """Return the templates of Plotly that the page follows, light and dark, and their colours."""
    theme_by_name: dict[str, Any] = {}
    for name, base, colors in (
        ("light", "plotly_white", LIGHT),
        ("dark", "plotly_dark", DARK),
    ):
        axis = {
            "gridcolor": GRID[name],
            "zerolinecolor": GRID[name],
            "linecolor": GRID[name],
        }

        own = go.layout.Template(
            layout={
                "colorway": colors,
                "font": {"family": FONT, "size": 13, "color": INK[name]},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "xaxis": axis,
                "yaxis": axis,
                "hoverlabel": {
                    "bgcolor": CARD[name],
                    "bordercolor": GRID[name],
                    "font": {"color": INK[name]},
                    "namelength": -1,
                },
            }
        )

        merged = plotly.io.templates.merge_templates(base, own)
        empty = json.loads(go.Figure(layout={"template": merged}).to_json())
        theme_by_name[name] = {
            "template": empty["layout"]["template"],
            "colors": colors,
            "card": CARD[name],
            "ink": INK[name],
        }

    return theme_by_name


def figure(
    traces: Sequence[Any],
    x: str = "",
    y: str = "",
    *,
    crosshair: bool = False,
    **layout: Any,
) -> go.Figure:
    """Return a figure with the page's margins, its legend below; `crosshair`: one line over all
    traces, with the numbers of each.
    """
    num_names = sum(trace.showlegend is not False for trace in traces)
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    drawn = go.Figure(
        data=list(traces),
        layout={
            "template": None,
            "margin": {"l": 56, "r": 16, "t": 40, "b": 48},
            "xaxis": {"title": {"text": words(x)}, "automargin": True},
            "yaxis": {"title": {"text": words(y)}, "automargin": True},
            "legend": legend,
            "hovermode": "closest",
            "showlegend": num_names > 1,
        },
    )

    if crosshair:
        spike = {
            "showspikes": True,
            "spikemode": "across",
            "spikethickness": 1,
            "spikedash": "dot",
        }
        drawn.update_layout(hovermode="x unified", xaxis=spike)

    drawn.update_layout(**layout)
    return drawn


def legend_height(num_names: int) -> int:
    """Return the pixels that a legend of so many names takes below a chart."""
    if num_names < 2:
        return 0

    return 22 * math.ceil(num_names / 4)


def with_band(
    name: str,
    slot: int,
    points: Sequence[tuple[float, float, float, float]],
    *,
    number_format: str = ".1f",
    markers: bool = False,
) -> list[go.Scatter]:
    """Return a line through (x, y, low, high), with the band from low to high behind it;
    `number_format` is how its numbers are printed.
    """
    columns = np.array(points, dtype=float)
    x = columns[:, 0]

    if np.all(np.abs(x) < 2**15) and np.all(x == np.rint(x)):
        x = x.astype(np.int16)  # epochs: a quarter of the bytes

    # Single precision draws as well, and makes a smaller page.
    y, low, high = columns[:, 1:].T.astype(np.float32)
    has_band = bool(np.any(high > low))
    traces = []

    if has_band and len(points) > 1:
        traces.append(
            go.Scatter(
                x=np.concatenate([x, x[::-1]]),
                y=np.concatenate([high, low[::-1]]),
                mode="none",
                fill="toself",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=str(slot),
                meta={"slot": slot, "band": True},
                name=label(name),
            )
        )

    dash = "solid"
    if slot >= SLOTS:
        dash = ("dash", "dot", "dashdot")[slot // SLOTS % 3]

    hover = f"%{{y:{number_format}}}"
    interval = None
    if has_band:
        hover += f" (%{{customdata[0]:{number_format}}} to %{{customdata[1]:{number_format}}})"
        interval = np.stack([low, high], axis=1)

    has_markers = markers or len(points) == 1
    symbol = SYMBOLS[slot // SLOTS % len(SYMBOLS)]
    traces.append(
        go.Scatter(
            x=x,
            y=y,
            mode="lines+markers" if has_markers else "lines",
            line={"width": 2, "dash": dash},
            marker={"size": 7, "symbol": symbol},
            name=label(name),
            legendgroup=str(slot),
            customdata=interval,
            hovertemplate=hover,
            meta={"slot": slot},
        )
    )

    return traces


def thinned(points: Sequence[Item], most: int = MOST_POINTS) -> list[Item]:
    """Return at most so many of them, evenly, the last one among them."""
    step = max(1, math.ceil(len(points) / most))
    return list(points)[::-1][::step][::-1]


def marks(count: int) -> type[Any]:
    """Return the kind of trace for so many marks in one chart: SVG, of many WebGL."""
    return go.Scattergl if count > MOST_SVG else go.Scatter
