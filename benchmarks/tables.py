"""A table over 10,000 trials against mlflow.search_runs + pandas over the same trials, and again
after 10 more.

    python benchmarks/tables.py [--records 10000] [--rounds 3] [--folder FOLDER]

Both sides print mean, sd and n of every cell; the ratio is void unless these are equal. Every
measurement is a fresh process, the sides alternate, medians are printed. Times are those of the
work alone, without the imports (which would favour this side: mlflow's take longer), memory is the
highest of the whole process. `cold`: without the index, and the records not in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pointsweep.config.schema import TrialConfig, with_seed
from pointsweep.config.validation import trial_from_dict
from pointsweep.results.records import CellLayout, Layout, Record
from pointsweep.statistics.paired_objects import packed

COLUMNS, SEEDS, OBJECTS, MORE = 10, 5, 2882, 10
NAME = "benchmark"
Cells = dict[str, tuple[float, float, int]]  # "row / column" -> mean, sd, n
Clocks = tuple[float, float]  # seconds by the wall, and of this process on a CPU


def config(row: int, column: int) -> TrialConfig:
    """One arm: a LoRA of another rank in each row, on another number of tokens in each column."""
    return trial_from_dict({
        "dataset": "scanobjectnn",
        "tokenizer": {"name": "point_pn_light", "num_tokens": 64 + column},
        "backbone": {"name": "vit_in21k"}, "method": {"name": "lora", "rank": row + 1},
        "train": {"epochs": 300}, "seed": 0,
    })  # fmt: skip


def record(made: TrialConfig, generator: np.random.Generator) -> Record:
    """A finished trial as `trial.py` writes it: two protocols, which of 2,882 objects were right in
    each, origin and all.
    """
    right = [generator.random(OBJECTS) < 0.8 for _ in range(2)]
    metrics = {
        name: {
            "epoch": 300 - 7 * i, "test/accuracy": int(bits.sum()) / OBJECTS,
            "test/loss": float(generator.random()),
            "train/accuracy": float(generator.random()), "train/loss": float(generator.random()),
        }
        for i, (name, bits) in enumerate(zip(("last", "best_test"), right, strict=True))
    }  # fmt: skip

    rank = made.method.rank  # type: ignore[union-attr]

    return Record(
        key=made.key(), config=made.to_dict(), metrics=metrics,
        parameters={"trainable": 500_000 + 9 * rank, "trainable_without_head": 9 * rank,
        "total": 86_000_000 + 9 * rank},
        dataset={
            "name": "scanobjectnn", "digest": "d" * 64, "num_train": 11416, "num_val": 0,
            "num_test": OBJECTS, "num_classes": 15,
        },
        weights_origin="vit_in21k, sha256 " + "e" * 64,
        seconds={"total": 3600 * float(generator.random()), "train": 3000.0},
        peak_memory_bytes=2**31, clouds_per_s=900 * float(generator.random()),
        origin={
            "tree": "1" * 16, "code": "c" * 40, "device": "cuda", "cpus": "16", "python": "3.11.7",
            "platform": "Linux",
            "version.torch": "2.13.0", "version.numpy": "2.4.6", "version.ray": "2.60.0",
            "version.mlflow": "3.17.2",
        },
        correct={name: packed(bits) for name, bits in zip(metrics, right, strict=True)},
    )  # fmt: skip


def fill(folder: Path, count: int) -> list[tuple[str, str, int, Record]]:
    """The store: its plan, `count` records; MORE of them lie aside, to be moved in later. Returns
    (row, column, seed, record).
    """
    generator, rows = np.random.default_rng(0), count // (COLUMNS * SEEDS)
    cells, found = [], []

    for row in range(rows):
        for column in range(COLUMNS):
            arm, keys = config(row, column), []
            for seed in range(SEEDS):
                made = record(with_seed(arm, seed), generator)
                keys.append((seed, made.key))
                found.append((f"rank {row + 1}", f"{64 + column} tokens", seed, made))

            cells.append(CellLayout(row, column, tuple(keys)))

    layout = Layout(
        NAME, "A large table", ("method",), tuple((f"rank {row + 1}",) for row in range(rows)),
        tuple(f"{64 + column} tokens" for column in range(COLUMNS)), tuple(cells),
    )  # fmt: skip

    write(
        folder / f"store/sweeps/{NAME}/plan.json",
        json.dumps({"layout": json.loads(layout.to_json())}),
    )
    for i, (*_, made) in enumerate(found):
        write(
            folder
            / ("later" if i >= len(found) - MORE else "store/trials")
            / made.key
            / "record.json",
            made.to_json(),
        )

    return found


def write(path: Path, text: str) -> None:
    """A file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def log(folder: Path, found: list[tuple[str, str, int, Record]]) -> None:
    """The same trials as runs of MLflow in SQLite: one by its client, the others as copies of its
    rows with their own values.

    A run holds what any sweep logs: its configuration as params, metrics, and tags for its place.
    What pointsweep keeps there beside (the whole record, as tags) is left out; it would only slow
    the baseline.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    from pointsweep.tracking.mlflow.payload import flat

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.create_run(client.create_experiment(NAME), run_name="first")
    row, column, seed, first = found[0]
    tags = {"row": row, "column": column, "seed": str(seed), "key": first.key}
    client.log_batch(
        run.info.run_id,
        [Metric(name, value, 0, 0) for name, value in values(first).items()],
        [Param(name, value) for name, value in flat(first.config)],
        [RunTag(name, value) for name, value in tags.items()],
    )

    with sqlite3.connect(folder / "mlflow.db") as base:
        base.row_factory = sqlite3.Row
        rows = {
            table: base.execute(f"SELECT * FROM {table}").fetchall()
            for table in ("runs", "params", "latest_metrics", "tags")
        }
        for table, lines in rows.items():
            marks = ", ".join("?" * len(lines[0].keys()))
            copies = (copy(dict(line), made) for made in found[1:] for line in lines)
            base.executemany(f"INSERT INTO {table} VALUES ({marks})", copies)


def values(made: Record) -> dict[str, float]:
    """What a run's metrics are."""
    found = {
        f"{protocol}/{name}": float(value)
        for protocol, all_of in made.metrics.items()
        for name, value in all_of.items()
    }
    return found | {
        f"parameters/{name}": float(value) for name, value in made.parameters.items()
    }


