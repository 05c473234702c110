"""Check of a whole store: every record against its checksum, its configuration, its predictions and
its history.

`tables` and `run` compare checksums and sizes, whenever they read a record. Here every byte beside
it is read as well, accuracies are computed anew from the predictions, and the chosen epochs from
the history. Nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pointsweep.config.validation import check_trial
from pointsweep.errors import StoreError
from pointsweep.reporting.bundle import BundleError, arrays_of, chosen, recomputed
from pointsweep.results.events import epochs_of, parse
from pointsweep.results.metrics import PER_OBJECT
from pointsweep.results.record_index import read_record
from pointsweep.results.records import (
    FIRST_WITH_CHECKSUM,
    HISTORY,
    PREDICTIONS,
    Record,
    digests_problem,
    layout_from_plan,
)
from pointsweep.storage.base import Store
from pointsweep.utils.provenance import tree_digest

# what predictions give, those of segmentation first
OF_SEGMENTATION = ("test/instance_miou", "test/miou")
MEASURES = (*OF_SEGMENTATION, PER_OBJECT)


@dataclass
class Verified:
    """The result of verifying a store: the number of finished trials, and in words what is wrong
    with which.
    """

    finished: int = 0
    problems: list[str] = field(default_factory=list)
    # nothing speaks against these, and too little for them
    unverified: list[str] = field(default_factory=list)


def verify_store(store: Store) -> Verified:
    """Check every trial that has a record, and the layout of every sweep."""
    verified = Verified()
    for entry in store.list("trials"):
        if entry.endswith("/"):
            _verify_trial(store, entry.rstrip("/"), verified)

    for entry in store.list("sweeps"):
        name = entry.rstrip("/")
        for problem in _sweep_problems(store, name):
            verified.problems.append(f"sweep {name}: {problem}")

    return verified


def _verify_trial(store: Store, key: str, verified: Verified) -> None:
    try:
        record = read_record(store, key)
    except FileNotFoundError:
        return  # it is not finished
    except StoreError as error:
        verified.finished += 1
        verified.problems.append(f"trial {key}: {error}")
        return

    verified.finished += 1
    problems = [
        *_changed_files(store, record),
        *_config_problems(record),
        *_result_problems(store, record),
    ]
    for problem in problems:
        verified.problems.append(f"trial {key}: {problem}")

    if not problems and record.schema < FIRST_WITH_CHECKSUM:
        why = _unverifiable(store, record)
        if why:
            verified.unverified.append(
                f"trial {key}: its record has no checksum (older version), and {why}"
            )


def _changed_files(store: Store, record: Record) -> Iterator[str]:
    """The file beside a record that has other bytes than when it was written, whatever its size."""

    def read(name: str) -> bytes:
        return store.read(f"trials/{record.key}/{name}")

    problem = digests_problem(record, read, math.inf)
    if problem:
        yield problem


def _config_problems(record: Record) -> Iterator[str]:
    # Other code may read a configuration as another trial's, and be right.
    same_code = record.origin.get("tree") == tree_digest()
    if not same_code and record.schema >= FIRST_WITH_CHECKSUM:
        return

    config, wrong = check_trial(dict(record.config))
    if config is not None and not wrong and config.key() != record.key:
        yield f"its configuration is that of trial {config.key()}"


def _result_problems(store: Store, record: Record) -> Iterator[str]:
    """Yield the contradictions between a record and its predictions and history."""
    measure = _measure(record)
    arrays = _arrays(store, record)

    if isinstance(arrays, str):
        yield arrays
    elif measure and arrays and ("labels" in arrays or measure in OF_SEGMENTATION):
        try:
            recomputed(record, arrays, measure)
        except (BundleError, KeyError, TypeError, ValueError) as error:
            yield f"{PREDICTIONS}: {error}"

    try:
        events, _ = parse(store.read(f"trials/{record.key}/{HISTORY}"))
        chosen(record, epochs_of(events))
    except FileNotFoundError:
        if record.schema >= FIRST_WITH_CHECKSUM and HISTORY in record.files:
            yield f"{HISTORY} is missing beside its record"
    except (StoreError, BundleError, KeyError, TypeError, ValueError) as error:
        yield f"{HISTORY}: {error}"


def _measure(record: Record) -> str:
    """The metric that predictions give; empty if the record has none such."""
    last = record.metrics.get("last", {})
    for name in MEASURES:
        if name in last:
            return name

    return ""


def _arrays(store: Store, record: Record) -> dict[str, np.ndarray] | str:
    """The arrays of a trial's predictions, empty if it has none; or what is wrong with them."""
    try:
        return arrays_of(store.read(f"trials/{record.key}/{PREDICTIONS}"))
    except FileNotFoundError:
        return {}
    except (StoreError, BundleError) as error:
        return f"{PREDICTIONS}: {error}"


def _unverifiable(store: Store, record: Record) -> str:
    arrays = _arrays(store, record)
    if not arrays:
        return f"it has no {PREDICTIONS}"
    if "labels" not in arrays and _measure(record) == PER_OBJECT:
        return f"its {PREDICTIONS} has no true classes"

    return ""


def _sweep_problems(store: Store, name: str) -> Iterator[str]:
    try:
        layout_from_plan(store.read(f"sweeps/{name}/plan.json"))
    except FileNotFoundError:
        pass
    except StoreError as error:
        yield f"plan.json: {error}"

    try:
        json.loads(store.read(f"sweeps/{name}/search.json"))
    except FileNotFoundError:
        pass
    except (StoreError, ValueError, RecursionError) as error:
        yield f"search.json: {error}"
