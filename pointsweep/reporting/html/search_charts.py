"""The report's charts of a search: the figures of optuna.visualization, drawn from search.json.

A study in memory takes the trials that the file holds, so neither the study's database nor a
sampler is needed. Titles, fonts and colours are those of the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import BaseImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pointsweep.config import scalars
from pointsweep.reporting.html.charts import MOST_SVG, Chart, words
from pointsweep.reporting.html.search import ArmSearch, Axis
from pointsweep.reporting.html.sections import Section

MOST_LINES = 300  # trials with a line of their own in a chart: the best
MOST_BARS = 500  # trials on the timeline
MOST_KEYS = 4  # keys of the contours: the most important
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
# What Optuna writes at its axes and legends -> what stands there in the report.
TERMS = {
    "Trial": "suggestion, in their order",
    "#Trials": "suggestion",
    "Step": "epoch",
    "Datetime": "time (UTC)",
    "Hyperparameter": "",
    "Hyperparameter Importance": "importance",
    "Objective Value": "each suggestion",
    "Best Value": "the best until then",
    "COMPLETE": "complete",
    "PRUNED": "stopped",
    "FAIL": "failed",
}


EXTRA = re.compile("<extra>[^<]*</extra>")  # Optuna's word for the trace, in the hover
SLOT_OF = {"COMPLETE": 0, "PRUNED": 1, "FAIL": 4}  # colours of the timeline


class StoredImportances(BaseImportanceEvaluator):
    """The importances that the search has exported."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self.shares = {words(key): share for key, share in shares.items()}

    def evaluate(
        self,
        study: optuna.Study,
        params: list[str] | None = None,
        *,
        target: Callable[[FrozenTrial], float] | None = None,
    ) -> dict[str, float]:
        """Return the importances, the greatest first."""
        return dict(sorted(self.shares.items(), key=lambda item: -item[1]))


def searches(arm_searches: Sequence[ArmSearch]) -> Section | None:
    """Return the section of every arm's search; None of a sweep that is no search."""
    arms = []
    for search in arm_searches:
        if search.trials and search.axes:
            title = f"{search.name}: {len(search.trials)} finished"
            for state, number in search.others.items():
                title += f", {number} {state}"

            arms.append((title, charts(search)))

    if not arms:
        return None

    lead = "What the search suggested and what came of it, on the validation split."
    return Section("search", "The search", lead, "search.html", {"arms": arms})


def charts(search: ArmSearch) -> list[Chart]:
    """Return the charts of one arm's search, by objective where it has several."""
    names = list(search.objectives)
    all_charts: list[Chart] = []

    if len(names) > 1:
        pair = names[:2]
        study = _study(search, search.trials, pair)
        shown = [_shown(name) for name in pair]
        drawn = visualization.plot_pareto_front(study, target_names=shown)
        others, front = drawn.data
        others.marker = {"size": 7}
        others.update(name="not on the front", showlegend=True, meta={"slot": 7})
        front.marker = {"size": 9}
        front.update(name="on the front", showlegend=True, meta={"slot": 4})
        all_charts.append(_chart(search, "Pareto front", drawn))

    for name in names:
        suffix = f", {name}" if len(names) > 1 else ""
        all_charts += _objective(search, name, suffix)

    all_charts += _curves(search)
    all_charts += _timeline(search)
    return all_charts


def _objective(search: ArmSearch, name: str, suffix: str) -> list[Chart]:
    """Return the charts of one objective, drawn from a study that has no other; `suffix` ends their
    titles.
    """
    study = _study(search, search.ended, [name])
    shown = _shown(name)
    history = visualization.plot_optimization_history(study, target_name=shown)
    history.update_layout(yaxis={"title": {"text": shown}})
    objective_charts = [_chart(search, f"Optimization history{suffix}", history)]

    shares = search.importances.get(name) or {}

    if shares:
        evaluator = StoredImportances(shares)
        bars = visualization.plot_param_importances(study, evaluator=evaluator)
        bars.update_traces(hovertemplate="%{y}: %{x:.3f}<extra></extra>")
        ranked = sorted(shares.items(), key=lambda item: -item[1])
        importances = _chart(
            search,
            f"Importance of the keys{suffix}",
            bars,
            heads=("key", "importance"),
            rows=[(key, f"{share:.3f}") for key, share in ranked],
            height=140 + 34 * len(ranked),
        )

        objective_charts.append(importances)

    width = 240 + 160 * len(search.axes)
    best = _study(search, _best(search, name), [name])
    parallel = visualization.plot_parallel_coordinate(best, target_name=shown)
    title = f"Parallel coordinates{suffix}"
    objective_charts.append(_chart(search, title, parallel, min_width=width))

    slices = visualization.plot_slice(study, target_name=shown)
    slices.update_layout(yaxis={"title": {"text": shown}})
    objective_charts.append(_chart(search, f"Slices{suffix}", slices, min_width=width))

    keys = _keys(search, shares)

    if len(keys) > 1:
        drawn = visualization.plot_contour(study, params=keys, target_name=shown)
        contours = _chart(
            search,
            f"Contours{suffix}",
            drawn,
            height=360 + 130 * (len(keys) - 1),
            min_width=200 + 190 * len(keys),
        )

        objective_charts.append(contours)

    return objective_charts


