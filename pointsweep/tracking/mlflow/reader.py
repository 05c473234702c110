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
        names = sorted(experiment.name for experiment in client.search_experiments())
        raise NotMirroredError(
            f"MLflow at {masked(uri)} has no experiment {sweep!r}; it has:"
            f" {', '.join(names) or 'none'}"
        )

    require_active(experiment, uri)
    parents = client.search_runs(
        [experiment.experiment_id], "tags.`pointsweep.kind` = 'sweep'", max_results=1
    )
    if not parents:
        raise NotMirroredError(
            f"MLflow experiment {sweep!r} holds no run of a sweep; pointsweep sync STORE makes it"
        )

    parent = parents[0]
    text = layout_text(parent.data.tags)
    if not text:
        text = _layout_artifact(client, parent.info.run_id, sweep)

    layout = layout_from_json(text)
    records = {}
    failures = {}

    for run in trial_runs(uri, experiment.experiment_id):
        tags = run.data.tags
        key = tags["pointsweep.key"]
        record = joined(tags)

        if record:
            records[key] = from_json(record)
        elif "pointsweep.failure" in tags:
            failures[key] = tags["pointsweep.failure"]

    return layout, records, failures


def _layout_artifact(client: Any, run_id: str, sweep: str) -> str:
    """The layout as earlier versions have kept it: a file, whose folder does not move with the
    store.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = client.download_artifacts(run_id, "layout.json", folder)
            return Path(file).read_text()
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

    if experiment is None:
        return []

    steps = []
    for run in trial_runs(uri, experiment.experiment_id):
        key = run.data.tags["pointsweep.key"]
        history = client.get_metric_history(run.info.run_id, STEPS)
        steps.append((key, [metric.step for metric in history]))

    return steps


def rename(uri: str, sweep: str, name: str) -> None:
    """Give a sweep's experiment another name, so that the sweep begins a new one."""
    client = connected(uri)
    experiment = client.get_experiment_by_name(sweep)

    if experiment is not None:
        client.rename_experiment(experiment.experiment_id, name)
