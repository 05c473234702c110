"""Sweeps as one launch: what is not finished trains, each trial once however many tables show it;
then every table is printed.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from pointsweep.config.plugins import Source
from pointsweep.config.schema import TrialConfig
from pointsweep.errors import StoreError, StoreUnavailableError
from pointsweep.execution import ray_cluster
from pointsweep.execution.budget import Spending
from pointsweep.execution.notify import announce
from pointsweep.execution.options import LaunchOptions
from pointsweep.execution.progress import Display
from pointsweep.planning.plan import Plan, make_plan, trial_states
from pointsweep.reporting import build as tables
from pointsweep.reporting.cell_metrics import cell_metrics
from pointsweep.reporting.formats.text import render_for
from pointsweep.reporting.table import Table
from pointsweep.results.events import read_failure_kind
from pointsweep.storage.base import Store
from pointsweep.sweep.definition import write_definition
from pointsweep.sweep.resources import Resources
from pointsweep.sweep.sweep import Sweep
from pointsweep.tracking.mirroring import Mirroring, mirrored
from pointsweep.tracking.target import Target, TrialTags, tracking_uri
from pointsweep.tracking.trackers import open_tracker
from pointsweep.training.supervisor import Outcome

COMPLETE, FAILED, SPENT, HELD = 0, 1, 4, 7


@contextmanager
def after_launch() -> Iterator[None]:
    """Turn StoreError into StoreUnavailableError: what a store refuses once trials train is no
    mistake that nothing was launched for.
    """
    try:
        yield
    except StoreError as error:
        raise StoreUnavailableError(str(error)) from error


@dataclass(frozen=True)
class Conclusion:
    """Result of a launch for one sweep: its table, and the exit code that says how complete it
    is.
    """

    table: Table
    code: int


def exit_code_of(conclusions: Sequence[Conclusion]) -> int:
    """Return the exit code of a launch: that some trials failed counts before all else."""
    codes = [conclusion.code for conclusion in conclusions]
    return FAILED if FAILED in codes else max(codes)


def execute(
    plans: Sequence[Plan], store: Store, options: LaunchOptions, display: Display
) -> list[Conclusion]:
    """Launch what is not finished, mirror it to the tracker, write and print the tables. Return
    what became of each sweep.
    """
    uri = tracking_uri(options.tracking_uri, store)
    tracker = open_tracker(uri).title
    tags_by_sweep = {plan.sweep.name: _requested_tags(plan) for plan in plans}
    # A trial that several sweeps show is seen live in the first one's experiment; the others have
    # it at the end.
    tags: dict[str, TrialTags] = {}

    for sweep_tags in reversed(tags_by_sweep.values()):
        tags |= sweep_tags

    with ExitStack() as stack:
        mirrors: dict[str, Mirroring] = {}
        targets = {}
        for plan in plans:
            name = plan.sweep.name
            write_definition(plan.sweep, store)
            display.phase(f"preparing {tracker}" if uri != "none" else "")
            layout = plan.sweep.stored.layout()
            mirror = stack.enter_context(
                mirrored(uri, store, layout, tags_by_sweep[name], bool(plan.to_run))
            )
            mirrors[name] = mirror

            if mirror.target is not None:
                targets[name] = mirror.target

        outcomes = launch_all(plans, store, targets, tags, options, display)
        tried = {plan.sweep.name: set(plan.states) for plan in plans}
        while not waiting(outcomes):
            further = _all_further(plans, store, tried, display)
            if not further:
                break

            for plan in further:
                fresh_tags = _requested_tags(plan)
                tags_by_sweep[plan.sweep.name].update(fresh_tags)
                tags = fresh_tags | tags

            outcomes += launch_all(further, store, targets, tags, options, display)

        display.phase(f"bringing {tracker} level" if targets else "ending the launch")
        ray_cluster.leave()

    conclusions = []
    with after_launch():
        for plan in plans:
            sweep = plan.sweep
            mirror = mirrors[sweep.name]
            conclusion = conclude(
                sweep, store, mirror.lines(), outcomes, options, display
            )
            conclusions.append(conclusion)

            if sweep.full_sweep is None:
                files = tables.files_of(store, sweep.name)
                mirror.publish(files, cell_metrics(conclusion.table))

    return conclusions


def waiting(outcomes: Sequence[Outcome]) -> set[str]:
    """The trials that a budget did not reach."""
    return {outcome.key for outcome in outcomes if outcome.status == "waiting"}


def _requested_tags(plan: Plan) -> dict[str, TrialTags]:
    """Return the tags of those of a sweep's trials that are asked for as yet: with adaptive seeds
    not of all.
    """
    requested = {}
    for key, tags in trial_tags_of(plan.sweep).items():
        if key in plan.states:
            requested[key] = tags

    return requested


def _all_further(
    plans: Sequence[Plan],
    store: Store,
    tried: Mapping[str, set[str]],
    display: Display,
) -> list[Plan]:
    """Return what the records now ask for, of all sweeps. Adds to `tried`, by sweep."""
    further = []
    for plan in plans:
        fresh = _further(plan, store, tried[plan.sweep.name], display)
        if fresh is not None:
            further.append(fresh)

    return further


def _further(
    plan: Plan, store: Store, tried: set[str], display: Display
) -> Plan | None:
    """Return what the records now ask for, of a sweep with adaptive seeds; None if nothing new.
    Adds to `tried`.
    """
    if plan.sweep.adaptive is None:
        return None

    states, records = trial_states(plan.sweep, store)
    if not states.keys() - tried:
        return None

    # What failed in this launch is left to the next one.
    fresh_states = {}
    for key, state in states.items():
        if state == "finished" or key not in tried:
            fresh_states[key] = state

    tried.update(states)
    fresh = replace(plan, states=fresh_states, records=records)
    display.say(
        f"{plan.sweep.name}: {len(fresh.to_run)} further trials for the comparisons that are open"
    )

    return fresh


def trial_tags_of(sweep: Sweep) -> dict[str, TrialTags]:
    """Return what the tracker is to say of every trial, by key."""
    tags = {}
    for trial in sweep.trials():
        row, column, seed = sweep.row_column_seed(trial)
        tags[trial.config.key()] = TrialTags(sweep.name, row, column, seed)

    return tags


def launch_all(
    plans: Sequence[Plan],
    store: Store,
    targets: Mapping[str, Target],
    tags: Mapping[str, TrialTags],
    options: LaunchOptions,
    display: Display,
    limits: Mapping[str, Mapping[int, float]] | None = None,
    on_end: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Run every trial that has no record, once, in packs over one backbone where the sweep asks for
    them; return how they ended.

    `on_end` is called with the key of each trial that has ended, while the others train.
    """
    groups = to_run(plans)
    if not groups:
        return []

    from pointsweep.execution.launch import Launch
    from pointsweep.training.runner import Job

    job = Job(
        store.url,
        targets,
        threads=options.threads,
        limits=limits or {},
        plugins=sources_of(plans),
    )

    launch = Launch(plans, store, tags, options, display, job, on_end)

    with after_launch():
        return launch.run(groups)


