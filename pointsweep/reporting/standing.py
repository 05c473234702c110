"""Progress of the sweeps of a store: which trials are finished, failed, running or open."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pointsweep.errors import NotAFileError, StoreError
from pointsweep.reporting.build import read_layout, read_results
from pointsweep.results.events import read_events
from pointsweep.results.records import Layout
from pointsweep.statistics.adaptive_seeds import settle
from pointsweep.storage.base import Store
from pointsweep.storage.lease import Holder, is_dead

STATES = ("finished", "failed", "running", "open")


@dataclass(frozen=True)
class TrialStanding:
    """Standing of one trial. `state` is one of STATES."""

    key: str
    label: str  # "row / column / seed n"
    state: str
    reason: str = ""  # of a failure
    epoch: int = 0  # the last one that is kept, of a trial that is not finished
    worker: str = ""  # the process that works on it


@dataclass(frozen=True)
class SweepStanding:
    """Standing of a sweep. Trials that adaptive seeds do not ask for yet are not among its
    trials.
    """

    name: str
    title: str
    trials: Sequence[TrialStanding] = ()
    # seconds of every finished trial
    finished_s: Sequence[float] = field(default=(), repr=False)

    def count(self, state: str) -> int:
        """Return how many trials are in a state."""
        return sum(trial.state == state for trial in self.trials)

    def of(self, state: str) -> list[TrialStanding]:
        """Return the trials in a state."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def trained_s(self) -> float:
        """The seconds that finished trials took together."""
        return sum(self.finished_s)

    @property
    def left_s(self) -> float | None:
        """The seconds that the others take one after the other, by the median of the finished ones;
        None without any.
        """
        if not self.finished_s:
            return None

        remaining = len(self.trials) - self.count("finished")
        return remaining * statistics.median(self.finished_s)


def sweep_names(store: Store) -> list[str]:
    """Return the names of the sweeps in a store."""
    return [entry.rstrip("/") for entry in store.list("sweeps") if entry.endswith("/")]


def standing(store: Store, name: str) -> SweepStanding:
    """Look at the trials of a sweep. Raises ValueError naming the sweeps there are, and StoreError
    for what cannot be read.
    """
    layout = read_layout(store, name)
    layout, records, failures = read_results(store, layout)
    requested, _ = settle(layout, records)

    trials = []

    for key, label in trial_labels(requested):
        if key in records:
            trials.append(TrialStanding(key, label, "finished"))
            continue

        holder = _holder(store, key)
        epoch = _last_epoch(store, key)
        if holder is not None:
            trials.append(
                TrialStanding(key, label, "running", epoch=epoch, worker=str(holder))
            )
        elif key in failures:
            trials.append(
                TrialStanding(key, label, "failed", reason=failures[key], epoch=epoch)
            )
        else:
            trials.append(TrialStanding(key, label, "open", epoch=epoch))

    seconds = []
    for trial in trials:
        if trial.state == "finished":
            seconds.append(records[trial.key].seconds.get("total", 0.0))

    return SweepStanding(layout.name, layout.title, trials, seconds)


def trial_labels(layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield the key of every trial of a table once, with the row, column and seed of the first cell
    that it fills.
    """
    seen: set[str] = set()
    for cell in layout.cells:
        for seed, key in cell.keys:
            if key not in seen:
                seen.add(key)
                labels = (
                    *layout.rows[cell.row],
                    layout.columns[cell.column],
                    f"seed {seed}",
                )

                yield key, " / ".join(labels)


def _holder(store: Store, key: str) -> Holder | None:
    """Return the process that works on a trial just now; None if nobody does."""
    try:
        holder = Holder(**json.loads(store.read(f"trials/{key}/lease.json")))
    except (FileNotFoundError, NotAFileError, StoreError):
        return None
    except (ValueError, TypeError, RecursionError):
        return None  # not a lease

    is_time = isinstance(holder.expires, int | float)
    if not is_time or time.time() >= holder.expires or is_dead(holder):
        return None

    return holder


def _last_epoch(store: Store, key: str) -> int:
    """Return the last epoch that a trial has kept; 0 without one."""
    last = 0
    for event in read_events(store, key):
        if event["type"] == "epoch":
            last = event["epoch"]

    return int(last)
