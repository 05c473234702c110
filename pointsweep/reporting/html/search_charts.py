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


def searches(found: Sequence[ArmSearch]) -> Section | None:
    """Return the section of every arm's search; None of a sweep that is no search."""
    arms = []
    for one in found:
        if one.trials and one.axes:
            others = "".join(f", {number} {state}" for state, number in one.others.items())
            arms.append((f"{one.name}: {len(one.trials)} finished{others}", charts(one)))
    if not arms:
        return None
    lead = "What the search suggested and what came of it, on the validation split."
    return Section("search", "The search", lead, "search.html", {"arms": arms})


def charts(one: ArmSearch) -> list[Chart]:
    """Return the charts of one arm's search, by objective where it has several."""
    names = list(one.objectives)
    found: list[Chart] = []
    if len(names) > 1:
        drawn = visualization.plot_pareto_front(
            _study(one, one.trials, names[:2]),
            target_names=[_shown(name) for name in names[:2]],
        )
        others, front = drawn.data
        others.marker = {"size": 7}
        others.update(name="not on the front", showlegend=True, meta={"slot": 7})
        front.marker = {"size": 9}
        front.update(name="on the front", showlegend=True, meta={"slot": 4})
        found.append(_chart(one, "Pareto front", drawn))
    for name in names:
        found += _objective(one, name, f", {name}" if len(names) > 1 else "")
    return found + _courses(one)


def _objective(one: ArmSearch, name: str, of: str) -> list[Chart]:
    """Return the charts of one objective, drawn from a study that has no other; `of` ends their
    titles.
    """
    study, shown = _study(one, one.ended, [name]), _shown(name)
    history = visualization.plot_optimization_history(study, target_name=shown)
    history.update_layout(yaxis={"title": {"text": shown}})
    found = [_chart(one, f"Optimization history{of}", history)]

    shares = one.importances.get(name) or {}
    if shares:
        drawn = visualization.plot_param_importances(study, evaluator=StoredImportances(shares))
        drawn.update_traces(hovertemplate="%{y}: %{x:.3f}<extra></extra>")
        rows = [
            (key, f"{share:.3f}")
            for key, share in sorted(shares.items(), key=lambda item: -item[1])
        ]
        title, height = f"Importance of the keys{of}", 140 + 34 * len(rows)
        found.append(_chart(one, title, drawn, ("key", "importance"), rows, height))

    best = _study(one, _best(one, name), [name])
    parallel = visualization.plot_parallel_coordinate(best, target_name=shown)
    width = 240 + 160 * len(one.axes)
    found.append(_chart(one, f"Parallel coordinates{of}", parallel, min_width=width))
    sliced = visualization.plot_slice(study, target_name=shown)
    sliced.update_layout(yaxis={"title": {"text": shown}})
    found.append(_chart(one, f"Slices{of}", sliced, min_width=width))
    keys = _keys(one, shares)
    if len(keys) > 1:
        drawn = visualization.plot_contour(study, params=keys, target_name=shown)
        height = 360 + 130 * (len(keys) - 1)
        width = 200 + 190 * len(keys)
        found.append(_chart(one, f"Contours{of}", drawn, height=height, min_width=width))
    return found


def _courses(one: ArmSearch) -> list[Chart]:
    """Return what happened in time: the curves of the trials, and when each was trained."""
    first = next(iter(one.objectives))
    found = []
    unfinished = [trial for trial in one.ended if trial["state"] != "complete"]
    curves = [trial for trial in _best(one, first) if len(trial.get("curve", ())) > 1]
    stopped = [trial for trial in unfinished if trial.get("curve")][:MOST_LINES]
    if curves or stopped:
        # The stopped ones first, so that what ran to its end lies on top, the best topmost.
        chosen = [*stopped, *reversed(curves)]
        drawn = visualization.plot_intermediate_values(_study(one, chosen, [first]))
        for trace, trial in zip(drawn.data, chosen, strict=True):
            ended = trial["state"] == "complete"
            best = trial is chosen[-1]
            trace.update(
                name=f"suggestion {trial['number']}, {trial['state']}",
                mode="lines" if len(trial["curve"]) > 1 else "markers",
                line={"width": 3 if best else 1.5},
                opacity=1 if best else 0.5,
                hovertemplate="epoch %{x}: %{y:.1f}",
                meta={"slot": 4 if best else 0 if ended else 7},
            )
        drawn.update_layout(yaxis={"title": {"text": "validation accuracy in %"}}, showlegend=False)
        title = "Validation accuracy by epoch: grey what a scheduler stopped, red the best"
        found.append(_chart(one, title, drawn))

    timed = [trial for trial in one.ended if trial.get("times")][-MOST_BARS:]
    if timed:
        drawn = visualization.plot_timeline(_study(one, timed, [first]))
        found.append(_chart(one, "Timeline", drawn))
    return found


