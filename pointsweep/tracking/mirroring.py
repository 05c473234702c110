"""A sweep's mirror in a tracker over a launch: ready at its begin, level with the store at its end,
and never in training's way.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pointsweep.results.records import Layout
from pointsweep.storage.base import Store
from pointsweep.tracking.background import drain
from pointsweep.tracking.target import (
    Target,
    TrackerUnavailableError,
    TrialTags,
    default_uri,
)
from pointsweep.tracking.trackers import open_tracker
from pointsweep.utils.masking import masked

PYTHON = shlex.quote(sys.executable)


@dataclass
class Mirroring:
    """The mirror of one sweep. `trials` may grow while the sweep runs: with adaptive seeds, and in
    a search.

    `target` is None where there is no tracker, or it has everything already or cannot be used;
    `problem` says why it is behind.
    """

    uri: str
    store: Store
    layout: Layout
    trials: Mapping[str, TrialTags]
    target: Target | None = None
    problem: str = ""
    skipped: bool = False
    # why files of trials are missing there, though their runs and metrics are there
    files_problem: str = ""
    _mirrored_experiment: str = ""

    def __post_init__(self) -> None:
        self.tracker = open_tracker(self.uri)

    def begin(self, to_run: bool) -> None:
        """Make the tracker ready, unless there is none, or it has all of a sweep of which nothing
        is left to run.
        """
        try:
            if self.uri == "none" or (not to_run and self._is_level()):
                self.skipped = True
                return
            self.target = self.tracker.begin(self.store, self.layout)
        except TrackerUnavailableError as error:
            self.problem = str(error)
            print(f"{error}\ntraining goes on without it", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Send what the tracker does not have yet."""
        if self.skipped:
            return

        if self.target is not None:
            drain(self.target)  # or both would send the same

        self.problem = ""
        try:
            # Once more: the experiment may have been deleted meanwhile, the database mended.
            self.target = self.tracker.begin(self.store, self.layout)
            self.files_problem = self.tracker.end(self.target, self.store, self.trials)
            if not self.files_problem:
                self.store.write(self._mark, self._level())
        except TrackerUnavailableError as error:
            self.problem = str(error)

    def publish(self, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
        """Send a sweep's table, report and file, and the numbers of its cells, where its trials
        were sent; else do nothing.
        """
        if self.skipped or self.problem or self.target is None:
            return

        try:
            self.tracker.publish(self.target, files, metrics)
        except TrackerUnavailableError as error:
            print(
                f"{self.tracker.title} has no table and report of {self.layout.name}: {error}",
                file=sys.stderr,
                flush=True,
            )

    def lines(self) -> list[str]:
        """Return what a launch says of the tracker at its end: where it is, or why it is behind and
        how that is mended.
        """
        if self.uri == "none":
            return []

        command = sync_command(self.store, self.uri)
        if self.problem:
            texts = [f"is behind: {self.problem}; then: {command}"]
        else:
            texts = self.tracker.lines(self.experiment_id)

        if self.files_problem:
            texts.append(
                f"has all runs and metrics, but {self.files_problem}; then: {command}"
            )

        lines = []
        label = self.tracker.title  # before the first line alone
        for text in texts:
            lines.append(f"{label:<8} {text}")
            label = ""

        return lines

    def trial_page(self, key: str) -> str:
        """Return the address of the page that shows a trial's run; "" where there is none."""
        if self.experiment_id:
            return self.tracker.trial_page(self.experiment_id, key)

        return ""

    @property
    def experiment_id(self) -> str:
        """The sweep's experiment, "" where nobody has asked the tracker for it."""
        if self.target is not None:
            return self.target.experiment_id

        return self._mirrored_experiment

    @property
    def _mark(self) -> str:
        return f"sweeps/{self.layout.name}/mirrored.json"

    def _level(self) -> bytes:
        return json.dumps({**self._sent(), "experiment": self.experiment_id}).encode()

    def _sent(self) -> dict[str, object]:
        return {
            "uri": masked(self.uri),
            "keys": sorted(self.trials),
            **self.tracker.form(),
        }

    def _is_level(self) -> bool:
        """Return whether everything has been sent to this tracker, and is there as far as can be
        told.
        """
        if not self.store.exists(self._mark):
            return False

        try:
            mark = json.loads(self.store.read(self._mark))
        except ValueError:
            return False

        if not isinstance(mark, dict):
            return False

        for name, value in self._sent().items():
            if mark.get(name) != value:
                return False

        self._mirrored_experiment = str(mark.get("experiment", ""))
        return self.tracker.is_there()


@contextmanager
def mirrored(
    uri: str,
    store: Store,
    layout: Layout,
    trials: Mapping[str, TrialTags],
    to_run: bool,
) -> Iterator[Mirroring]:
    """A sweep's mirror: ready where the block begins, level with the store after it. An interrupted
    block leaves it as it is.
    """
    mirroring = Mirroring(uri, store, layout, trials)
    mirroring.begin(to_run)
    yield mirroring
    mirroring.end()


def run_pages(store: Store, name: str) -> dict[str, str]:
    """Return the address of the page of every run of a sweep that its tracker has, by trial key;
    none where it was not mirrored, or has no pages.
    """
    try:
        mark = json.loads(store.read(f"sweeps/{name}/mirrored.json"))
        uri = str(mark["uri"])
        experiment = str(mark["experiment"])
        keys = list(mark["keys"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}

    if not experiment:
        return {}

    tracker = open_tracker(uri)
    pages = {}
    for key in map(str, keys):
        page = tracker.trial_page(experiment, key)
        if page:
            pages[key] = page

    return pages


def sync_command(store: Store, uri: str) -> str:
    """Return the command that brings a tracker level with the store."""
    line = f"{PYTHON} -m pointsweep.sync {shlex.quote(store.url)}"
    if uri == default_uri(store):
        return line
    if uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return f'{line} --tracking-uri "$MLFLOW_TRACKING_URI"'

    return f"{line} --tracking-uri {shlex.quote(masked(uri))}"