def copy(line: dict[str, Any], made: tuple[str, str, int, Record]) -> list[Any]:
    """A row of the first run's as one of another run's."""
    row, column, seed, trial = made
    line["run_uuid"] = trial.key * 2
    own = {
        "row": row,
        "column": column,
        "seed": str(seed),
        "key": trial.key,
        "method.rank": str(trial.parameters["trainable_without_head"] // 9),
    }

    if line.get("key") in own:
        line["value"] = own[line["key"]]
    elif line.get("key") in values(trial):
        line["value"] = values(trial)[line["key"]]

    return list(line.values())


# The two sides, each in a process of its own


def by_mlflow(folder: Path) -> tuple[Clocks, Clocks, Cells]:
    """search_runs and pandas, as their documentation shows."""
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store
    import pandas  # noqa: F401 - both are imported at their first use otherwise, as scipy is on this side

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    begun = clocks()
    runs = mlflow.search_runs(experiment_names=[NAME], max_results=100_000)
    grouped = runs.groupby(["tags.row", "tags.column"])[
        "metrics.last/test/accuracy"
    ].agg(["mean", "std", "count"])
    grouped.to_string()

    return (
        begun,
        clocks(),
        {
            f"{row} / {column}": tuple(line)
            for (row, column), *line in grouped.itertuples()
        },
    )


def by_pointsweep(folder: Path) -> tuple[Clocks, Clocks, Cells]:
    """What `pointsweep tables` does."""
    import scipy.special  # noqa: F401

    from pointsweep.reporting.build import build, read, render
    from pointsweep.storage.stores import open_store

    begun = clocks()
    table = build(*read(open_store(str(folder / "store")), NAME))
    render(table, "text")

    return (
        begun,
        clocks(),
        {
            table.cell_name(cell): (cell.mean or 0.0, cell.sd or 0.0, cell.n)
            for cell in table.cells
        },
    )


def side(folder: Path, name: str) -> None:
    """One measurement, printed as JSON."""
    begun, ended, cells = (by_mlflow if name == "mlflow" else by_pointsweep)(folder)
    peak = peak_bytes()
    wall, cpu = (end - begin for begin, end in zip(begun, ended, strict=True))
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, "cells": cells}))


