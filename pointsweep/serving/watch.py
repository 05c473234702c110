"""The state of a sweep, read again only where it changed, and its report as far as it is filled.

Whoever asks gets what the last look saw, or looks himself if that is long enough ago: the pauses
grow with what a look costs. So any number of readers cost no more than one.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pointsweep.errors import StoreError
from pointsweep.reporting.build import build, read_layout, trial_keys
from pointsweep.reporting.html.page import plotly_file
from pointsweep.reporting.standing import (
    SweepStanding,
    TrialStanding,
    sweep_names,
    trial_labels,
)
from pointsweep.reporting.stored import compared
from pointsweep.reporting.table import Table
from pointsweep.results import metrics
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.events import device_s, epochs_of
from pointsweep.results.kept_plugins import import_kept
from pointsweep.results.metrics import METRICS
from pointsweep.results.records import DAMAGED, Layout, Record
from pointsweep.serving.reading import KeptTrial, Mark, ReadOnlyStore, records_of
from pointsweep.statistics.adaptive_seeds import settle
from pointsweep.storage.base import Store
from pointsweep.utils.console import one_line
from pointsweep.utils.masking import scrubbed

log = logging.getLogger("pointsweep.serving")

# the address of scripts and style sheets, which hold nothing of a store
ASSETS = "/assets/"
PAUSE_S = (1.0, 15.0)  # between two looks at a folder, and at a store on a server
COST = 10.0  # a pause is this many times the processor's time that it follows
ALL_S = 60.0  # between two looks at the finished trials of a folder too
REPORT_S = 2.0  # between two reports, at least
SETTLING_S = 20.0  # between two trials nobody works on one, which is no interruption
MOST_RUNNING = 12  # trials that are described

# the last argument: from where the page fetches plotly.js
MakePage = Callable[[Table, Mapping[str, Record], Store, str], str]


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is worked on: its epochs so far, and the table's metric (fraction) after
    each.
    """

    label: str
    worker: str
    epoch: int
    epochs: int  # 0 if unknown
    values: Sequence[float] = field(default=(), repr=False)


@dataclass(frozen=True)
class SweepState:
    """A sweep as the last look saw it. Without `standing` there is no table, and `problem` says
    why.
    """

    name: str
    problem: str = ""  # of the last look; the rest is then of an earlier one
    standing: SweepStanding | None = None
    state: str = "unreadable"
    running: Sequence[RunningTrial] = ()
    metric: str = ""
    left_s: float | None = None
    device_hours: float = 0.0
    price: float | None = None  # of the device hours, where an hour has one
    seen_at: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Report:
    """A report as it is sent. `version` changes with its content."""

    version: str
    data: bytes
    packed: bytes  # by gzip
    problem: str = ""  # then there is no page, and this says why


