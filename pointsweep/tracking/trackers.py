"""Trackers: what shows the runs of a sweep while they train, each known by the scheme of its
address.

A launch knows none of them by its class. MLflow, whose servers and databases have many schemes, is
meant by every address that names no other tracker. A further tracker is a file with a class that
holds `Tracker`, and a line in `TRACKERS`; an installed package offers one by an entry point of the
group `pointsweep.trackers`, called as its scheme. tests/contracts/test_trackers.py runs over every
one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Protocol

from pointsweep.results.records import Layout, Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import Store
from pointsweep.tracking.target import Target, TrialTags
from pointsweep.utils import entry_points

MLFLOW = "mlflow"
# The scheme of an address, and the class that is called with the address.
TRACKERS = {MLFLOW: "pointsweep.tracking.mlflow.tracker:MlflowTracker"}


class TrialWriter(Protocol):
    """Contract of what sends trials to a tracker, from one process, in a thread of its own."""

    def send(self, folder: TrialFolder, tags: TrialTags) -> None:
        """Bring a trial's run up to its folder, whose name is the trial's key.

        Called again it changes nothing, and a process killed on the way leaves nothing that the
        next call would double; another process may send the same trial at the same time. It may
        raise anything: training goes on, a new writer tries again.
        """


class Tracker(Protocol):
    """Contract of a tracker: a launch begins a sweep there, sends its trials while they train, and
    ends it. The store stays the truth: what a tracker lacks is sent by the next launch, or by the
    command sync.

    It is made with an address, which costs nothing. Where a server cannot be reached, or refuses,
    methods raise TrackerUnavailableError, in words that hold no secret.
    """

    title: str
    """What messages call it."""

    def mistake(self) -> str:
        """Return why the address can name no such tracker, "" if it can. Nothing is opened."""

    def problem(self) -> str:
        """Return why the tracker cannot be used now, "" if it answers."""

    def begin(self, store: Store, layout: Layout) -> Target:
        """Make the tracker ready for a sweep, new or known, and return what its writers need."""

    def writer(self, target: Target) -> TrialWriter:
        """Return what sends trials; called in a worker or the driver, in the thread that sends."""

    def end(self, target: Target, store: Store, trials: Mapping[str, TrialTags]) -> str:
        """Send what is missing of the trials, which are named by key, and close the sweep. Return
        what could not be sent beside runs and metrics, "" if nothing.
        """

    def publish(
        self, target: Target, files: Mapping[str, bytes], metrics: Mapping[str, float]
    ) -> None:
        """Send a sweep's table, report and file, and the numbers of its cells; the same again
        replace those before.
        """

    def set_aside(self, sweep: str, keys: Iterable[str]) -> None:
        """Keep the runs of trials that are trained again from being taken for the new ones."""

    def read_table(
        self, sweep: str
    ) -> tuple[Layout, dict[str, Record], dict[str, str]]:
        """Return a sweep's layout, its records and the reasons of its failures, both by key. Raises
        NotMirroredError if it is not there, or if this tracker keeps no records.
        """

    def is_there(self) -> bool:
        """Return whether what was sent earlier is still there, as far as it can be told without a
        connection.
        """

    def form(self) -> Mapping[str, object]:
        """Return what of a trial is sent, and in which version; plain values. When they change,
        finished sweeps are looked at again.
        """

    def lines(self, experiment: str) -> list[str]:
        """Return where the runs are looked at, for the end of a launch; `experiment` is that of a
        target, "" where it is not known.
        """

    def trial_page(self, experiment: str, key: str) -> str:
        """Return the address of the page that shows a trial, "" if there is none."""


def register(scheme: str, target: str) -> None:
    """Add a tracker: `target` is "module:Class", called with an address. Raises ValueError for a
    scheme that is taken.
    """
    if TRACKERS.get(scheme, target) != target:
        raise ValueError(f"tracker: the scheme {scheme}: is taken")

    TRACKERS[scheme] = target


def open_tracker(uri: str) -> Tracker:
    """Return the tracker that an address means; its module is imported now, and nothing opened."""
    scheme = uri.partition(":")[0]
    if scheme in TRACKERS:
        return _create(TRACKERS[scheme], uri)

    mlflow = _create(TRACKERS[MLFLOW], uri)
    if mlflow.mistake() and _discover(scheme):
        return _create(TRACKERS[scheme], uri)

    return mlflow


def uri_mistake(uri: str) -> str:
    """Return why an address can name no tracker at all, "" if it can; "none" is no tracker."""
    if uri == "none":
        return ""

    return open_tracker(uri).mistake()


def _create(target: str, uri: str) -> Tracker:
    module, _, name = target.partition(":")
    tracker: Tracker = getattr(importlib.import_module(module), name)(uri)
    return tracker


def _discover(scheme: str) -> bool:
    """Register the tracker that an installed package offers for a scheme; tell whether there is
    one.
    """
    for point in entry_points.offered("trackers", scheme):
        register(scheme, point.value)
        return True

    return False
