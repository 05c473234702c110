"""Plan of a launch: which trials are finished, resumable, stale or new, what each arm trains, and
what it refuses.

Data and weights are read as the trials will read them, and every distinct arm is built on the meta
device to count its parameters and audited. All of it is remembered (data/facts.py, inputs.py,
plan_cache.py), so that a second plan is quick.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from pointsweep.config.base import canonical_json
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig, without_seed
from pointsweep.config.validation import check_trial
from pointsweep.data.facts import DataFacts, marks, refusals, section_of
from pointsweep.data.inputs import needed, read_all
from pointsweep.errors import Finding, RecordError
from pointsweep.planning import plan_cache
from pointsweep.planning.arm_groups import Key, model_key
from pointsweep.reporting.stale import find_stale, marked
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.events import read_failure, unfinished_status
from pointsweep.results.identity import config_problem
from pointsweep.results.record_index import read_record as read_record
from pointsweep.results.records import Published, Record, digests_problem
from pointsweep.statistics.adaptive_seeds import settle
from pointsweep.storage.base import Store
from pointsweep.storage.stores import folder_of
from pointsweep.sweep.parser import Cell, ReadableCell
from pointsweep.sweep.published import mismatch
from pointsweep.sweep.sweep import Sweep
from pointsweep.utils.provenance import bf16_unit, cpu_flags

Value = TypeVar("Value")
# trials: from here on the store is listed before any folder is looked at
WORTH_A_LISTING = 200
STATES = ("finished", "damaged", "resumable", "failed", "stale", "new")


@dataclass(frozen=True)
class Plan:
    """A sweep against a store. `states` maps every trial's key to one of STATES, `parameters` to
    its counts.

    Of adaptive seeds, `states` has the trials that the records ask for up to now.
    """

    sweep: Sweep
    states: Mapping[str, str]
    records: Mapping[str, Record]
    failures: Mapping[str, str]
    parameters: Mapping[str, Mapping[str, int]]
    # data or weights that a launch needs and this machine lacks
    missing: tuple[str, ...]
    # of the data, and of the audit of what is left to run
    findings: tuple[Finding, ...] = ()
    # what is wrong with records that are not believed, by key
    damaged: Mapping[str, str] = field(default_factory=dict)
    to_fetch: tuple[str, ...] = ()  # weights that a launch gets first
    # finished trials whose data or weights have changed: key -> how
    stale: Mapping[str, str] = field(default_factory=dict)
    # of what is left to run
    data: Mapping[DatasetConfig, DataFacts] = field(default_factory=dict)

    @property
    def refused(self) -> list[str]:
        """Return why a launch would refuse the sweep: what is missing here, then what the data and
        the audit forbid.

        A model whose files are missing does not run either: that is said once.
        """
        refused = [f"lacking here: {text}" for text in self.missing]
        for finding in self.findings:
            is_missing = any(text in finding.text for text in self.missing)
            if finding.refuses and not is_missing:
                refused.append(finding.text)

        return refused

    @property
    def to_run(self) -> list[TrialConfig]:
        """The trials without a record; the first seed of every cell before the second of any: a
        part of the time fills the table.
        """
        in_seed_order = sorted(
            self.sweep.trials(), key=lambda trial: trial.cell.trials.index(trial.config)
        )
        configs = []

        for trial in in_seed_order:
            if self.states.get(trial.config.key(), "finished") != "finished":
                configs.append(trial.config)

        return configs

    def counts(self) -> str:
        """One line: "9 finished, 0 to run"."""
        number = Counter(self.states.values())
        num_finished = number["finished"]
        text = f"{num_finished} finished, {len(self.states) - num_finished} to run"
        words = {
            "damaged": "with a damaged record",
            "resumable": "to resume",
            "failed": "failed before",
            "stale": "stale: to run again",
        }

        details = []

        for state, description in words.items():
            if number[state]:
                details.append(f"{number[state]} {description}")

        stale_reasons = []
        for key, reason in self.stale.items():
            if self.states.get(key) == "finished":
                stale_reasons.append(reason.partition(":")[0])

        if stale_reasons:
            reasons = " and ".join(sorted(set(stale_reasons)))
            details.append(
                f"{len(stale_reasons)} stale: {reasons}; --rerun-stale trains what is stale again"
            )

        if details:
            text += f" ({', '.join(details)})"

        if self.sweep.adaptive and self.to_run:
            most = len(self.sweep.trials())
            text += f"; adaptive seeds: {len(self.states)} to {most} trials in all"

        return text

    def time_estimate(self) -> str:
        """Return how long the rest takes one trial at a time, from finished trials of the same arm
        or else of the sweep.
        """
        seconds: dict[str, list[float]] = {}
        for record in self.records.values():
            seconds.setdefault(_arm_of(record), []).append(record.seconds["total"])

        if not seconds or not self.to_run:
            return ""

        overall = statistics.median(itertools.chain.from_iterable(seconds.values()))
        medians = {arm: statistics.median(values) for arm, values in seconds.items()}
        arms = [without_seed(config).key() for config in self.to_run]
        total = sum(medians.get(arm, overall) for arm in arms)

        return (
            f"about {total / 60:.0f} min of trial time left, judged by {len(self.records)} finished"
            " trials"
        )


def _arm_of(record: Record) -> str:
    config, _ = check_trial(dict(record.config))
    if config is not None:
        return without_seed(config).key()

    return ""


def make_plan(
    sweep: Sweep, store: Store, fetch: bool = False, rerun_stale: bool = False
) -> Plan:
    """Look at the store and at this machine; what a launch would refuse stands in the plan.
    `fetch`: weights are got first.

    `rerun_stale`: finished trials whose data or weights have changed count as to be run; else they
    are marked.
    """
    states, records, damaged = states_and_damage(sweep, store)
    configs = {}

    for trial in sweep.trials():
        key = trial.config.key()
        if key in states:
            configs[key] = trial.config

    stale = find_stale(configs, records)
    if rerun_stale:
        states |= dict.fromkeys(stale, "stale")

    finished = {}
    for key, record in records.items():
        if states[key] == "finished":
            finished[key] = record

    failures = {}
    for key, state in states.items():
        if state == "failed":
            failures[key] = read_failure(store, key) or ""

    rest = {key: config for key, config in configs.items() if key not in finished}
    inputs = needed(rest.values(), fetch)
    findings = [
        *of_the_data(sweep, rest, inputs.data),
        *of_the_machine(sweep, rest.values(), cpu_flags()),
    ]

    counted = {key: record.parameters for key, record in records.items()}
    lacking = missing_packages(rest.values())
    # Models that need what is not installed cannot be built, so there is nothing to audit.
    checked = plan_cache.Checked({}, ()) if lacking else check(sweep, rest, counted)

    return Plan(
        sweep,
        states=states,
        records=marked(finished, stale),
        failures=failures,
        parameters=counted | dict(checked.parameters),
        missing=(*inputs.missing, *lacking),
        findings=(*findings, *checked.findings),
        damaged=damaged,
        to_fetch=inputs.to_fetch,
        stale=stale,
        data=inputs.data,
    )


def missing_packages(configs: Iterable[TrialConfig]) -> tuple[str, ...]:
    """Return a line for each package that a method needs and that is not installed."""
    needed_by: dict[str, str] = {}
    for config in configs:
        if config.method is not None and config.method.package is not None:
            needed_by.setdefault(config.method.package, config.method.name)

    problems = []
    for package, method in needed_by.items():
        if importlib.util.find_spec(package) is None:
            hint = f'pip install "pointsweep[{package}]"'
            problems.append(
                f"method {method} needs the package {package}, which is not installed: {hint}"
            )

    return tuple(problems)


def of_the_data(
    sweep: Sweep,
    rest: Mapping[str, TrialConfig],
    data: Mapping[DatasetConfig, DataFacts],
) -> Iterator[Finding]:
    """Yield what the data that are here cannot give the trials that are left, and what the table
    will have to say of them.

    Each once, with the first cell that it is about.
    """
    refused: dict[str, dict[str, None]] = {}
    remarks: dict[str, dict[str, None]] = {}

    for cell in sweep.cells:
        for config in cell.trials:
            if config.key() not in rest:
                continue

            name = sweep.cell_name(cell)
            dataset = config.dataset
            facts = data.get(dataset)

            if facts is not None:
                trains = config.trains
                batch_size = config.train.batch_size if trains else None
                for text in refusals(facts, dataset, batch_size):
                    refused.setdefault(text, {})[name] = None

                for text in marks(facts, dataset, trains):
                    remarks.setdefault(f"{dataset.name}: {text}", {})[name] = None

            difference = _difference_from_paper(cell, dataset)
            if difference:
                text = f"no verdict on the paper's number: {difference}"
                remarks.setdefault(text, {})[name] = None

    for texts, refuses in ((refused, True), (remarks, False)):
        for text, cells in texts.items():
            yield Finding(refuses, f"{_first_of(cells)}: {text}")


def _difference_from_paper(cell: Cell, dataset: DatasetConfig) -> str:
    if cell.published is None:
        return ""

    return mismatch(cell.published, section_of(dataset))


def _first_of(cells: Mapping[str, None]) -> str:
    """The first of several cells, and how many more there are."""
    first = next(iter(cells))
    if len(cells) > 1:
        return f"{first} and {len(cells) - 1} more"

    return first


def input_problems(cells: Sequence[ReadableCell]) -> list[str]:
    """Return what a launch would refuse of data, weights and models, of a file whose own problems
    stop it before.

    So that all of them are found in one round. Nothing is fetched.
    """
    trials = {cell.name: cell.trial for cell in cells if cell.trial is not None}
    datasets, backbones = [], []

    for cell in cells:
        if "dataset" in cell.parts:
            datasets.append(cell.parts["dataset"])
        if "backbone" in cell.parts:
            backbones.append(cell.parts["backbone"])

    for trial in trials.values():
        if trial.backbone is not None:
            backbones.append(trial.backbone)

    with_weights = [backbone for backbone in backbones if backbone.reads_files]
    inputs = read_all(dict.fromkeys(datasets), dict.fromkeys(with_weights), fetch=False)

    refused: dict[str, dict[str, None]] = {}

    for cell in cells:
        dataset = cell.parts.get("dataset")
        if dataset is not None and dataset in inputs.data:
            for text in refusals(inputs.data[dataset], dataset, _batch_of(cell)):
                refused.setdefault(text, {})[cell.name] = None

    problems = [f"lacking here: {text}" for text in inputs.missing]
    problems += [f"{_first_of(names)}: {text}" for text, names in refused.items()]
    if trials:
        problems += _model_problems(trials)

    return problems


def _model_problems(trials: Mapping[str, TrialConfig]) -> list[str]:
    """Return what the audit refuses of trials' models, by cell name; without it where packages are
    missing.
    """
    from pointsweep.planning import audit

    missing = missing_packages(trials.values())

    if missing:
        return [f"lacking here: {text}" for text in missing]

    arms = [audit.Arm(audit.arm_of(trial), (name,)) for name, trial in trials.items()]
    return [finding.text for finding in audit.audit(arms, {}) if finding.refuses]


def _batch_of(cell: ReadableCell) -> int | None:
    """The clouds of a cell's training batch; None where it is not known, or where no batches are
    trained on.
    """
    train = cell.parts.get("train")
    network = cell.parts.get("network")

    if cell.trial is not None:
        train, network = cell.trial.train, cell.trial.network
        if not cell.trial.trains:
            return None

    if train is None or (network is not None and not network.trainable):
        return None

    batch_size: int = train.batch_size
    return batch_size


def of_the_machine(
    sweep: Sweep, rest: Iterable[TrialConfig], flags: AbstractSet[str]
) -> Iterator[Finding]:
    """Yield what trials ask of a CPU that it cannot do, or is slow at; `flags` are this machine's,
    which may not be the workers'.
    """
    if sweep.resources.gpus:
        return

    trains = {config.train for config in rest}
    if any(train.compile for train in trains):
        yield Finding(
            True,
            "train.compile: true needs a GPU, resources.gpus is 0: set it, or leave"
            " train.compile out",
        )

    unit = bf16_unit(flags)
    if unit != "AMX" and any(train.precision == "bf16" for train in trains):
        other = "no bf16: slower than fp32"
        if unit:
            other = "AVX-512's bf16 alone: faster than fp32, not as on AMX"

        yield Finding(
            False, f"train.precision: bf16 without a GPU; this CPU has no AMX, {other}"
        )


def trial_states(
    sweep: Sweep, store: Store
) -> tuple[dict[str, str], dict[str, Record]]:
    """The states of the trials that are asked for, and the records of those that are finished."""
    states, records, _ = states_and_damage(sweep, store)
    return states, records


def states_and_damage(
    sweep: Sweep, store: Store
) -> tuple[dict[str, str], dict[str, Record], dict[str, str]]:
    """Return what `trial_states` does, and what is wrong with the records of the trials whose state
    is `damaged`.
    """
    states: dict[str, str] = {}
    records: dict[str, Record] = {}
    damaged: dict[str, str] = {}
    trials = sweep.trials()
    started = _started(store) if len(trials) >= WORTH_A_LISTING else None

    for trial in trials:
        key = trial.config.key()
        if key in states:
            continue

        if started is not None and key not in started:
            states[key] = "new"
            continue

        try:
            record = read_record(store, key)
            problem = config_problem(record, trial.config)
            problem = problem or _changed_file(record, store)

            if problem:
                raise RecordError(f"{store.url}, trials/{key}/record.json: {problem}")

            states[key], records[key] = "finished", record
        except FileNotFoundError:
            states[key] = unfinished_status(store, key)
        except RecordError as error:
            states[key], damaged[key] = "damaged", str(error)

    records = with_metric(store, records, sweep.metric)
    if sweep.adaptive is None:
        return states, records, damaged

    settled, _ = settle(sweep.layout(), records)
    requested: set[str] = set()
    for cell in settled.cells:
        requested.update(key for _, key in cell.keys)

    return (
        _only(states, requested),
        _only(records, requested),
        _only(damaged, requested),
    )


def _only(values: Mapping[str, Value], keys: Collection[str]) -> dict[str, Value]:
    return {key: value for key, value in values.items() if key in keys}


def _started(store: Store) -> set[str] | None:
    """Return the keys of all trials that have a folder in a store on a disk; None for another
    store, where a listing takes long.
    """
    if folder_of(store) is None:
        return None

    return {name.removesuffix("/") for name in store.list("trials")}


def _changed_file(record: Record, store: Store) -> str:
    """Return which file beside a record was changed since, on a disk; objects on S3 carry digests
    of their own.
    """
    if folder_of(store) is None:
        return ""

    def read(name: str) -> bytes:
        return store.read(f"trials/{record.key}/{name}")

    return digests_problem(record, read)


def check(
    sweep: Sweep,
    rest: Mapping[str, TrialConfig],
    counted: Mapping[str, Mapping[str, int]],
) -> plan_cache.Checked:
    """Count and audit the trials that are left; from this machine's memory where it has them.

    `counted` are the counts of those that are finished.
    """
    if not rest:
        return plan_cache.Checked({}, ())

    cached = plan_cache.read(sweep, list(rest))
    if cached is not None:
        return cached

    parameters = count_arms(rest)
    audited = findings(sweep, dict(counted) | parameters)
    checked = plan_cache.Checked(parameters, audited)
    plan_cache.keep(sweep, list(rest), checked)

    return checked


def findings(
    sweep: Sweep, parameters: Mapping[str, Mapping[str, int]]
) -> tuple[Finding, ...]:
    """The audit of every arm of the sweep: its model, and a dry run of its training."""
    from pointsweep.planning import audit, dry_run

    arms: dict[Key, _Cells] = {}
    trained: list[tuple[Key, dry_run.Arm]] = []
    counts: dict[str, Mapping[str, int]] = {}

    for cell in sweep.cells:
        if not cell.trials:
            continue

        first = cell.trials[0]
        name = sweep.cell_name(cell)
        model = model_key(first)
        backbone = "" if first.backbone is None else canonical_json(first.backbone)

        if (model, backbone) not in arms:
            arms[model, backbone] = _Cells(audit.arm_of(first))

        arm = arms[model, backbone]
        arm.names.append(name)
        if cell.published:
            arm.published.append(cell.published)

        if first.key() in parameters:
            counts[arm.config.key()] = parameters[first.key()]

        trained.append((model, dry_run.Arm(first, name)))

    audited = []
    is_run: dict[Key, bool] = {}
    for arm in arms.values():
        audited.append(audit.Arm(arm.config, tuple(arm.names), tuple(arm.published)))
        is_run[model_key(arm.config)] = audit.runs(arm.config)

    collected = audit.audit(audited, counts)
    collected += dry_run.dry_run([arm for model, arm in trained if is_run[model]])
    return tuple(sorted(collected, key=lambda finding: not finding.refuses))


@dataclass
class _Cells:
    """The cells that one model fills, while they are gathered."""

    config: TrialConfig
    names: list[str] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)


def count_arms(configs: Mapping[str, TrialConfig]) -> dict[str, dict[str, int]]:
    """Parameter counts by key; each model is built once, on the meta device.

    What cannot be built has none: the audit says why.
    """
    import torch

    from pointsweep.models.point_model import build, count_parameters

    counted: dict[Key, dict[str, int] | None] = {}
    result = {}

    for key, config in configs.items():
        model = model_key(config)
        if model not in counted:
            counted[model] = None
            with torch.device("meta"), suppress(ValueError):
                made = build(without_seed(config), num_classes(config.dataset))
                counted[model] = vars(count_parameters(made))

        counts = counted[model]
        if counts is not None:
            result[key] = counts

    return result


def num_classes(dataset: DatasetConfig) -> int:
    """The number of classes, from the config alone: the data need not be at hand."""
    count: int = dataset.num_classes  # type: ignore[attr-defined]
    return count
