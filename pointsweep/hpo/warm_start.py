"""Warm start of a search from finished trials of a store: values of suggestions that lie in the
space.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pointsweep.hpo.pruners import Curve
from pointsweep.results.record_index import sound_record
from pointsweep.results.records import Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.sweep.search_space import Arm, Search


def values_of(
    keys: Sequence[str], search: Search, protocol: str, store: FileStore
) -> tuple[float, ...] | None:
    """The objectives' means over a suggestion's seeds; None unless all have finished with a
    number.
    """
    records = []
    for key in keys:
        record = sound_record(store, key)
        if record is None:
            return None

        records.append(record)

    if not records:
        return None

    values = []
    for name in search.objectives:
        total = math.fsum(objective(record, name, protocol) for record in records)
        values.append(total / len(records))

    if all(map(math.isfinite, values)):
        return tuple(values)

    return None


def objective(record: Record, name: str, protocol: str) -> float:
    """One objective of a finished trial. `parameters` are those that the table prints: trainable,
    without the head.
    """
    if name == "parameters":
        return float(record.parameters["trainable_without_head"])

    assert name.startswith("val/"), name
    return float(record.metrics[protocol][name])


def curve_of(keys: Sequence[str], store: FileStore) -> dict[int, float]:
    """Validation accuracy by epoch: the mean over a suggestion's seeds, as far as all of them have
    come.
    """
    accuracies: dict[int, list[float]] = defaultdict(list)  # by epoch
    for key in keys:
        curve = {}
        for event in TrialFolder(store.path(f"trials/{key}")).epochs():
            curve[event["epoch"]] = event["metrics"]["val/accuracy"]

        for epoch, accuracy in curve.items():
            accuracies[epoch].append(accuracy)

    means = {}
    for epoch in sorted(accuracies):
        if len(accuracies[epoch]) == len(keys):
            means[epoch] = math.fsum(accuracies[epoch]) / len(keys)

    return means


def known(
    arm: Arm, search: Search, protocol: str, store: FileStore
) -> Iterator[tuple[Mapping[str, Any], tuple[float, ...], Sequence[str], Curve]]:
    """Finished trials of the store that lie in the space: their drawn values, values, keys and
    curve.
    """
    for name in store.list("trials"):
        key = name.rstrip("/")
        record = sound_record(store, key)
        if record is None or record.config.get("seed") != arm.seeds[0]:
            continue

        drawn = arm.located(record.config)
        config = arm.config(drawn) if drawn is not None else None
        if drawn is None or config is None:
            continue

        keys = [trial.key() for trial in arm.trials(config)]
        # Only what would be the very same trial counts: all that the space leaves open must agree.
        if not keys or keys[0] != key:
            continue

        values = values_of(keys, search, protocol, store)
        if values is not None:
            yield drawn, values, keys, curve_of(keys, store)
