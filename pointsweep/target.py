"""Where a sweep is mirrored, and a trial's place in it: plain values that tell workers what tracking.py is to do."""

from __future__ import annotations

from dataclasses import dataclass

from pointsweep.store import FileStore, Store


class TrackerAway(RuntimeError):
    """MLflow cannot be reached, or refuses. Nothing is lost: the store has it all, the next run mirrors it."""


@dataclass(frozen=True)
class Target:
    """Where a sweep is mirrored: server or database, experiment and parent run.

    `fresh`: the experiment had no trial's run when the launch began, and all its workers see the same folders.
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
    """A database in the store; none for a store on S3, where only a server serves all nodes."""
    return f"sqlite:///{store.path('mlflow.db')}" if isinstance(store, FileStore) else "none"