def _curves(search: ArmSearch) -> list[Chart]:
    """Return the chart of the trials' curves, if there are any."""
    objective = next(iter(search.objectives))
    stopped = []

    for trial in search.ended:
        if trial["state"] != "complete" and trial.get("curve"):
            stopped.append(trial)

    complete = []
    for trial in _best(search, objective):
        if len(trial.get("curve", ())) > 1:
            complete.append(trial)

    # The stopped ones first, so that what ran to its end lies on top, the best topmost.
    chosen = [*stopped[:MOST_LINES], *reversed(complete)]
    if not chosen:
        return []

    drawn = visualization.plot_intermediate_values(_study(search, chosen, [objective]))
    for trace, trial in zip(drawn.data, chosen, strict=True):
        slot = 0 if trial["state"] == "complete" else 7
        width, opacity = 1.5, 0.5
        if trial is chosen[-1]:  # the best
            slot = 4
            width, opacity = 3, 1

        trace.update(
            name=f"suggestion {trial['number']}, {trial['state']}",
            mode="lines" if len(trial["curve"]) > 1 else "markers",
            line={"width": width},
            opacity=opacity,
            hovertemplate="epoch %{x}: %{y:.1f}",
            meta={"slot": slot},
        )

    drawn.update_layout(
        yaxis={"title": {"text": "validation accuracy in %"}}, showlegend=False
    )
    title = "Validation accuracy by epoch: grey what a scheduler stopped, red the best"
    return [_chart(search, title, drawn)]


def _timeline(search: ArmSearch) -> list[Chart]:
    """Return the chart of when each trial was trained, if the times are known."""
    timed = [trial for trial in search.ended if trial.get("times")]
    if not timed:
        return []

    objective = next(iter(search.objectives))
    drawn = visualization.plot_timeline(_study(search, timed[-MOST_BARS:], [objective]))
    return [_chart(search, "Timeline", drawn)]


def _chart(
    search: ArmSearch,
    title: str,
    drawn: go.Figure,
    heads: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    height: int = 460,
    min_width: int = 0,
) -> Chart:
    """Return a figure of Optuna as a chart of the page, in its words."""
    drawn.update_layout(
        title=None,
        template=None,
        plot_bgcolor=None,
        paper_bgcolor=None,
        width=None,
        height=None,
        margin={"l": 64, "r": 24, "t": 44, "b": 56},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
        },
    )

    _in_words(drawn)
    drawn.data = [trace for trace in drawn.data if trace.x is None or len(trace.x)]
    num_marks = sum(len(trace.x) for trace in drawn.data if trace.x is not None)

    if num_marks > MOST_SVG:
        drawn = go.Figure([_by_webgl(trace) for trace in drawn.data], drawn.layout)

    objective = next(iter(search.objectives))
    if not rows:
        heads = ("best suggestions", objective, "values")
        best = _best(search, objective)[:10]
        rows = [_row(objective, trial) for trial in best]

    summary = f"{search.name}: {len(search.trials)} finished suggestions"
    if len(search.trials) > MOST_LINES:
        summary += f", the {MOST_LINES} best are drawn"

    return Chart(title, drawn, f"{summary}.", heads, rows, height, min_width)


def _in_words(drawn: go.Figure) -> None:
    """Replace Optuna's words at axes and in legends by those of the page."""
    for note in drawn.layout.annotations:
        note.font.color = None  # that of the template, light or dark

    for axis in (*drawn.select_xaxes(), *drawn.select_yaxes()):
        if axis.title.text:
            axis.title.text = TERMS.get(axis.title.text, axis.title.text)

        axis.automargin = True
        if axis.type == "log":
            low, high = axis.range or (0.0, 2.0)
            # Within one power of ten ticks at 2 and 5 too.
            ticks = 1 if abs(high - low) >= 1 else "D2"
            axis.update(exponentformat="power", dtick=ticks)

    for trace in drawn.data:
        _trace_in_words(trace)


