"""A trial as a run of MLflow: what its history and record become there, as plain names and values;
and the record again of them.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pointsweep.results.events import Event
from pointsweep.results.metrics import RECORDED_FRACTIONS
from pointsweep.results.records import Layout, Record
from pointsweep.tracking.target import Target, TrialTags

# the tag of a sweep's run that says what its layout's pieces are together
LAYOUT_DIGEST = "pointsweep.layout"
# the tag of a trial's run that names its sweep's run
SWEEP_RUN = "pointsweep.sweep_run"
# of earlier versions; MLflow's page shows no run that has it until its parent is unfolded
NESTED = "mlflow.parentRunId"
VIEW = "trials"  # the view of a sweep's experiment that lists its trials with their metrics
COMMIT = re.compile(r"[0-9a-f]{40}")
CHUNK = 4000  # characters of a record in one tag; servers cut off or refuse longer ones


def flat(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a nested config; parts that are not there are left out."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", str(value)


def marks(
    target: Target, key: str, start: Event | None, tags: TrialTags
) -> dict[str, str]:
    """Return the tags that a trial's run is created with; `start` is the event that its first
    attempt began with.

    Runs are not nested in their sweep's run, which would hide them on MLflow's page until it is
    unfolded.
    """
    origin = start["origin"] if start is not None else {}
    run_tags = {
        SWEEP_RUN: target.parent_run_id,
        "pointsweep.kind": "trial",
        "pointsweep.key": key,
        "pointsweep.sweep": target.sweep,
        "row": tags.row,
        "column": tags.column,
        "seed": str(tags.seed),
        "cell": f"{tags.row} / {tags.column}",
        "mlflow.note.content": trial_note(target.sweep, key, tags),
        **source_tags(target.sweep),
    }

    for name, value in origin.items():
        run_tags[f"origin.{name}"] = value

    # With a + files differ from the commit; without a repository there is a digest of the files in
    # its place.
    commit = origin.get("code", "").rstrip("+")
    if COMMIT.fullmatch(commit):
        run_tags["mlflow.source.git.commit"] = commit

    return run_tags


def source_tags(sweep: str) -> dict[str, str]:
    """Return who made a run, and by which command, where MLflow looks for them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unknown"

    return {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"pointsweep run {sweep}",
    }


def trial_note(sweep: str, key: str, tags: TrialTags) -> str:
    """Return what stands above a trial's run on its page: its cell, and how it is looked at and
    trained again.
    """
    why = shlex.join(["pointsweep", "tables", sweep, "--why", tags.row, tags.column])
    replay = shlex.join(["pointsweep", "replay", sweep, tags.row, tags.column])

    return (
        f"**{tags.row} / {tags.column}**, seed {tags.seed} of the sweep {sweep}. The trial's folder"
        f" in the store is `trials/{key}`.\n\n`{why}` says how its cell came about,"
        f" `{replay}` trains it again and compares."
    )


def experiment_tags(layout: Layout) -> dict[str, str]:
    """Return the tags of a sweep's experiment: that it is of models, not of agents, and the view of
    its trials.

    MLflow keeps views that are shared by a link as such tags.
    """
    split, _, measure = layout.metric.partition("/")
    # what is computed from predictions is not in MLflow
    if measure not in RECORDED_FRACTIONS:
        split = "test"
        measure = RECORDED_FRACTIONS[0]

    metrics = [f"{split}/{measure}", "train/loss"]
    if split == "test":
        metrics.insert(0, metric_name(measure, layout.protocol))

    columns = [f"metrics.`{name}`" for name in metrics]
    columns += ["tags.`row`", "tags.`column`", "tags.`seed`"]
    view = {
        "searchFilter": "tags.`pointsweep.kind` = 'trial'",
        "selectedColumns": columns,
    }

    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def runs_page(experiment: str) -> str:
    """Return the part of an address behind a server's name that opens the trials of an experiment
    with their metrics.
    """
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"/#/experiments/{experiment}/runs?{query}"


def epoch_values(event: Event) -> dict[str, float]:
    """Return the metrics of an epoch; those below `system/` are what MLflow's page shows under
    System metrics. Epochs of older versions have none of these.
    """
    values = dict(event["metrics"])
    for name in ("lr", "seconds", "peak_memory_bytes"):
        values[name] = event[name]

    for name, value in event.get("system", {}).items():
        values[f"system/{name}"] = value

    return values


def summary(record: Record) -> tuple[dict[str, float], dict[str, str]]:
    """A record as metrics and tags: what a table compares, and the whole of it in pieces."""
    values = {}
    for protocol, metrics in record.metrics.items():
        for measure in RECORDED_FRACTIONS:
            if f"test/{measure}" in metrics:
                values[metric_name(measure, protocol)] = metrics[f"test/{measure}"]

    for name, count in record.parameters.items():
        values[f"parameters/{name}"] = float(count)

    values["clouds_per_s"] = record.clouds_per_s
    values["attempts"] = float(record.attempts)

    text = record.to_json()
    tags = {}

    for number, start in enumerate(range(0, len(text), CHUNK)):
        tags[f"pointsweep.record.{number}"] = text[start : start + CHUNK]

    tags["weights"] = record.weights_origin
    tags["marks"] = ", ".join(record.marks)
    tags["pointsweep.done"] = "1"

    return values, tags


def metric_name(measure: str, protocol: str) -> str:
    """Return what a measure of the test set at a protocol's epoch is called in MLflow, whose names
    cannot have an `@`.

    Earlier versions wrote `best_val/accuracy`, which reads as if it were an accuracy on the
    validation clouds.
    """
    return f"test/{measure}_at_{protocol}"


def layout_tags(text: str) -> dict[str, str]:
    """A sweep's layout, as JSON, in pieces. The digest comes last: without it the pieces are not
    believed.
    """
    tags = {}
    for number, start in enumerate(range(0, len(text), CHUNK)):
        tags[f"{LAYOUT_DIGEST}.{number}"] = text[start : start + CHUNK]

    digest = hashlib.sha256(text.encode()).hexdigest()
    return {**tags, LAYOUT_DIGEST: f"{len(tags)} {digest}"}


def layout_text(tags: Mapping[str, str]) -> str:
    """The layout in the tags of a sweep's run; empty if there is none, or not the whole of it."""
    count, _, digest = tags.get(LAYOUT_DIGEST, "").partition(" ")
    if not count.isdecimal():
        return ""

    text = ""
    for number in range(int(count)):
        text += tags.get(f"{LAYOUT_DIGEST}.{number}", "")

    if hashlib.sha256(text.encode()).hexdigest() == digest:
        return text

    return ""


def joined(tags: Mapping[str, str]) -> str:
    """The record in the tags of a run; empty if there is none."""
    chunks = {}
    for name, text in tags.items():
        prefix, _, number = name.rpartition(".")
        if prefix == "pointsweep.record":
            chunks[int(number)] = text

    return "".join(chunks[number] for number in sorted(chunks))


def trial_page(experiment: str, key: str) -> str:
    """Return the part of an address behind a server's name that opens an experiment with the run of
    one trial.
    """
    query = quote(f"tags.`pointsweep.key` = '{key}'")
    return f"/#/experiments/{experiment}/runs?searchFilter={query}&workflowType=machine_learning"
