"""Finished trials whose data or weights have changed since: found, marked, and set aside when they are to run again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointsweep.config import BackboneConfig, DatasetConfig, TrialConfig
from pointsweep.data.facts import DIGITS, DataFacts, UnreadableDataError, differs, facts_of, is_here, known, section_of
from pointsweep.errors import MissingData, MissingWeights
from pointsweep.inputs import WeightFacts, known_weights, on_s3, parts_of, weight_facts
from pointsweep.records import Record
from pointsweep.store import Store

FOLDER = "stale"  # of the store: results that were set aside


def find_stale(configs: Mapping[str, TrialConfig], records: Mapping[str, Record]) -> dict[str, str]:
    """Return, by key, how the data or weights that finished trials had differ from those of this machine.

    Nothing is said of what is not here, or cannot be read.
    """
    datasets, backbones = parts_of(configs[key] for key in records)
    data: dict[DatasetConfig, DataFacts] = {}
    weights: dict[BackboneConfig, WeightFacts] = {}
    for dataset in datasets:
        if not on_s3() and is_here(located(section_of(dataset))):
            with suppress(MissingData, UnreadableDataError):
                data[dataset] = facts_of(dataset, whole=True)
    for backbone in backbones:
        with suppress(MissingWeights, ValueError):
            weights[backbone] = weight_facts(backbone, fetch=False)

    found: dict[str, str] = {}
    for key, record in records.items():
        config = configs[key]
        reason = ""
        if config.dataset in data:
            reason = differs(record.dataset, data[config.dataset])
        if not reason and config.backbone in weights:
            reason = weights_differ(record, weights[config.backbone])
        if reason:
            found[key] = reason
    return found


def located(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set's section of a configuration, with the folder that `folder: null` stands for."""
    folder = section.get("folder")
    if folder is None and section["name"] == "modelnet40_fewshot":
        converted = section.get("source") == "point_bert"
        folder = "ModelNetFewshot" if converted else "modelnet40_ply_hdf5_2048"
    return {**section, "folder": folder}


def weights_differ(record: Record, facts: WeightFacts) -> str:
    """Return how the weights of a record differ from those that are here; empty if they do not."""
    before = re.search(r"sha256 ([0-9a-f]{64})", record.weights_origin)
    if before is None or before[1] == facts.sha256:
        return ""
    name = Path(facts.path).name
    return f"weights changed since: {name} was {before[1][:DIGITS]}, here it is {facts.sha256[:DIGITS]}"


def marked(records: Mapping[str, Record], reasons: Mapping[str, str]) -> dict[str, Record]:
    """Return the records, those with a reason marked with it."""
    result = dict(records)
    for key, reason in reasons.items():
        if key in result:
            result[key] = replace(result[key], marks=(*result[key].marks, reason))
    return result


def remembered_changes(records: Mapping[str, Record]) -> tuple[dict[str, str], list[str]]:
    """Compare records with what is remembered of this machine's data and weights; nothing is read, torch is not needed.

    Second, the data sets that are here, but whose files nobody has looked at since they were written.
    """
    changes: dict[str, str] = {}
    unseen: dict[str, None] = {}
    data: dict[str, DataFacts | None] = {}
    weights: dict[str, WeightFacts | None] = {}
    for key, record in records.items():
        dataset = record.config.get("dataset")
        if isinstance(dataset, Mapping) and not on_s3() and is_here(located(dataset)):
            name = json.dumps(dataset, sort_keys=True)
            if name not in data:
                data[name] = known(dataset, digest=True)
            facts = data[name]
            if facts is None:
                unseen[str(dataset["name"])] = None
            elif reason := differs(record.dataset, facts):
                changes[key] = reason
        backbone = record.config.get("backbone")
        if isinstance(backbone, Mapping) and backbone.get("weights") != "random" and key not in changes:
            name = json.dumps(backbone, sort_keys=True)
            if name not in weights:
                weights[name] = known_weights(backbone)
            checkpoint = weights[name]
            if checkpoint is not None and (reason := weights_differ(record, checkpoint)):
                changes[key] = reason
    return changes, list(unseen)


def set_aside(store: Store, keys: Iterable[str]) -> None:
    """Move finished trials to stale/<key>-<start of their record's digest>, so that they run again; nothing is lost."""
    for key in keys:
        source = f"trials/{key}"
        digest = hashlib.sha256(store.read(f"{source}/record.json")).hexdigest()[:DIGITS]
        target = f"{FOLDER}/{key}-{digest}"
        names = [name for name in store.list(source) if not name.endswith("/")]
        for name in names:
            store.write(f"{target}/{name}", store.read(f"{source}/{name}"))
        # Without its record the trial is not finished, whatever else is still there if this is cut off.
        for name in sorted(names, key=lambda name: name != "record.json"):
            store.delete(f"{source}/{name}")
