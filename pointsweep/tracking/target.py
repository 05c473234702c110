"""Target of tracking: the tracker of a sweep, and a trial's place in it, as plain values that
travel to workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pointsweep.storage.base import Store
from pointsweep.storage.stores import folder_of
from pointsweep.utils.sqlite_files import sqlite_uri


class TrackerUnavailableError(RuntimeError):
    """A tracker cannot be reached, or refuses. Nothing is lost: the store has it all, the next run
    mirrors it.
    """


class NotMirroredError(ValueError):
    """A tracker answers, and does not have what is asked for."""


@dataclass(frozen=True)
class Target:
    """Target that a sweep is mirrored to: the address of its tracker, and what the tracker calls
    the sweep: in MLflow's words an experiment, and the run of the sweep itself.

    `fresh`: the experiment had no trial's run when the launch began, and all its workers see the
    same folders.
    """

    uri: str
    experiment_id: str
    parent_run_id: str
    sweep: str
    fresh: bool = False


@dataclass(frozen=True)
class TrialTags:
    """A trial's place in the table."""

    sweep: str
    row: str
    column: str
    seed: int

    @property
    def cell(self) -> str:
        """The name of the trial's run and of its line in a log."""
        return f"{self.row} / {self.column} / seed {self.seed}"


def default_uri(store: Store) -> str:
    """A database in the store; none for a store on a server (S3), where only a tracking server
    serves all nodes.
    """
    disk = folder_of(store)
    if disk is not None:
        return sqlite_uri(disk.path("mlflow.db"))

    return "none"


def tracking_uri(given: str | None, store: Store) -> str:
    """Return the address of the tracker: as the command says, else the environment, else a database
    of MLflow in the store; `none` for none.
    """
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
