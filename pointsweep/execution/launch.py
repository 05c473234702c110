"""One launch: what several sweeps have not finished yet, each trial once, in packs over one
backbone where a sweep asks for them.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pointsweep.config import plugins
from pointsweep.config.plugins import Source
from pointsweep.config.schema import TrialConfig, without_seed
from pointsweep.config.validation import trial_from_dict
from pointsweep.execution import launchers
from pointsweep.execution.budget import Spending
from pointsweep.execution.launchers import Event, Launcher, Pack, Resources, always
from pointsweep.execution.options import LaunchOptions
from pointsweep.execution.progress import ENDS, Display, Label, Progress
from pointsweep.planning.plan import Plan
from pointsweep.reporting import build as tables
from pointsweep.reporting.table import Table
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.record_index import sound_record
from pointsweep.results.records import Record
from pointsweep.storage.base import Store
from pointsweep.storage.stores import folder_of
from pointsweep.sweep.resources import Resources as SweepResources
from pointsweep.tracking.target import TrialTags
from pointsweep.training import autotune as calibrate
from pointsweep.training.fusion.pack import packs_of
from pointsweep.training.runner import Job, Task
from pointsweep.training.supervisor import Outcome

WAIT_S = 60.0  # for trials that others hold, after everything else is done


@dataclass
class Launch:
    """State of a launch. `job` is what all its packs share; `tags` says of every trial where it
    stands in the tables.
    """

    plans: Sequence[Plan]
    store: Store
    tags: Mapping[str, TrialTags]
    options: LaunchOptions
    display: Display
    job: Job
    # called with the key of each trial that has ended
    on_end: Callable[[str], None] | None = None
    records: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # the reasons, by key

    def __post_init__(self) -> None:
        self.keys: set[str] = set()
        for plan in self.plans:
            self.keys.update(plan.states)
            self.records.update(plan.records)

    def run(
        self, groups: Mapping[tuple[SweepResources, str], Sequence[TrialConfig]]
    ) -> list[Outcome]:
        """Run the trials, by what their sweep gives each and the sweep whose budget counts; return
        how they ended.
        """
        outcomes: list[Outcome] = []
        progress = Progress(
            display=self.display,
            labels=self._labels(),
            finished=len(self.records),
            total=len(self.keys),
            value=self._value,
            tables=self._tables,
        )

        try:
            with progress:
                self._rank_finished(progress)
                for (resources, name), configs in groups.items():
                    outcomes += self._group(resources, name, configs, progress)
        finally:
            disk = folder_of(self.store)
            if disk is not None:
                folder = disk.path(f"launches/{self.job.launch}")
                shutil.rmtree(folder, ignore_errors=True)

        return outcomes

    def _labels(self) -> dict[str, Label]:
        """Return what is said of every trial: its place, and the number that its sweep's table
        prints.
        """
        metrics = {plan.sweep.name: plan.sweep.metric for plan in self.plans}
        labels = {}

        for key, tags in self.tags.items():
            labels[key] = Label(
                cell=tags.cell,
                metric=metrics.get(tags.sweep, ""),
                sweep=tags.sweep,
                row=tags.row,
                column=tags.column,
                seed=tags.seed,
            )

        return labels

    def _value(self, key: str) -> float | None:
        """Return the number of a finished trial that the table prints; None where there is none."""
        plan = next((plan for plan in self.plans if key in plan.states), self.plans[0])
        # What is read here is not kept: there may be ten thousand.
        record = self.records.get(key) or sound_record(self.store, key)

        if record is None:
            return None

        record = with_metric(self.store, {key: record}, plan.sweep.metric)[key]
        return record.metrics.get(plan.sweep.protocol, {}).get(plan.sweep.metric)

    def _rank_finished(self, progress: Progress) -> None:
        for key in list(self.records):
            number = self._value(key)
            if number is not None:
                progress.seen(key, number)

    def _tables(self) -> list[Table]:
        """The tables as they stand."""
        for key in self.keys:
            record = None if key in self.records else sound_record(self.store, key)
            if record is not None:
                self.records[key] = record

        built = []
        for plan in self.plans:
            own = {}
            for key, record in self.records.items():
                if key in plan.states:
                    own[key] = record

            own = with_metric(self.store, own, plan.sweep.metric)
            self.records.update(own)
            layout = plan.sweep.layout()
            built.append(tables.build(layout, own, self.failures, plan.parameters))

        return built

    def _group(
        self,
        requested: SweepResources,
        name: str,
        configs: Sequence[TrialConfig],
        progress: Progress,
    ) -> list[Outcome]:
        plan = next(plan for plan in self.plans if plan.sweep.name == name)
        spending = Spending(plan, self.store)
        say = self.display.say
        say(spending.text())
        launcher = launchers.load(self.options.launcher)
        resources, packs = self._packs(requested, configs, launcher)
        may_start = spending.left if spending.text() else always

        def listen(event: Event) -> None:
            if event.kind == "failed":
                self.failures[event.key] = event.reason

            if event.kind in ENDS:
                spending.ended(event.key)

            progress(event)
            if event.kind in ENDS and self.on_end is not None:
                self.on_end(event.key)

        def run(packs: Sequence[Pack], job: Job) -> list[Outcome]:
            return launcher.run(packs, job, resources, listen, may_start)

        processes = requested.processes if launcher.divides else 1
        job = replace(
            self.job,
            recompute=requested.recompute,
            devices=resources.gpus or resources.cpus,
            processes=processes,
        )
        return run_all(packs, job, run, say)

    def _packs(
        self,
        requested: SweepResources,
        configs: Sequence[TrialConfig],
        launcher: Launcher,
    ) -> tuple[Resources, list[list[Task]]]:
        # with which is measured what is to be measured
        resources = Resources(
            cpus=requested.cpus,
            gpus=1.0 if requested.gpus == "auto" else requested.gpus,
            processes=requested.processes,
            max_concurrent=self.options.workers,
        )
        if "auto" in (requested.pack, requested.gpus):
            self.display.phase("measuring how trials fit on this machine")

        size: int | Callable[[TrialConfig], int]
        if isinstance(requested.pack, int):
            size = requested.pack
        else:
            size = functools.partial(_pack_size, launcher, resources, self.job)

        packs = []
        for pack in packs_of(configs, size):
            packs.append([Task(config, self.tags[config.key()]) for config in pack])

        if requested.gpus == "auto" and launcher.divides:
            share = _gpu_share(launcher, resources, packs, self.job, self.display.say)
            resources = replace(resources, gpus=share)

        return resources, packs


def run_all(
    packs: Sequence[Pack],
    job: Job,
    run: Callable[[Sequence[Pack], Job], list[Outcome]],
    say: Callable[[str], None],
) -> list[Outcome]:
    """Run the packs; those that another process works on come last, when it may be done or gone."""
    outcomes = {outcome.key: outcome for outcome in run(packs, job)}
    held = []

    for pack in packs:
        of_pack = [outcomes[task.config.key()] for task in pack]
        reasons = [outcome.reason for outcome in of_pack if outcome.status == "held"]
        if reasons:
            held.append(pack)
            say(f"waiting: {reasons[0]}")

    if held:
        for outcome in run(held, replace(job, wait_s=WAIT_S)):
            outcomes[outcome.key] = outcome

    return list(outcomes.values())


@dataclass(frozen=True)
class Measured:
    """Request to a worker to measure: packs of a trial, as plain data, since the worker imports
    plug-ins before it reads a trial.
    """

    config: Mapping[str, Any]
    size: int
    plugins: tuple[Source, ...]

    def read(self) -> TrialConfig:
        """Return the trial."""
        plugins.adopt(self.plugins)
        return trial_from_dict(self.config)


def _pack_size(
    launcher: Launcher, resources: Resources, job: Job, config: TrialConfig
) -> int:
    """Return the size of a pack for `pack: auto`: as it is measured, once, where packs will run."""
    measured = Measured(config.to_dict(), 1, job.plugins)
    size: int = launcher.measure(_pack_size_of, measured, resources)
    return size


def _gpu_share(
    launcher: Launcher,
    resources: Resources,
    packs: Sequence[Pack],
    job: Job,
    say: Callable[[str], None],
) -> float:
    """Return the share of a GPU for `gpus: auto`: what the pack with the most memory needs,
    measured where packs will run.
    """
    # Packs of one arm and size need the same: each is measured once.
    arms: dict[tuple[str, int], TrialConfig] = {}
    for pack in packs:
        config = pack[0].config
        arms[without_seed(config).key(), len(pack)] = config

    shares: list[float] = []
    for (_, size), config in arms.items():
        measured = Measured(config.to_dict(), size, job.plugins)
        shares.append(launcher.measure(_share_of, measured, resources))

    say(
        f"gpus: auto: a pack gets {max(shares):g} of a GPU, by the memory of its largest arm"
    )
    return max(shares)


def _pack_size_of(measured: Measured) -> int:
    return calibrate.pack_size(measured.read())


def _share_of(measured: Measured) -> float:
    return calibrate.gpu_share(measured.read(), measured.size)
