"""The command tables: print a sweep's table from what is finished, or what stands behind it.

--diff ROW_A ROW_B says what differs between two arms, --why ROW COLUMN why a cell is as it is (compare.py), --bundle FILE writes one
file with all that stands behind the table (bundle.py), which `python -m pointsweep.verify FILE` checks.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import AllowPluginsOption, Program, StoreOption, TrackingOption, Version, complete_sweep, one_of
from pointsweep.errors import ConfigError, StoreFailed
from pointsweep.reporting.build import build, every_format
from pointsweep.reporting.bundle import bundle
from pointsweep.reporting.cell_text import PROTOCOLS
from pointsweep.reporting.compare import diff, recovered, why
from pointsweep.reporting.formats.registry import FORMATS, format_name, render
from pointsweep.reporting.formats.text import render_here
from pointsweep.reporting.html.evidence import Evidence, curves, gather
from pointsweep.reporting.html.page import page
from pointsweep.reporting.stored import SOURCES, Stored, by_metric, compared, read_stored
from pointsweep.reporting.table import Table
from pointsweep.results.records import Record
from pointsweep.storage.base import Store, write_whole
from pointsweep.storage.stores import open_store
from pointsweep.tracking.target import TrackerAway
from pointsweep.utils.cli_exit import INVALID
from pointsweep.utils.console import encoding_of


def read_format(text: str) -> str:
    """Read the value of --format. Raises typer.BadParameter."""
    try:
        return format_name(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@dataclass(frozen=True)
class TablesOptions:
    """The options of tables, as the command line gives them."""

    sweep: str
    form: str = "text"
    metric: str | None = None
    protocol: str | None = None
    store: str | None = None
    source: str = "store"
    tracking_uri: str | None = None
    diff: tuple[str, str] | None = None  # two rows
    why: tuple[str, str] | None = None  # a row and a column
    bundle: str | None = None  # the file to write
    allow_plugins: bool = False


SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="a sweep's name, or its file", autocompletion=complete_sweep)]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", metavar="M", help="metric shown, such as balanced_accuracy or val/accuracy (default: the file's)"),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="P",
        parser=one_of("protocol", lambda: list(PROTOCOLS)),
        help="epoch that counts (default: the file's)",
    ),
]
SourceOption = Annotated[
    str,
    typer.Option("--source", metavar="S", parser=one_of("source", lambda: SOURCES), help="read the store, or mlflow: MLflow alone"),
]


def tables(
    sweep: SweepArgument,
    form: Annotated[
        str,
        typer.Option("--format", metavar="F", parser=read_format, help=", ".join(FORMATS)),
    ] = "text",
    metric: MetricOption = None,
    protocol: ProtocolOption = None,
    store: StoreOption = None,
    source: SourceOption = "store",
    tracking_uri: TrackingOption = None,
    diff: Annotated[
        tuple[str, str] | None, typer.Option("--diff", metavar="ROW_A ROW_B", help="what differs between two rows")
    ] = None,
    why: Annotated[
        tuple[str, str] | None,
        typer.Option("--why", metavar="ROW COLUMN", help="why a cell failed, is missing or is not complete"),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", metavar="FILE", help="write table, configs, predictions and checksums into one file"),
    ] = None,
    allow_plugins: AllowPluginsOption = False,
    version: Version = False,
) -> int:
    """Print a sweep's table from what is finished.

    exit codes: 0 printed, 2 there is no such table
    """
    return show(TablesOptions(sweep, form, metric, protocol, store, source, tracking_uri, diff, why, bundle, allow_plugins))


main = Program(
    "tables",
    tables,
    examples=("quickstart --format tex", 'quickstart --why "head only" MiniLM', "quickstart --bundle quickstart.zip"),
)


def show(options: TablesOptions) -> int:
    """Print or write what is asked for; return the exit code."""
    try:
        store = open_store(options.store)
        stored = read_stored(options.sweep, store, options.source, options.tracking_uri, options.allow_plugins)
        layout, records, failures = by_metric(stored, options.metric, store if options.source == "store" else None)
        layout = replace(layout, protocol=options.protocol or layout.protocol)
        if options.bundle:
            # What is shown to others is compared with no machine's data.
            write_bundle(options.bundle, store, (layout, records, failures))
            return 0
        layout, records = compared(layout, records, store)
        table = build(layout, records, failures)
        if options.diff:
            sys.stdout.write(diff(table, recovered(store, records), *options.diff))
            return 0
        if options.why:
            sys.stdout.write(why(table, store, *options.why))
            return 0
    except (ConfigError, ValueError, StoreFailed, TrackerAway) as error:
        print(error, file=sys.stderr)
        return INVALID
    if options.form == "html":
        sys.stdout.write(html(table, records, store if options.source == "store" else None))
    else:
        sys.stdout.write(printed(table, options.form))
    return 0


def write_bundle(file: str, store: Store, stored: Stored) -> None:
    """Write all that stands behind a table into one file."""
    layout, records, failures = stored
    table = build(layout, records, failures)
    write_whole(Path(file), bundle(store, layout, table, (records, failures), every_format(table)))
    check = shlex.join(["python", "-m", "pointsweep.verify", file])
    print(f"{file}: written; {check} checks it")


def html(table: Table, records: Mapping[str, Record], store: Store | None) -> str:
    """Return the report page; with curves, predictions and clouds where the store of the trials is at hand."""
    if store is None:
        return page(table, records, {}, Evidence())
    return page(table, records, curves(store, table), gather(store, table, records))


def printed(table: Table, form: str) -> str:
    """Return the table in one of FORMATS for standard output, whatever its width and encoding."""
    if form == "text":
        return render_here(table)
    made = render(table, form)
    if form == "json" and not encoding_of(sys.stdout).lower().startswith("utf"):
        return json.dumps(json.loads(made), sort_keys=True, indent=1) + "\n"
    return made