def _chart(
    one: ArmSearch,
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
    if sum(len(trace.x) for trace in drawn.data if trace.x is not None) > MOST_SVG:
        drawn = go.Figure([_by_webgl(trace) for trace in drawn.data], drawn.layout)
    name = next(iter(one.objectives))
    if not rows:
        heads = ("best suggestions", name, "values")
        rows = [_told(one, name, trial) for trial in _best(one, name)[:10]]
    cut = f", the {MOST_LINES} best are drawn" if len(one.trials) > MOST_LINES else ""
    summary = f"{one.name}: {len(one.trials)} finished suggestions{cut}."
    return Chart(title, drawn, summary, heads, rows, height, min_width)


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
            axis.update(exponentformat="power", dtick=1 if abs(high - low) >= 1 else "D2")
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
    return value[1:-1] if isinstance(value, str) and value[:1] == value[-1:] == "'" else value


def _by_webgl(trace: Any) -> Any:
    if trace.type != "scatter" or trace.mode != "markers":
        return trace
    return go.Scattergl(
        **{key: value for key, value in trace.to_plotly_json().items() if key != "type"}
    )


def _told(one: ArmSearch, name: str, trial: Mapping[str, Any]) -> tuple[str, str, str]:
    value = trial["values"][0] * (100 if _percent(name) else 1)
    drawn = ", ".join(
        f"{key} {each:.4g}" if isinstance(each, float) else f"{key} {scalars.spelled(each)}"
        for key, each in trial["drawn"].items()
    )
    return f"suggestion {trial['number']}", f"{value:.4g}", drawn


def _best(one: ArmSearch, name: str) -> list[Mapping[str, Any]]:
    """Return the best finished trials by an objective, as many as have lines of their own."""
    index = list(one.objectives).index(name)
    sign = -1 if one.objectives[name] == "maximize" else 1
    return sorted(one.trials, key=lambda trial: sign * trial["values"][index])[:MOST_LINES]


def _keys(one: ArmSearch, shares: Mapping[str, float]) -> list[str]:
    """Return the keys of the contours, as the study calls them."""
    varied = [axis for axis in one.axes if axis.kind == "choice" or axis.low < axis.high]
    ranked = sorted(varied, key=lambda axis: -shares.get(axis.key, 0.0))
    return [words(axis.key) for axis in ranked[:MOST_KEYS]]


def _percent(name: str) -> bool:
    return name.endswith("/accuracy")


def _shown(name: str) -> str:
    return words(f"{name} in %" if _percent(name) else name)


def _study(
    one: ArmSearch, trials: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> optuna.Study:
    """Return a study in memory with these trials and objectives, accuracies in percent."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            directions=[StudyDirection[one.objectives[name].upper()] for name in names]
        )
        study.add_trials([_trial(one, trial, names) for trial in trials])
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


def _trial(one: ArmSearch, trial: Mapping[str, Any], names: Sequence[str]) -> FrozenTrial:
    space = {axis.key: axis for axis in one.axes}
    drawn = {key: value for key, value in trial["drawn"].items() if key in space}
    state = STATES[trial["state"]]
    values = None
    if state == TrialState.COMPLETE:
        by_name = dict(zip(one.objectives, trial["values"], strict=True))
        values = [by_name[name] * (100 if _percent(name) else 1) for name in names]
    begun, ended = trial.get("times") or (0.0, 0.0)
    return FrozenTrial(
        number=trial["number"],
        trial_id=trial["number"],
        state=state,
        value=None,
        values=values,
        datetime_start=datetime.fromtimestamp(begun, UTC).replace(tzinfo=None),
        datetime_complete=datetime.fromtimestamp(ended, UTC).replace(tzinfo=None),
        params={words(key): _drawn(space[key], value) for key, value in drawn.items()},
        distributions={words(key): _distribution(space[key]) for key in drawn},
        user_attrs={},
        system_attrs={},
        intermediate_values={int(epoch): 100 * value for epoch, value in trial.get("curve", ())},
    )


def _drawn(axis: Axis, value: Any) -> Any:
    return words(scalars.spelled(value)) if axis.kind == "choice" else value


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.kind == "choice":
        return CategoricalDistribution([words(scalars.spelled(label)) for label in axis.labels])
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)
