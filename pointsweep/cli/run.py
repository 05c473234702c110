"""The commands run and plan: check sweep files, plan them, skip what is finished, launch the rest,
print the tables.

Exit codes: 0 the tables are complete; 1 finished with failed trials; 2 the file or this machine is
not fit, nothing was launched; 3 interrupted, the same command continues; 4 the budget is used up
and nothing failed: the same command with a larger one continues; 5 an internal error, whose
traceback is in the log file that is named; 6 the store or the machine failed on the way, what is
done is kept; 7 nothing failed, and another command still works on some of the trials.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer

from pointsweep.cli.command import (
    AllowPluginsOption,
    Program,
    StoreOption,
    TrackingOption,
    Version,
    complete_file,
    one_of,
    whole_number,
)
from pointsweep.config.plugins import Source
from pointsweep.errors import (
    ConfigError,
    Problem,
    RayLostError,
    ResourcesError,
    SearchFailedError,
    StoreError,
)
from pointsweep.execution import progress, ray_cluster
from pointsweep.execution.budget import Spending
from pointsweep.execution.cluster_nodes import demand_of, launch_line
from pointsweep.execution.notify import problem_of
from pointsweep.execution.options import LaunchOptions
from pointsweep.execution.progress import Display
from pointsweep.execution.session import COMPLETE, FAILED, exit_code_of, to_run
from pointsweep.hpo.launch import launch
from pointsweep.planning.design_power import resolution
from pointsweep.planning.plan import Plan, input_problems, make_plan
from pointsweep.reporting import build as tables
from pointsweep.reporting.formats.text import render_here
from pointsweep.results.trial_dir import LeaseHeldError
from pointsweep.storage.base import Store
from pointsweep.storage.stores import open_store
from pointsweep.sweep.definition import name_conflict
from pointsweep.sweep.sweep import Sweep, load, readable_cells
from pointsweep.sweep.yaml_document import is_file_name, is_shipped
from pointsweep.tracking.trackers import uri_mistake
from pointsweep.training.supervisor import preempted
from pointsweep.utils import interruption
from pointsweep.utils.cli_exit import (
    BROKEN_OFF,
    INTERRUPTED,
    INVALID,
    broken_off,
    log_traceback,
)


@dataclass(frozen=True)
class RunOptions:
    """The options of run and plan, as the command line gives them."""

    files: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    plan: bool = False  # print the plan and stop
    cfg: bool = False  # print the configurations and stop
    replace: bool = False  # take the place of another file's table
    rerun_stale: bool = False
    allow_plugins: bool = False  # import the Python code that the files name
    store: str | None = None
    launch: LaunchOptions = field(default_factory=LaunchOptions)


def words_of(file: str, more: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files among the words of a command line, and the rest: overrides, or what is
    refused as none.
    """
    files = [text for text in more if is_file_name(text)]
    overrides = [text for text in more if text not in files]

    return (file, *files), tuple(overrides)


FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE...",
        help="a sweep file, or its name: quickstart",
        autocompletion=complete_file,
    ),
]
MoreArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        autocompletion=complete_file,
        help="overrides: train.epochs=2 seeds=[0,1] profile=smoke",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="PATTERN",
        help="a row, row=.., column=.., seed=N; with * and ?",
    ),
]
ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace", help="take the place of another file's table of this name"
    ),
]
RerunOption = Annotated[
    bool,
    typer.Option(
        "--rerun-stale", help="train again what other data or weights than here made"
    ),
]
CfgOption = Annotated[
    bool, typer.Option("--cfg", help="print the configuration of every cell; stop")
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="print the final table and errors only")
]
VerboseOption = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="print a line for every start and epoch too"),
]
LogFormatOption = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="F",
        parser=one_of("log format", lambda: progress.FORMATS),
        help="text, or json: one object a line, for programs",
    ),
]


