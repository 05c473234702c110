"""What a launch would do: which trials are finished, resumable, stale or new, what each arm trains, and what is missing.

Nothing here costs more than one listing of the store, unless there is something to run: then every distinct arm is built on the
meta device to count its parameters and audited, and data and weights are looked for; plan_cache.py remembers what was found.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pointsweep import plan_cache, registry
from pointsweep.adaptive import settle
from pointsweep.checks import check_trial, config_problem
from pointsweep.config import DatasetConfig, TrialConfig, without_seed
from pointsweep.errors import BadRecord, Finding, MissingData, MissingWeights
from pointsweep.events import read_failure, unfinished_status
from pointsweep.failures import BadData
from pointsweep.index import read_record as read_record
from pointsweep.origin import cpu_flags
from pointsweep.records import Record
from pointsweep.store import Store
from pointsweep.sweep import Sweep

STATES = ("finished", "damaged", "resumable", "failed", "new")


@dataclass(frozen=True)
class Plan:
    """A sweep against a store. `states` maps every trial's key to one of STATES, `parameters` to its counts.

    Of adaptive seeds, `states` has the trials that the records ask for up to now.
    """

    sweep: Sweep
    states: Mapping[str, str]
    records: Mapping[str, Record]
    failures: Mapping[str, str]
    parameters: Mapping[str, Mapping[str, int]]
    missing: tuple[str, ...]  # data or weights that a launch needs and this machine lacks
    findings: tuple[Finding, ...] = ()  # of the audit of what is left to run
    damaged: Mapping[str, str] = field(default_factory=dict)  # what is wrong with records that are not believed, by key

    @property
    def to_run(self) -> list[TrialConfig]:
        """The trials without a record; the first seed of every cell before the second of any: a part of the time fills the table."""
        asked = sorted(self.sweep.trials(), key=lambda trial: trial.cell.trials.index(trial.config))
        return [trial.config for trial in asked if self.states.get(trial.config.key(), "finished") != "finished"]

    def counts(self) -> str:
        """One line: "9 finished, 0 to run"."""
        number = {state: list(self.states.values()).count(state) for state in STATES}
        parts = [f"{number['finished']} finished", f"{len(self.states) - number['finished']} to run"]
        words = {"damaged": "with a damaged record", "resumable": "to resume", "failed": "failed before"}
        extra = [f"{number[state]} {text}" for state, text in words.items() if number[state]]
        most = len(self.sweep.trials())
        adaptive = f"; adaptive seeds: {len(self.states)} to {most} trials in all" if self.sweep.adaptive and self.to_run else ""
        return ", ".join(parts) + (f" ({', '.join(extra)})" if extra else "") + adaptive

    def time_estimate(self) -> str:
        """How long the rest takes one trial at a time, from finished trials of the same arm or else of the sweep."""
        seconds: dict[str, list[float]] = {}
        for record in self.records.values():
            seconds.setdefault(_arm_of(record), []).append(record.seconds["total"])
        if not seconds or not self.to_run:
            return ""
        overall = statistics.median(value for values in seconds.values() for value in values)
        arms = [without_seed(config).key() for config in self.to_run]
        total = sum(statistics.median(seconds[arm]) if arm in seconds else overall for arm in arms)
        return f"about {total / 60:.0f} min of trial time left, judged by {len(self.records)} finished trials"


def _arm_of(record: Record) -> str:
    config, _ = check_trial(dict(record.config))
    return without_seed(config).key() if config is not None else ""


def make_plan(sweep: Sweep, store: Store, fetch: bool = False) -> Plan:
    """Looks at the store and at this machine; what is missing stands in the plan. `fetch`: weights are got from their hubs first."""
    states, records, damaged = look_closely(sweep, store)
    configs = {trial.config.key(): trial.config for trial in sweep.trials() if trial.config.key() in states}
    failures = {key: read_failure(store, key) or "" for key, state in states.items() if state == "failed"}
    rest = {key: config for key, config in configs.items() if key not in records}
    counted = {key: record.parameters for key, record in records.items()}
    checked = check(sweep, rest, counted, fetch)
    found = (*of_the_machine(sweep, rest.values(), cpu_flags()), *checked.findings)
    return Plan(sweep, states, records, failures, counted | dict(checked.parameters), checked.missing, found, damaged)


def of_the_machine(sweep: Sweep, rest: Iterable[TrialConfig], flags: AbstractSet[str]) -> Iterator[Finding]:
    """What trials ask of a CPU that it cannot do, or is slow at; `flags` are this machine's, which may not be the workers'."""
    if sweep.resources.gpus:
        return
    trains = {config.train for config in rest}
    if any(train.compile for train in trains):
        yield Finding(True, "train.compile: true needs a GPU, resources.gpus is 0: set it, or leave train.compile out")
    if any(train.precision == "bf16" for train in trains) and "amx_bf16" not in flags:
        other = "AVX-512's bf16 alone: faster than fp32, not as on AMX" if "avx512_bf16" in flags else "no bf16: slower than fp32"
        yield Finding(False, f"train.precision: bf16 without a GPU; this CPU has no AMX, {other}")


def look(sweep: Sweep, store: Store) -> tuple[dict[str, str], dict[str, Record]]:
    """The states of the trials that are asked for, and the records of those that are finished."""
    states, records, _ = look_closely(sweep, store)
    return states, records


def look_closely(sweep: Sweep, store: Store) -> tuple[dict[str, str], dict[str, Record], dict[str, str]]:
    """As `look`, and what is wrong with the records of the trials whose state is `damaged`."""
    states: dict[str, str] = {}
    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    for trial in sweep.trials():
        key = trial.config.key()
        if key in states:
            continue
        try:
            record = read_record(store, key)
            problem = config_problem(record, trial.config)
            if problem:
                raise BadRecord(f"{store.url}, trials/{key}/record.json: {problem}")
            states[key], records[key] = "finished", record
        except FileNotFoundError:
            states[key] = unfinished_status(store, key)
        except BadRecord as error:
            states[key], damaged[key] = "damaged", str(error)
    if sweep.adaptive is not None:
        asked = {key for cell in settle(sweep.layout(), records)[0].cells for _, key in cell.keys}
        states = {key: state for key, state in states.items() if key in asked}
        records = {key: record for key, record in records.items() if key in asked}
        damaged = {key: problem for key, problem in damaged.items() if key in asked}
    return states, records, damaged


def check(sweep: Sweep, rest: Mapping[str, TrialConfig], counted: Mapping[str, Mapping[str, int]], fetch: bool) -> plan_cache.Checked:
    """Counts, findings and what is missing for the trials that are left; from this machine's memory where it has them.

    `counted` are the counts of those that are finished. A launch (`fetch`) looks for data and weights whatever is remembered.
    """
    if not rest:
        return plan_cache.Checked({}, (), ())
    kept = plan_cache.read(sweep, list(rest))
    if kept is not None and not fetch:
        return kept
    lacking, weights = missing(rest, fetch)
    if kept is not None:
        return replace(kept, missing=tuple(lacking))
    parameters = count_arms(rest)
    checked = plan_cache.Checked(parameters, findings(sweep, dict(counted) | parameters), tuple(lacking), tuple(weights))
    plan_cache.keep(sweep, list(rest), checked)
    return checked


def findings(sweep: Sweep, parameters: Mapping[str, Mapping[str, int]]) -> tuple[Finding, ...]:
    """The audit of every arm of the sweep."""
    from pointsweep import audit

    arms: dict[str, audit.Arm] = {}
    counts: dict[str, Mapping[str, int]] = {}
    for cell in sweep.cells:
        if not cell.trials:
            continue
        config = audit.arm_of(cell.trials[0])
        known = arms.get(config.key(), audit.Arm(config, ()))
        published = (*known.published, cell.published) if cell.published else known.published
        arms[config.key()] = audit.Arm(config, (*known.cells, sweep.cell_name(cell)), published)
        if cell.trials[0].key() in parameters:
            counts[config.key()] = parameters[cell.trials[0].key()]
    return tuple(audit.audit(list(arms.values()), counts))


def count_arms(configs: Mapping[str, TrialConfig]) -> dict[str, dict[str, int]]:
    """Parameter counts by key; each arm (a trial but for its seed) is built once, on the meta device.

    What cannot be built has none: the audit says why.
    """
    import torch

    from pointsweep.model import build, count_parameters

    counted: dict[str, dict[str, int]] = {}
    result = {}
    for key, config in configs.items():
        arm = without_seed(config)
        if arm.key() not in counted:
            with torch.device("meta"), suppress(ValueError):
                counted[arm.key()] = vars(count_parameters(build(arm, num_classes(arm.dataset))))
        if arm.key() in counted:
            result[key] = counted[arm.key()]
    return result


def num_classes(dataset: DatasetConfig) -> int:
    """The number of classes, from the config alone: the data need not be at hand."""
    count: int = dataset.num_classes  # type: ignore[attr-defined]
    return count


def missing(configs: Mapping[str, TrialConfig], fetch: bool) -> tuple[list[str], list[str]]:
    """What the trials need and this machine lacks, or has in a state that cannot be used; each once, with where it lies.

    With `fetch`, before a launch, weights are got from their hubs, and weights and data are read. Second, the files of weights found.
    """
    found: dict[str, None] = {}
    weights: dict[str, None] = {}
    for dataset in {config.dataset for config in configs.values()}:
        try:
            registry.load("datasets", dataset.name).available(dataset)  # type: ignore[attr-defined]
            if fetch:
                _open(dataset)
        except (MissingData, BadData) as error:
            found[str(error)] = None
    for backbone in {config.backbone for config in configs.values() if config.backbone is not None}:
        if backbone.weights != "random":
            loader: Any = registry.load("backbones", backbone.name)
            try:
                weights[str(loader.locate(backbone, fetch))] = None
                if fetch:
                    loader.check(backbone)
            except MissingWeights as error:
                found[str(error)] = None
            except ValueError as error:
                found[f"weights of {backbone.name}: {error}"] = None
    return sorted(found), sorted(weights)


def _open(dataset: DatasetConfig) -> None:
    """Reads a data set as the trials will. Not one that they make of another, or on S3: each node does its share of that."""
    if registry.load("datasets", dataset.name).made_from or os.environ.get("POINTSWEEP_DATA", "").startswith("s3://"):  # type: ignore[attr-defined]
        return
    from pointsweep.trial import load_dataset

    load_dataset(dataset)
