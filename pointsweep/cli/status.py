"""The command status: what of one sweep is done, failed and running, and how long it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from pointsweep.cli.command import Program, StoreOption, Version, complete_sweep
from pointsweep.execution.progress import duration
from pointsweep.reporting.standing import STATES, SweepStanding, standing
from pointsweep.reporting.stored import is_sweep_file
from pointsweep.storage.base import Store
from pointsweep.storage.stores import open_store
from pointsweep.utils.cli_exit import INVALID
from pointsweep.utils.console import one_line


def status(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="a sweep's name, or its file",
            autocompletion=complete_sweep,
        ),
    ],
    store: StoreOption = None,
    version: Version = False,
) -> int:
    """Print what of a sweep is done, failed and running, and how long it takes.

    exit codes: 0 printed, 2 there is no such sweep
    """
    return show(sweep, store)


main = Program(
    "status", status, examples=("quickstart", "my.yaml --store /shared/store")
)


def show(sweep: str, url: str | None) -> int:
    """Print where a sweep stands; return the exit code."""
    try:
        store = open_store(url)
        name = sweep
        if is_sweep_file(sweep):
            from pointsweep.sweep.sweep import load

            name = load(sweep).name

        sweep_standing = standing(store, name)
    except ValueError as error:  # StoreError and ConfigError are such
        print(error, file=sys.stderr)
        return INVALID

    for line in lines(sweep_standing, store):
        print(line)

    return 0


def lines(sweep: SweepStanding, store: Store) -> Iterator[str]:
    """Yield what is printed of a sweep."""
    yield one_line(f"{sweep.name}: {sweep.title}")
    counts = ", ".join(f"{sweep.count(state)} {state}" for state in STATES)
    yield f"trials   {counts}; {len(sweep.trials)} in all"
    time = f"{duration(sweep.trained_s)} of training so far"

    if sweep.left_s:
        time += f"; about {duration(sweep.left_s)} left, one trial after the other"

    yield f"time     {time}"
    for trial in sweep.of("running"):
        yield one_line(f"running  {trial.label}: epoch {trial.epoch}, {trial.worker}")

    for trial in sweep.of("failed"):
        log = store.location(f"trials/{trial.key}/history.jsonl")
        yield one_line(f"failed   {trial.label}: {trial.reason}  log: {log}")

    for trial in sweep.of("open"):
        if trial.epoch:
            yield one_line(
                f"open     {trial.label}: interrupted after epoch {trial.epoch}, continues there"
            )

    yield f"report   {store.location(f'sweeps/{sweep.name}/report.html')}"
