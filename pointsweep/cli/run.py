"""The command: python -m pointsweep.run FILE... [OVERRIDES...]. Checks, plans, skips what is finished, launches, prints the tables.

Exit codes: 0 the tables are complete; 1 finished with failed trials; 2 the file or this machine is not fit, nothing was launched;
3 interrupted, the same command continues; 4 the budget is used up and nothing failed: the same command with a larger one continues;
5 an internal error, whose traceback is in the log file that is named; 6 the store or the machine failed on the way, what is done is
kept; 7 nothing failed, and another command still works on some of the trials.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pointsweep.config import scalars
from pointsweep.errors import BadStore, ConfigError, Problem, RayLost, Unfit
from pointsweep.execution import progress, ray_cluster
from pointsweep.execution.budget import Spending
from pointsweep.execution.notify import problem_of
from pointsweep.execution.progress import Display
from pointsweep.execution.session import COMPLETE, FAILED, conclude, execute, launch_all, places_of, to_run
from pointsweep.planning.design_power import resolution
from pointsweep.planning.plan import Plan, input_problems, make_plan
from pointsweep.reporting import build as tables
from pointsweep.reporting.formats import render_here
from pointsweep.reporting.stale import set_aside
from pointsweep.results.events import trial_status
from pointsweep.results.trial_dir import Held, TrialFolder
from pointsweep.storage.base import FileStore, Store, establish, on_disk, open_store
from pointsweep.sweep.definition import note, taken
from pointsweep.sweep.sweep import Sweep, load, readable_cells
from pointsweep.sweep.yaml_document import is_file_name
from pointsweep.tracking.mirroring import mirrored, tracking_uri
from pointsweep.tracking.mlflow_client import set_runs_aside
from pointsweep.tracking.target import TrackerAway, TrialTags, uri_mistake
from pointsweep.training.supervisor import preempted
from pointsweep.utils import interruption
from pointsweep.utils.cli_exit import BROKEN_OFF, INTERRUPTED, INVALID, broken_off, command_parser, log_traceback


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_parser(
        "pointsweep.run",
        "Turns sweep files into their tables. The same command again continues.",
        "[--version] [OPTIONS] FILE... [KEY=VALUE...]",
        epilog="exit codes: 0 complete, 1 some trials failed, 2 invalid, 3 interrupted, 4 budget used up, "
        "5 internal error, 6 store or machine failed, 7 another command works on it",
    )
    add = made.add_argument_group().add_argument
    add("file", metavar="FILE", help="a sweep file, or its name: quickstart")
    add("more", nargs="*", metavar="KEY=VALUE", help="overrides: train.epochs=2 seeds=[0,1] profile=smoke")
    add("--plan", action="store_true", help="check, print the skeleton and what would run; stop")
    add("--cfg", action="store_true", help="print the configuration of every cell; stop")
    add("--only", action="append", default=[], metavar="PATTERN", help="a row, row=.., column=.., seed=N; with * and ?")
    add("--replace", action="store_true", help="take the place of another file's table of this name")
    add("--store", metavar="FOLDER", help="all trials (default: $POINTSWEEP_STORE, ~/pointsweep)")
    add("--tracking-uri", metavar="URI", help="MLflow (default: $MLFLOW_TRACKING_URI, store); none")
    add("--notify", action="append", default=[], metavar="TARGET", help="at the end: URL or command that gets the table as JSON")
    add("--rerun-stale", action="store_true", help="train again what other data or weights than here made")
    add("--inline", action="store_true", help="run in this process, without Ray")
    add("--workers", type=scalars.whole_argument, default=0, metavar="N", help="trials at once (default: as many as fit)")
    add("--threads", type=scalars.whole_argument, default=1, metavar="N", help="CPU threads of a trial (default: 1)")
    add("-q", "--quiet", action="store_true", help="print the final table and errors only")
    add("-v", "--verbose", action="store_true", help="print a line for every start and epoch too")
    add("--log-format", choices=progress.FORMATS, default="text", metavar="F", help="text, or json: one object a line, for programs")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parser().parse_intermixed_args(arguments)
    args.notify += filter(None, [os.environ.get("POINTSWEEP_NOTIFY")])
    for problem in filter(None, map(problem_of, args.notify)):
        print(f"--notify: {problem}", file=sys.stderr)
        return INVALID
    mistake = uri_mistake(args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "none")
    if mistake:
        print(f"{mistake}\nnothing was launched", file=sys.stderr)
        return INVALID
    args.display = Display(quiet=args.quiet, verbose=args.verbose, form=args.log_format, clock=not args.plan)
    try:
        code = plan_and_run(args)
        args.display.end(code)
        return code
    except KeyboardInterrupt:
        print("\ninterrupted while planning: nothing was launched", file=sys.stderr)
        return INTERRUPTED


def files_and_overrides(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What names a file is one; the rest are overrides, or are told that they are none."""
    more = [text for text in args.more if is_file_name(text)]
    return [args.file, *more], [text for text in args.more if text not in more]