class Spent:
    """Clock of what a piece of work takes, from here on."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.cpu_begun = time.thread_time()

    def next_time(self, pause_s: float) -> float:
        """Return when the work may be done again: after this pause, or a longer one if it was
        costly, or slow, as with a file server that has much to do.
        """
        now = time.monotonic()
        cpu_s = time.thread_time() - self.cpu_begun

        return now + max(pause_s, COST * cpu_s, now - self.begun)


class SweepWatch:
    """One sweep of a store, looked at as often as it pays. `begun` gives the trials that have a
    folder.
    """

    def __init__(
        self,
        store: ReadOnlyStore,
        name: str,
        begun: Callable[[], frozenset[str]],
        make_page: MakePage,
    ) -> None:
        self.store = store
        self.name = name
        self.begun = begun
        self.make_page = make_page
        self.pause_s = PAUSE_S[store.disk is None]
        self.layout: Layout | None = None
        self.plan_mark: Mark | None = None
        self.keys: list[str] = []
        self.state = SweepState(name, "not read yet")
        self.version = 0  # grows with every change of what the report shows
        self.changed_at = -float("inf")
        self.report: Report | None = None
        self._reported = -1  # the version that the report shows
        self._completed: dict[str, tuple[Record, Record]] = {}  # with a computed metric
        self._next_look = self._next_report = self._next_all = 0.0
        self._looking = threading.Lock()
        self._making = threading.Lock()

    # The state

    def look(self) -> SweepState:
        """Return the sweep's state, looked at now if it is time."""
        with self._looking:
            now = time.monotonic()
            if now < self._next_look:
                return self.state

            spent = Spent()
            try:
                self._look(self.begun())
            except FileNotFoundError as error:
                self._fail(f"{error}: not there any more")
            except (ValueError, OSError) as error:
                self._fail(str(error))
            except Exception as error:
                # One sweep that nobody foresaw is no reason to show none.
                log.exception("%s cannot be read", self.name)
                self._fail(f"{type(error).__name__}: {error}")

            self._next_look = spent.next_time(self.pause_s)
            return self.state

    def _fail(self, problem: str) -> None:
        """Keep what the last look saw, with what is wrong now."""
        self.state = replace(self.state, problem=one_line(scrubbed(problem)))

    def _look(self, begun: frozenset[str]) -> None:
        first = self.layout is None
        self._read_layout()
        assert self.layout is not None

        if first:
            self.store.look_at_all(self.name, self.keys)

        now = time.monotonic()
        everything = self.store.disk is not None and now >= self._next_all
        if everything:
            self._next_all = now + ALL_S

        changed = False
        for key in self.keys:
            trial = self.store.trials.get(key)
            finished = trial is not None and trial.record is not None
            if (key in begun or trial is not None) and (everything or not finished):
                changed |= self.store.look(key)

        if changed or first:
            self.version += 1

        if changed and not first:
            self.changed_at = now

        between_trials = self.state.state == "running" and not self.state.running
        if changed or first or between_trials or self.state.problem:
            self.state = self._described()
        else:
            self.state = replace(self.state, seen_at=time.time())

    def _read_layout(self) -> None:
        file = f"sweeps/{self.name}/plan.json"
        mark = self.store.mark(file)
        if mark is None:
            self.layout = None
            if f"{self.name}/" in self.store.list("sweeps"):
                raise StoreError("no table yet: a search that has not ended")

            raise StoreError("no such sweep in the store")

        if self.layout is None or mark != self.plan_mark:
            layout = read_layout(self.store, self.name)
            self.layout = layout
            self.plan_mark = mark
            self.keys = trial_keys(layout)
            self._completed = {}
            self.version += 1

    def _described(self) -> SweepState:
        layout = self.layout
        assert layout is not None
        trials = self.store.trials
        records = records_of(trials, self.keys)
        requested, _ = settle(layout, records)
        standings = []
        running: list[RunningTrial] = []
        finished_s = []

        for key, label in trial_labels(requested):
            trial = trials.get(key, KeptTrial())
            trial_standing = _standing(key, label, trial)
            standings.append(trial_standing)

            if trial_standing.state == "finished":
                finished_s.append(records[key].seconds.get("total", 0.0))
            elif trial_standing.state == "running" and len(running) < MOST_RUNNING:
                running.append(_running(trial_standing, trial, layout.metric))

        hours = self._device_s([item.key for item in standings]) / 3600
        price = None
        if layout.per_hour is not None:
            price = hours * layout.per_hour

        standing = SweepStanding(layout.name, layout.title, standings, finished_s)
        return SweepState(
            name=self.name,
            standing=standing,
            state=self._word(standing),
            running=running,
            metric=layout.metric,
            left_s=_left_s(standing, trials),
            device_hours=hours,
            price=price,
            seen_at=time.time(),
        )

    def _word(self, standing: SweepStanding) -> str:
        """Return the state of the whole in a word."""
        if standing.count("finished") == len(standing.trials):
            return "done"
        if standing.count("running"):
            return "running"
        if not standing.count("open"):
            return "failed"
        if time.monotonic() - self.changed_at < SETTLING_S + self.pause_s:
            return "running"

        num_started = standing.count("finished") + standing.count("failed")
        num_started += sum(trial.epoch > 0 for trial in standing.of("open"))
        return "interrupted" if num_started else "waiting"

    def _device_s(self, keys: Sequence[str]) -> float:
        total = 0.0
        for key in keys:
            trial = self.store.trials.get(key)
            if trial is None:
                continue

            if trial.record:
                total += trial.record.device_s
            else:
                total += device_s(epochs_of(trial.events))

        return total

    # The report

    @property
    def report_version(self) -> str:
        """Return the version of the last report; empty if there is none yet."""
        report = self.report
        return report.version if report is not None else ""

    def report_due(self) -> bool:
        """Return whether there is something new to make a report of, and it is time."""
        return self._reported != self.version and time.monotonic() >= self._next_report

    def make_report(self) -> Report | None:
        """Make the report if it is due; return the last one, None if there is none yet."""
        with self._making:
            if self.layout is None or not self.report_due():
                return self.report

            spent = Spent()
            with self._looking:
                version = self.version
                layout = self.layout
                records = records_of(self.store.trials, self.keys)
                failures = self._failures()

            try:
                self.report = _report(self._page(layout, records, failures).encode())
            except (ValueError, OSError) as error:
                self.report = _report(b"", str(error))
            except Exception as error:  # as in look
                log.exception("%s: no report can be made", self.name)
                self.report = _report(b"", f"{type(error).__name__}: {error}")

            self._reported = version
            self._next_report = spent.next_time(REPORT_S)
            return self.report

    def _failures(self) -> dict[str, str]:
        reasons = {}
        for key in self.keys:
            trial = self.store.trials.get(key, KeptTrial())
            if trial.damage:
                reasons[key] = f"{DAMAGED}: {trial.damage}"
            elif trial.record is None and trial.failure:
                reasons[key] = trial.failure

        return reasons

    def _page(
        self, layout: Layout, records: Mapping[str, Record], failures: Mapping[str, str]
    ) -> str:
        """Return the page that `pointsweep report` would write now."""
        metric = layout.metric.rpartition("/")[2]
        if metric not in METRICS and not metrics.discover(metric):
            # nobody has allowed it: this says so
            import_kept(self.store, self.name, False)

        # A metric that is computed from predictions is computed once for every record.
        fresh = {}
        for key, record in records.items():
            source, _ = self._completed.get(key, (None, None))
            if source is not record:
                fresh[key] = record

        for key, record in with_metric(self.store, fresh, layout.metric).items():
            self._completed[key] = (records[key], record)

        completed = {}
        for key in records:
            _, completed[key] = self._completed[key]

        layout, compared_records = compared(layout, completed, self.store)
        table = build(layout, compared_records, failures)
        plotly_src = f"{ASSETS}{plotly_file()}"

        return self.make_page(table, compared_records, self.store, plotly_src)


