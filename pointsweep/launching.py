"""One launch: what several sweeps have not finished yet, each trial once, in packs over one backbone where a sweep asks for them."""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pointsweep import calibrate, ray_cluster, tables
from pointsweep.config import TrialConfig, without_seed
from pointsweep.guard import Outcome
from pointsweep.index import sound_record
from pointsweep.inline import Event, Pack, Resources, always, run_all, run_inline
from pointsweep.pack import packs_of
from pointsweep.plan import Plan
from pointsweep.progress import Progress
from pointsweep.records import Record
from pointsweep.resources import Resources as Asked
from pointsweep.spending import Spending
from pointsweep.store import FileStore, Store
from pointsweep.target import TrialTags
from pointsweep.trial import Job, Task


@dataclass
class Launch:
    """What a launch holds. `job` is what all its packs share; `places` says of every trial where it stands in the tables."""

    plans: Sequence[Plan]
    store: Store
    places: Mapping[str, TrialTags]
    args: argparse.Namespace
    job: Job
    records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records |= {key: record for plan in self.plans for key, record in plan.records.items()}
        self.keys = {key for plan in self.plans for key in plan.states}

    def run(self, groups: Mapping[tuple[Asked, str], Sequence[TrialConfig]]) -> list[Outcome]:
        """Runs the trials, by what their sweep gives each and the sweep whose budget counts. Returns how they ended."""
        names = {key: place.cell for key, place in self.places.items()}
        outcomes: list[Outcome] = []
        try:
            with Progress(names, len(self.records), len(self.keys), self._table) as progress:
                for (asked, name), configs in groups.items():
                    outcomes += self._group(asked, name, configs, progress)
        finally:
            if isinstance(self.store, FileStore):
                shutil.rmtree(self.store.path(f"launches/{self.job.launch}"), ignore_errors=True)
        return outcomes

    def _table(self) -> str:
        """The tables as they stand."""
        for key in self.keys:
            record = None if key in self.records else sound_record(self.store, key)
            if record is not None:
                self.records[key] = record
        made = [tables.build(plan.sweep.layout(), self.records, {}, plan.parameters) for plan in self.plans]
        return "\n\n".join(tables.render(one, "text") for one in made)

    def _group(self, asked: Asked, name: str, configs: Sequence[TrialConfig], progress: Progress) -> list[Outcome]:
        spending = Spending(next(plan for plan in self.plans if plan.sweep.name == name), self.store)
        say(spending.text())
        resources, packs = self._packs(asked, configs)
        may_start = spending.left if spending.text() else always

        def listen(event: Event) -> None:
            if event.kind != "epoch":
                spending.ended(event.key)
            progress(event)

        def launcher(packs: Sequence[Pack], job: Job) -> list[Outcome]:
            if self.args.inline:
                return run_inline(packs, job, listen, may_start)
            from pointsweep import launch  # it imports Ray

            return launch.run_ray(packs, job, resources, listen, may_start)

        processes = 1 if self.args.inline else asked.processes
        job = replace(self.job, recompute=asked.recompute, devices=resources.gpus or resources.cpus, processes=processes)
        return run_all(packs, job, launcher, say)

    def _packs(self, asked: Asked, configs: Sequence[TrialConfig]) -> tuple[Resources, list[list[Task]]]:
        gpus = 1.0 if asked.gpus == "auto" else asked.gpus  # with which is measured what is to be measured
        resources = Resources(asked.cpus, gpus, asked.processes, self.args.workers)
        size = asked.pack if isinstance(asked.pack, int) else functools.partial(pack_size, resources, self.args.inline)
        packs = [[Task(config, self.places[config.key()]) for config in pack] for pack in packs_of(configs, size)]
        if asked.gpus == "auto" and not self.args.inline:
            resources = replace(resources, gpus=gpu_share(resources, packs))
        return resources, packs


def say(text: str) -> None:
    """One line, if there is one."""
    if text:
        print(text, flush=True)


def pack_size(resources: Resources, inline: bool, config: TrialConfig) -> int:
    """Of `pack: auto`: as it is measured, once, where packs will run."""
    if inline:
        return calibrate.pack_size(config)
    found: int = ray_cluster.on_worker(calibrate.pack_size, config, resources.cpus, resources.gpus)
    return found


def gpu_share(resources: Resources, packs: Sequence[Pack]) -> float:
    """Of `gpus: auto`: what the pack with the most memory needs, as it is measured, once, where packs will run."""
    arms = {(without_seed(pack[0].config).key(), len(pack)): pack[0].config for pack in packs}
    found = [ray_cluster.on_worker(_share_of, (config, size), resources.cpus, resources.gpus) for (_, size), config in arms.items()]
    say(f"gpus: auto: a pack gets {max(found):g} of a GPU, by the memory of its largest arm")
    return max(found)


def _share_of(pack: tuple[TrialConfig, int]) -> float:
    return calibrate.gpu_share(*pack)
