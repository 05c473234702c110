"""What the report shows beside the records: curves, predictions, the true classes, and clouds where
this machine has them.

Everything comes from the trials' folders, but for the true classes of trials that did not keep
them, and the clouds: those are taken from the data sets that this machine has opened before
(`data/cache.py`), found by the digest that the record names.
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

    every = sorted({key for cell in table.cells for _, key in cell.keys})
    keys = [key for key in every if key in records]
    predictions: dict[str, np.ndarray] = {}
    # by digest and number of test objects: trials of one data set share one truth
    kept: dict[str, Truth] = {}
    for key in keys:
        folder = read_folder(store, key, PREDICTIONS)
        try:
            found, kept_truth = folder.predictions(), folder.truth()
        except UNREADABLE:
            continue  # the page says which arms lack them
        if table.protocol in found:
            predictions[key] = found[table.protocol]
            if kept_truth is not None:
                kept.setdefault(
                    _name(records[key]), Truth(str(records[key].dataset["digest"]), *kept_truth)
                )
    examples = {_name(records[key]): records[key] for key in predictions}
    truths = {name: _with_clouds(kept.get(name), record) for name, record in examples.items()}
    chosen = [
        (key, truth) for key in predictions if (truth := truths[_name(records[key])]) is not None
    ]
    fitting = {
        key: t for key, t in chosen if fits(predictions[key], t, records[key], table.protocol)
    }
    histories: dict[str, dict[str, Any]] = {
        key: history for key in every if (history := _history(store, key))
    }
    searches = read_searches(store, table.name)
    return Evidence(predictions, fitting, searches, histories, run_pages(store, table.name))


def _history(store: Store, key: str) -> dict[str, Any]:
    """Return a trial's accuracies, losses and learning rate by epoch, as far as all epochs have
    them.
    """
    epochs = read_folder(store, key).epochs()
    if not epochs:
        return {}
    # A trial has some hundred epochs, a sweep thousands of trials: single precision draws as well.
    found = {
        name: np.array([epoch["metrics"].get(name, np.nan) for epoch in epochs], np.float32)
        for name in epochs[0]["metrics"]
        if name.rpartition("/")[2] in DRAWN
    }
    found[RATE] = np.array([epoch.get("lr", np.nan) for epoch in epochs], np.float32)
    return {name: values for name, values in found.items() if np.isfinite(values).all()}


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
    found = {}
    for key in sorted({key for cell in table.cells for _, key in cell.keys}):
        epochs = [event["metrics"] for event in read_folder(store, key).epochs()]
        found[key] = [metrics[table.metric] for metrics in epochs if table.metric in metrics]
    return found


def _name(record: Record) -> str:
    return f"{record.dataset['digest']} {record.dataset['num_test']}"


def _with_clouds(kept: Truth | None, record: Record) -> Truth | None:
    """The truth of a record's data set, with labels (if the trial kept none) and clouds from this
    machine's cache.
    """
    digest, count = str(record.dataset["digest"]), int(record.dataset["num_test"])
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
    found: dict[str, np.ndarray] = {"test_labels": arrays["test_labels"]}
    if "test_points" in arrays:
        found["test_points"] = arrays["test_points"][..., :3]  # without features
    return found