def _report(data: bytes, problem: str = "") -> Report:
    shown_problem = one_line(scrubbed(problem))
    digest = hashlib.sha256(data or shown_problem.encode()).hexdigest()
    packed = gzip.compress(data, 1, mtime=0)
    return Report(digest[:16], data, packed, shown_problem)


def _standing(key: str, cell: str, trial: KeptTrial) -> TrialStanding:
    if trial.record is not None:
        return TrialStanding(key, cell, "finished")

    epochs = epochs_of(trial.events)
    epoch = int(epochs[-1]["epoch"]) if epochs else 0
    if trial.running:
        return TrialStanding(
            key, cell, "running", epoch=epoch, worker=str(trial.holder)
        )

    reason = f"{DAMAGED}: {trial.damage}" if trial.damage else trial.failure
    if reason:
        shown_reason = one_line(scrubbed(reason))
        return TrialStanding(key, cell, "failed", reason=shown_reason, epoch=epoch)

    return TrialStanding(key, cell, "open", epoch=epoch)


def _running(trial: TrialStanding, stored: KeptTrial, metric: str) -> RunningTrial:
    values = []
    for event in epochs_of(stored.events):
        metrics_of_epoch = event.get("metrics", {})
        if metric in metrics_of_epoch:
            values.append(metrics_of_epoch[metric])

    return RunningTrial(
        label=trial.label,
        worker=trial.worker,
        epoch=trial.epoch,
        epochs=_num_epochs(stored),
        values=values,
    )


