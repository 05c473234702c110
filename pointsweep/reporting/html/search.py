"""The report's section of a search: what it saw on the way to its table. Drawn from
sweeps/<name>/search.json.

Importances, one slice a key (the objective over its values), parallel coordinates, under a
scheduler the curves and, of two objectives, their Pareto front: the drawings of Optuna's own
visualisation, without its script.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pointsweep.config import scalars
from pointsweep.reporting.cell_text import count
from pointsweep.reporting.html.sections import section
from pointsweep.reporting.html.svg_charts import (
    Frame,
    Mark,
    Point,
    scatter,
    svg,
    ticks,
    whole_ticks,
)
from pointsweep.storage.base import Store

log = logging.getLogger("pointsweep.report_search")

MOST_WORDS = 8  # choices named at an axis


@dataclass(frozen=True)
class Axis:
    """A key of the space on a drawing: where its values lie in [0, 1], and the words beside it."""

    key: str
    kind: str
    log: bool
    labels: Sequence[Any]
    low: float
    high: float

    def place(self, value: Any) -> float:
        """Return the place of a value on its axis, from 0 to 1."""
        if self.kind == "choice":
            return (self.labels.index(value) + 0.5) / len(self.labels)
        low, high, at = (
            math.log(each) if self.log else each for each in (self.low, self.high, value)
        )
        return (at - low) / (high - low) if high > low else 0.5

    def words(self) -> list[tuple[float, str]]:
        """Place and word of what stands at the axis."""
        if self.kind == "choice":
            step = -(-len(self.labels) // MOST_WORDS)
            return [(self.place(label), scalars.spelled(label)) for label in self.labels[::step]]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        values = dict.fromkeys(f"{value:.2g}" for value in (self.low, middle, self.high))
        return [(min(1.0, max(0.0, self.place(float(word)))), word) for word in values]


@dataclass(frozen=True)
class ArmSearch:
    """The search of one arm: its objectives with their directions, importances, and the trials that
    finished.
    """

    name: str
    objectives: Mapping[str, str]
    axes: Sequence[Axis]
    importances: Mapping[str, Mapping[str, float]]
    trials: Sequence[Mapping[str, Any]]
    others: Mapping[str, int]  # how many were stopped or failed
    # under a scheduler: the trials, those that it stopped among them, whose course is known
    curves: Sequence[Mapping[str, Any]]


def read_searches(store: Store, name: str) -> list[ArmSearch]:
    """The searches of a sweep, one an arm; none of a sweep that is no search."""
    path = f"sweeps/{name}/search.json"
    if not store.exists(path):
        return []
    try:
        data = json.loads(store.read(path))
        return [_searched(data, arm) for arm in data["arms"]]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        words = f"{type(error).__name__}: {error}"
        log.warning(
            "%s is damaged (%s): the report is without it; the search's command, run again, writes"
            " it anew",
            path,
            words,
        )
        return []


def _searched(data: Mapping[str, Any], arm: Mapping[str, Any]) -> ArmSearch:
    done = [each for each in arm["suggestions"] if each["state"] == "complete"]
    axes = []
    for each in data["parameters"]:
        values = [trial["drawn"][each["key"]] for trial in done if each["key"] in trial["drawn"]]
        if values:
            ends = (0.0, 0.0) if each["kind"] == "choice" else (min(values), max(values))
            axes.append(Axis(each["key"], each["kind"], each["log"], each["labels"], *ends))
    states = [each["state"] for each in arm["suggestions"]]
    others = {state: states.count(state) for state in ("stopped", "failed") if state in states}
    curves = [each for each in arm["suggestions"] if each.get("curve")]
    return ArmSearch(
        arm["name"], data["objectives"], axes, arm["importances"], done, others, curves
    )


def searches(found: Sequence[ArmSearch]) -> str:
    """The section; "" of a sweep that is no search."""
    body = "".join(_search(one) for one in found if one.trials and one.axes)
    lead = (
        "Every finished suggestion of the search, on the validation split; the darker, the better."
    )
    return section("search", "The search", lead, body)


def _search(one: ArmSearch) -> str:
    others = "".join(f", {number} {state}" for state, number in one.others.items())
    parts = [f"<h3>{escape(one.name)}: {len(one.trials)} finished{others}</h3>"]
    if len(one.objectives) > 1:
        parts.append(_figure("Pareto front", _front(one), wide=True))
    if any(one.importances.values()):
        drawn = "".join(
            _figure(f"Importance for {name}", _importance(each))
            for name, each in one.importances.items()
        )
        parts.append(f"<div class='panels'>{drawn}</div>")
    parts.append(_figure("Parallel coordinates", _parallel(one), wide=True))
    if one.others.get("stopped") and one.curves:
        parts.append(
            _figure(
                "Validation accuracy by epoch; a dot where the scheduler stopped a trial",
                _courses(one),
                wide=True,
            )
        )
    for index, name in enumerate(one.objectives):
        slices = "".join(
            _figure(f"{name} over {axis.key}", _slice(one, axis, index)) for axis in one.axes
        )
        parts.append(f"<div class='panels'>{slices}</div>")
    return "".join(parts)


def _figure(caption: str, drawn: str, wide: bool = False) -> str:
    opened = "<figure class=wide>" if wide else "<figure>"
    return f"{opened}<figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def _shown(name: str, value: float) -> float:
    """An objective as it is shown: accuracies in percent."""
    return 100 * value if name.endswith("/accuracy") else value


def _word(name: str, value: float) -> str:
    return count(int(value)) if name == "parameters" else f"{_shown(name, value):.4g}"


def _told(one: ArmSearch, trial: Mapping[str, Any]) -> str:
    """A trial in words."""
    values = ", ".join(
        f"{name} {_word(name, value)}"
        for name, value in zip(one.objectives, trial["values"], strict=True)
    )
    drawn = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {scalars.spelled(value)}"
        for key, value in trial["drawn"].items()
    )
    return f"trial {trial['number']}: {values}; {drawn}"


def _goodness(one: ArmSearch) -> list[float]:
    """Return of every trial the share of the others that it is not worse than by the first
    objective: 0 the worst, 1 the best.
    """
    sign = 1 if next(iter(one.objectives.values())) == "maximize" else -1
    values = [sign * trial["values"][0] for trial in one.trials]
    most = max(1, len(values) - 1)
    return [sum(other < value for other in values) / most for value in values]


def _importance(shares: Mapping[str, float]) -> str:
    """A bar a key, the longest first."""
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    height = 22 * len(ordered) + 8
    bars = ""
    for i, (key, share) in enumerate(ordered):
        y = 22 * i + 4
        bars += (
            f"<text class='axis' x='4' y='{y + 9}'>{escape(key)}</text><text class='axis' x='276'"
            f" y='{y + 9}' text-anchor='end'>{share:.2f}</text><rect class='dot s0' x='4'"
            f" y='{y + 12}' width='{max(1.0, 272 * share):.1f}' height='4'><title>{escape(key)}:"
            f" {share:.3f}</title></rect>"
        )
    return (
        f"<svg viewBox='0 0 280 {height}' role='img' aria-label='importance of the"
        f" keys'>{bars}</svg>"
    )


def _scale(one: ArmSearch, index: int) -> list[tuple[float, str]]:
    name = list(one.objectives)[index]
    values = [_shown(name, trial["values"][index]) for trial in one.trials]
    return ticks(min(values), max(values), 5)


def _slice(one: ArmSearch, axis: Axis, index: int) -> str:
    """One objective over the values of one key."""
    name, y_ticks = list(one.objectives)[index], _scale(one, index)
    frame = Frame(
        280, 205, (-0.03, 1.03), (y_ticks[0][0], y_ticks[-1][0]), axis.words(), y_ticks, left=44
    )
    dots = ""
    for trial in one.trials:
        if axis.key in trial["drawn"]:
            x, y = (
                frame.x(axis.place(trial["drawn"][axis.key])),
                frame.y(_shown(name, trial["values"][index])),
            )
            dots += (
                f"<circle class='dot s0' cx='{x:.1f}' cy='{y:.1f}'"
                f" r='3'><title>{escape(_told(one, trial))}</title></circle>"
            )
    return svg(frame, f"{name} over {axis.key}", dots)


def _parallel(one: ArmSearch) -> str:
    """Every trial as a line over the keys and the first objective; where a key does not apply the
    line passes below it.
    """
    name, y_ticks = next(iter(one.objectives)), _scale(one, 0)
    low, high = y_ticks[0][0], y_ticks[-1][0]
    result = Axis(name, "float", False, (), low, high)
    axes = [*one.axes, result]
    frame = Frame(
        720, 300, (0, len(axes) - 1), (-0.12, 1.0), [], [], left=60, right=60, top=42, bottom=16
    )
    body = ""
    for i, axis in enumerate(axes):
        x, anchor = frame.x(i), "start" if i == 0 else "end" if i == len(axes) - 1 else "middle"
        body += (
            f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{frame.y(0):.1f}'"
            f" y2='{frame.y(1):.1f}'/>"
        )
        body += (
            f"<text class='axis name' x='{x:.1f}' y='{14 + 11 * (i % 2)}'"
            f" text-anchor='{anchor}'>{escape(axis.key)}</text>"
        )
        words = (
            [(axis.place(value), word) for value, word in y_ticks]
            if axis is result
            else axis.words()
        )
        body += "".join(
            f"<text class='axis' x='{x + 4:.1f}' y='{frame.y(at) + 3:.1f}'>{escape(word)}</text>"
            for at, word in words
        )
    ordered = sorted(
        zip(_goodness(one), one.trials, strict=True), key=lambda item: (item[0], -item[1]["number"])
    )
    for good, trial in ordered:  # the best drawn last, on top
        places = [
            axis.place(trial["drawn"][axis.key]) if axis.key in trial["drawn"] else -0.1
            for axis in one.axes
        ]
        places.append(result.place(_shown(name, trial["values"][0])))
        points = " ".join(
            f"{frame.x(i):.1f},{frame.y(place):.1f}" for i, place in enumerate(places)
        )
        body += (
            f"<polyline class='line s0' stroke-opacity='{0.12 + 0.88 * good**2:.2f}'"
            f" points='{points}'><title>{escape(_told(one, trial))}</title></polyline>"
        )
    return svg(frame, "parallel coordinates of the search", body)


def _courses(one: ArmSearch) -> str:
    """The curve of every trial, of those that were stopped as far as they came; what ran to its end
    on top.
    """
    values = [100 * value for trial in one.curves for _, value in trial["curve"]]
    last = max(2, *(epoch for trial in one.curves for epoch, _ in trial["curve"]))
    y_ticks = ticks(min(values), max(values), 5)
    frame = Frame(
        720,
        300,
        (1, last),
        (y_ticks[0][0], y_ticks[-1][0]),
        whole_ticks(1, last),
        y_ticks,
        left=44,
        bottom=42,
    )
    body = ""
    for trial in sorted(one.curves, key=lambda trial: trial["state"] == "complete"):
        places = [(frame.x(epoch), frame.y(100 * value)) for epoch, value in trial["curve"]]
        ended = trial["state"] == "complete"
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        told = f"<title>trial {trial['number']}, {trial['state']}</title>"
        body += (
            f"<polyline class='line s0' stroke-opacity='{1 if ended else 0.25}'"
            f" points='{points}'>{told}</polyline>"
        )
        if not ended:
            x, y = places[-1]
            body += f"<circle class='dot s0' cx='{x:.1f}' cy='{y:.1f}' r='2.5'>{told}</circle>"
    return svg(frame, "curves of the search's trials", body, "epoch")


def _front(one: ArmSearch) -> str:
    """The first two objectives against each other, the second across, and the trials that no other
    beats in both.
    """
    names = list(one.objectives)[:2]
    signs = [1 if one.objectives[name] == "maximize" else -1 for name in names]
    across = _across(names[1], [trial["values"][1] for trial in one.trials])
    y_ticks = _scale(one, 0)
    marks, best = [], []
    for trial in one.trials:
        y = _shown(names[0], trial["values"][0])
        marks.append(
            Mark(Point(across.place(trial["values"][1]), y, y, y, _told(one, trial)), 0, 0)
        )
        mine = [sign * value for sign, value in zip(signs, trial["values"][:2], strict=True)]
        others = (
            [sign * value for sign, value in zip(signs, each["values"][:2], strict=True)]
            for each in one.trials
        )
        if not any(
            other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in others
        ):
            best.append(marks[-1].point)
    frame = Frame(
        720,
        360,
        (-0.03, 1.03),
        (y_ticks[0][0], y_ticks[-1][0]),
        across.words(),
        y_ticks,
        left=44,
        bottom=42,
        top=20,
    )
    steps = sorted(best, key=lambda point: point.x, reverse=signs[1] > 0)
    return scatter(frame, "Pareto front of the search", marks, steps, (names[1], names[0]))


def _across(name: str, values: Sequence[float]) -> Axis:
    """The horizontal axis of a front: parameters on a logarithmic scale where that can be."""
    return Axis(
        name, "float", name == "parameters" and min(values) > 0, (), min(values), max(values)
    )
