"""Sweeps as one launch: what is not finished trains, each trial once however many tables show it; then every table is printed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from pointsweep import ray_cluster, tables
from pointsweep.config import TrialConfig
from pointsweep.events import read_failure_kind
from pointsweep.guard import Outcome
from pointsweep.masking import masked
from pointsweep.mirror import drain
from pointsweep.notify import announce
from pointsweep.plan import Plan, look, make_plan
from pointsweep.render import render_here
from pointsweep.resources import Resources
from pointsweep.spending import Spending
from pointsweep.store import Store
from pointsweep.sweep import Sweep
from pointsweep.target import Target, TrackerAway, TrialTags, default_uri
from pointsweep.tracking import finish, prepare

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
        ray_cluster.leave()
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
    drain(target)  # or both would send the same
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
    from pointsweep.launching import Launch
    from pointsweep.trial import Job

    return Launch(plans, store, places, args, Job(store.url, targets, threads=args.threads, limits=limits or {})).run(groups)


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
    print(f"{render_here(table)}\n\nreport   {store.place(f'sweeps/{sweep.name}/report.html')}\nstore    {store.url}")
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
