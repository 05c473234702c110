"""The pages around the report: the index, the state of a sweep, and messages."""

from __future__ import annotations

import functools
import gzip
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources

import jinja2

from pointsweep.reporting.html.page import plotly_js
from pointsweep.reporting.standing import STATES
from pointsweep.serving.watch import RunningTrial, SweepState
from pointsweep.utils.console import visible
from pointsweep.utils.numbers import percent

MOST_FAILED = 5  # failures that are listed
CURVE = (120, 28, 2)  # width, height and margin of a running trial's curve
MOST_POINTS = 60
ASSETS = {"live.js": "text/javascript", "serve.css": "text/css"}


@dataclass(frozen=True)
class Shown:
    """A sweep as the pages show it: numbers as text."""

    name: str
    problem: str
    left: str
    devices: str  # the time of all devices
    price: str
    running: Sequence[Mapping[str, str | int]]
    seen: str
    # of a sweep that could be read
    title: str = ""
    state: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    failed: Sequence[str] = ()
    more_failed: int = 0


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pointsweep.serving", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _rendered(template: str, **values: object) -> str:
    return visible(_templates().get_template(template).render(**values), keep="\n")


@functools.cache
def asset(name: str) -> bytes:
    """Return a script or a style sheet, one of ASSETS."""
    return resources.files("pointsweep.serving").joinpath(name).read_bytes()


@functools.cache
def plotly() -> tuple[bytes, bytes]:
    """Return plotly.js, and the same packed by gzip."""
    data = plotly_js().encode()
    return data, gzip.compress(data, 6, mtime=0)


def index(states: Sequence[SweepState] | None, store: str, problem: str = "") -> str:
    """Return the page that lists the sweeps; without states one that waits for them."""
    return _rendered("index.html", content=index_content(states, problem), store=store)


def index_content(states: Sequence[SweepState] | None, problem: str = "") -> str:
    """Return the part of the index that changes."""
    sweeps = None
    if states is not None:
        sweeps = [shown(state) for state in states]

    return _rendered("index_content.html", sweeps=sweeps, problem=problem)


def sweep(state: SweepState | None, name: str, version: str) -> str:
    """Return the page of a sweep; without a state one that waits for it. `version` is that of its
    report, empty while there is none.
    """
    return _rendered(
        "sweep.html", content=sweep_content(state), name=name, version=version
    )


def sweep_content(state: SweepState | None) -> str:
    """Return the part of a sweep's page that changes, but for the report."""
    numbers = shown(state) if state is not None else None
    return _rendered("sweep_content.html", sweep=numbers)


def message(title: str, text: str, ask_token: bool = False) -> str:
    """Return a page with a few words; with `ask_token` one that takes a token."""
    return _rendered("message.html", title=title, text=text, ask_token=ask_token)


def tab_title(state: SweepState) -> str:
    """Return what stands in the browser's tab."""
    if state.standing is None:
        return state.name

    num_finished = state.standing.count("finished")
    return f"{num_finished}/{len(state.standing.trials)} {state.name}"


def shown(state: SweepState) -> Shown:
    """Return the numbers of a sweep as text."""
    seen = left = devices = price = ""
    if state.seen_at:
        seen = time.strftime("%H:%M:%S", time.localtime(state.seen_at))

    if state.left_s is not None:
        left = _duration(state.left_s)

    if state.device_hours:
        devices = _device_time(state.device_hours)

    if state.price is not None:
        price = f"{state.price:.3g}"

    numbers = Shown(
        name=state.name,
        problem=state.problem,
        left=left,
        devices=devices,
        price=price,
        running=[_running(trial, state.metric) for trial in state.running],
        seen=seen,
    )

    standing = state.standing
    if standing is None:
        return numbers

    failed = [f"{trial.label}: {trial.reason}" for trial in standing.of("failed")]
    return replace(
        numbers,
        title=standing.title,
        state=state.state,
        counts={name: standing.count(name) for name in STATES},
        total=len(standing.trials),
        failed=failed[:MOST_FAILED],
        more_failed=max(len(failed) - MOST_FAILED, 0),
    )


def _running(trial: RunningTrial, metric: str) -> dict[str, str | int]:
    value = ""
    if trial.values:
        value = f"{percent(trial.values[-1])}\N{NO-BREAK SPACE}%"

    return {
        "label": trial.label,
        "worker": trial.worker,
        "epoch": trial.epoch,
        "epochs": trial.epochs,
        "value": value,
        "metric": metric,
        "points": _points(trial.values),
    }


def _points(values: Sequence[float]) -> str:
    """Return the points of a curve's line in SVG; empty where there is none to draw."""
    drawn = values[:: max(len(values) // MOST_POINTS, 1)]
    if len(drawn) < 2:
        return ""

    width, height, margin = CURVE
    low, high = min(drawn), max(drawn)
    points = []

    for i, value in enumerate(drawn):
        share = 0.5  # a curve that does not move is drawn in the middle
        if high > low:
            share = (value - low) / (high - low)

        x = margin + (width - 2 * margin) * i / (len(drawn) - 1)
        y = height - margin - (height - 2 * margin) * share
        points.append(f"{x:.1f},{y:.1f}")

    return " ".join(points)


def _duration(seconds: float) -> str:
    """Return a rough time: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"

    return f"{seconds / 86400:.1f} days"


def _device_time(hours: float) -> str:
    """Return a time of devices, which is paid by the hour: 40 s, 12 min, 310.5 h."""
    if hours < 1.5:
        return _duration(hours * 3600)

    return f"{hours:,.1f} h"