def _num_epochs(trial: KeptTrial) -> int:
    """Return for how many epochs a trial trains; 0 if its history does not say."""
    for event in reversed(trial.events):
        if event["type"] == "start":
            epochs = event.get("config", {}).get("train", {}).get("epochs")
            return epochs if isinstance(epochs, int) else 0

    return 0


def _left_s(standing: SweepStanding, trials: Mapping[str, KeptTrial]) -> float | None:
    """Return the time left at the pace so far, with as many trials at once as run now; None without
    a trial to go by.
    """
    trials_left = 0.0  # a trial that has begun counts by its share of epochs
    estimates_s = []  # of a whole trial, by the epochs of unfinished ones

    for trial in standing.trials:
        if trial.state == "finished":
            continue

        stored = trials.get(trial.key, KeptTrial())
        num_epochs = _num_epochs(stored)
        if not num_epochs:
            trials_left += 1.0
            continue

        trials_left += max(1 - trial.epoch / num_epochs, 0.0)
        epochs = epochs_of(stored.events)
        if epochs:
            mean_s = statistics.fmean(float(event["seconds"]) for event in epochs)
            estimates_s.append(mean_s * num_epochs)

    trial_s = standing.finished_s or estimates_s
    if not trial_s or not trials_left:
        return None

    num_at_once = max(standing.count("running"), 1)
    return statistics.median(trial_s) * trials_left / num_at_once


class StoreWatch:
    """All sweeps of a store."""

    def __init__(self, store: Store, make_page: MakePage) -> None:
        self.store = ReadOnlyStore(store)
        self.make_page = make_page
        self.pause_s = PAUSE_S[self.store.disk is None]
        self.problem = ""
        self._sweeps: dict[str, SweepWatch] = {}
        self._names: list[str] = []
        self._begun: frozenset[str] = frozenset()
        self._next_names = self._next_begun = 0.0
        self._lock = threading.RLock()

    def names(self) -> list[str]:
        """Return the names of the sweeps. What cannot be read is `problem`, and leaves the last
        ones.
        """
        with self._lock:
            now = time.monotonic()
            if now >= self._next_names:
                try:
                    self._names = sweep_names(self.store)
                    self.problem = ""
                except (ValueError, OSError) as error:
                    self.problem = one_line(scrubbed(str(error)))

                self._next_names = time.monotonic() + self.pause_s

            return self._names

    def sweep(self, name: str) -> SweepWatch | None:
        """Return a sweep of the store by its name; None if there is none of this name."""
        with self._lock:
            if name not in self._sweeps:
                if name not in self.names():
                    return None

                sweep = SweepWatch(self.store, name, self.begun, self.make_page)
                self._sweeps[name] = sweep

            return self._sweeps[name]

    def look_at_all(self) -> list[SweepState]:
        """Return the states of all sweeps, in the order of their names."""
        watches = [self.sweep(name) for name in self.names()]
        return [watch.look() for watch in watches if watch is not None]

    def begun(self) -> frozenset[str]:
        """Return the keys of the trials that have a folder. Raises StoreError."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next_begun:
                spent = Spent()
                listed = self.store.list("trials")
                self._begun = frozenset(entry.rstrip("/") for entry in listed)
                self._next_begun = spent.next_time(self.pause_s / 2)

            return self._begun