def load_all(args: argparse.Namespace) -> list[Sweep]:
    """The sweeps of all files. Raises ConfigError with everything that is wrong in all of them."""
    files, overrides = files_and_overrides(args)
    sweeps, wrong = [], []
    for file in files:
        try:
            sweeps.append(load(file, overrides, args.only))
        except ConfigError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        problems = [replace(problem, path=f"{error.source}: {problem.path}") for error in wrong for problem in error.problems]
        raise ConfigError(", ".join(error.source for error in wrong), problems)
    names = [sweep.name for sweep in sweeps]
    problems = [Problem("name", f"{name!r} is the name of several files") for name in dict.fromkeys(names) if names.count(name) > 1]
    searches = [sweep.name for sweep in sweeps if sweep.search is not None]
    if searches and len(sweeps) > 1:
        problems.append(Problem("search", f"{', '.join(searches)}: a search runs alone, not together with other files"))
    if problems:
        raise ConfigError(", ".join(files), problems)
    return sweeps


def plan_and_run(args: argparse.Namespace) -> int:
    """Checks, and goes on where nothing is wrong. Returns the exit code."""
    try:
        sweeps = load_all(args)
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        if not args.cfg:
            tell_inputs(args)
        return INVALID
    if args.cfg:
        args.display.answer("---\n".join(sweep.resolved() for sweep in sweeps))
        return COMPLETE
    try:
        store = open_store(args.store)
        return interruption.run(
            lambda: shown(sweeps, store, args),
            last_words=f"all that is done is kept in {store.url}; the same command continues",
            rescue=preempted,
        )
    except BadStore as error:
        print(error, file=sys.stderr)
        return INVALID


def shown(sweeps: Sequence[Sweep], store: Store, args: argparse.Namespace) -> int:
    """Plans and launches while the display shows it. Returns the exit code."""
    try:
        with args.display:
            return planned(sweeps, store, args)
    except RayLost as error:
        interruption.check()  # a signal to the whole group of processes may have reached Ray first
        print(f"{error}: all that is done is kept in {store.url}; the same command continues", file=sys.stderr)
        print(f"the traceback is in {log_traceback(error)}", file=sys.stderr)
        args.display.end(BROKEN_OFF)
        ray_cluster.end_without_ray(BROKEN_OFF)


def tell_inputs(args: argparse.Namespace) -> None:
    """Prints what is wrong with the data, weights and models of files that have problems of their own."""
    files, overrides = files_and_overrides(args)
    for file in files:
        found = input_problems(readable_cells(file, overrides))
        if found:
            print(refusal(file, found), file=sys.stderr)


def refusal(source: str, problems: Sequence[str]) -> str:
    """Return what is printed where data, weights or models do not let a sweep be launched."""
    count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
    head = f"{source}: {count} of data, weights and models, nothing was launched"
    return "\n".join([head, *(f"  {text}" for text in problems)])


def planned(sweeps: Sequence[Sweep], store: Store, args: argparse.Namespace) -> int:
    """Plans, audits and, unless it is only asked for the plan, launches. Returns the exit code."""
    others = [] if args.replace else [text for sweep in sweeps if (text := taken(sweep, store))]
    if others:
        print("\n".join(others), file=sys.stderr)
        return INVALID
    plans = []
    for sweep in sweeps:
        interruption.check()
        args.display.phase(f"planning {sweep.name}: reading data and weights, building and auditing its arms")
        plans.append(make_plan(sweep.probe(), store, fetch=not args.plan, rerun_stale=args.rerun_stale))
    code = tell(sweeps, plans, store, args)
    if code is not None:
        return code
    try:
        return launched(sweeps, plans, store, args)
    finally:
        ray_cluster.leave()


def tell(sweeps: Sequence[Sweep], plans: Sequence[Plan], store: Store, args: argparse.Namespace) -> int | None:
    """Prints what the plans say. Returns the exit code if there is nothing to launch: it was only asked for them, or they refuse."""
    for sweep, plan in zip(sweeps, plans, strict=True):
        args.display.say(f"{sweep.name}: {sweep.searched() if sweep.search else plan.counts()}")
        for cells in sweep.identical_cells():
            args.display.say(f"the same trials: {cells}")
        for remark in sweep.remarks:
            args.display.say(f"{sweep.source}: {remark}")
    for plan in plans:
        for problem in plan.damaged.values():
            print(f"damaged: {problem}; a launch sets it aside, deletes nothing, and trains the trial again", file=sys.stderr)
    if len(plans) > 1:
        args.display.say(f"all {len(plans)} together: {together(plans)}")
    if args.plan:
        args.display.answer("\n\n".join(skeleton(plan, sweep, store) for sweep, plan in zip(sweeps, plans, strict=True)))
    unfit = [plan for plan in plans if not fit(plan, args.display)]  # each says why
    if unfit:
        return INVALID
    return COMPLETE if args.plan else None


