"""Finished trials whose data, weights or plug-ins have changed since: found, marked, and set aside
when they are to run again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointsweep.config.backbones import WITHOUT_CHECKPOINT, BackboneConfig
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.facts import (
    DIGITS,
    DataFacts,
    UnreadableDataError,
    differs,
    facts_of,
    is_here,
    known,
    section_of,
)
from pointsweep.data.inputs import WeightFacts, known_weights, parts_of, weight_facts
from pointsweep.errors import MissingDataError, MissingWeightsError
from pointsweep.results.plugin_origin import plugin_origin, plugins_differ, runs_plugins
from pointsweep.results.records import Record
from pointsweep.storage.base import Store

FOLDER = "stale"  # of the store: results that were set aside


def find_stale(configs: Mapping[str, TrialConfig], records: Mapping[str, Record]) -> dict[str, str]:
    """Return, by key, how the data, weights or plug-ins that finished trials had differ from those
    of this machine.

    Nothing is said of what is not here, or cannot be read.
    """
    datasets, backbones = parts_of(configs[key] for key in records)
    data: dict[DatasetConfig, DataFacts] = {}
    weights: dict[BackboneConfig, WeightFacts] = {}
    for dataset in datasets:
        if is_here(section_of(dataset)):
            with suppress(MissingDataError, UnreadableDataError):
                data[dataset] = facts_of(dataset, whole=True)
    for backbone in backbones:
        with suppress(MissingWeightsError, ValueError):
            weights[backbone] = weight_facts(backbone, fetch=False)

    found: dict[str, str] = {}
    for key, record in records.items():
        config = configs[key]
        reason = (
            plugins_differ(record.origin, plugin_origin(config))
            if runs_plugins(record.origin)
            else ""
        )
        if not reason and config.dataset in data:
            reason = differs(record.dataset, data[config.dataset])
        if not reason and config.backbone in weights:
            reason = weights_differ(record, weights[config.backbone])
        if reason:
            found[key] = reason
    return found


def weights_differ(record: Record, facts: WeightFacts) -> str:
    """Return how the weights of a record differ from those that are here; empty if they do not."""
    before = re.search(r"sha256 ([0-9a-f]{64})", record.weights_origin)
    if before is None or before[1] == facts.sha256:
        return ""
    name = Path(facts.path).name
    return (
        f"weights changed since: {name} was {before[1][:DIGITS]}, here it is"
        f" {facts.sha256[:DIGITS]}"
    )


def marked(records: Mapping[str, Record], reasons: Mapping[str, str]) -> dict[str, Record]:
    """Return the records, those with a reason marked with it."""
    result = dict(records)
    for key, reason in reasons.items():
        if key in result:
            result[key] = replace(result[key], marks=(*result[key].marks, reason))
    return result


def remembered_changes(
    records: Mapping[str, Record], code: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Compare records with what is remembered of this machine's data and weights; nothing is read,
    torch is not needed.

    `code`: the digests of the plug-ins that are here, by their names in an origin. Second, the data
    sets that are here, but whose files nobody has looked at since they were written.
    """
    changes: dict[str, str] = {}
    unseen: dict[str, None] = {}
    # Records that were read together share their parts, so that few of ten thousand are looked at.
    data: dict[int, DataFacts | None] = {}
    weights: dict[int, WeightFacts | None] = {}
    by_text: dict[str, DataFacts | WeightFacts | None] = {}
    for key, record in records.items():
        dataset = record.config.get("dataset")
        reason = plugins_differ(record.origin, code or {})
        if isinstance(dataset, Mapping) and not reason:
            if id(dataset) not in data:
                data[id(dataset)] = _once(
                    by_text,
                    dataset,
                    lambda part: known(part, digest=True) if is_here(part) else None,
                )
                if data[id(dataset)] is None and is_here(dataset):
                    unseen[str(dataset["name"])] = None
            facts = data[id(dataset)]
            reason = differs(record.dataset, facts) if facts is not None else ""
        backbone = record.config.get("backbone")
        if (
            isinstance(backbone, Mapping)
            and backbone.get("weights") not in WITHOUT_CHECKPOINT
            and not reason
        ):
            if id(backbone) not in weights:
                weights[id(backbone)] = _once(by_text, backbone, known_weights)
            checkpoint = weights[id(backbone)]
            reason = weights_differ(record, checkpoint) if checkpoint is not None else ""
        if reason:
            changes[key] = reason
    return changes, list(unseen)


def _once(
    found: dict[str, Any], part: Mapping[str, Any], look: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """Return what `look` finds out about a part of a configuration, looked at once for equal
    ones.
    """
    text = json.dumps(part, sort_keys=True)
    if text not in found:
        found[text] = look(part)
    return found[text]


def set_aside(store: Store, keys: Iterable[str]) -> None:
    """Move finished trials to stale/<key>-<start of their record's digest>, so that they run again;
    nothing is lost.
    """
    for key in keys:
        source = f"trials/{key}"
        digest = hashlib.sha256(store.read(f"{source}/record.json")).hexdigest()[:DIGITS]
        target = f"{FOLDER}/{key}-{digest}"
        names = [name for name in store.list(source) if not name.endswith("/")]
        for name in names:
            store.write(f"{target}/{name}", store.read(f"{source}/{name}"))
        # Without its record the trial is not finished, whatever else is still there if this is cut
        # off.
        for name in sorted(names, key=lambda name: name != "record.json"):
            store.delete(f"{source}/{name}")
