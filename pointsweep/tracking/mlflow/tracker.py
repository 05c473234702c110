"""MLflow under the contract of a tracker."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping

from pointsweep.results.records import Layout, Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import Store
from pointsweep.tracking.mlflow import client, payload, reader
from pointsweep.tracking.mlflow.address import uri_mistake
from pointsweep.tracking.mlflow.artifacts import artifact_mode
from pointsweep.tracking.target import Target, TrackerUnavailableError, TrialTags
from pointsweep.utils.masking import masked
from pointsweep.utils.sqlite_files import sqlite_path

UI_ADDRESS = "http://127.0.0.1:5000"  # of `mlflow ui`, unless it is told another
VERSION = 2  # of what is sent of a trial
PYTHON = shlex.quote(sys.executable)


class MlflowWriter:
    """Writer of one process; it remembers which runs there are."""

    def __init__(self, target: Target) -> None:
        self.runs = client.Runs(target)

    def send(self, folder: TrialFolder, tags: TrialTags) -> None:
        """Bring a trial's run up to its folder."""
        client.sync_trial(self.runs, folder, tags)


class MlflowTracker:
    """MLflow at one address: a server, or a database."""

    title = "MLflow"

    def __init__(self, uri: str) -> None:
        self.uri = uri
        # the database that a launch began with
        self._file: tuple[int, int] | None = None

    def mistake(self) -> str:
        """Return why the address can name no MLflow."""
        return uri_mistake(self.uri)

    def problem(self) -> str:
        """Return what is wrong with the server or database."""
        return client.reachable(self.uri)

    def begin(self, store: Store, layout: Layout) -> Target:
        """Prepare the database, the experiment, and the run of the sweep itself."""
        self._require_same_file()
        target = client.prepare(self.uri, store, layout)
        self._file = self._file or self._identity()

        return target

    def writer(self, target: Target) -> MlflowWriter:
        """Return the writer of this process."""
        return MlflowWriter(target)

    def end(self, target: Target, store: Store, trials: Mapping[str, TrialTags]) -> str:
        """Send what is missing, and close the sweep's run; return why files are missing."""
        problem = client.finish(target, store, trials)
        self._require_same_file()
        return problem

    def publish(
        self, target: Target, files: Mapping[str, bytes], metrics: Mapping[str, float]
    ) -> None:
        """Send a sweep's files and the numbers of its cells to its run."""
        client.publish(target, files, metrics)

    def set_aside(self, sweep: str, keys: Iterable[str]) -> None:
        """Give runs of trials that are trained again another key."""
        client.set_runs_aside(self.uri, sweep, keys)

    def read_table(
        self, sweep: str
    ) -> tuple[Layout, dict[str, Record], dict[str, str]]:
        """Return what the tags of a sweep's runs hold."""
        return reader.read_table(self.uri, sweep)

    def is_there(self) -> bool:
        """Return whether the database, if it is a file, is there. Raises TrackerUnavailableError
        for one that cannot be used.
        """
        path = sqlite_path(self.uri)
        if path is None:
            return True

        client.require_usable(self.uri, writes=False)
        return path.exists()

    def form(self) -> Mapping[str, object]:
        """Return the version of what is sent, and which files."""
        return {"version": VERSION, "files": artifact_mode()}

    def lines(self, experiment: str) -> list[str]:
        """Return the command that opens a database, or the address of a server."""
        page = payload.runs_page(experiment) if experiment else ""
        if sqlite_path(self.uri) is not None:
            shown = shlex.quote(masked(self.uri))
            return [
                f"{PYTHON} -m mlflow ui --backend-store-uri {shown}",
                f"opens at {UI_ADDRESS}{page}",
            ]

        if self._is_server():
            return [f"{masked(self.uri).rstrip('/')}{page}"]

        return [masked(self.uri)]

    def trial_page(self, experiment: str, key: str) -> str:
        """Return the address of the page that shows a trial's run."""
        if not experiment:
            return ""

        server = masked(self.uri).rstrip("/") if self._is_server() else UI_ADDRESS
        return f"{server}{payload.trial_page(experiment, key)}"

    def _is_server(self) -> bool:
        return self.uri.startswith(("http:", "https:"))

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