def together(plans: Sequence[Plan]) -> str:
    """One line: "96 trials of cells are 66 distinct ones, 66 to run"."""
    shown = sum(len(cell.trials) for plan in plans for cell in plan.sweep.cells)
    distinct = len({key for plan in plans for key in plan.states})
    return f"{shown} trials of cells are {distinct} distinct ones, {sum(map(len, to_run(plans).values()))} to run"


def fit(plan: Plan, display: Display) -> bool:
    """Whether this machine, the data and the audit let a sweep be launched; prints everything that does not."""
    if plan.refused:
        print(refusal(plan.sweep.source, plan.refused), file=sys.stderr)
        return False
    for finding in plan.findings:
        display.say(f"audit: {finding.text}")
    return True


def launched(sweeps: Sequence[Sweep], plans: Sequence[Plan], store: Store, args: argparse.Namespace) -> int:
    """Launches sweeps, or a search, and returns the exit code."""
    try:
        establish(store)
        if args.rerun_stale:
            put_aside(plans, store, tracking_uri(args.tracking_uri, store))
        if sweeps[0].search is None:
            return execute(plans, store, args)
        disk = on_disk(store, "a search keeps its study in a database")
        return search(sweeps[0], plans[0], disk, args)
    except (Unfit, Held, BadStore) as error:
        print(f"{', '.join(sweep.source for sweep in sweeps)}: {error}", file=sys.stderr)
        return INVALID
    except BrokenPipeError:
        raise  # most likely nobody reads the output any more, which every command ends alike
    except OSError as error:
        return broken_off(error)


def put_aside(plans: Sequence[Plan], store: Store, uri: str) -> None:
    """Takes what is stale out of the store, and out of MLflow where it can be reached."""
    for plan in plans:
        if uri != "none" and plan.stale:
            try:
                set_runs_aside(uri, plan.sweep.name, plan.stale)
            except TrackerAway as error:
                print(f"{error}\nthe runs of stale trials there keep their old epochs", file=sys.stderr)
    set_aside(store, dict.fromkeys(key for plan in plans for key in plan.stale))


def skeleton(plan: Plan, sweep: Sweep, store: Store) -> str:
    """What --plan prints: the table so far, the time it would take, and what a launch would lack; of a search its arms."""
    if sweep.search is not None:
        parts = [f"arm: {sweep.cell_name(cell)}" for cell in sweep.cells if cell.arm]
        parts += [f"space: {parameter.text()}" for parameter in sweep.search.space]
        parts += [f"constraint: {constraint.text}" for constraint in sweep.search.constraints]
    else:
        table = tables.build(plan.sweep.layout(), plan.records, plan.failures, plan.parameters)
        parts = [render_here(table), plan.time_estimate(), Spending(plan, store).text()]
    dropped = [f"used in part: {text}" for text in sweep.dropped]
    fetched = [f"to fetch: {text}" for text in plan.to_fetch]
    return "\n".join(part for part in [*parts, *resolution(plan), *dropped, *fetched] if part)


def search(sweep: Sweep, plan: Plan, store: FileStore, args: argparse.Namespace) -> int:
    """Runs the searches of a sweep, their suggestions as ordinary trials, then what they found as an ordinary sweep."""
    from pointsweep.hpo.export import write_searched
    from pointsweep.hpo.study import working
    from pointsweep.hpo.tuner import Tuning

    uri = tracking_uri(args.tracking_uri, store)
    places: dict[str, TrialTags] = {}
    # One process at a time may add to a study.
    with (
        TrialFolder(store.path(f"sweeps/{sweep.name}")).lock(),
        mirrored(uri, store, plan.sweep.layout(), places, bool(plan.to_run)) as mirror,
    ):
        target = mirror.target

        def train(batch: Sweep, limits: Mapping[str, Mapping[int, float]]) -> None:
            places.update(places_of(batch))
            states = {trial.config.key(): trial_status(store, trial.config.key()) for trial in batch.trials()}
            args.display.expect(*tuning.extent())
            rest = Plan(batch, states, {}, {}, {}, ())
            launch_all([rest], store, {batch.name: target} if target is not None else {}, places_of(batch), args, limits)

        tuning = Tuning(sweep, store)
        with working(tuning.url):
            tuning.run(train, args.display.say)
            places.update(places_of(tuning.everything()))
            found = tuning.found()
        if found is None:
            print(f"{sweep.name}: every suggestion failed; {store.path('trials')} says why", file=sys.stderr)
            return FAILED
        note(found, store)
        with working(tuning.url):
            write_searched(sweep, tuning.by_arm(), store)
        train(found, {})
        ray_cluster.leave()
        mirror.layout = found.layout()
    return max(conclude(found, store, mirror.lines(), (), args), FAILED if tuning.failed() else COMPLETE)
