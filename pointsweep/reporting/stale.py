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
from typing import Any, Generic, TypeGuard, TypeVar

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

Facts = TypeVar("Facts")
FOLDER = "stale"  # of the store: results that were set aside


def find_stale(
    configs: Mapping[str, TrialConfig], records: Mapping[str, Record]
) -> dict[str, str]:
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
                data[dataset] = facts_of(dataset, digest=True)

    for backbone in backbones:
        with suppress(MissingWeightsError, ValueError):
            weights[backbone] = weight_facts(backbone, fetch=False)

    reasons: dict[str, str] = {}
    for key, record in records.items():
        config = configs[key]
        reason = ""
        if runs_plugins(record.origin):
            reason = plugins_differ(record.origin, plugin_origin(config))

        if not reason and config.dataset in data:
            reason = differs(record.dataset, data[config.dataset])

        if not reason and config.backbone in weights:
            reason = weights_differ(record, weights[config.backbone])

        if reason:
            reasons[key] = reason

    return reasons


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


def marked(
    records: Mapping[str, Record], reasons: Mapping[str, str]
) -> dict[str, Record]:
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
    data = _FactsOfSections(_known_data)
    weights = _FactsOfSections(known_weights)

    for key, record in records.items():
        reason = plugins_differ(record.origin, code or {})
        dataset = record.config.get("dataset")
        if not reason and isinstance(dataset, Mapping):
            facts = data.of(dataset)
            if facts is not None:
                reason = differs(record.dataset, facts)

        backbone = record.config.get("backbone")
        if not reason and _has_checkpoint(backbone):
            checkpoint = weights.of(backbone)
            if checkpoint is not None:
                reason = weights_differ(record, checkpoint)

        if reason:
            changes[key] = reason

    unseen = [str(section["name"]) for section in data.unknown if is_here(section)]
    return changes, list(dict.fromkeys(unseen))


def _has_checkpoint(backbone: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a record's backbone, if it has one, reads a file of weights."""
    return (
        isinstance(backbone, Mapping)
        and backbone.get("weights") not in WITHOUT_CHECKPOINT
    )


class _FactsOfSections(Generic[Facts]):
    """Facts about sections of configurations, looked up once for equal ones."""

    def __init__(self, look_up: Callable[[Mapping[str, Any]], Facts | None]) -> None:
        self.look_up = look_up
        self.unknown: list[Mapping[str, Any]] = []
        self._by_identity: dict[int, Facts | None] = {}
        self._by_text: dict[str, Facts | None] = {}

    def of(self, section: Mapping[str, Any]) -> Facts | None:
        """Return the facts about a section; None if there are none, and then it is `unknown`."""
        # Records that were read together share their sections: few of ten thousand become text.
        if id(section) not in self._by_identity:
            text = json.dumps(section, sort_keys=True)
            if text not in self._by_text:
                self._by_text[text] = self.look_up(section)
                if self._by_text[text] is None:
                    self.unknown.append(section)

            self._by_identity[id(section)] = self._by_text[text]

        return self._by_identity[id(section)]


def _known_data(section: Mapping[str, Any]) -> DataFacts | None:
    if is_here(section):
        return known(section, digest=True)
    return None


def set_aside(store: Store, keys: Iterable[str]) -> None:
    """Move finished trials to stale/<key>-<start of their record's digest>, so that they run again;
    nothing is lost.
    """
    for key in keys:
        source = f"trials/{key}"
        digest = hashlib.sha256(store.read(f"{source}/record.json")).hexdigest()
        target = f"{FOLDER}/{key}-{digest[:DIGITS]}"
        names = [name for name in store.list(source) if not name.endswith("/")]

        for name in names:
            store.write(f"{target}/{name}", store.read(f"{source}/{name}"))

        # Without its record the trial is not finished, whatever else is still there if this is cut
        # off.
        for name in sorted(names, key=lambda name: name != "record.json"):
            store.delete(f"{source}/{name}")