def run(
    file: FileArgument,
    more: MoreArgument = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="check, print the skeleton and what would run; stop"
        ),
    ] = False,
    cfg: CfgOption = False,
    only: OnlyOption = None,
    replace: ReplaceOption = False,
    store: StoreOption = None,
    tracking_uri: TrackingOption = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            "--notify",
            metavar="TARGET",
            help="at the end: URL or command that gets the table as JSON",
        ),
    ] = None,
    rerun_stale: RerunOption = False,
    allow_plugins: AllowPluginsOption = False,
    inline: Annotated[
        bool, typer.Option("--inline", help="run in this process, without Ray")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            metavar="N",
            parser=whole_number,
            help="trials at once (default: as many as fit)",
        ),
    ] = 0,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            metavar="N",
            parser=whole_number,
            help="CPU threads of a trial (default: 1)",
        ),
    ] = 1,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_format: LogFormatOption = "text",
    version: Version = False,
) -> int:
    """Turn sweep files into their tables. The same command again continues.

    exit codes: 0 complete, 1 some trials failed, 2 invalid, 3 interrupted, 4 budget
    used up, 5 internal error, 6 store or machine failed, 7 held by another command
    """
    files, overrides = words_of(file, more or ())
    targets = list(notify or ())

    if os.environ.get("POINTSWEEP_NOTIFY"):
        targets.append(os.environ["POINTSWEEP_NOTIFY"])

    options = RunOptions(
        files=files,
        overrides=overrides,
        only=tuple(only or ()),
        plan=plan,
        cfg=cfg,
        replace=replace,
        rerun_stale=rerun_stale,
        allow_plugins=allow_plugins,
        store=store,
        launch=LaunchOptions(
            launcher="inline" if inline else "ray",
            workers=workers,
            threads=threads,
            tracking_uri=tracking_uri,
            notify=tuple(targets),
        ),
    )

    display = Display(quiet=quiet, verbose=verbose, form=log_format, clock=not plan)

    return checked_and_run(options, display)


main = Program(
    "run",
    run,
    examples=("quickstart", "my.yaml train.epochs=2 seeds=[0,1] --only row=lora"),
)


def checked_and_run(options: RunOptions, display: Display) -> int:
    """Check where the command reports to, then plan and run. Return the exit code."""
    for target in options.launch.notify:
        problem = problem_of(target)
        if problem:
            print(f"--notify: {problem}", file=sys.stderr)
            return INVALID

    given_uri = options.launch.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    mistake = uri_mistake(given_uri or "none")
    if mistake:
        print(f"{mistake}\nnothing was launched", file=sys.stderr)
        return INVALID

    try:
        code = plan_and_run(options, display)
        display.end(code)
        return code
    except KeyboardInterrupt:
        print("\ninterrupted while planning: nothing was launched", file=sys.stderr)
        return INTERRUPTED


def load_all(options: RunOptions) -> list[Sweep]:
    """Return the sweeps of all files. Raises ConfigError with everything that is wrong in all of
    them.
    """
    sweeps = []
    errors = []

    for file in options.files:
        try:
            sweep = load(file, options.overrides, options.only, options.allow_plugins)
            sweeps.append(sweep)
        except ConfigError as error:
            errors.append(error)

    if errors:
        raise _joined(errors)

    problems = _conflicts(sweeps)
    if problems:
        raise ConfigError(", ".join(options.files), problems)

    return sweeps


def _joined(errors: Sequence[ConfigError]) -> ConfigError:
    """Return the errors of several files as one, whose problems name their files."""
    if len(errors) == 1:
        return errors[0]

    problems = []
    for error in errors:
        for problem in error.problems:
            path = f"{error.source}: {problem.path}"
            problems.append(replace(problem, path=path))

    return ConfigError(", ".join(error.source for error in errors), problems)


def _conflicts(sweeps: Sequence[Sweep]) -> list[Problem]:
    """Return why sweeps cannot be launched together."""
    names = [sweep.name for sweep in sweeps]
    problems = []

    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(Problem("name", f"{name!r} is the name of several files"))

    searches = [sweep.name for sweep in sweeps if sweep.search is not None]
    if searches and len(sweeps) > 1:
        text = (
            f"{', '.join(searches)}: a search runs alone, not together with other files"
        )
        problems.append(Problem("search", text))

    for name in clashing(sweeps):
        text = f"{name!r} is another plug-in in each of several files"
        problems.append(Problem("plugins", text))

    return problems


def clashing(sweeps: Sequence[Sweep]) -> list[str]:
    """Return the names that different plug-ins of several sweeps have."""
    sources: dict[str, Source] = {}
    names = []

    for sweep in sweeps:
        for source in sweep.plugins:
            if sources.setdefault(source.name, source).files != source.files:
                names.append(source.name)

    return list(dict.fromkeys(names))


