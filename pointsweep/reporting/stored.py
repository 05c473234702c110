"""The layout, records and failures of a sweep's table, from its store or from MLflow alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pointsweep.config.plugins import HOW_TO_ALLOW, is_allowed
from pointsweep.errors import unknown
from pointsweep.reporting.build import read, read_results
from pointsweep.reporting.stale import marked, remembered_changes
from pointsweep.results import metrics
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.kept_plugins import import_all, kept_plugins, plugins_here
from pointsweep.results.metrics import computed, table_metrics, with_split
from pointsweep.results.records import Layout, Record
from pointsweep.storage.base import Store

SOURCES = ("store", "mlflow")

Stored = tuple[Layout, dict[str, Record], dict[str, str]]


def read_stored(
    sweep: str,
    store: Store,
    source: str = "store",
    tracking_uri: str | None = None,
    allow_plugins: bool = False,
) -> Stored:
    """Read the table of a sweep: of a name as the store or MLflow has it, of a file its own,
    whatever was run under its name.

    Returns its layout, its records and the reasons of its failures, both by key. Raises ConfigError
    for a file with problems, StoreError or another ValueError where there is no such table, and
    TrackerUnavailableError where MLflow does not answer. `allow_plugins`: the Python code that the
    file names, or that the sweep's metric is, may be imported.
    """
    name = sweep
    own: Layout | None = None

    if is_sweep_file(sweep):
        name, own = _layout_of_file(sweep, store, allow_plugins)

    if source == "store":
        if own is None:
            return read(store, name, allow_plugins)

        layout, records, failures = read_results(store, own)
        if records or store.exists(f"sweeps/{name}/plan.json"):
            return layout, records, failures

        return read(store, name, allow_plugins)

    from pointsweep.tracking.target import tracking_uri as tracker_address
    from pointsweep.tracking.trackers import open_tracker

    tracker = open_tracker(tracker_address(tracking_uri, store))
    layout, records, failures = tracker.read_table(name)

    return own or layout, records, failures


def is_sweep_file(text: str) -> bool:
    """Tell whether a text names a sweep's file rather than a sweep of the store."""
    return Path(text).suffix in (".yaml", ".yml")


def _layout_of_file(
    file: str, store: Store, allow_plugins: bool
) -> tuple[str, Layout | None]:
    """Return the name of a file's table and its layout; none of a search, whose table is what it
    found.
    """
    from pointsweep.sweep.definition import name_conflict
    from pointsweep.sweep.sweep import load

    sweep = load(file, allow_plugins=allow_plugins)

    if sweep.search is None:
        return sweep.name, sweep.layout()

    other = name_conflict(sweep, store)
    if other is not None:
        raise ValueError(other)

    return sweep.name, None


def by_metric(
    stored: Stored,
    metric: str | None,
    store: Store | None,
    allow_plugins: bool = False,
) -> Stored:
    """Return a stored table for another metric than the file's: `test/macro_f1`, or without its
    split `macro_f1`.

    The metric may be one that an installed package offers, or that stands in a plug-in of the
    sweep, which is imported where `allow_plugins` permits that. Without a store (records read from
    MLflow alone) only metrics that the records hold can be shown. Raises ValueError.
    """
    layout, records, failures = stored
    name = layout.metric if metric is None else with_split(metric)

    if metric is not None and name not in table_metrics():
        hint = _look_elsewhere(name, layout, store, allow_plugins)
        if name not in table_metrics():
            raise ValueError(
                f"--metric: {unknown('metric', name, metrics.offered(), 'Allowed')}{hint}"
            )

    if store is not None:
        records = with_metric(store, records, name)
    elif computed(name) is not None:
        raise ValueError(
            f"{name} is computed from predictions, which MLflow does not hold; use --source store"
        )

    return replace(layout, metric=name), records, failures


def _look_elsewhere(
    name: str, layout: Layout, store: Store | None, allow_plugins: bool
) -> str:
    """Register a metric that an installed package offers, else those of the sweep's plug-ins;
    return what to say if it is in neither. Raises PluginError.
    """
    measure = name.rpartition("/")[2]
    if measure in metrics.METRICS or metrics.discover(measure) or store is None:
        return ""

    sources = kept_plugins(store, layout.name)
    if not all(is_allowed(source, allow_plugins) for source in sources):
        return f". The sweep's own code was not looked at: {HOW_TO_ALLOW}"

    import_all(sources, layout.name, allow_plugins)
    return ""


def compared(
    layout: Layout, records: Mapping[str, Record], store: Store | None
) -> tuple[Layout, dict[str, Record]]:
    """Mark records whose data, weights or plug-ins are known to have changed on this machine; a
    note names what nobody has compared.

    Where the data are not here there is nothing to say.
    """
    code = plugins_here(store, layout.name) if store is not None else {}
    changes, unseen = remembered_changes(records, code)

    if unseen:
        note = f"not compared with the {', '.join(unseen)} of this machine; run FILE --plan does"
        layout = replace(layout, notes=(*layout.notes, note))

    return layout, marked(records, changes)
