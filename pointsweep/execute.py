"""Sweeps as one launch: what is not finished trains, each trial once however many tables show it; then every table is printed."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pointsweep import tables
from pointsweep.config import TrialConfig, without_seed
from pointsweep.guard import Outcome
from pointsweep.history import read_failure_kind
from pointsweep.notify import announce
from pointsweep.plan import Plan, look, make_plan, read_record
from pointsweep.resources import Resources
from pointsweep.spending import Spending
from pointsweep.store import FileStore, Store
from pointsweep.sweep import Sweep
from pointsweep.tracking import Target, TrackerAway, TrialTags, default_uri, finish, masked, prepare

if TYPE_CHECKING:
    from pointsweep import launch

COMPLETE, FAILED, SPENT = 0, 1, 4


def execute(plans: Sequence[Plan], store: Store, args: argparse.Namespace) -> int:
    """Launches what is not finished, mirrors it to MLflow, writes and prints the tables. Returns the exit code."""
    uri = tracker(args, store)
    owns = {plan.sweep.name: _asked(plan) for plan in plans}
    # A trial that several sweeps show is seen live in the first one's experiment; the others have it at the end.
    places = {key: place for own in reversed(owns.values()) for key, place in own.items()}
    with ExitStack() as mirrors:
        targets = {}
        for plan in plans:
            note(plan.sweep, store)
            target = mirrors.enter_context(mirrored(uri, store, plan, owns[plan.sweep.name]))
            if target is not None:
                targets[plan.sweep.name] = target
        outcomes = launch_all(plans, store, targets, places, args)
        tried = {plan.sweep.name: set(plan.states) for plan in plans}
        while not waiting(outcomes):
            further = [fresh for plan in plans if (fresh := _further(plan, store, tried[plan.sweep.name]))]
            if not further:
                break
            for fresh in further:
                owns[fresh.sweep.name].update(_asked(fresh))
                places = _asked(fresh) | places
            outcomes += launch_all(further, store, targets, places, args)
    codes = [conclude(plan.sweep, store, uri, outcomes, args.notify) for plan in plans]
    return FAILED if FAILED in codes else max(codes)


def waiting(outcomes: Sequence[Outcome]) -> set[str]:
    """The trials that a budget did not reach."""
    return {outcome.key for outcome in outcomes if outcome.status == "waiting"}


def _asked(plan: Plan) -> dict[str, TrialTags]:
    """The places of those of a sweep's trials that are asked for as yet: with adaptive seeds not all of them."""
    return {key: place for key, place in places_of(plan.sweep).items() if key in plan.states}


def _further(plan: Plan, store: Store, tried: set[str]) -> Plan | None:
    """What the records now ask for, of a sweep with adaptive seeds; None if nothing new. Adds to `tried`."""
    if plan.sweep.adaptive is None:
        return None
    states, records = look(plan.sweep, store)
    if not states.keys() - tried:  # what failed in this launch is left to the next one
        return None
    fresh = replace(plan, states={k: s for k, s in states.items() if s == "finished" or k not in tried}, records=records)
    tried.update(states)
    print(f"{plan.sweep.name}: {len(fresh.to_run)} further trials for the comparisons that are open", flush=True)
    return fresh


def tracker(args: argparse.Namespace, store: Store) -> str:
    """The URI of MLflow: as the command says, else the environment, else a database in the store; `none` for none."""
    return args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)


def note(sweep: Sweep, store: Store) -> None:
    """Writes what `python -m pointsweep.tables NAME` needs."""
    store.write(f"sweeps/{sweep.name}/sweep.yaml", sweep.text.encode())
    store.write(f"sweeps/{sweep.name}/plan.json", json.dumps({"layout": json.loads(sweep.layout().to_json())}).encode())


def places_of(sweep: Sweep) -> dict[str, TrialTags]:
    """What MLflow is to say of every trial, by key."""
    return {trial.config.key(): TrialTags(sweep.name, *sweep.place(trial)) for trial in sweep.trials()}


