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
    """Counts along. `cells` maps the key of every trial of the launch to its cell."""

    def __init__(self, cells: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.cells, self.clock = cells, clock
        self.begun = clock()
        self.running: dict[str, Mapping[str, Any]] = {}  # key -> its last result
        self.ended: dict[str, str] = {}  # key -> finished or failed
        self.failures: Counter[str] = Counter()
        self.epochs = 0
        self.work = 0.0  # trials' worth of epochs trained by this launch, without what earlier ones had trained
        self.left = dict.fromkeys(cells, 1.0)  # share of every trial that is not trained yet

    def epoch(self, result: Mapping[str, Any]) -> None:
        """An epoch's result: key, epoch, epochs, and what the worker adds."""
        key, left = result["key"], 1.0 - result["epoch"] / result["epochs"]
        self.epochs += 1
        self.work += 1.0 / result["epochs"]
        self.left[key] = left
        self.running[key] = result

    def end(self, key: str, status: str, reason: str) -> None:
        """A trial ended."""
        self.running.pop(key, None)
        self.left[key] = 0.0
        self.ended[key] = status
        if status == "failed":
            self.failures[reason.partition(":")[0].strip()[:60] or "unknown"] += 1

    def values(self) -> Values:
        """Every gauge as it stands."""
        states = Counter(self.ended.values())
        waiting = len(self.cells) - len(self.running) - len(self.ended)
        open_cells = {cell for key, cell in self.cells.items() if self.ended.get(key) != "finished"}
        found: Values = {
            ("pointsweep_trials", "waiting"): waiting,
            ("pointsweep_trials", "running"): len(self.running),
            ("pointsweep_trials", "finished"): states["finished"],
            ("pointsweep_trials", "failed"): states["failed"],
            ("pointsweep_cells", "open"): len(open_cells),
            ("pointsweep_cells", "complete"): len(set(self.cells.values()) - open_cells),
            ("pointsweep_epochs", ""): self.epochs,
            ("pointsweep_clouds_per_second", ""): sum(result.get("clouds_per_s", 0.0) for result in self.running.values()),
        }
        for field, name in LAGS.items():
            found[name, ""] = max((result.get(field, 0.0) for result in self.running.values()), default=0.0)
        found |= {("pointsweep_failures", kind): count for kind, count in self.failures.items()}
        if self.work:
            found["pointsweep_eta_seconds", ""] = (self.clock() - self.begun) * sum(self.left.values()) / self.work
        return found


def cells_of(packs: Sequence[Sequence[Any]]) -> dict[str, str]:
    """key -> "row / column" of all tasks of some packs."""
    return {task.config.key(): f"{task.tags.row} / {task.tags.column}" for pack in packs for task in pack}
