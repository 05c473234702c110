"""The command report: write a sweep's report, one HTML file that opens offline."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import (
    AllowPluginsOption,
    Program,
    StoreOption,
    TrackingOption,
    Version,
)
from pointsweep.cli.tables import (
    MetricOption,
    ProtocolOption,
    SourceOption,
    SweepArgument,
    html,
)
from pointsweep.errors import ConfigError, StoreUnavailableError
from pointsweep.reporting.build import build, trial_keys
from pointsweep.reporting.html.page import plotly_cdn
from pointsweep.reporting.stored import by_metric, compared, read_stored
from pointsweep.results.events import read_events
from pointsweep.storage.stores import open_store
from pointsweep.tracking.target import TrackerUnavailableError
from pointsweep.tracking.tensorboard import trials_of, write_trials
from pointsweep.utils.cli_exit import INVALID


@dataclass(frozen=True)
class ReportOptions:
    """The options of report, as the command line gives them."""

    sweep: str
    output: str | None = None  # default: NAME.html in the current folder
    metric: str | None = None
    protocol: str | None = None
    store: str | None = None
    source: str = "store"
    tracking_uri: str | None = None
    allow_plugins: bool = False
    cdn: bool = False
    tensorboard: str | None = None  # a folder: event files in place of the page


def report(
    sweep: SweepArgument,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="where to write it (default: NAME.html here)",
        ),
    ] = None,
    metric: MetricOption = None,
    protocol: ProtocolOption = None,
    store: StoreOption = None,
    source: SourceOption = "store",
    tracking_uri: TrackingOption = None,
    cdn: Annotated[
        bool,
        typer.Option(
            "--cdn",
            help="fetch plotly.js when the page opens: a file of 100 kB instead of 5 MB",
        ),
    ] = False,
    tensorboard: Annotated[
        str | None,
        typer.Option(
            "--tensorboard",
            metavar="FOLDER",
            help="write event files of TensorBoard instead",
        ),
    ] = None,
    allow_plugins: AllowPluginsOption = False,
    version: Version = False,
) -> int:
    """Write a sweep's report from what is finished: one HTML file that opens offline.

    exit codes: 0 written, 2 there is no such table
    """
    return write(
        ReportOptions(
            sweep,
            output,
            metric,
            protocol,
            store,
            source,
            tracking_uri,
            allow_plugins,
            cdn,
            tensorboard,
        )
    )


main = Program(
    "report", report, examples=("quickstart", "quickstart -o /tmp/report.html")
)


def write(options: ReportOptions) -> int:
    """Write the report and print where it is; return the exit code."""
    if options.tensorboard is not None:
        return write_events(options, Path(options.tensorboard))

    try:
        store = open_store(options.store)
        stored = read_stored(
            sweep=options.sweep,
            store=store,
            source=options.source,
            tracking_uri=options.tracking_uri,
            allow_plugins=options.allow_plugins,
        )

        trial_store = store if options.source == "store" else None
        layout, records, failures = by_metric(
            stored, options.metric, trial_store, options.allow_plugins
        )
        layout, records = compared(layout, records, store)

        if options.protocol:
            layout = replace(layout, protocol=options.protocol)

        table = build(layout, records, failures)
    except (
        ConfigError,
        ValueError,
        StoreUnavailableError,
        TrackerUnavailableError,
    ) as error:
        print(error, file=sys.stderr)
        return INVALID

    path = Path(options.output or f"{table.name}.html")
    plotly_src = plotly_cdn() if options.cdn else ""
    page = html(table, records, trial_store, plotly_src)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        print(f"{path}: cannot be written: {error.strerror}", file=sys.stderr)
        return INVALID

    print(path)
    return 0


def write_events(options: ReportOptions, folder: Path) -> int:
    """Write the trials as event files of TensorBoard and print where they are; return the exit
    code.
    """
    try:
        if options.source != "store" or options.output is not None:
            raise ValueError(
                "--tensorboard is written from the store alone, to its own folder"
            )

        store = open_store(options.store)
        layout, records, _ = read_stored(
            options.sweep, store, allow_plugins=options.allow_plugins
        )
        histories = {key: read_events(store, key) for key in trial_keys(layout)}
        trials = list(trials_of(layout, records, histories))
        folder.mkdir(parents=True, exist_ok=True)
        write_trials(folder, trials, options.protocol or layout.protocol)
    except (ValueError, OSError, StoreUnavailableError) as error:
        print(error, file=sys.stderr)
        return INVALID

    print(f"{folder}: {len(trials)} trials")
    return 0
