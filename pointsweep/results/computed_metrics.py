"""Records completed by a metric that is computed from their trials' stored predictions
(metrics.py).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pointsweep.errors import ComputedMetricError, StoreError
from pointsweep.results.metrics import PER_OBJECT, FromPredictions, accuracy, computed
from pointsweep.results.records import Record
from pointsweep.results.working_copy import PREDICTIONS, read_folder
from pointsweep.storage.base import Store
from pointsweep.utils.array_cache import find_entry

SHOWN = 10  # trials in a message
# what numpy raises for a missing or damaged file
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


def with_metric(
    store: Store, records: Mapping[str, Record], metric: str
) -> dict[str, Record]:
    """Return the records, each with the table's metric of every protocol if that is computed from
    predictions.

    Raises ComputedMetricError naming every trial whose predictions do not give it.
    """
    definition = computed(metric)
    if definition is None or definition.from_predictions is None:
        return dict(records)

    compute = definition.from_predictions
    completed: dict[str, Record] = {}
    problems: list[str] = []

    for key, record in records.items():
        if all(metric in chosen for chosen in record.metrics.values()):
            completed[key] = record
            continue
        try:
            completed[key] = _completed(store, record, metric, compute)
        except ComputedMetricError as error:
            problems.append(f"trial {key}: {error}")

    if problems:
        lines = problems[:SHOWN]
        if len(problems) > SHOWN:
            lines.append(f"... {len(problems) - SHOWN} more")

        text = "\n  ".join(lines)
        raise ComputedMetricError(
            f"{metric} cannot be computed from the stored predictions of these trials\n  {text}"
        )

    return completed


def without_computed(record: Record) -> Record:
    """Return the record as it is stored: without metrics that were computed for a table."""
    metrics: dict[str, dict[str, float]] = {}
    for protocol, values in record.metrics.items():
        metrics[protocol] = {}
        for name, value in values.items():
            if computed(name) is None:
                metrics[protocol][name] = value

    return replace(record, metrics=metrics)


def _completed(
    store: Store, record: Record, metric: str, compute: FromPredictions
) -> Record:
    folder = read_folder(store, record.key, PREDICTIONS)
    try:
        predictions, truth = folder.predictions(), folder.truth()
    except FileNotFoundError:
        raise ComputedMetricError(f"it has no {PREDICTIONS}") from None
    except (StoreError, *UNREADABLE) as error:
        raise ComputedMetricError(f"{PREDICTIONS} cannot be read: {error}") from error

    labels = truth[0] if truth is not None else _cached_labels(record)
    if labels is None:
        reason = (
            "no true classes beside its predictions (older version), and this machine has not"
            " opened its data set"
        )
        raise ComputedMetricError(
            f"{reason}: pointsweep data shows where it is looked for"
        )

    metrics = {}
    for protocol, chosen in record.metrics.items():
        predicted = predictions.get(protocol)
        if predicted is None or not _are_classes(predicted, labels.shape):
            raise ComputedMetricError(
                f"{PREDICTIONS} has no predicted classes of protocol {protocol}"
            )
        if abs(accuracy(predicted, labels) - chosen[PER_OBJECT]) > 1e-9:
            raise ComputedMetricError(
                f"the predictions of protocol {protocol} do not give the recorded accuracy"
            )

        metrics[protocol] = {**chosen, metric: compute(predicted, labels)}

    return replace(record, metrics=metrics)


def _are_classes(predicted: np.ndarray, shape: tuple[int, ...]) -> bool:
    return predicted.dtype.kind in "iu" and predicted.shape == shape


def _cached_labels(record: Record) -> np.ndarray | None:
    """Return the test classes (N,) of the record's data set as this machine has converted it; None
    where it has not.
    """
    arrays = find_entry(str(record.dataset["digest"]))
    if arrays is None or "test_labels" not in arrays:
        return None

    return np.asarray(arrays["test_labels"])
