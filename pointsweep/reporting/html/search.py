"""What a search saw on the way to its table, as sweeps/<name>/search.json holds it."""

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
        values = [
            trial["drawn"][each["key"]]
            for trial in arm["suggestions"]
            if each["key"] in trial["drawn"]
        ]
        if values:
            ends = (0.0, 0.0) if each["kind"] == "choice" else (min(values), max(values))
            axes.append(Axis(each["key"], each["kind"], each["log"], each["labels"], *ends))
    states = [each["state"] for each in arm["suggestions"]]
    others = {state: states.count(state) for state in ("stopped", "failed") if state in states}
    return ArmSearch(
        arm["name"], data["objectives"], axes, arm["importances"], done, others, arm["suggestions"]
    )
