"""A sweep's mirror in MLflow over a launch: ready at its begin, level with the store at its end,
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
from pointsweep.tracking.artifacts import artifact_mode
from pointsweep.tracking.background import drain
from pointsweep.tracking.mlflow_client import finish, prepare, publish, require_usable
from pointsweep.tracking.payload import runs_page, trial_page
from pointsweep.tracking.target import Target, TrackerUnavailableError, TrialTags, default_uri
from pointsweep.utils.masking import masked
from pointsweep.utils.sqlite_files import sqlite_path

UI_ADDRESS = "http://127.0.0.1:5000"  # of `mlflow ui`, unless it is told another
MIRROR_VERSION = 2  # of what is sent: after a change of it everything is looked at again
PYTHON = shlex.quote(sys.executable)


@dataclass
class Mirroring:
    """The mirror of one sweep. `places` may grow while the sweep runs: with adaptive seeds, and in
    a search.

    `target` is None where MLflow is off, has everything already or cannot be used; `problem` says
    why it is behind.
    """

    uri: str
    store: Store
    layout: Layout
    places: Mapping[str, TrialTags]
    target: Target | None = None
    problem: str = ""
    skipped: bool = False
    # why files of trials are missing there, though their runs and metrics are there
    files_problem: str = ""
    _file: tuple[int, int] | None = None
    _mirrored_experiment: str = ""

    def begin(self, to_run: bool) -> None:
        """Make MLflow ready, unless it is off, or has all of a sweep of which nothing is left to
        run.
        """
        try:
            if self.uri == "none" or (not to_run and self._is_level()):
                self.skipped = True
                return
            self.target = prepare(self.uri, self.store, self.layout)
            self._file = self._identity()
        except TrackerUnavailableError as error:
            self.problem = str(error)
            print(f"{error}\ntraining goes on without it", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Send what MLflow does not have yet."""
        if self.skipped:
            return
        if self.target is not None:
            drain(self.target)  # or both would send the same
        self.problem = ""
        try:
            self._require_same_file()
            # Once more: the experiment may have been deleted meanwhile, the database mended.
            self.target = prepare(self.uri, self.store, self.layout)
            self.files_problem = finish(self.target, self.store, self.places)
            self._require_same_file()
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
            publish(self.target, files, metrics)
        except TrackerUnavailableError as error:
            print(
                f"MLflow has no table and report of {self.layout.name}: {error}",
                file=sys.stderr,
                flush=True,
            )

    def lines(self) -> list[str]:
        """Return what a launch says of MLflow at its end: where it is, or why it is behind and how
        that is mended.
        """
        if self.uri == "none":
            return []
        if self.files_problem:
            again = sync_command(self.store, self.uri)
            return [
                *self._place(),
                f"         has all runs and metrics, but {self.files_problem}; then: {again}",
            ]
        return self._place()

    def _place(self) -> list[str]:
        if self.problem:
            return [
                f"MLflow   is behind: {self.problem}; then: {sync_command(self.store, self.uri)}"
            ]
        shown = shlex.quote(masked(self.uri))
        page = runs_page(self.experiment_id) if self.experiment_id else ""
        if sqlite_path(self.uri) is not None:
            opened = f"opens at {UI_ADDRESS}{page}"
            return [
                f"MLflow   {PYTHON} -m mlflow ui --backend-store-uri {shown}",
                f"         {opened}",
            ]
        if self.uri.startswith(("http:", "https:")):
            return [f"MLflow   {masked(self.uri).rstrip('/')}{page}"]
        return [f"MLflow   {masked(self.uri)}"]

    def trial_page(self, key: str) -> str:
        """Return the address of the page that shows a trial's run; "" where there is no MLflow."""
        if not self.experiment_id:
            return ""
        server = (
            masked(self.uri).rstrip("/") if self.uri.startswith(("http:", "https:")) else UI_ADDRESS
        )
        return f"{server}{trial_page(self.experiment_id, key)}"

    @property
    def experiment_id(self) -> str:
        """The sweep's experiment, "" where nobody has asked MLflow for it."""
        return self.target.experiment_id if self.target is not None else self._mirrored_experiment

    def _identity(self) -> tuple[int, int] | None:
        """Return which file the database is, None if it is none."""
        path = sqlite_path(self.uri)
        if path is None or not path.exists():
            return None
        status = path.stat()
        return status.st_dev, status.st_ino

    def _require_same_file(self) -> None:
        """Raise TrackerUnavailableError if the database was moved: what was sent then went into the
        file that was opened first.
        """
        if self._file is not None and self._file != self._identity():
            raise TrackerUnavailableError(
                f"MLflow's database {sqlite_path(self.uri)} was moved or replaced while the"
                " sweep ran"
            )

    @property
    def _mark(self) -> str:
        return f"sweeps/{self.layout.name}/mirrored.json"

    def _level(self) -> bytes:
        return json.dumps({**self._sent(), "experiment": self.experiment_id}).encode()

    def _sent(self) -> dict[str, object]:
        return {
            "uri": masked(self.uri),
            "keys": sorted(self.places),
            "version": MIRROR_VERSION,
            "files": artifact_mode(),
        }

    def _is_level(self) -> bool:
        """Return whether everything has been sent to this MLflow, and its database, if it is a
        file, is still there.
        """
        if not self.store.exists(self._mark):
            return False
        try:
            mark = json.loads(self.store.read(self._mark))
        except ValueError:
            return False
        if (
            not isinstance(mark, dict)
            or {name: mark.get(name) for name in self._sent()} != self._sent()
        ):
            return False
        self._mirrored_experiment = str(mark.get("experiment", ""))
        path = sqlite_path(self.uri)
        if path is None:
            return True
        require_usable(self.uri, writes=False)
        return path.exists()


@contextmanager
def mirrored(
    uri: str, store: Store, layout: Layout, places: Mapping[str, TrialTags], to_run: bool
) -> Iterator[Mirroring]:
    """A sweep's mirror: ready where the block begins, level with the store after it. An interrupted
    block leaves it as it is.
    """
    mirroring = Mirroring(uri, store, layout, places)
    mirroring.begin(to_run)
    yield mirroring
    mirroring.end()


def run_pages(store: Store, name: str) -> dict[str, str]:
    """Return the address of the page of every run of a sweep that MLflow has, by trial key; none
    where it was not mirrored to a database or a server.
    """
    try:
        mark = json.loads(store.read(f"sweeps/{name}/mirrored.json"))
        uri, experiment, keys = str(mark["uri"]), str(mark["experiment"]), list(mark["keys"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}
    if not experiment:
        return {}
    server = uri.rstrip("/") if uri.startswith(("http:", "https:")) else UI_ADDRESS
    return {str(key): f"{server}{trial_page(experiment, str(key))}" for key in keys}


def sync_command(store: Store, uri: str) -> str:
    """Return the command that brings MLflow level with the store."""
    line = f"{PYTHON} -m pointsweep.sync {shlex.quote(store.url)}"
    if uri == default_uri(store):
        return line
    if uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return f'{line} --tracking-uri "$MLFLOW_TRACKING_URI"'
    return f"{line} --tracking-uri {shlex.quote(masked(uri))}"


def tracking_uri(given: str | None, store: Store) -> str:
    """Return the URI of MLflow: as the command says, else the environment, else a database in the
    store; `none` for none.
    """
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