@contextmanager
def mirrored(uri: str, store: Store, plan: Plan, places: Mapping[str, TrialTags]) -> Iterator[Target | None]:
    """MLflow ready for the sweep, and at the end level with the store. If it is away, says so: the next run catches up."""
    mark = f"sweeps/{plan.sweep.name}/mirrored.json"

    def level() -> bytes:  # places may grow while the sweep runs: adaptive seeds
        return json.dumps({"uri": masked(uri), "keys": sorted(places)}).encode()

    if uri == "none" or (not plan.to_run and store.exists(mark) and store.read(mark) == level()):
        yield None
        return
    target = None
    try:
        target = prepare(uri, store, plan.sweep.layout())
    except TrackerAway as error:
        print(f"{error}\ntraining goes on without it; the same command, run again, mirrors what it finds", file=sys.stderr)
    yield target
    if target is None:
        return
    try:
        finish(target, store, places)
        store.write(mark, level())
    except TrackerAway as error:
        print(f"{error}\nit is behind; the same command, run again, mirrors the rest", file=sys.stderr)


def launch_all(
    plans: Sequence[Plan],
    store: Store,
    targets: Mapping[str, Target],
    places: Mapping[str, TrialTags],
    args: argparse.Namespace,
    limits: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Outcome]:
    """Runs every trial that has no record, once, in packs over one backbone where the sweep asks for them. Returns how they ended."""
    groups = to_run(plans)
    if not groups:
        return []
    from pointsweep import launch
    from pointsweep.pack import packs_of
    from pointsweep.progress import Progress
    from pointsweep.trial import Job, Task

    shared = Job(store.url, targets, threads=args.threads, limits=limits or {})
    records = {key: record for plan in plans for key, record in plan.records.items()}
    keys = {key for plan in plans for key in plan.states}

    def table() -> str:
        records.update({key: read_record(store, key) for key in keys if key not in records and _finished(store, key)})
        made = [tables.build(plan.sweep.layout(), records, {}, plan.parameters) for plan in plans]
        return "\n\n".join(tables.render(one, "text") for one in made)

    names = {key: place.cell for key, place in places.items()}
    outcomes: list[Outcome] = []
    try:
        with Progress(names, len(records), len(keys), table) as progress:
            for (asked, name), configs in groups.items():
                spending = Spending(next(plan for plan in plans if plan.sweep.name == name), store)
                say(spending.text())
                gpus = 1.0 if asked.gpus == "auto" else asked.gpus  # with which is measured what is to be measured
                resources = launch.Resources(asked.cpus, gpus, asked.processes, args.workers)
                size = asked.pack if isinstance(asked.pack, int) else functools.partial(pack_size, resources, args.inline)
                packs = [[Task(config, places[config.key()]) for config in pack] for pack in packs_of(configs, size)]
                if asked.gpus == "auto" and not args.inline:
                    resources = replace(resources, gpus=gpu_share(resources, packs))

                def listen(event: launch.Event, spending: Spending = spending) -> None:
                    if event.kind != "epoch":
                        spending.ended(event.key)
                    progress(event)

                may_start = spending.left if spending.text() else launch.always

                def launcher(
                    packs: Sequence[launch.Pack], job: Job, resources: launch.Resources = resources,
                    listen: launch.Listener = listen, may_start: Callable[[], bool] = may_start,
                ) -> list[Outcome]:  # fmt: skip
                    if args.inline:
                        return launch.run_inline(packs, job, listen, may_start)
                    return launch.run_ray(packs, job, resources, listen, may_start)

                devices = resources.gpus or resources.cpus
                processes = 1 if args.inline else asked.processes
                job = replace(shared, recompute=asked.recompute, devices=devices, processes=processes)
                outcomes += launch.run_all(packs, job, launcher, say)
    finally:
        if isinstance(store, FileStore):
            shutil.rmtree(store.path(f"launches/{shared.launch}"), ignore_errors=True)
    return outcomes


def say(text: str) -> None:
    """One line, if there is one."""
    if text:
        print(text, flush=True)


