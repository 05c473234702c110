"""Records -> Table -> text. The command: python -m pointsweep.tables SWEEP [--format F] [--source store|mlflow].

A table is a function of a layout and records, whatever their order and wherever they were read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pointsweep.errors import ConfigError, unknown
from pointsweep.history import TrialFolder, read_failure
from pointsweep.records import CellLayout, Layout, Record, from_json, layout_from_json
from pointsweep.render import FORMATS, Table, TableCell, render
from pointsweep.report import page
from pointsweep.stats import ranking, summary
from pointsweep.store import FileStore, Store, open_store

FILES = {"txt": "text", "md": "md", "tex": "tex", "csv": "csv", "json": "json"}


def build(
    layout: Layout,
    records: Mapping[str, Record],
    failures: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, int]] | None = None,
) -> Table:
    """The table as far as it is filled. `parameters` counts arms that have no record yet, by key."""
    cells = tuple(_cell(layout, cell, records, failures, parameters or {}) for cell in layout.cells)
    steps = []
    for column in range(len(layout.columns)):
        arms = {" / ".join(layout.rows[cell.row]): dict(cell.values) for cell in cells if cell.column == column and cell.values}
        steps.append(tuple(ranking(arms)))
    notes = (*layout.notes, *_mixed(layout, records))
    return Table(
        layout.name, layout.title, layout.metric, layout.protocol, layout.row_headers, layout.rows, layout.columns, cells,
        tuple(steps), notes,
    )  # fmt: skip


def _cell(
    layout: Layout,
    cell: CellLayout,
    records: Mapping[str, Record],
    failures: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, int]],
) -> TableCell:
    found = {seed: records[key] for seed, key in cell.keys if key in records}
    values = {seed: record.metrics[layout.protocol][layout.metric] for seed, record in found.items()}
    stats = summary(list(values.values())) if values else None
    counts = [record.parameters for record in found.values()] or [parameters[key] for _, key in cell.keys if key in parameters]
    failed = tuple((seed, failures[key]) for seed, key in cell.keys if key in failures and key not in records)
    marks = sorted({mark for record in found.values() for mark in record.marks})
    return TableCell(
        cell.row, cell.column, stats and stats.mean, stats and stats.sd, len(values), len(cell.keys), stats and stats.low,
        stats and stats.high, tuple(sorted(values.items())), cell.keys, failed, dict(counts[0]) if counts else None,
        cell.published, cell.excluded, tuple(marks), _optimism(layout, list(found.values())),
    )  # fmt: skip


def _optimism(layout: Layout, records: Sequence[Record]) -> float | None:
    """How much choosing the epoch on the test set adds over the last epoch."""
    if not records:
        return None
    best, last = (summary([r.metrics[protocol][layout.metric] for r in records]).mean for protocol in ("best_test", "last"))
    return best - last


def _mixed(layout: Layout, records: Mapping[str, Record]) -> list[str]:
    """A note where the table's records were made by different versions of the code."""
    keys = [key for cell in layout.cells for _, key in cell.keys if key in records]
    trees = sorted({records[key].origin.get("tree", "unknown") for key in keys})
    return [f"made by {len(trees)} versions of the code: {', '.join(trees)}"] if len(trees) > 1 else []


def read(store: FileStore, name: str) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Layout, records and failures of a sweep from the store. Raises ValueError naming the sweeps there are."""
    try:
        plan = json.loads(store.read(f"sweeps/{name}/plan.json"))
    except FileNotFoundError:
        known = [entry.rstrip("/") for entry in store.list("sweeps")]
        raise ValueError(unknown("sweep", name, known, f"In {store.url}")) from None
    layout = layout_from_json(json.dumps(plan["layout"]))
    records, failures = {}, {}
    for key in {key for cell in layout.cells for _, key in cell.keys}:
        if store.exists(f"trials/{key}/record.json"):
            records[key] = from_json(store.read(f"trials/{key}/record.json").decode())
        elif reason := read_failure(store, key):
            failures[key] = reason
    return layout, records, failures


def write_all(store: FileStore, table: Table, records: Mapping[str, Record]) -> None:
    """Writes the table in every format, and the report."""
    for ending, form in FILES.items():
        store.write(f"sweeps/{table.name}/table.{ending}", render(table, form).encode())
    store.write(f"sweeps/{table.name}/report.html", page(table, records, curves(store, records)).encode())


def curves(store: FileStore, keys: Mapping[str, Record]) -> dict[str, list[float]]:
    """Test accuracy by epoch, for every trial."""
    return {
        key: [event["metrics"]["test/accuracy"] for event in TrialFolder(store.path(f"trials/{key}")).epochs()] for key in keys
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m pointsweep.tables", description="Prints the table of a sweep from what is finished.")
    made.add_argument("sweep", help="a sweep's name, or its file")
    made.add_argument("--format", choices=sorted(FORMATS), default="text")
    made.add_argument("--store", help="folder of all trials (default: $POINTSWEEP_STORE, else ~/pointsweep)")
    made.add_argument("--source", choices=["store", "mlflow"], default="store", help="read the store, or MLflow alone")
    made.add_argument("--tracking-uri", help="MLflow server (default: $MLFLOW_TRACKING_URI, else sqlite in the store)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 if a table was printed, 2 if there is none."""
    args = parser().parse_args(arguments)
    store: Store = open_store(args.store)
    assert isinstance(store, FileStore)
    try:
        layout, records, failures = _source(args, store)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.write(render(build(layout, records, failures), args.format))
    return 0


def _source(args: argparse.Namespace, store: FileStore) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    name = args.sweep
    if Path(name).suffix in (".yaml", ".yml"):
        from pointsweep.sweep import load

        name = load(name).name
    if args.source == "store":
        return read(store, name)
    from pointsweep import tracking

    return tracking.read_table(args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or tracking.default_uri(store), name)


if __name__ == "__main__":
    sys.exit(main())
