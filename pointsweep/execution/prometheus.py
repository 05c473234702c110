"""The numbers that a launch shows to Prometheus, from what its trials tell. launch.py hands them to Ray's metrics.

Ray puts `ray_` before each name.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Values = dict[tuple[str, str], float]  # (name, value of its label) -> number

GAUGES: Mapping[str, tuple[str, str]] = {  # name -> label, description
    "pointsweep_trials": ("state", "trials of this launch: waiting, running, finished, failed"),
    "pointsweep_cells": ("state", "cells of the table with trials in this launch: complete, open"),
    "pointsweep_epochs": ("", "epochs trained since the launch began"),
    "pointsweep_clouds_per_second": ("", "training clouds per second of all running trials together"),
    "pointsweep_tracker_lag_seconds": ("", "age of the oldest change that MLflow has not got, over the workers"),
    "pointsweep_store_lag_seconds": ("", "age of the oldest change that a store on S3 has not got, over the workers"),
    "pointsweep_failures": ("class", "failed trials by what they raised"),
    "pointsweep_eta_seconds": ("", "time left at the pace so far"),
}
LAGS = {"tracker_lag_s": "pointsweep_tracker_lag_seconds", "store_lag_s": "pointsweep_store_lag_seconds"}


class Gauges:
    """Counts along: what one result costs does not grow with the launch. `cells` maps the key of every trial to its cell."""

    def __init__(self, cells: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.cells, self.clock = cells, clock
        self.begun = clock()
        self.running: dict[str, Mapping[str, Any]] = {}  # key -> its last result
        self.ended: dict[str, str] = {}  # key -> finished or failed
        self.failures: Counter[str] = Counter()
        self.epochs = 0
        self.work = 0.0  # trials' worth of epochs trained by this launch, without what earlier ones had trained
        self.left = dict.fromkeys(cells, 1.0)  # share of every trial that is not trained yet
        self.all_left = float(len(cells))  # their sum
        self.states: Counter[str] = Counter()  # of what has ended
        self.unfinished = Counter(cells.values())  # trials of every cell
        self.open_cells = len(self.unfinished)

    def epoch(self, result: Mapping[str, Any]) -> None:
        """The result of an epoch, or of the last of several that are told together: key, epoch, epochs, and what the worker adds."""
        key, trained = result["key"], result.get("trained", 1)
        self.epochs += trained
        self.work += trained / result["epochs"]
        self._set_left(key, 1.0 - result["epoch"] / result["epochs"])
        self.running[key] = result

    def end(self, key: str, status: str, reason: str) -> None:
        """A trial ended."""
        self.running.pop(key, None)
        self._set_left(key, 0.0)
        before = self.ended.get(key)
        if before is not None:
            self.states[before] -= 1
        self.states[status] += 1
        self.ended[key] = status
        self._count_cell(self.cells.get(key), (before == "finished") - (status == "finished"))
        if status == "failed":
            self.failures[reason.partition(":")[0].strip()[:60] or "unknown"] += 1

    def _set_left(self, key: str, share: float) -> None:
        self.all_left += share - self.left.get(key, 0.0)
        self.left[key] = share

    def _count_cell(self, cell: str | None, more: int) -> None:
        """One trial of a cell more or less that is not finished."""
        if cell is None or not more:
            return
        self.unfinished[cell] += more
        self.open_cells += (self.unfinished[cell] > 0) - (self.unfinished[cell] - more > 0)

    def values(self) -> Values:
        """Every gauge as it stands."""
        waiting = len(self.cells) - len(self.running) - len(self.ended)
        found: Values = {
            ("pointsweep_trials", "waiting"): waiting,
            ("pointsweep_trials", "running"): len(self.running),
            ("pointsweep_trials", "finished"): self.states["finished"],
            ("pointsweep_trials", "failed"): self.states["failed"],
            ("pointsweep_cells", "open"): self.open_cells,
            ("pointsweep_cells", "complete"): len(self.unfinished) - self.open_cells,
            ("pointsweep_epochs", ""): self.epochs,
            ("pointsweep_clouds_per_second", ""): sum(result.get("clouds_per_s", 0.0) for result in self.running.values()),
        }
        for field, name in LAGS.items():
            found[name, ""] = max((result.get(field, 0.0) for result in self.running.values()), default=0.0)
        found |= {("pointsweep_failures", kind): count for kind, count in self.failures.items()}
        if self.work:
            found["pointsweep_eta_seconds", ""] = (self.clock() - self.begun) * self.all_left / self.work
        return found


def cells_of(packs: Sequence[Sequence[Any]]) -> dict[str, str]:
    """key -> "row / column" of all tasks of some packs."""
    return {task.config.key(): f"{task.tags.row} / {task.tags.column}" for pack in packs for task in pack}
