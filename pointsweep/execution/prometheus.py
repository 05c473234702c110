"""The numbers that a launch shows to Prometheus, from what its trials tell. ray_tune.py hands them
to Ray's metrics.

Ray puts `ray_` before each name. Every number carries the name of its sweep: a launch may hold
several, and a cluster several launches.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Values = dict[
    tuple[str, str, str], float
]  # (name, sweep, value of its other label) -> number

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
        began = time.time() if began is None else began
        cells: dict[str, dict[str, str]] = {}
        for key, cell in trials.items():
            cells.setdefault(cell.sweep, {})[key] = cell.cell

        self.sweeps = {
            sweep: SweepGauges(cells[sweep], clock, began) for sweep in cells
        }
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
        self.epoch_s: dict[
            str, float
        ] = {}  # key of a running trial -> its longest epoch
        self.heard_at: dict[
            str, float
        ] = {}  # key of a running trial -> its start or last result
        self.running: dict[
            str, Mapping[str, Any]
        ] = {}  # key -> its last result, empty before
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
        for known in (self.running, self.heard_at, self.epoch_s):
            known.pop(key, None)

    def epoch(self, result: Mapping[str, Any]) -> None:
        key, trained = result["key"], result.get("trained", 1)
        now = self.clock()
        if key in self.heard_at:
            took = (now - self.heard_at[key]) / trained
            self.epoch_s[key] = max(took, self.epoch_s.get(key, 0.0))

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
        self._count_cell(
            self.cells[key], (before == "finished") - (status == "finished")
        )

        if status == "failed":
            self.failures[reason.partition(":")[0].strip()[:60] or "unknown"] += 1

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

        self.unfinished[cell] += more
        self.open_cells += (self.unfinished[cell] > 0) - (
            self.unfinished[cell] - more > 0
        )

    def values(self) -> dict[tuple[str, str], float]:
        """Every gauge as it stands, by its name and the value of its label."""
        waiting = len(self.cells) - len(self.running) - len(self.ended)
        pace = sum(result.get("clouds_per_s", 0.0) for result in self.running.values())
        gauge_values: dict[tuple[str, str], float] = {
            ("pointsweep_trials", "waiting"): 0 if self.closed else waiting,
            ("pointsweep_trials", "running"): len(self.running),
            ("pointsweep_trials", "finished"): self.states["finished"],
            ("pointsweep_trials", "failed"): self.states["failed"],
            ("pointsweep_cells", "open"): self.open_cells,
            ("pointsweep_cells", "complete"): len(self.unfinished) - self.open_cells,
            ("pointsweep_epochs", ""): self.epochs,
            ("pointsweep_clouds_per_second", ""): pace,
            ("pointsweep_epoch_seconds", ""): self._longest_epoch(),
        }

        progress_at = self.began + (self.progress_at - self.begun)
        gauge_values["pointsweep_progress_timestamp_seconds", ""] = progress_at

        for field, name in LAGS.items():
            lags = (result.get(field, 0.0) for result in self.running.values())
            gauge_values[name, ""] = max(lags, default=0.0)

        gauge_values |= {
            ("pointsweep_failures", kind): count
            for kind, count in self.failures.items()
        }
        if self.closed:
            gauge_values["pointsweep_eta_seconds", ""] = 0.0
        elif self.work:
            spent = self.clock() - self.begun
            gauge_values["pointsweep_eta_seconds", ""] = (
                spent * self.all_left / self.work
            )

        return gauge_values


def cells_of(packs: Sequence[Sequence[Any]]) -> dict[str, TrialCell]:
    """key -> place of all tasks of some packs; the cell is named "row / column"."""
    cells = {}
    for pack in packs:
        for task in pack:
            tags = task.tags
            cells[task.config.key()] = TrialCell(
                tags.sweep, f"{tags.row} / {tags.column}"
            )

    return cells
