"""Evidence that the report shows beside the records: curves, predictions, the true classes, and
clouds where this machine has them.

Everything comes from the trials' folders, but for the true classes of trials that did not keep
them, and the clouds: those are taken from the data sets that this machine has opened before
(`utils/array_cache.py`), found by the digest that the record names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pointsweep.reporting.html.search import ArmSearch, read_searches
from pointsweep.reporting.table import Table
from pointsweep.results.metrics import PER_OBJECT
from pointsweep.results.records import Record
from pointsweep.results.working_copy import PREDICTIONS, read_folder
from pointsweep.storage.base import Store
from pointsweep.utils.array_cache import find_entry

DRAWN = ("accuracy", "loss")  # metrics, of any split, whose curves the report draws
RATE = "learning rate"
# what numpy raises for a missing or damaged file
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Truth:
    """The test objects of a data set: their classes (n,), the names of these if known, clouds (n,
    P, 3) or None.
    """

    digest: str
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    clouds: np.ndarray | None = None


@dataclass(frozen=True)
class Evidence:
    """Evidence by trial key: the predicted classes (n,) of the table's protocol, and what is true
    of the same objects.

    Of a search also what it saw, one an arm. `histories`: by trial key and metric the values by
    epoch, of trials under way too; `links`: by trial key the page of its run in MLflow.
    """

    predictions: Mapping[str, np.ndarray] = field(default_factory=dict)
    truths: Mapping[str, Truth] = field(default_factory=dict)
    searches: Sequence[ArmSearch] = ()
    histories: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


def gather(store: Store, table: Table, records: Mapping[str, Record]) -> Evidence:
    """The evidence of every finished trial of a table, as far as it was kept."""
    from pointsweep.tracking.mirroring import run_pages  # the page alone needs it

    keys = table.trial_keys()
    finished = {key: records[key] for key in keys if key in records}
    predictions, kept_truths = _read_predictions(store, finished, table.protocol)

    # Trials of one data set share one truth.
    truth_of: dict[str, Truth | None] = {}
    truths = {}

    for key, predicted in predictions.items():
        record = finished[key]
        name = _data_name(record)
        if name not in truth_of:
            truth_of[name] = _with_clouds(kept_truths.get(name), record)

        truth = truth_of[name]
        if truth is not None and fits(predicted, truth, record, table.protocol):
            truths[key] = truth

    histories = {}
    for key in keys:
        history = _history(store, key)
        if history:
            histories[key] = history

    return Evidence(
        predictions=predictions,
        truths=truths,
        searches=read_searches(store, table.name),
        histories=histories,
        links=run_pages(store, table.name),
    )


def _read_predictions(
    store: Store, records: Mapping[str, Record], protocol: str
) -> tuple[dict[str, np.ndarray], dict[str, Truth]]:
    """Return the predictions that trials have kept, by key, and the truths, by data set."""
    predictions: dict[str, np.ndarray] = {}
    truths: dict[str, Truth] = {}

    for key, record in records.items():
        folder = read_folder(store, key, PREDICTIONS)
        try:
            by_protocol, truth = folder.predictions(), folder.truth()
        except UNREADABLE:
            continue  # the page says which arms lack them

        if protocol not in by_protocol:
            continue

        predictions[key] = by_protocol[protocol]
        name = _data_name(record)
        if truth is not None and name not in truths:
            truths[name] = Truth(str(record.dataset["digest"]), *truth)

    return predictions, truths


def _history(store: Store, key: str) -> dict[str, Any]:
    """Return a trial's accuracies, losses and learning rate by epoch, as far as all epochs have
    them.
    """
    epochs = read_folder(store, key).epochs()
    if not epochs:
        return {}

    curves = {}
    for name in epochs[0]["metrics"]:
        if name.rpartition("/")[2] in DRAWN:
            curves[name] = [epoch["metrics"].get(name, np.nan) for epoch in epochs]

    curves[RATE] = [epoch.get("lr", np.nan) for epoch in epochs]

    history = {}
    for name, curve in curves.items():
        # A trial has some hundred epochs, a sweep thousands of trials: single precision draws as
        # well.
        values = np.array(curve, np.float32)
        if np.isfinite(values).all():
            history[name] = values

    return history


def fits(predicted: np.ndarray, truth: Truth, record: Record, protocol: str) -> bool:
    """Return whether these true classes give the recorded accuracy: a borrowed truth that does not
    is that of other objects.
    """
    recorded = record.metrics.get(protocol, {}).get(PER_OBJECT)
    if recorded is None or predicted.shape != truth.labels.shape:
        return False

    return bool(abs(np.mean(predicted == truth.labels) - recorded) < 1e-9)


def curves(store: Store, table: Table) -> dict[str, list[float]]:
    """The table's metric by epoch, for every trial of it that has begun."""
    by_key = {}
    for key in table.trial_keys():
        curve = []
        for event in read_folder(store, key).epochs():
            if table.metric in event["metrics"]:
                curve.append(event["metrics"][table.metric])

        by_key[key] = curve

    return by_key


def _data_name(record: Record) -> str:
    """Return the digest and the number of test objects: equal where the test objects are."""
    return f"{record.dataset['digest']} {record.dataset['num_test']}"


def _with_clouds(kept: Truth | None, record: Record) -> Truth | None:
    """The truth of a record's data set, with labels (if the trial kept none) and clouds from this
    machine's cache.
    """
    digest = str(record.dataset["digest"])
    count = int(record.dataset["num_test"])
    arrays = _cached(digest)

    if arrays is None or len(arrays["test_labels"]) != count:
        # a part of the test set was used: which objects those are is not written in the record
        return kept

    labels = np.asarray(arrays["test_labels"])
    names = kept.class_names if kept else ()
    if kept is not None and not np.array_equal(kept.labels, labels):
        return kept

    return Truth(digest, labels, names, arrays.get("test_points"))


def _cached(digest: str) -> Mapping[str, np.ndarray] | None:
    """The test split of the data set with this digest, memory-mapped; None if this machine has not
    opened it.
    """
    arrays = find_entry(digest)
    if arrays is None or "test_labels" not in arrays:
        return None

    split: dict[str, np.ndarray] = {"test_labels": arrays["test_labels"]}
    if "test_points" in arrays:
        split["test_points"] = arrays["test_points"][..., :3]  # without features

    return split
