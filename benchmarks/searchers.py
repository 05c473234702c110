"""What samplers and schedulers save on a recorded grid of real trials: no training, a minute or two.

    python benchmarks/searchers.py [--seeds 50]                      # the table
    python -m pointsweep.run benchmarks/tabulated/adapter_grid.yaml  # the trials of the grid; then, to record them anew:
    python benchmarks/searchers.py --record [--store FOLDER]

A search asks pointsweep's own Study for learning rate, decay and bottleneck; the trial is the nearest cell of the grid, its curve the
recorded validation accuracy by epoch. What counts is how much is trained until a trial of the best 5 % has run to its end, in whole
trials (9 epochs): the median over the sampler's seeds.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pointsweep.history import TrialFolder
from pointsweep.search import Study
from pointsweep.settings import Settings
from pointsweep.stopping import bracket_of, limits_of
from pointsweep.store import FileStore, open_store
from pointsweep.sweep import Sweep, load

HERE = Path(__file__).parent / "tabulated"
GRID, TABLE = HERE / "adapter_grid.yaml", HERE / "adapter_grid.csv"
KEYS = {"train.lr": math.log, "train.weight_decay": math.log, "method.bottleneck": math.log}  # on these scales the grid is even
BEST = 0.05
MOST = 120  # suggestions of a search that finds nothing
SEARCH = """name: tabulated
base:
  from: {grid}
search:
  space:
    train.lr: {{float: [5.6e-6, 5.6e-1], log: true}}            # half a step beyond the grid's ends: every cell is as likely
    train.weight_decay: {{float: [3.2e-4, 3.16], log: true}}
    method.bottleneck: [2, 8, 32]
  trials: {most}
  {more}
"""
SEARCHERS = {
    "random": "sampler: random\n  batch: 1",
    "tpe": "sampler: {name: tpe, n_startup_trials: 4}\n  batch: 1",
    "tpe, batches of 4": "sampler: {name: tpe, n_startup_trials: 4}\n  batch: 4",
    "random + asha": "sampler: random\n  batch: 1\n  scheduler: asha",
    "tpe + asha": "sampler: {name: tpe, n_startup_trials: 4}\n  batch: 1\n  scheduler: asha",
}
Cell = tuple[float, ...]


def read_table() -> dict[Cell, tuple[float, ...]]:
    """Cell of the grid -> validation accuracy (fraction) by epoch."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        tuple(float(row[key]) for key in KEYS): tuple(float(value) for name, value in row.items() if name.startswith("epoch"))
        for row in rows
    }


def record(store: FileStore) -> None:
    """Writes the table from the finished trials of the grid. Raises ValueError if some are missing."""
    rows = []
    for trial in load(GRID).trials():
        folder = TrialFolder(store.path(f"trials/{trial.config.key()}"))
        curve = {event["epoch"]: event["metrics"]["val/accuracy"] for event in folder.epochs()}
        if len(curve) < trial.config.train.epochs:
            raise ValueError(f"trial {trial.config.key()} is not finished: python -m pointsweep.run {GRID}")
        plain = trial.config.to_dict()
        cell = {key: plain[key.partition(".")[0]][key.partition(".")[2]] for key in KEYS}
        rows.append(cell | {f"epoch {epoch}": f"{value:.6f}" for epoch, value in sorted(curve.items())})
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def nearest(table: Mapping[Cell, Sequence[float]], drawn: Mapping[str, Any]) -> Cell:
    """The cell of the grid that stands for drawn values."""
    places = [scale(float(drawn[key])) for key, scale in KEYS.items()]
    return min(table, key=lambda cell: sum((f(x) - p) ** 2 for f, x, p in zip(KEYS.values(), cell, places, strict=True)))


def goal(table: Mapping[Cell, Sequence[float]]) -> float:
    """The final accuracy from which on a cell is among the best 5 %."""
    return sorted((curve[-1] for curve in table.values()), reverse=True)[round(BEST * len(table)) - 1]


def cost(sweep: Sweep, table: Mapping[Cell, Sequence[float]], seed: int) -> float:
    """Whole trials that a search trains until one of the best 5 % has run to its end; infinity if none does."""
    assert sweep.search is not None and sweep.cells[0].arm is not None
    search = dataclasses.replace(sweep.search, seed=seed)
    arm = sweep.cells[0].arm
    config = arm.config({"train.lr": 1e-3, "train.weight_decay": 0.01, "method.bottleneck": 8})
    # Composing and checking the trial of every suggestion would be most of the time; here none is trained.
    arm = dataclasses.replace(arm, lay=lambda drawn: Settings(), compose=lambda settings: (config, []))
    study = Study("sqlite:///:memory:", "t", arm, search)
    study.start([])
    wanted, spent = goal(table), 0
    seen: list[tuple[int, dict[int, float]]] = []  # bracket and what was seen of every trial of the batches before
    for _ in range(MOST // search.batch):
        results: dict[int, tuple[float, ...] | None] = {}
        stopped, batch = {}, []
        for item in study.ask(search.batch):
            curve = dict(enumerate(table[nearest(table, item.drawn)], start=1))
            bracket = bracket_of(item.number, search, len(curve))
            limits = limits_of([each for other, each in seen if other == bracket], search, bracket)
            end = next((e for e in list(curve)[:-1] if e in limits and curve[e] < limits[e]), len(curve))
            spent += end
            if end == len(curve) and curve[end] >= wanted:
                return spent / len(curve)
            batch.append((bracket, {epoch: value for epoch, value in curve.items() if epoch <= end}))
            results[item.number] = (curve[end],) if end == len(curve) else None
            if end < len(curve):
                stopped[item.number] = list(batch[-1][1].items())
        seen += batch
        study.tell(results, stopped)
    return math.inf


def costs(searcher: str, seeds: int) -> list[float]:
    """The cost of a searcher for each of its seeds."""
    table = read_table()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tabulated.yaml"
        path.write_text(SEARCH.format(grid=GRID.resolve(), most=MOST, more=SEARCHERS[searcher]))
        sweep = load(path)
    return [cost(sweep, table, seed) for seed in range(seeds)]


def main() -> int:
    """The command."""
    made = argparse.ArgumentParser("python benchmarks/searchers.py")
    made.add_argument("--seeds", type=int, default=50)
    made.add_argument("--record", action="store_true", help="write the table from the grid's trials in the store")
    made.add_argument("--store", help="where they are (default: $POINTSWEEP_STORE, else ~/pointsweep)")
    args = made.parse_args()
    if args.record:
        store = open_store(args.store)
        assert isinstance(store, FileStore)
        record(store)
    table = read_table()
    good = sum(curve[-1] >= goal(table) for curve in table.values())
    print(f"{len(table)} cells, {good} of them at {100 * goal(table):.1f} % or more; whole trials until one of these has finished")
    print(f"{'':24}median  quartiles     of random's")
    base = 0.0
    for name in SEARCHERS:
        found = costs(name, args.seeds)
        low, middle, high = statistics.quantiles(found, n=4)
        base = base or middle
        print(f"{name:24}{middle:6.1f}  {low:5.1f} {high:5.1f}  {middle / base:10.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