def pack_size(resources: launch.Resources, inline: bool, config: TrialConfig) -> int:
    """Of `pack: auto`: as it is measured, once, where packs will run."""
    from pointsweep import calibrate, launch

    return calibrate.pack_size(config) if inline else launch.on_worker(calibrate.pack_size, config, resources)


def gpu_share(resources: launch.Resources, packs: Sequence[launch.Pack]) -> float:
    """Of `gpus: auto`: what the pack with the most memory needs, as it is measured, once, where packs will run."""
    from pointsweep import launch

    arms = {(without_seed(pack[0].config).key(), len(pack)): pack[0].config for pack in packs}
    found = [launch.on_worker(_share_of, (config, size), resources) for (_, size), config in arms.items()]
    say(f"gpus: auto: a pack gets {max(found):g} of a GPU, by the memory of its largest arm")
    return max(found)


def _share_of(pack: tuple[TrialConfig, int]) -> float:
    from pointsweep import calibrate

    return calibrate.gpu_share(*pack)


def to_run(plans: Sequence[Plan]) -> dict[tuple[Resources, str], list[TrialConfig]]:
    """The distinct trials without a record, by what their sweep gives each: those are launched one after the other.

    The name is that of the sweep whose budget counts; sweeps without one are launched together.
    """
    found: dict[tuple[Resources, str], list[TrialConfig]] = {}
    names: dict[Resources, str] = {}
    seen: set[str] = set()
    for plan in plans:
        fresh = [config for config in plan.to_run if config.key() not in seen]
        seen |= {config.key() for config in fresh}
        if fresh:
            own, name = plan.sweep.resources, plan.sweep.name
            name = names.setdefault(own, name) if math.isinf(own.budget.limit_hours()) else name
            found.setdefault((own, name), []).extend(fresh)
    return found


def _finished(store: Store, key: str) -> bool:
    return store.exists(f"trials/{key}/record.json")


def conclude(sweep: Sweep, store: Store, uri: str, outcomes: Sequence[Outcome], tell: Sequence[str]) -> int:
    """Prints the table as it now stands, and where everything lies; tells whom it is to tell. Returns the exit code."""
    plan = make_plan(sweep, store)
    # A trial whose folder cannot be written has no failure in its history.
    own = [outcome for outcome in outcomes if outcome.key in plan.states]
    told = {outcome.key: outcome for outcome in own if outcome.status == "failed" and outcome.key not in plan.records}
    failures = {key: outcome.reason for key, outcome in told.items()} | dict(plan.failures)
    table = tables.build(sweep.layout(), plan.records, failures, plan.parameters)
    tables.write_all(store, table, plan.records)
    text = tables.render(table, "text")
    print(f"{text}\n\nreport   {store.place(f'sweeps/{sweep.name}/report.html')}\nstore    {store.url}")
    if uri != "none":
        print(
            f"MLflow   {sys.executable} -m mlflow ui --backend-store-uri {masked(uri)}"
            if uri.startswith("sqlite")
            else f"MLflow   {masked(uri)}"
        )
    missing = [key for key, state in plan.states.items() if state != "finished"]
    held = {outcome.key: outcome.reason for outcome in outcomes if outcome.status == "held"}
    beyond = waiting(outcomes).intersection(missing)
    for key in [key for key in missing if key not in beyond]:
        log = store.place(f"trials/{key}/history.jsonl")
        kind = (read_failure_kind(store, key) if key in plan.failures else "") or (told[key].kind if key in told else "lost_node")
        if key in held and key not in plan.failures:
            print(f"held: {key} {held[key]}; the same command, run again, goes on", file=sys.stderr)
        else:
            print(f"failed: {key} {kind} {failures.get(key, 'no record')}  log: {log}", file=sys.stderr)
    if beyond:
        used = Spending(plan, store).text()
        print(f"{used}; {len(beyond)} trials were not started. The same command with a larger one continues", file=sys.stderr)
    code = COMPLETE if not missing else SPENT if beyond.issuperset(missing) else FAILED
    announce(tell, sweep.name, code, plan.counts(), text)
    return code
