"""A sweep as MLflow alone has it: its layout, records and failures read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pointsweep.as_run import joined
from pointsweep.masking import masked
from pointsweep.records import Layout, Record, from_json, layout_from_json
from pointsweep.tracking import STEPS, connected, trial_runs


def read_table(uri: str, sweep: str) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Layout, records and failures of a sweep from MLflow alone. Raises ValueError if it is not there."""
    client = connected(uri)
    experiment = client.get_experiment_by_name(sweep)
    if experiment is None:
        known = ", ".join(sorted(found.name for found in client.search_experiments())) or "none"
        raise ValueError(f"MLflow at {masked(uri)} has no experiment {sweep!r}; it has: {known}")
    parents = client.search_runs([experiment.experiment_id], "tags.`pointsweep.kind` = 'sweep'", max_results=1)
    if not parents:
        raise ValueError(f"MLflow experiment {sweep!r} holds no run of a sweep")
    with tempfile.TemporaryDirectory() as folder:
        kept = client.download_artifacts(parents[0].info.run_id, "layout.json", folder)
        layout = layout_from_json(Path(kept).read_text())
    records, failures = {}, {}
    for run in trial_runs(uri, experiment.experiment_id):
        key = run.data.tags["pointsweep.key"]
        text = joined(run.data.tags)
        if text:
            records[key] = from_json(text)
        elif "pointsweep.failure" in run.data.tags:
            failures[key] = run.data.tags["pointsweep.failure"]
    return layout, records, failures


def steps_by_run(uri: str, sweep: str) -> list[tuple[str, list[int]]]:
    """The trial's key and the steps that were sent, for every trial run of a sweep: what chaos.py looks at."""
    client = connected(uri)
    experiment = client.get_experiment_by_name(sweep)
    runs = trial_runs(uri, experiment.experiment_id) if experiment is not None else []
    return [(r.data.tags["pointsweep.key"], [m.step for m in client.get_metric_history(r.info.run_id, STEPS)]) for r in runs]


def rename(uri: str, sweep: str, name: str) -> None:
    """Gives a sweep's experiment another name, so that the sweep begins a new one."""
    experiment = connected(uri).get_experiment_by_name(sweep)
    if experiment is not None:
        connected(uri).rename_experiment(experiment.experiment_id, name)