def peak_bytes() -> int:
    """The highest resident memory of this program. `ru_maxrss` would be that of whoever started it,
    where that is higher.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return next(
        int(line.split()[1]) * 1024
        for line in status.read_text().splitlines()
        if line.startswith("VmHWM:")
    )


def clocks() -> Clocks:
    """Both clocks now."""
    return time.perf_counter(), time.process_time()


def measured(folder: Path, name: str) -> dict[str, Any]:
    """One side in a fresh process, with the wall time of all of it."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--folder", str(folder), "--side", name],
        capture_output=True,
        text=True,
        check=True,
    )

    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "whole": time.perf_counter() - begun,
    }


def cool(folder: Path) -> None:
    """Takes the index away, and the store out of the page cache."""
    for path in (folder / "store").rglob("*"):
        if path.name == "records.index":
            path.unlink()
        elif path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both sides have the same cells, to 1e-12."""
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=0, atol=1e-12) for name in one
    )


def compare(folder: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """All measurements by name; the sides alternate."""
    found: dict[str, list[dict[str, Any]]] = {
        "mlflow": [],
        "cold": [],
        "warm": [],
        "10 more": [],
    }
    for _ in range(rounds):
        cool(folder)
        found["cold"].append(measured(folder, "pointsweep"))
        found["mlflow"].append(measured(folder, "mlflow"))
        found["warm"].append(measured(folder, "pointsweep"))
        moved = [
            Path(shutil.move(path, folder / "store/trials" / path.name))
            for path in sorted((folder / "later").iterdir())
        ]

        assert len(moved) == MORE
        found["10 more"].append(measured(folder, "pointsweep"))
        assert same(found["mlflow"][-1]["cells"], found["10 more"][-1]["cells"]), (
            "void: the sides differ"
        )

        for path in moved:
            shutil.move(path, folder / "later" / path.name)

    return found


def main() -> None:
    """Prints the medians and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="made if it does not exist, and then kept"
    )
    parser.add_argument(
        "--side", choices=["mlflow", "pointsweep"], help=argparse.SUPPRESS
    )
    args = parser.parse_args()

    if args.side:
        side(args.folder, args.side)
        return

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary, "filled")
        if not folder.exists():
            log(folder, fill(folder, args.records))

        found = compare(folder, args.rounds)

    print(
        f"{args.records} trials, {args.rounds} rounds, {os.cpu_count()} CPUs, {platform.machine()},"
        f" load {os.getloadavg()[0]:.1f}"
    )

    fields = ("wall", "cpu", "whole", "peak")
    slow = {
        field: statistics.median(one[field] for one in found["mlflow"])
        for field in fields
    }

    for name, runs in found.items():
        here = {
            field: statistics.median(one[field] for one in runs) for field in fields
        }
        ratio = {field: f"({slow[field] / here[field]:.1f}x)" for field in fields}
        print(
            f"{name:8} {here['wall']:7.2f} s {ratio['wall']:8} {here['cpu']:7.2f} s of CPU"
            f" {ratio['cpu']:8} whole process {here['whole']:6.2f} s {ratio['whole']:8} peak"
            f" {here['peak'] / 2**20:5.0f} MiB {ratio['peak']}"
        )


if __name__ == "__main__":
    main()
