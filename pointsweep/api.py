"""Public functions for programs and notebooks: what `import pointsweep` gives.

    sweep = pointsweep.load("quickstart", "profile=smoke")
    table = pointsweep.run(sweep, inline=True)
    table.to_pandas()

Nothing here ends the process: what is wrong is raised, as one of pointsweep.errors where a user can
mend it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace as with_changes
from pathlib import Path
from typing import TYPE_CHECKING

from pointsweep.errors import ConfigError, Problem, StoreError, unknown
from pointsweep.execution import ray_cluster
from pointsweep.execution.options import LaunchOptions
from pointsweep.execution.progress import Display
from pointsweep.hpo.launch import launch
from pointsweep.planning.plan import Plan, make_plan
from pointsweep.reporting import stored
from pointsweep.reporting.build import build
from pointsweep.reporting.table import Table
from pointsweep.results.trial_dir import LeaseHeldError
from pointsweep.storage.base import Store
from pointsweep.storage.stores import open_store as open_store_at
from pointsweep.sweep.definition import name_conflict
from pointsweep.sweep.sweep import Sweep
from pointsweep.sweep.sweep import load as load_file
from pointsweep.tracking.trackers import uri_mistake

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Plan",
    "Store",
    "Sweep",
    "Table",
    "load",
    "open_store",
    "plan",
    "read_records",
    "read_table",
    "run",
]


def load(
    path_or_name: str | Path,
    *overrides: str,
    only: Iterable[str] = (),
    allow_plugins: bool = False,
) -> Sweep:
    """Read a sweep file and check it; nothing is trained.

    `path_or_name` is a path, or the name of a file here, in ./sweeps or among the sweeps that come
    with pointsweep. `overrides` are those of the command line ("train.epochs=2", "seeds=[0,1]",
    "profile=smoke"), `only` keeps a part of the table ("row=lora", "seed=0"). `allow_plugins` lets
    the Python code that the file names be imported. Raises ConfigError with everything that is
    wrong in the file.
    """
    return load_file(path_or_name, list(overrides), list(only), allow_plugins)


def open_store(path: str | Path | None = None) -> Store:
    """Open a store: a folder, or s3://bucket/prefix; by default $POINTSWEEP_STORE, else
    ~/pointsweep. Nothing is created.

    Raises StoreError for what can be no store.
    """
    return open_store_at(None if path is None else str(path))


def plan(
    sweep: Sweep | str | Path,
    *,
    store: Store | str | Path | None = None,
    rerun_stale: bool = False,
) -> Plan:
    """Look at a sweep and a store: what is finished, what would run, and, in `refused`, why it
    would not be launched.

    Reads data and weights and builds every arm once; nothing is trained and nothing is fetched. Of
    a search it is the plan of some points of every arm. Raises ConfigError for a file with problems
    and StoreError for a store that cannot be read.
    """
    return make_plan(_sweep(sweep).probe(), _store(store), rerun_stale=rerun_stale)


def run(
    sweep: Sweep | str | Path,
    *,
    store: Store | str | Path | None = None,
    tracking_uri: str | None = None,
    inline: bool = False,
    workers: int = 0,
    threads: int = 1,
    rerun_stale: bool = False,
    replace: bool = False,
    progress: bool = True,
) -> Table:
    """Train what is not finished and return the table, as `pointsweep run` does. The same call
    again continues.

    `inline` trains in this process, without Ray; `workers` is the most trials at once (0: as many
    as fit), `threads` the CPU threads of each. `tracking_uri` names an MLflow server ("none": no
    MLflow; by default $MLFLOW_TRACKING_URI, else a database in the store). `rerun_stale` trains
    again what other data or weights made; `replace` takes the place of another file's table of this
    name. With `progress`, lines on standard output tell what happens.

    A trial that fails ends nothing: its cell's status is "failed" and its `failures` have the
    reason. Raises ConfigError for a file with problems and for what data, weights, machine or audit
    do not allow (nothing was launched); StoreError where the store cannot be used or another
    process holds it; ResourcesError where Ray's machines cannot run it; SearchFailedError where no
    suggestion of a search finished; StoreUnavailableError or another OSError where a disk or a
    service failed on the way, and RayLostError where Ray did: what is done is kept, and the same
    call continues.
    """
    requested = _sweep(sweep)
    opened = _store(store)
    mistake = uri_mistake(tracking_uri or "none")

    if mistake:
        raise ConfigError(requested.source, [Problem("tracking_uri", mistake)])

    other = None if replace else name_conflict(requested, opened)
    if other:
        raise ConfigError(requested.source, [Problem("name", other)])

    with _display(progress) as display:
        display.phase(
            f"planning {requested.name}: reading data and weights, building and auditing its arms"
        )
        planned = make_plan(
            requested.probe(), opened, fetch=True, rerun_stale=rerun_stale
        )
        if planned.refused:
            raise ConfigError(
                requested.source, [Problem("", text) for text in planned.refused]
            )

        display.say(
            f"{requested.name}: {requested.searched() if requested.search else planned.counts()}"
        )
        options = LaunchOptions(
            launcher="inline" if inline else "ray",
            workers=workers,
            threads=threads,
            tracking_uri=tracking_uri,
        )
        try:
            [concluded] = launch(
                [requested], [planned], opened, options, display, rerun_stale
            )
        except LeaseHeldError as error:
            raise StoreError(str(error)) from error
        finally:
            ray_cluster.leave()

    return concluded.table


@contextmanager
def _display(progress: bool) -> Iterator[Display]:
    """Show what happens on standard output, or nowhere."""
    with Display() if progress else Display(io.StringIO(), quiet=True) as display:
        yield display


def read_table(
    name_or_path: str | Path,
    *,
    store: Store | str | Path | None = None,
    metric: str | None = None,
    protocol: str | None = None,
    source: str = "store",
    tracking_uri: str | None = None,
    allow_plugins: bool = False,
) -> Table:
    """Return a sweep's table from what is finished, as `pointsweep tables` prints it. Nothing is
    trained.

    `name_or_path` is a sweep's name in the store, or its file (ending in .yaml). `metric` is what
    the table shows (balanced_accuracy, val/accuracy), `protocol` names the epoch that counts (last,
    best_val or best_test); by default both are the file's. With `source="mlflow"` everything is
    read from MLflow alone. `allow_plugins` lets the Python code be imported that the file names, or
    that the metric is. Raises ConfigError for a file with problems, StoreError or another
    ValueError where there is no such table, and TrackerUnavailableError where MLflow does not
    answer.
    """
    opened = _store(store)
    found = _read(name_or_path, opened, source, tracking_uri, allow_plugins)
    layout, records, failures = stored.by_metric(
        found, metric, opened if source == "store" else None, allow_plugins
    )
    layout, compared = stored.compared(layout, records, opened)

    return build(
        with_changes(layout, protocol=protocol or layout.protocol), compared, failures
    )


def read_records(
    name_or_path: str | Path,
    *,
    store: Store | str | Path | None = None,
    source: str = "store",
    tracking_uri: str | None = None,
    allow_plugins: bool = False,
) -> pandas.DataFrame:
    """Return the trials behind a sweep's table with a line each: cell, seed, status, all metrics,
    parameters, seconds.

    Takes and raises what `read_table` does; frames.record_frame describes the columns.
    """
    from pointsweep.reporting.frames import record_frame

    return record_frame(
        *_read(name_or_path, _store(store), source, tracking_uri, allow_plugins)
    )


def _read(
    name_or_path: str | Path,
    store: Store,
    source: str,
    tracking_uri: str | None,
    allow_plugins: bool,
) -> stored.Stored:
    if source not in stored.SOURCES:
        raise ValueError(unknown("source", source, stored.SOURCES, "Allowed"))
    return stored.read_stored(
        str(name_or_path), store, source, tracking_uri, allow_plugins
    )


def _sweep(sweep: Sweep | str | Path) -> Sweep:
    return sweep if isinstance(sweep, Sweep) else load(sweep)


def _store(store: Store | str | Path | None) -> Store:
    if store is None or isinstance(store, str | Path):
        return open_store(store)
    return store