def plan_and_run(options: RunOptions, display: Display) -> int:
    """Check the files, and go on where nothing is wrong. Return the exit code."""
    try:
        sweeps = load_all(options)
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        if not options.cfg:
            tell_inputs(options)

        return INVALID

    if options.cfg:
        display.answer("---\n".join(sweep.resolved() for sweep in sweeps))
        return COMPLETE

    for word, sweep in zip(options.files, sweeps, strict=True):
        if word != sweep.source:
            line = f"{word} is {sweep.source}"
            if is_shipped(sweep.source):
                line += ", which comes with pointsweep"

            display.say(line)

    try:
        store = open_store(options.store)
        return interruption.run(
            lambda: shown(sweeps, store, options, display),
            last_words=f"all that is done is kept in {store.url}; the same command continues",
            rescue=preempted,
        )
    except StoreError as error:
        print(error, file=sys.stderr)
        return INVALID


def shown(
    sweeps: Sequence[Sweep], store: Store, options: RunOptions, display: Display
) -> int:
    """Plan and launch while the display shows it. Return the exit code."""
    try:
        with display:
            return planned(sweeps, store, options, display)
    except RayLostError as error:
        interruption.check()  # a signal to the whole group of processes may have reached Ray first
        print(
            f"{error}: all that is done is kept in {store.url}; the same command continues",
            file=sys.stderr,
        )

        print(f"the traceback is in {log_traceback(error)}", file=sys.stderr)
        display.end(BROKEN_OFF)
        ray_cluster.end_without_ray(BROKEN_OFF)


def tell_inputs(options: RunOptions) -> None:
    """Print what is wrong with the data, weights and models of files that have problems of their
    own.
    """
    for file in options.files:
        cells = readable_cells(file, options.overrides, options.allow_plugins)
        problems = input_problems(cells)
        if problems:
            print(refusal(file, problems), file=sys.stderr)


def refusal(source: str, problems: Sequence[str]) -> str:
    """Return what is printed where data, weights or models do not let a sweep be launched."""
    noun = "problem" if len(problems) == 1 else "problems"
    count = f"{len(problems)} {noun}"
    lines = [f"{source}: {count} of data, weights and models, nothing was launched"]
    lines += [f"  {text}" for text in problems]

    return "\n".join(lines)


def planned(
    sweeps: Sequence[Sweep], store: Store, options: RunOptions, display: Display
) -> int:
    """Plan, audit and, unless only the plan is asked for, launch. Return the exit code."""
    if not options.replace:
        conflicts = [name_conflict(sweep, store) for sweep in sweeps]
        messages = [message for message in conflicts if message]
        if messages:
            print("\n".join(messages), file=sys.stderr)
            return INVALID

    plans = []
    for sweep in sweeps:
        interruption.check()
        display.phase(
            f"planning {sweep.name}: reading data and weights, building and auditing its arms"
        )
        plan = make_plan(
            sweep.probe(),
            store,
            fetch=not options.plan,
            rerun_stale=options.rerun_stale,
        )

        plans.append(plan)

    code = tell(sweeps, plans, store, options, display)
    if code is not None:
        return code

    try:
        return launched(sweeps, plans, store, options, display)
    finally:
        ray_cluster.leave()


def tell(
    sweeps: Sequence[Sweep],
    plans: Sequence[Plan],
    store: Store,
    options: RunOptions,
    display: Display,
) -> int | None:
    """Print the plans. Return the exit code if nothing is to be launched: they were all that was
    asked for, or they refuse.
    """
    for sweep, plan in zip(sweeps, plans, strict=True):
        counts = sweep.searched() if sweep.search else plan.counts()
        display.say(f"{sweep.name}: {counts}")
        for cells in sweep.identical_cells():
            display.say(f"the same trials: {cells}")

        for remark in sweep.remarks:
            display.say(f"{sweep.source}: {remark}")

    for plan in plans:
        for problem in plan.damaged.values():
            print(
                f"damaged: {problem}; a launch sets it aside, deletes nothing, and trains the trial"
                " again",
                file=sys.stderr,
            )

    if len(plans) > 1:
        display.say(f"all {len(plans)} together: {together(plans)}")

    if options.plan:
        answer_plan(sweeps, plans, store, options, display)

    unfit = [plan for plan in plans if not fit(plan, display)]  # each says why
    if unfit:
        return INVALID

    return COMPLETE if options.plan else None