def sources_of(plans: Sequence[Plan]) -> tuple[Source, ...]:
    """Return the plug-ins of all sweeps, each once."""
    sources: dict[str, Source] = {}
    for plan in plans:
        for source in plan.sweep.plugins:
            sources[source.name] = source

    return tuple(sources.values())


def to_run(plans: Sequence[Plan]) -> dict[tuple[Resources, str], list[TrialConfig]]:
    """The distinct trials without a record, by what their sweep gives each: those are launched one
    after the other.

    The name is that of the sweep whose budget counts; sweeps without one are launched together.
    """
    groups: dict[tuple[Resources, str], list[TrialConfig]] = defaultdict(list)
    first_names: dict[Resources, str] = {}  # of sweeps without a budget
    seen: set[str] = set()

    for plan in plans:
        fresh = [config for config in plan.to_run if config.key() not in seen]
        if not fresh:
            continue

        seen.update(config.key() for config in fresh)
        resources = plan.sweep.resources
        name = plan.sweep.name

        if math.isinf(resources.budget.limit_hours()):
            name = first_names.setdefault(resources, name)

        groups[resources, name] += fresh

    return groups


def _show(
    table: Table, store: Store, mirror: Sequence[str], display: Display, part: bool
) -> None:
    """Show a table at its end, and where everything lies.

    `mirror`: what is said of the tracker; `part`: of a larger table.
    """
    report = store.location(f"sweeps/{table.name}/report.html")
    lines = ["", f"report   {report}", f"store    {store.url}"]

    if part:
        lines.append(f"whole    pointsweep tables {table.name}")

    lines += mirror
    text = render_for(display.stream, table) + "\n".join(lines)
    mlflow = "\n".join(mirror)
    display.result(table, text, report=report, store=store.url, mlflow=mlflow)


