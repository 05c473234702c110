"""A sweep as MLflow alone has it: its layout, records and failures read back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pointsweep.results.records import Layout, Record, from_json, layout_from_json
from pointsweep.tracking.mlflow.client import (
    STEPS,
    connected,
    require_active,
    require_usable,
    tracker_errors,
    trial_runs,
)
from pointsweep.tracking.mlflow.payload import joined, layout_text
from pointsweep.tracking.target import NotMirroredError
from pointsweep.utils.masking import masked
from pointsweep.utils.sqlite_files import sqlite_path


def read_table(
    uri: str, sweep: str
) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Layout, records and failures of a sweep from MLflow alone. Raises NotMirroredError if it is
    not there, TrackerUnavailableError.
    """
    with tracker_errors(uri):
        path = sqlite_path(uri)
        if path is not None and not path.exists():
            raise NotMirroredError(f"MLflow at {masked(uri)}: there is no such file")
        if path is not None and path.is_file() and path.stat().st_size == 0:
            # MLflow would make its tables in it.
            raise NotMirroredError(
                f"MLflow at {masked(uri)}: the file is empty; pointsweep sync STORE fills it"
            )

        require_usable(uri, writes=False)
        return _read_table(uri, sweep)


def _read_table(
    uri: str, sweep: str
) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    client = connected(uri)
    experiment = client.get_experiment_by_name(sweep)
    if experiment is None:
        experiments = (
            ", ".join(sorted(item.name for item in client.search_experiments()))
            or "none"
        )
        raise NotMirroredError(
            f"MLflow at {masked(uri)} has no experiment {sweep!r}; it has: {experiments}"
        )

    require_active(experiment, uri)
    parents = client.search_runs(
        [experiment.experiment_id], "tags.`pointsweep.kind` = 'sweep'", max_results=1
    )
    if not parents:
        raise NotMirroredError(
            f"MLflow experiment {sweep!r} holds no run of a sweep; pointsweep sync STORE makes it"
        )

    layout = layout_from_json(
        layout_text(parents[0].data.tags)
        or _layout_artifact(client, parents[0].info.run_id, sweep)
    )

    records, failures = {}, {}
    for run in trial_runs(uri, experiment.experiment_id):
        key = run.data.tags["pointsweep.key"]
        text = joined(run.data.tags)
        if text:
            records[key] = from_json(text)
        elif "pointsweep.failure" in run.data.tags:
            failures[key] = run.data.tags["pointsweep.failure"]

    return layout, records, failures


def _layout_artifact(client: Any, run_id: str, sweep: str) -> str:
    """The layout as earlier versions have kept it: a file, whose folder does not move with the
    store.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(
                client.download_artifacts(run_id, "layout.json", folder)
            ).read_text()
        except Exception as error:  # each artifact store of MLflow raises its own
            raise NotMirroredError(
                f"MLflow's run of sweep {sweep!r} does not say what the table looks like;"
                " pointsweep sync STORE mends it"
            ) from error


def steps_by_run(uri: str, sweep: str) -> list[tuple[str, list[int]]]:
    """The trial's key and the steps that were sent, for every trial run of a sweep: what chaos.py
    looks at.
    """
    client = connected(uri)
    experiment = client.get_experiment_by_name(sweep)
    runs = trial_runs(uri, experiment.experiment_id) if experiment is not None else []
    steps = []

    for run in runs:
        history = client.get_metric_history(run.info.run_id, STEPS)
        steps.append(
            (run.data.tags["pointsweep.key"], [metric.step for metric in history])
        )

    return steps


def rename(uri: str, sweep: str, name: str) -> None:
    """Give a sweep's experiment another name, so that the sweep begins a new one."""
    experiment = connected(uri).get_experiment_by_name(sweep)
    if experiment is not None:
        connected(uri).rename_experiment(experiment.experiment_id, name)