def _trace_in_words(trace: Any) -> None:
    if isinstance(trace.hovertemplate, str):
        trace.hovertemplate = EXTRA.sub("<extra></extra>", trace.hovertemplate)

    if trace.name == "Feasible Trial":
        trace.update(name=None, showlegend=False)  # no suggestion has constraints

    if trace.name in SLOT_OF:
        trace.meta = {"slot": SLOT_OF[trace.name]}

    if trace.name:
        trace.name = TERMS.get(trace.name, trace.name)

    bar = getattr(trace.marker if "marker" in trace else None, "colorbar", None)
    if bar is not None and bar.title.text:
        bar.title.text = TERMS.get(bar.title.text, bar.title.text)
        bar.title.side = "right"

    if isinstance(trace.x, tuple) and any(isinstance(value, str) for value in trace.x):
        trace.x = [_unquoted(value) for value in trace.x]  # categories of a slice


def _unquoted(value: Any) -> Any:
    if isinstance(value, str) and value[:1] == value[-1:] == "'":
        return value[1:-1]
    return value


def _by_webgl(trace: Any) -> Any:
    if trace.type != "scatter" or trace.mode != "markers":
        return trace

    properties = trace.to_plotly_json()
    properties.pop("type", None)
    return go.Scattergl(**properties)


def _row(objective: str, trial: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a trial's line below a chart: its number, its value, and what was suggested."""
    value = trial["values"][0] * _scale(objective)
    suggested = []

    for key, drawn in trial["drawn"].items():
        shown = f"{drawn:.4g}" if isinstance(drawn, float) else scalars.spelled(drawn)
        suggested.append(f"{key} {shown}")

    return f"suggestion {trial['number']}", f"{value:.4g}", ", ".join(suggested)


def _best(search: ArmSearch, objective: str) -> list[Mapping[str, Any]]:
    """Return the best finished trials by an objective, as many as have lines of their own."""
    index = list(search.objectives).index(objective)
    sign = -1 if search.objectives[objective] == "maximize" else 1
    ranked = sorted(search.trials, key=lambda trial: sign * trial["values"][index])

    return ranked[:MOST_LINES]


def _keys(search: ArmSearch, shares: Mapping[str, float]) -> list[str]:
    """Return the keys of the contours, as the study calls them."""
    varied = []
    for axis in search.axes:
        if axis.kind == "choice" or axis.low < axis.high:
            varied.append(axis)

    ranked = sorted(varied, key=lambda axis: -shares.get(axis.key, 0.0))

    return [words(axis.key) for axis in ranked[:MOST_KEYS]]


def _is_accuracy(name: str) -> bool:
    return name.endswith("/accuracy")


def _scale(name: str) -> int:
    """Return what an objective's values are multiplied by: accuracies are shown in percent."""
    return 100 if _is_accuracy(name) else 1


def _shown(name: str) -> str:
    if _is_accuracy(name):
        return words(f"{name} in %")

    return words(name)


def _study(
    search: ArmSearch, trials: Sequence[Mapping[str, Any]], objectives: Sequence[str]
) -> optuna.Study:
    """Return a study in memory with these trials and objectives, accuracies in percent."""
    directions = []
    for name in objectives:
        directions.append(StudyDirection[search.objectives[name].upper()])

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    try:
        study = optuna.create_study(directions=directions)
        study.add_trials([_trial(search, trial, objectives) for trial in trials])
    finally:
        optuna.logging.set_verbosity(verbosity)

    return study


def _trial(
    search: ArmSearch, trial: Mapping[str, Any], objectives: Sequence[str]
) -> FrozenTrial:
    params = {}
    distributions = {}
    for axis in search.axes:
        if axis.key in trial["drawn"]:
            name = words(axis.key)
            params[name] = _drawn(axis, trial["drawn"][axis.key])
            distributions[name] = _distribution(axis)

    state = STATES[trial["state"]]
    values = None
    if state == TrialState.COMPLETE:
        by_name = dict(zip(search.objectives, trial["values"], strict=True))
        values = [by_name[name] * _scale(name) for name in objectives]

    curve = {}
    for epoch, value in trial.get("curve", ()):
        curve[int(epoch)] = 100 * value

    started, ended = trial.get("times") or (0.0, 0.0)
    return FrozenTrial(
        number=trial["number"],
        trial_id=trial["number"],
        state=state,
        value=None,
        values=values,
        datetime_start=datetime.fromtimestamp(started, UTC).replace(tzinfo=None),
        datetime_complete=datetime.fromtimestamp(ended, UTC).replace(tzinfo=None),
        params=params,
        distributions=distributions,
        user_attrs={},
        system_attrs={},
        intermediate_values=curve,
    )


def _drawn(axis: Axis, value: Any) -> Any:
    if axis.kind == "choice":
        return words(scalars.spelled(value))
    return value


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.kind == "choice":
        labels = [words(scalars.spelled(label)) for label in axis.labels]
        return CategoricalDistribution(labels)

    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)

    return FloatDistribution(axis.low, axis.high, log=axis.log)
