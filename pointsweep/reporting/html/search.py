"""History of a search behind its table, as sweeps/<name>/search.json holds it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsweep.storage.base import Store

log = logging.getLogger("pointsweep.report_search")


@dataclass(frozen=True)
class Axis:
    """A key of the space: its kind (choice, int, float), its scale, its labels or its ends."""

    key: str
    kind: str
    log: bool
    labels: Sequence[Any]
    low: float
    high: float


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
    # every trial that ended, those that failed or were stopped among them
    ended: Sequence[Mapping[str, Any]]


def read_searches(store: Store, name: str) -> list[ArmSearch]:
    """The searches of a sweep, one an arm; none of a sweep that is no search."""
    path = f"sweeps/{name}/search.json"
    if not store.exists(path):
        return []

    try:
        data = json.loads(store.read(path))
        return [_searched(data, arm) for arm in data["arms"]]
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        log.warning(
            "%s is damaged (%s): the report is without it; the search's command, run again, writes"
            " it anew",
            path,
            reason,
        )
        return []


def _searched(data: Mapping[str, Any], arm: Mapping[str, Any]) -> ArmSearch:
    suggestions = arm["suggestions"]
    axes = []
    for parameter in data["parameters"]:
        key = parameter["key"]
        values = [trial["drawn"][key] for trial in suggestions if key in trial["drawn"]]
        if not values:
            continue

        low = high = 0.0
        if parameter["kind"] != "choice":
            low, high = min(values), max(values)

        axis = Axis(
            key=key,
            kind=parameter["kind"],
            log=parameter["log"],
            labels=parameter["labels"],
            low=low,
            high=high,
        )

        axes.append(axis)

    complete = []
    others = {"stopped": 0, "failed": 0}
    for trial in suggestions:
        state = trial["state"]
        if state == "complete":
            complete.append(trial)
        elif state in others:
            others[state] += 1

    return ArmSearch(
        name=arm["name"],
        objectives=data["objectives"],
        axes=axes,
        importances=arm["importances"],
        trials=complete,
        others={state: number for state, number in others.items() if number},
        ended=suggestions,
    )
