"""The command sync: mirror a store's sweeps to MLflow, an empty one too.

Called again it changes nothing. Exit codes: 0 MLflow has all that the store has; 2 the store, or a
sweep in it, is unfit; 6 MLflow is away or refuses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from pointsweep.cli.command import Program, Version
from pointsweep.errors import StoreError, StoreUnavailableError
from pointsweep.reporting import build as tables
from pointsweep.reporting.cell_metrics import cell_metrics
from pointsweep.results.records import Layout
from pointsweep.storage.base import FileStore
from pointsweep.storage.stores import on_disk, open_store
from pointsweep.tracking.target import TrackerUnavailableError, TrialTags, tracking_uri
from pointsweep.tracking.trackers import open_tracker, uri_mistake
from pointsweep.utils.cli_exit import BROKEN_OFF, INVALID
from pointsweep.utils.masking import masked


@dataclass(frozen=True)
class SyncOptions:
    """The options of sync, as the command line gives them."""

    store: str
    tracking_uri: str | None = None


def sync(
    store: Annotated[str, typer.Argument(metavar="STORE", help="folder of all trials")],
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            metavar="URI",
            help="MLflow server (default: $MLFLOW_TRACKING_URI, else sqlite in the store)",
        ),
    ] = None,
    version: Version = False,
) -> int:
    """Mirror a store to MLflow. Again, it changes nothing.

    exit codes: 0 MLflow has all that the store has, 2 the store or a sweep in it
    is not fit, 6 MLflow is away or refuses
    """
    return mirror_store(SyncOptions(store, tracking_uri))


main = Program(
    "sync", sync, examples=("~/pointsweep --tracking-uri http://mlflow:5000",)
)


def mirror_store(options: SyncOptions) -> int:
    """Mirror every sweep of a store; return the exit code."""
    try:
        store = on_disk(open_store(options.store), "its trials are read in place")
        names = []
        for entry in store.list("sweeps"):
            if store.exists(f"sweeps/{entry}plan.json"):
                names.append(entry.rstrip("/"))

        if not names:
            raise StoreError(
                f"{store.url} holds no sweep: it has no sweeps/NAME/plan.json"
            )

        uri = tracking_uri(options.tracking_uri, store)
        mistake = uri_mistake(uri)
        if mistake:
            raise StoreError(mistake)
    except StoreError as error:
        print(error, file=sys.stderr)
        return INVALID

    return mirror_all(store, names, uri)


def mirror_all(store: FileStore, names: Sequence[str], uri: str) -> int:
    """Mirror the sweeps, each whatever happens to another; return the exit code."""
    code = 0
    tracker = open_tracker(uri)

    for name in names:
        try:
            count = mirror_sweep(store, name, uri)
            print(
                f"{name}: {count} trials are in {tracker.title} at {masked(uri)}",
                flush=True,
            )
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            code = max(code, INVALID)
        except (TrackerUnavailableError, StoreUnavailableError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            code = BROKEN_OFF
            if isinstance(error, StoreUnavailableError) or tracker.problem():
                break

    if code == BROKEN_OFF:
        print("what was sent is kept; the same command continues", file=sys.stderr)

    return code


def mirror_sweep(store: FileStore, name: str, uri: str) -> int:
    """Mirror one sweep with the trials that have begun; return their number. Raises
    TrackerUnavailableError and ValueError.
    """
    layout, records, failures = tables.read(store, name)
    begun = {}

    for key, tags in trial_tags(layout).items():
        if store.list(f"trials/{key}"):
            begun[key] = tags

    tracker = open_tracker(uri)
    target = tracker.begin(store, layout)
    missing = tracker.end(target, store, begun)
    table = tables.build(layout, records, failures)
    tracker.publish(target, tables.files_of(store, name), cell_metrics(table))

    if missing:
        raise TrackerUnavailableError(
            f"{tracker.title} at {masked(uri)} has all runs and metrics, but {missing}"
        )

    return len(begun)


def trial_tags(layout: Layout) -> dict[str, TrialTags]:
    """Return the tags of every trial in a table, those of its first cell."""
    tags: dict[str, TrialTags] = {}
    for cell in layout.cells:
        row = " / ".join(layout.rows[cell.row])
        column = layout.columns[cell.column]
        for seed, key in cell.keys:
            if key not in tags:
                tags[key] = TrialTags(layout.name, row, column, seed)

    return tags
