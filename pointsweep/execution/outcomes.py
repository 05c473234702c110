"""Outcomes of the trials of a launch, as their packs report them. In the driver; what one result
costs does not grow with the launch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pointsweep.execution.launchers import (
    Event,
    Listener,
    Pack,
    end_event,
    epoch_event,
    not_started,
)
from pointsweep.execution.prometheus import Gauges
from pointsweep.results.failures import POLICIES, Failure
from pointsweep.results.working_copy import work_folder
from pointsweep.storage.stores import open_store
from pointsweep.tracking.background import mirror_to
from pointsweep.tracking.target import Target, TrialTags
from pointsweep.training.runner import Job
from pointsweep.training.supervisor import Outcome, record_loss

# of a pack whose worker ended, for whatever reason
RETRIES = POLICIES["lost_node"].retries + POLICIES["hang"].retries
# between two reports of a pack: each waits for the driver, and longer if that is busy
REPORT_S = 1.0


class WorkerReporter:
    """Reporter in a pack's worker: what its trials report is passed on by `report` in a form that
    `OutcomeCollector` takes; quick epochs together.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self.report = report
        self.said_at = time.monotonic()
        # the last one of each trial that is not passed on yet
        self.epochs: dict[str, dict[str, Any]] = {}

    def __call__(self, result: dict[str, Any]) -> None:
        """The end of an epoch."""
        key = result["key"]
        trained = 1

        if key in self.epochs:
            trained += self.epochs[key]["trained"]

        self.epochs[key] = {**result, "trained": trained}

        if time.monotonic() - self.said_at >= REPORT_S:
            self._say()

    def end(self, outcomes: Sequence[Outcome]) -> None:
        """Return how the pack's trials ended."""
        self._say(outcomes)

    def _say(self, outcomes: Sequence[Outcome] = ()) -> None:
        # Texts: Tune would take nested values apart.
        self.report(
            {
                "epochs": json.dumps(list(self.epochs.values())),
                "outcomes": json.dumps(list(map(vars, outcomes))),
            }
        )
        self.epochs = {}
        self.said_at = time.monotonic()


class OutcomeCollector:
    """Collector of how the trials of all packs ended, and passes events on. `show` is called where
    the gauges may have changed.

    `targets`: where this process mirrors trials to, by sweep, as their workers do not.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        job: Job,
        listen: Listener,
        gauges: Gauges,
        show: Callable[[], None],
        targets: Mapping[str, Target] | None = None,
    ) -> None:
        self.job = job
        self.listen = listen
        self.targets = targets or {}
        self.store = open_store(job.store)
        self.gauges = gauges
        self.show = show
        self.ended: dict[str, Outcome] = {}
        self.tags: dict[str, TrialTags] = {}

        for pack in packs:
            for task in pack:
                self.tags[task.config.key()] = task.tags

    def result(self, result: Mapping[str, Any]) -> None:
        """Return what a pack reports: epochs of its trials, and how these ended."""
        for epoch in json.loads(result["epochs"]):
            # The tracker is written by the worker or by this process.
            worker_lag_s = epoch.get("tracker_lag_s", 0.0)
            lag_s = max(worker_lag_s, self._mirror(epoch["key"]))
            self.gauges.epoch({**epoch, "tracker_lag_s": lag_s})
            self.show()
            self.listen(epoch_event(epoch))

        for item in json.loads(result["outcomes"]):
            self.end(Outcome(**item))

    def start(self, key: str) -> None:
        """A trial has got a worker."""
        self.gauges.start(key)
        self.show()
        self.listen(Event("started", key))

    def wait(self, key: str) -> None:
        """A trial has lost its worker and waits for another."""
        self.gauges.wait(key)
        self.show()

    def lost(self, pack: Pack, error: str) -> None:
        """Ray has given a pack up. The worker could not say so in the histories of its trials, so
        it is said here.
        """
        for task in pack:
            key = task.config.key()
            if key in self.ended:
                continue

            reason = f"its worker was lost {RETRIES + 1} times: {error}"
            failure = record_loss(
                self.store,
                key,
                Failure("lost_node", reason),
                self.job.launch,
                self.job.wait_s,
            )

            self.end(Outcome(key, "failed", failure.reason, failure.kind))

    def end(self, outcome: Outcome) -> None:
        """A trial has ended."""
        self.ended[outcome.key] = outcome
        self.gauges.end(outcome.key, outcome.status, outcome.reason)
        self.show()

        if outcome.status != "held":
            self._mirror(outcome.key)
            self.listen(end_event(outcome))

    def running(self) -> list[str]:
        """Return the keys of the trials that have not ended; some may not have begun."""
        return [key for key in self.tags if key not in self.ended]

    def outcomes(self, may_start: Callable[[], bool]) -> list[Outcome]:
        """Return how each trial ended; what was not begun waits for a larger budget, or was lost
        with Ray.
        """
        within_budget = may_start()
        outcomes = []

        for key in self.tags:
            if key in self.ended:
                outcomes.append(self.ended[key])
            elif within_budget:
                reason = "Ray ended before it ran"
                outcomes.append(Outcome(key, "failed", reason, "lost_node"))
            else:
                outcomes.append(not_started(key))

        return outcomes

    def _mirror(self, key: str) -> float:
        """Tell this process' writer that a trial's folder has changed; return for how long the
        tracker has been behind.
        """
        target = self.targets.get(self.tags[key].sweep)
        if target is None:
            return 0.0

        mirror = mirror_to(target)
        mirror.poke(work_folder(self.store, key), self.tags[key])
        return mirror.lag_s()
