"""The command tables: print a sweep's table from what is finished, or what stands behind it.

-o FILE writes it into a file. --mark, --drop, --no-notes, --label and --template say how it looks
in a paper. --diff ROW_A ROW_B says what differs between two arms, --why ROW COLUMN why a cell is as
it is (compare.py), --bundle FILE writes one file with all that stands behind the table (bundle.py),
which `pointsweep verify FILE` checks.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
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
    complete_sweep,
    one_of,
)
from pointsweep.errors import ConfigError, StoreUnavailableError
from pointsweep.reporting.best_cells import MARKS
from pointsweep.reporting.build import build, every_format
from pointsweep.reporting.bundle import bundle
from pointsweep.reporting.cell_text import PROTOCOLS
from pointsweep.reporting.compare import diff, recovered, why
from pointsweep.reporting.formats.base import DEFAULTS, TableOptions
from pointsweep.reporting.formats.registry import (
    FORMATS,
    format_name,
    load,
    render_bytes,
)
from pointsweep.reporting.formats.text import text
from pointsweep.reporting.html.evidence import Evidence, curves, gather
from pointsweep.reporting.html.page import page
from pointsweep.reporting.left_out import left_out
from pointsweep.reporting.stored import (
    SOURCES,
    Stored,
    by_metric,
    compared,
    read_stored,
)
from pointsweep.reporting.table import Table
from pointsweep.reporting.template import from_template
from pointsweep.results.records import Record
from pointsweep.storage.base import Store, write_whole
from pointsweep.storage.stores import open_store
from pointsweep.tracking.target import TrackerUnavailableError
from pointsweep.utils.cli_exit import INVALID
from pointsweep.utils.console import columns_of, encoding_of


def read_format(text: str) -> str:
    """Read the value of --format. Raises typer.BadParameter."""
    try:
        return format_name(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def read_label(text: str) -> str:
    """Read the value of --label. Raises typer.BadParameter."""
    if not LABEL.fullmatch(text):
        raise typer.BadParameter(
            f"{text!r} is no label of LaTeX; allowed are letters, digits and : . _ / -"
        )

    return text


LABEL = re.compile(r"[A-Za-z0-9:._/-]*")
OPTION_OF = {
    "mark": "--mark",
    "notes": "--no-notes",
    "label": "--label",
    "without": "--drop of what every column shows",
}


@dataclass(frozen=True)
class TablesOptions:
    """The options of tables, as the command line gives them."""

    sweep: str
    form: str = "text"
    look: TableOptions = DEFAULTS
    drop: tuple[str, ...] = ()  # columns, or what every column shows: params, paper
    template: str | None = None  # a file of one's own, for Jinja2
    output: str | None = None  # a file
    metric: str | None = None
    protocol: str | None = None
    store: str | None = None
    source: str = "store"
    tracking_uri: str | None = None
    diff: tuple[str, str] | None = None  # two rows
    why: tuple[str, str] | None = None  # a row and a column
    bundle: str | None = None  # the file to write
    allow_plugins: bool = False


SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="a sweep's name, or its file",
        autocompletion=complete_sweep,
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="M",
        help="macro_f1, val/accuracy, ... (default: the file's)",
    ),
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
    typer.Option(
        "--source",
        metavar="S",
        parser=one_of("source", lambda: SOURCES),
        help="read the store, or mlflow: MLflow alone",
    ),
]


def tables(
    sweep: SweepArgument,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="F", parser=read_format, help=", ".join(FORMATS)
        ),
    ] = "text",
    metric: MetricOption = None,
    protocol: ProtocolOption = None,
    store: StoreOption = None,
    source: SourceOption = "store",
    tracking_uri: TrackingOption = None,
    mark: Annotated[
        str,
        typer.Option(
            "--mark",
            metavar="M",
            parser=one_of("mark", lambda: MARKS),
            help="best and second by tests (default), mean, none",
        ),
    ] = DEFAULTS.mark,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            "--drop",
            metavar="NAME",
            help="leave out a column, or params, paper; again for more",
        ),
    ] = None,
    no_notes: Annotated[
        bool, typer.Option("--no-notes", help="leave out the notes under the table")
    ] = False,
    label: Annotated[
        str,
        typer.Option(
            "--label",
            metavar="NAME",
            help="LaTeX's label (default: tab:SWEEP)",
            parser=read_label,
        ),
    ] = "",
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="FILE",
            help="print it by a template of Jinja2 instead",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="write it into a file"),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--diff", metavar="ROW_A ROW_B", help="what differs between two rows"
        ),
    ] = None,
    why: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--why",
            metavar="ROW COLUMN",
            help="why a cell failed, is missing or is not complete",
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            "--bundle",
            metavar="FILE",
            help="write the table and all that stands behind it",
        ),
    ] = None,
    allow_plugins: AllowPluginsOption = False,
    version: Version = False,
) -> int:
    """Print a sweep's table from what is finished.

    exit codes: 0 printed, 2 there is no such table
    """
    look = TableOptions(mark=mark, notes=not no_notes, label=label)
    options = TablesOptions(
        sweep,
        form=form,
        look=look,
        drop=tuple(drop or ()),
        template=template,
        output=output,
        metric=metric,
        protocol=protocol,
        store=store,
        source=source,
        tracking_uri=tracking_uri,
        diff=diff,
        why=why,
        bundle=bundle,
        allow_plugins=allow_plugins,
    )

    return show(options)


main = Program(
    "tables",
    tables,
    examples=(
        "quickstart --format latex --drop params",
        'quickstart --why "head only" MiniLM',
        "quickstart --bundle quickstart.zip",
    ),
)


def show(options: TablesOptions) -> int:
    """Print or write what is asked for; return the exit code."""
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

        content = printed(table, records, store, options)
        return _written(content, options.output)
    except (
        ConfigError,
        ValueError,
        StoreUnavailableError,
        TrackerUnavailableError,
    ) as error:
        print(error, file=sys.stderr)
        return INVALID


def write_bundle(file: str, store: Store, stored: Stored) -> None:
    """Write all that stands behind a table into one file."""
    layout, records, failures = stored
    table = build(layout, records, failures)
    files = every_format(table)
    data = bundle(store, layout, table, trials=(records, failures), files=files)
    write_whole(Path(file), data)

    check = shlex.join(["pointsweep", "verify", file])
    print(f"{file}: written; {check} checks it")


def html(
    table: Table,
    records: Mapping[str, Record],
    store: Store | None,
    plotly_src: str = "",
) -> str:
    """Return the report page; with curves, predictions and clouds where the store of the trials is
    at hand. `plotly_src`: where the page fetches plotly.js instead of carrying it.
    """
    if store is None:
        return page(table, records, {}, Evidence(), plotly_src=plotly_src)

    evidence = gather(store, table, records)
    return page(table, records, curves(store, table), evidence, plotly_src=plotly_src)


def printed(
    table: Table, records: Mapping[str, Record], store: Store, options: TablesOptions
) -> str | bytes:
    """Return the table as the options ask for it. Raises ValueError for options that change nothing
    of it.
    """
    table, without = left_out(table, options.drop)
    look = replace(options.look, without=without)

    if options.template is not None:
        return from_template(table, Path(options.template), look)

    output_format = load(options.form)
    unheeded = output_format.unheeded(look)
    if unheeded:
        option = unheeded[0]
        others = [name for name in FORMATS if option in load(name).options]
        raise ValueError(
            f"{OPTION_OF[option]} changes nothing of {options.form}; it does of"
            f" {', '.join(others)}"
        )

    if options.form == "html":
        return html(table, records, store if options.source == "store" else None)
    if options.output is not None:
        return render_bytes(table, options.form, look)
    if options.form == "text":
        return text(table, columns_of(sys.stdout), encoding_of(sys.stdout), look)

    content = output_format.render(table, look)
    if options.form == "json" and not encoding_of(sys.stdout).lower().startswith("utf"):
        return json.dumps(json.loads(content), sort_keys=True, indent=1) + "\n"

    return content


def _written(content: str | bytes, file: str | None) -> int:
    """Write what was made into a file, or to standard output; return the exit code."""
    if file is None:
        if isinstance(content, str):
            sys.stdout.write(content)
            return 0

        if sys.stdout.isatty():
            raise ValueError("this format is no text: -o FILE writes it into a file")

        sys.stdout.buffer.write(content)
        return 0

    path = Path(file)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from error

    print(path)
    return 0
