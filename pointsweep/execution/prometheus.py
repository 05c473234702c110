"""The numbers that a launch shows to Prometheus, from what its trials tell. ray_tune.py hands them
to Ray's metrics.

Ray puts `ray_` before each name. Every number carries the name of its sweep: a launch may hold
several, and a cluster several launches.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# (name, sweep, value of its other label) -> number
Values = dict[tuple[str, str, str], float]

GAUGES: Mapping[str, tuple[str, str]] = {  # name -> label beside `sweep`, description
    "pointsweep_trials": (
        "state",
        "trials of this launch: waiting, running, finished, failed",
    ),
    "pointsweep_cells": (
        "state",
        "cells of the table with trials in this launch: complete, open",
    ),
    "pointsweep_epochs": ("", "epochs trained since the launch began"),
    "pointsweep_clouds_per_second": (
        "",
        "training clouds per second of all running trials together",
    ),
    "pointsweep_tracker_lag_seconds": (
        "",
        "age of the oldest change that MLflow has not got, over the workers",
    ),
    "pointsweep_store_lag_seconds": (
        "",
        "age of the oldest change that a store on S3 has not got, over the workers",
    ),
    "pointsweep_failures": ("class", "failed trials by what they raised"),
    "pointsweep_eta_seconds": ("", "time left at the pace so far"),
    "pointsweep_progress_timestamp_seconds": (
        "",
        "Unix time at which a trial last started, ended an epoch or ended; at first of the launch",
    ),
    "pointsweep_epoch_seconds": (
        "",
        "the longest epoch of the running trials, 0 while one of them has not ended its first",
    ),
}
LAGS = {
    "tracker_lag_s": "pointsweep_tracker_lag_seconds",
    "store_lag_s": "pointsweep_store_lag_seconds",
}


class TrialCell(NamedTuple):
    """A trial's sweep and the name of its cell in the sweep's table."""

    sweep: str
    cell: str


class Gauges:
    """The numbers of a launch, one set a sweep. `trials` maps the key of every trial to its cell.

    `clock` counts seconds; `began` is the Unix time of the launch.
    """

    def __init__(
        self,
        trials: Mapping[str, TrialCell],
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
    ) -> None:
        if began is None:
            began = time.time()

        cells_of: dict[str, dict[str, str]] = defaultdict(dict)  # by sweep
        for key, cell in trials.items():
            cells_of[cell.sweep][key] = cell.cell

        self.sweeps = {}
        for sweep, cells in cells_of.items():
            self.sweeps[sweep] = SweepGauges(cells, clock, began)

        self._of = {key: self.sweeps[cell.sweep] for key, cell in trials.items()}

    def start(self, key: str) -> None:
        """A trial has got a worker."""
        self._of[key].start(key)

    def wait(self, key: str) -> None:
        """A trial has lost its worker and waits for another."""
        self._of[key].wait(key)

    def epoch(self, result: Mapping[str, Any]) -> None:
        """The result of an epoch, or of the last of several that are told together.

        It has key, epoch, epochs, and what the worker adds.
        """
        self._of[result["key"]].epoch(result)

    def end(self, key: str, status: str, reason: str) -> None:
        """A trial ended."""
        self._of[key].end(key, status, reason)

    def close(self) -> None:
        """The launch is over: nothing of it waits, runs or lags behind any more."""
        for sweep in self.sweeps.values():
            sweep.close()

    def values(self) -> Values:
        """Every gauge as it stands."""
        gauge_values: Values = {}
        for sweep, gauges in self.sweeps.items():
            for (name, label), number in gauges.values().items():
                gauge_values[name, sweep, label] = number

        return gauge_values


class SweepGauges:
    """The numbers of one sweep. Counts along: what one result costs does not grow with the launch.

    `cells` maps the key of every trial to its cell.
    """

    def __init__(
        self, cells: Mapping[str, str], clock: Callable[[], float], began: float
    ) -> None:
        self.cells = cells
        self.clock = clock
        self.begun = clock()
        self.began = began
        self.closed = False
        self.progress_at = self.begun
        # Of running trials, by key: the longest epoch, the time of the start or the last result,
        # and the last result, empty before.
        self.epoch_s: dict[str, float] = {}
        self.heard_at: dict[str, float] = {}
        self.running: dict[str, Mapping[str, Any]] = {}
        self.ended: dict[str, str] = {}  # key -> finished or failed
        self.failures: Counter[str] = Counter()
        self.epochs = 0
        # Trials' worth of epochs trained by this launch, without what earlier ones had trained.
        self.work = 0.0
        # share of every trial that is not trained yet
        self.left = dict.fromkeys(cells, 1.0)
        self.all_left = float(len(cells))  # their sum
        self.states: Counter[str] = Counter()  # of what has ended
        self.unfinished = Counter(cells.values())  # trials of every cell
        self.open_cells = len(self.unfinished)

    def start(self, key: str) -> None:
        if key in self.ended:
            return

        self.progress_at = self.heard_at[key] = self.clock()
        self.running.setdefault(key, {})

    def wait(self, key: str) -> None:
        self.running.pop(key, None)
        self.heard_at.pop(key, None)
        self.epoch_s.pop(key, None)

    def epoch(self, result: Mapping[str, Any]) -> None:
        key = result["key"]
        trained = result.get("trained", 1)
        now = self.clock()

        if key in self.heard_at:
            epoch_s = (now - self.heard_at[key]) / trained
            self.epoch_s[key] = max(epoch_s, self.epoch_s.get(key, 0.0))

        self.progress_at = self.heard_at[key] = now
        self.epochs += trained
        self.work += trained / result["epochs"]
        self._set_left(key, 1.0 - result["epoch"] / result["epochs"])
        self.running[key] = result

    def end(self, key: str, status: str, reason: str) -> None:
        self.wait(key)
        self.progress_at = self.clock()
        self._set_left(key, 0.0)

        before = self.ended.get(key)

        if before is not None:
            self.states[before] -= 1

        self.states[status] += 1
        self.ended[key] = status
        newly_unfinished = (before == "finished") - (status == "finished")
        self._count_cell(self.cells[key], newly_unfinished)

        if status == "failed":
            error_class, _, _ = reason.partition(":")
            self.failures[error_class.strip()[:60] or "unknown"] += 1

    def close(self) -> None:
        self.closed = True
        for key in list(self.running):
            self.wait(key)

    def _longest_epoch(self) -> float:
        if len(self.epoch_s) < len(self.running):
            return 0.0
        return max(self.epoch_s.values(), default=0.0)

    def _set_left(self, key: str, share: float) -> None:
        self.all_left += share - self.left.get(key, 0.0)
        self.left[key] = share

    def _count_cell(self, cell: str, more: int) -> None:
        """One trial of a cell more or less that is not finished."""
        if not more:
            return

        was_open = self.unfinished[cell] > 0
        self.unfinished[cell] += more
        is_open = self.unfinished[cell] > 0
        self.open_cells += is_open - was_open

    def values(self) -> dict[tuple[str, str], float]:
        """Every gauge as it stands, by its name and the value of its label."""
        waiting = 0
        if not self.closed:
            waiting = len(self.cells) - len(self.running) - len(self.ended)

        num_complete = len(self.unfinished) - self.open_cells
        pace = sum(result.get("clouds_per_s", 0.0) for result in self.running.values())
        gauge_values: dict[tuple[str, str], float] = {
            ("pointsweep_trials", "waiting"): waiting,
            ("pointsweep_trials", "running"): len(self.running),
            ("pointsweep_trials", "finished"): self.states["finished"],
            ("pointsweep_trials", "failed"): self.states["failed"],
            ("pointsweep_cells", "open"): self.open_cells,
            ("pointsweep_cells", "complete"): num_complete,
            ("pointsweep_epochs", ""): self.epochs,
            ("pointsweep_clouds_per_second", ""): pace,
            ("pointsweep_epoch_seconds", ""): self._longest_epoch(),
        }

        progress_at = self.began + (self.progress_at - self.begun)
        gauge_values["pointsweep_progress_timestamp_seconds", ""] = progress_at

        for field, name in LAGS.items():
            lags = [result.get(field, 0.0) for result in self.running.values()]
            gauge_values[name, ""] = max(lags, default=0.0)

        for error_class, count in self.failures.items():
            gauge_values["pointsweep_failures", error_class] = count

        if self.closed:
            gauge_values["pointsweep_eta_seconds", ""] = 0.0
        elif self.work:
            elapsed_s = self.clock() - self.begun
            eta_s = elapsed_s * self.all_left / self.work
            gauge_values["pointsweep_eta_seconds", ""] = eta_s

        return gauge_values


def cells_of(packs: Sequence[Sequence[Any]]) -> dict[str, TrialCell]:
    """key -> place of all tasks of some packs; the cell is named "row / column"."""
    cells = {}
    for pack in packs:
        for task in pack:
            tags = task.tags
            cell = TrialCell(tags.sweep, f"{tags.row} / {tags.column}")
            cells[task.config.key()] = cell

    return cells
