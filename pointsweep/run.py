"""The command: python -m pointsweep.run FILE [OVERRIDES...]. Checks, plans, skips what is finished, launches, prints the table.

Exit codes: 0 the table is complete; 1 finished with failed trials; 2 the file or this machine is not fit, nothing was launched;
3 interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from pointsweep import tables
from pointsweep.errors import BadStore, ConfigError, StoreFailed, Unfit
from pointsweep.guard import Outcome, preempted
from pointsweep.history import Held, TrialFolder, read_failure_kind, trial_status
from pointsweep.plan import Plan, make_plan, read_record
from pointsweep.resolution import resolution
from pointsweep.store import FileStore, Store, on_disk, open_store
from pointsweep.sweep import Sweep, load
from pointsweep.tracking import Target, TrackerAway, TrialTags, default_uri, finish, masked, prepare

COMPLETE, FAILED, INVALID, INTERRUPTED = 0, 1, 2, 3
GRACE_S = 2.0  # after a signal; Ray kills 3 s after SIGTERM


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that nothing takes it for a trial's failure."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m pointsweep.run",
        description="Turns a sweep file into its table. The same command again continues: nothing finished is computed twice.",
        epilog="exit codes: 0 complete, 1 some trials failed, 2 invalid (nothing launched), 3 interrupted (run it again)",
    )
    made.add_argument("file", help="the sweep file, e.g. sweeps/quickstart.yaml")
    made.add_argument(
        "overrides", nargs="*", help="Hydra overrides: train.epochs=2 seeds=[0,1] +axes.train.lr=[1e-4,1e-3] profile=smoke"
    )
    made.add_argument("--plan", action="store_true", help="check the file, print the table's skeleton and what would run, and stop")
    made.add_argument("--cfg", action="store_true", help="print every cell's resolved configuration and stop")
    made.add_argument("--only", action="append", default=[], help="run some cells: GLOB of a row, row=GLOB, column=GLOB, seed=N")
    made.add_argument("--store", help="folder of all trials (default: $POINTSWEEP_STORE, else ~/pointsweep)")
    made.add_argument("--tracking-uri", help="MLflow server (default: $MLFLOW_TRACKING_URI, else sqlite in the store); none = off")
    made.add_argument("--inline", action="store_true", help="run in this process, without Ray")
    made.add_argument("--workers", type=int, default=0, help="trials at once (default: as many as the resources allow)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of a trial")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parser().parse_intermixed_args(arguments)
    try:
        return plan_and_run(args)
    except KeyboardInterrupt:
        print("\ninterrupted while planning: nothing was launched", file=sys.stderr)
        return INTERRUPTED


def plan_and_run(args: argparse.Namespace) -> int:
    """Checks, plans, audits and, unless it is only asked for the plan, launches. Returns the exit code."""
    try:
        sweep = load(args.file, args.overrides, args.only)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return INVALID
    if args.cfg:
        print(sweep.resolved())
        return COMPLETE
    try:
        store = open_store(args.store)
        plan = make_plan(sweep.probe(), store, fetch=not args.plan)
    except BadStore as error:
        print(error, file=sys.stderr)
        return INVALID
    print(f"{sweep.name}: {sweep.searched() if sweep.search else plan.counts()}", flush=True)
    if args.plan:
        print(skeleton(plan, sweep))
        return COMPLETE
    if plan.missing:
        problems = [f"  {text}" for text in plan.missing]
        print("\n".join([f"{args.file}: this machine lacks what the sweep needs, nothing was launched", *problems]), file=sys.stderr)
        return INVALID
    refused = [f"  {finding.text}" for finding in plan.findings if finding.refuses]
    if refused:
        print("\n".join([f"{args.file}: the audit refuses the sweep, nothing was launched", *refused]), file=sys.stderr)
        return INVALID
    for finding in plan.findings:
        print(f"audit: {finding.text}", flush=True)
    try:
        if sweep.search is None:
            return interruptible(lambda: execute(sweep, plan, store, args), store)
        disk = on_disk(store, "a search keeps its study in a database")
        return interruptible(lambda: search(sweep, plan, disk, args), store)
    except (Unfit, Held, BadStore) as error:
        print(f"{args.file}: {error}", file=sys.stderr)
        return INVALID
    except StoreFailed as error:
        print(f"{error}\nwhat is done is kept; the same command continues", file=sys.stderr)
        return FAILED


def skeleton(plan: Plan, sweep: Sweep) -> str:
    """What --plan prints: the table so far, the time it would take, and what a launch would lack; of a search its arms."""
    if sweep.search is not None:
        parts = [f"arm: {sweep.cell_name(cell)}" for cell in sweep.cells if cell.arm]
        parts += [f"space: {parameter.text()}" for parameter in sweep.search.space]
    else:
        table = tables.build(plan.sweep.layout(), plan.records, plan.failures, plan.parameters)
        parts = [tables.render(table, "text"), plan.time_estimate()]
    same = [f"the same trials: {', '.join(cells)}" for cells in plan.sweep.identical_cells()]
    lacking = [f"lacking here: {text}" for text in plan.missing]
    audited = [f"audit: {'REFUSED: ' if finding.refuses else ''}{finding.text}" for finding in plan.findings]
    return "\n".join(part for part in [*parts, *resolution(plan), *same, *audited, *lacking] if part)


def execute(sweep: Sweep, plan: Plan, store: Store, args: argparse.Namespace) -> int:
    """Launches what is not finished, mirrors it to MLflow, writes and prints the table."""
    note(sweep, store)
    uri = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store)
    places = places_of(sweep)
    with mirrored(uri, store, plan, places) as target:
        outcomes = launch_all(plan, store, target, places, args) if plan.to_run else []
    return conclude(sweep, store, uri, outcomes)


def note(sweep: Sweep, store: Store) -> None:
    """Writes what `python -m pointsweep.tables NAME` needs."""
    store.write(f"sweeps/{sweep.name}/sweep.yaml", sweep.text.encode())
    store.write(f"sweeps/{sweep.name}/plan.json", json.dumps({"layout": json.loads(sweep.layout().to_json())}).encode())


def places_of(sweep: Sweep) -> dict[str, TrialTags]:
    """What MLflow is to say of every trial, by key."""
    return {trial.config.key(): TrialTags(sweep.name, *sweep.place(trial)) for trial in sweep.trials()}


def search(sweep: Sweep, plan: Plan, store: FileStore, args: argparse.Namespace) -> int:
    """Runs the searches of a sweep, their suggestions as ordinary trials, then what they found as an ordinary sweep."""
    from pointsweep.searched import write_searched
    from pointsweep.tuning import Tuning

    uri = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.path('mlflow.db')}"
    places: dict[str, TrialTags] = {}
    # One process at a time may add to a study.
    with TrialFolder(store.path(f"sweeps/{sweep.name}")).lock(), mirrored(uri, store, plan, places) as target:

        def train(batch: Sweep, limits: Mapping[str, Mapping[int, float]]) -> None:
            places.update(places_of(batch))
            states = {trial.config.key(): trial_status(store, trial.config.key()) for trial in batch.trials()}
            rest = Plan(batch, states, {}, {}, {}, ())
            if rest.to_run:
                launch_all(rest, store, target, places_of(batch), args, limits)

        tuning = Tuning(sweep, store)
        tuning.run(train, lambda line: print(line, flush=True))
        places.update(places_of(tuning.everything()))
        found = tuning.found()
        if found is None:
            print(f"{sweep.name}: every suggestion failed; {store.path('trials')} says why", file=sys.stderr)
            return FAILED
        note(found, store)
        write_searched(sweep, tuning.by_arm(), store)
        train(found, {})
        if target is not None:
            prepare(uri, store, found.layout())
    return max(conclude(found, store, uri), FAILED if tuning.failed() else COMPLETE)


@contextmanager
def mirrored(uri: str, store: Store, plan: Plan, places: Mapping[str, TrialTags]) -> Iterator[Target | None]:
    """MLflow ready for the sweep, and at the end level with the store. If it is away, says so: the next run catches up."""
    mark = f"sweeps/{plan.sweep.name}/mirrored.json"
    wanted = json.dumps({"uri": masked(uri), "keys": sorted(places)}).encode()
    if uri == "none" or (not plan.to_run and store.exists(mark) and store.read(mark) == wanted):
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
        store.write(mark, wanted)
    except TrackerAway as error:
        print(f"{error}\nit is behind; the same command, run again, mirrors the rest", file=sys.stderr)


def launch_all(
    plan: Plan,
    store: Store,
    target: Target | None,
    places: Mapping[str, TrialTags],
    args: argparse.Namespace,
    limits: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Outcome]:
    """Runs every trial that has no record, in packs over one backbone where the sweep asks for them. Returns how they ended."""
    from pointsweep import launch
    from pointsweep.pack import packs_of
    from pointsweep.progress import Progress
    from pointsweep.trial import Job, Task

    sweep = plan.sweep
    packs = [[Task(config, places[config.key()]) for config in pack] for pack in packs_of(plan.to_run, sweep.resources.pack)]
    job = Job(store.url, target, threads=args.threads, limits=limits or {})
    layout, records = sweep.layout(), dict(plan.records)

    def table() -> str:
        records.update({key: read_record(store, key) for key in plan.states if key not in records and _finished(store, key)})
        return tables.render(tables.build(layout, records, {}, plan.parameters), "text")

    names = {key: place.cell for key, place in places.items()}
    resources = launch.Resources(sweep.resources.cpus, sweep.resources.gpus, args.workers)
    try:
        with Progress(names, len(plan.records), len(plan.states), table) as progress:

            def launcher(packs: Sequence[launch.Pack], job: Job) -> list[Outcome]:
                return launch.run_inline(packs, job, progress) if args.inline else launch.run_ray(packs, job, resources, progress)

            return launch.run_all(packs, job, launcher, lambda text: print(text, flush=True))
    finally:
        if isinstance(store, FileStore):
            shutil.rmtree(store.path(f"launches/{job.launch}"), ignore_errors=True)


def _finished(store: Store, key: str) -> bool:
    return store.exists(f"trials/{key}/record.json")


def conclude(sweep: Sweep, store: Store, uri: str, outcomes: Sequence[Outcome] = ()) -> int:
    """Prints the table as it now stands, and where everything lies. Returns the exit code."""
    plan = make_plan(sweep, store)
    # A trial whose folder cannot be written has no failure in its history.
    told = {outcome.key: outcome for outcome in outcomes if outcome.status == "failed" and outcome.key not in plan.records}
    failures = {key: outcome.reason for key, outcome in told.items()} | dict(plan.failures)
    table = tables.build(sweep.layout(), plan.records, failures, plan.parameters)
    tables.write_all(store, table, plan.records)
    print(tables.render(table, "text"))
    print(f"\nreport   {store.place(f'sweeps/{sweep.name}/report.html')}\nstore    {store.url}")
    if uri != "none":
        print(
            f"MLflow   {sys.executable} -m mlflow ui --backend-store-uri {masked(uri)}"
            if uri.startswith("sqlite")
            else f"MLflow   {masked(uri)}"
        )
    missing = [key for key, state in plan.states.items() if state != "finished"]
    held = {outcome.key: outcome.reason for outcome in outcomes if outcome.status == "held"}
    for key in missing:
        log = store.place(f"trials/{key}/history.jsonl")
        kind = (read_failure_kind(store, key) if key in plan.failures else "") or (told[key].kind if key in told else "lost_node")
        if key in held and key not in plan.failures:
            print(f"held: {key} {held[key]}; the same command, run again, goes on", file=sys.stderr)
        else:
            print(f"failed: {key} {kind} {failures.get(key, 'no record')}  log: {log}", file=sys.stderr)
    return FAILED if missing else COMPLETE


def interruptible(work: Callable[[], int], store: Store) -> int:
    """Runs `work`; on SIGINT or SIGTERM ends the process within 3 s. All state is in the store already, whatever is cut off."""

    def handle(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        # Should Ray or a library not let go in time, the process ends all the same.
        threading.Timer(GRACE_S, os._exit, args=(INTERRUPTED,)).start()
        name = signal.Signals(number).name
        print(f"\ninterrupted by {name}: all that is done is kept in {store.url}; the same command continues", flush=True)
        raise Interrupted

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return work()
    except Interrupted:
        preempted()  # of a pack the trials are in threads of their own
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