def answer_plan(
    sweeps: Sequence[Sweep],
    plans: Sequence[Plan],
    store: Store,
    options: RunOptions,
    display: Display,
) -> None:
    """Show what --plan asks for, and what the cluster lacks."""
    skeletons = []
    for sweep, plan in zip(sweeps, plans, strict=True):
        skeletons.append(skeleton(plan, sweep, store))

    display.answer("\n\n".join(skeletons))

    for text in cluster_lines(sweeps, plans, options):
        display.say(text)


def cluster_lines(
    sweeps: Sequence[Sweep], plans: Sequence[Plan], options: RunOptions
) -> Iterator[str]:
    """Yield what packs ask for and the cluster that RAY_ADDRESS names does not have."""
    to_launch = []
    for sweep, plan in zip(sweeps, plans, strict=True):
        if sweep.search is not None or plan.to_run:
            to_launch.append(sweep)

    if not to_launch or options.launch.launcher != "ray" or not ray_cluster.elsewhere():
        return

    try:
        cluster = ray_cluster.ask()
    except ResourcesError as error:
        yield f"the cluster was not looked at: {error}"
        return

    for sweep in to_launch:
        text = launch_line(demand_of(sweep.resources), cluster)
        if text:
            yield f"{sweep.name}: {text}"


def together(plans: Sequence[Plan]) -> str:
    """One line: "96 trials of cells are 66 distinct ones, 66 to run"."""
    num_shown = 0
    keys: set[str] = set()

    for plan in plans:
        num_shown += sum(len(cell.trials) for cell in plan.sweep.cells)
        keys.update(plan.states)

    num_to_run = sum(map(len, to_run(plans).values()))
    return (
        f"{num_shown} trials of cells are {len(keys)} distinct ones, {num_to_run}"
        " to run"
    )


def fit(plan: Plan, display: Display) -> bool:
    """Tell whether this machine, the data and the audit let a sweep be launched; print everything
    that does not.
    """
    if plan.refused:
        print(refusal(plan.sweep.source, plan.refused), file=sys.stderr)
        return False

    for finding in plan.findings:
        display.say(f"audit: {finding.text}")

    return True


def launched(
    sweeps: Sequence[Sweep],
    plans: Sequence[Plan],
    store: Store,
    options: RunOptions,
    display: Display,
) -> int:
    """Launch sweeps, or a search, and return the exit code."""
    try:
        conclusions = launch(
            sweeps=sweeps,
            plans=plans,
            store=store,
            options=options.launch,
            display=display,
            rerun_stale=options.rerun_stale,
        )
        return exit_code_of(conclusions)
    except SearchFailedError as error:
        print(error, file=sys.stderr)
        return FAILED
    except (ResourcesError, LeaseHeldError, StoreError) as error:
        sources = ", ".join(sweep.source for sweep in sweeps)
        print(f"{sources}: {error}", file=sys.stderr)
        return INVALID
    except BrokenPipeError:
        raise  # most likely nobody reads the output any more, which every command ends alike
    except OSError as error:
        return broken_off(error)


def skeleton(plan: Plan, sweep: Sweep, store: Store) -> str:
    """Return what --plan prints: the table so far, the time left, and what a launch would lack; of
    a search its arms.
    """
    lines: list[str] = []
    search = sweep.search

    if search is not None:
        lines += [f"arm: {sweep.cell_name(cell)}" for cell in sweep.cells if cell.arm]
        lines += [f"space: {parameter.text()}" for parameter in search.space]
        lines += [f"constraint: {rule.text}" for rule in search.constraints]
    else:
        layout = plan.sweep.layout()
        table = tables.build(layout, plan.records, plan.failures, plan.parameters)
        lines.append(render_here(table))
        lines.append(plan.time_estimate())
        lines.append(Spending(plan, store).text())

    lines += resolution(plan, search)
    lines += [f"used in part: {text}" for text in sweep.dropped]
    lines += [f"to fetch: {text}" for text in plan.to_fetch]

    return "\n".join(filter(None, lines))