def conclude(
    sweep: Sweep,
    store: Store,
    mirror: Sequence[str],
    outcomes: Sequence[Outcome],
    options: LaunchOptions,
    display: Display,
) -> Conclusion:
    """Print the table as it now stands, and where everything lies; notify whom the options name.

    `mirror`: what is said of the tracker.
    """
    display.phase("computing the table and the report")
    plan = make_plan(sweep, store)
    failed = {}
    failures = {}
    held = {}  # the reasons, by key

    for outcome in outcomes:
        # A trial whose folder cannot be written has no failure in its history.
        is_own = outcome.key in plan.states and outcome.key not in plan.records
        if is_own and outcome.status == "failed":
            failed[outcome.key] = outcome
            failures[outcome.key] = outcome.reason

        if outcome.status == "held":
            held[outcome.key] = outcome.reason

    failures |= plan.failures
    table = tables.build(sweep.layout(), plan.records, failures, plan.parameters)
    if sweep.full_sweep is None:
        tables.write_all(store, table, plan.records)
    else:
        layout, records, full_failures = tables.read(store, sweep.name)
        tables.write_all(store, tables.build(layout, records, full_failures), records)

    text = tables.render(table, "text")
    _show(table, store, mirror, display, part=sweep.full_sweep is not None)

    missing = [key for key, state in plan.states.items() if state != "finished"]
    beyond_budget = waiting(outcomes).intersection(missing)
    held_elsewhere = (held.keys() - plan.failures.keys()).intersection(missing)

    for key in missing:
        if key in beyond_budget:
            continue

        if key in held_elsewhere:
            line = f"held: {key} {held[key]}; the same command, run again, goes on"
        else:
            log = store.location(f"trials/{key}/history.jsonl")
            kind = _failure_kind(store, key, plan, failed.get(key))
            line = f"failed: {key} {kind} {failures.get(key, 'no record')}  log: {log}"

        print(line, file=sys.stderr)

    if beyond_budget:
        used = Spending(plan, store).text()
        print(
            f"{used}; {len(beyond_budget)} trials were not started. The same command with a larger"
            " one continues",
            file=sys.stderr,
        )

    code = COMPLETE
    if missing:
        code = _exit_code(set(missing) - beyond_budget - held_elsewhere, held_elsewhere)

    announce(options.notify, sweep.name, code, plan.counts(), text)
    return Conclusion(table, code)


def _exit_code(failed: Collection[str], held: Collection[str]) -> int:
    """Return the exit code of a launch that left trials unfinished, by the worst reason."""
    if failed:
        return FAILED

    return HELD if held else SPENT


def _failure_kind(store: Store, key: str, plan: Plan, outcome: Outcome | None) -> str:
    """Return what kind of failure a trial's history says, else its outcome; without both its node
    was lost.
    """
    kind = read_failure_kind(store, key) if key in plan.failures else ""
    if kind:
        return kind

    return outcome.kind if outcome is not None else "lost_node"
