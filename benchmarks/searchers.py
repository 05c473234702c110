"""What samplers and schedulers save on a recorded grid of real trials: no training, a few minutes.

    python benchmarks/searchers.py [--grid adapter_grid] [--seeds 50]        # the table pointsweep
    run benchmarks/tabulated/adapter_dropout_grid.yaml  # the trials of a grid; then, to record them
    anew: python benchmarks/searchers.py --record [--grid adapter_grid] [--store FOLDER]

A search asks pointsweep's own Study for the keys of the grid; the trial is the nearest cell, its
curve the recorded validation accuracy by epoch. What counts is how much is trained until a trial of
the best 5 % has run to its end, in whole trials: the median over the sampler's seeds.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsweep.hpo.batching import Batches
from pointsweep.hpo.study import Study
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.storage.stores import open_store
from pointsweep.sweep.overlay import Settings
from pointsweep.sweep.sweep import Sweep, load

HERE = Path(__file__).parent / "tabulated"
BEST = 0.05
SEARCH = """name: tabulated
base:
  from: {grid}
search: {{space: {space}, trials: {most}, {more}}}
"""
# Each with the defaults of its sampler (Optuna's: ten suggestions of TPE at random before it
# learns) and scheduler, but as named.
SEARCHERS = {
    "random": "sampler: random, batch: 1",
    "tpe": "sampler: tpe, batch: 1",
    "random + asha": "sampler: random, scheduler: asha, batch: 1",
    "tpe + asha": "sampler: tpe, scheduler: asha, batch: 1",
    "tpe + asha, batches of 4": "sampler: tpe, scheduler: asha, batch: 4",
    "tpe + hyperband": "sampler: tpe, scheduler: hyperband, batch: 1",
}


@dataclass(frozen=True)
class Grid:
    """A grid, the space of its searches, and the scale on which each key of it is even.

    The space of a number reaches half a step beyond the grid's ends, so that every cell is as
    likely as any other.
    """

    name: str
    space: str
    scales: Mapping[str, Callable[[float], float]]

    @property
    def sweep(self) -> Path:
        """The sweep that trained it."""
        return HERE / f"{self.name}.yaml"

    @property
    def table(self) -> Path:
        """What was recorded."""
        return HERE / f"{self.name}.csv"


RATE, BOTTLENECK = (
    "train.lr: {float: [5.6e-6, 5.6e-1], log: true}",
    "method.bottleneck: [2, 8, 32]",
)
GRIDS = {
    "adapter_dropout_grid": Grid(
        "adapter_dropout_grid",
        f"{{{RATE}, train.weight_decay: {{float: [1.78e-4, 5.66], log: true}}, {BOTTLENECK}, "
        "head.dropout: {float: [0.0, 0.5], step: 0.25}}",
        {
            "train.lr": math.log,
            "train.weight_decay": math.log,
            "method.bottleneck": math.log,
            "head.dropout": float,
        },
    ),
    "adapter_grid": Grid(
        "adapter_grid",
        f"{{{RATE}, train.weight_decay: {{float: [3.2e-4, 3.16], log: true}}, {BOTTLENECK}}}",
        {
            "train.lr": math.log,
            "train.weight_decay": math.log,
            "method.bottleneck": math.log,
        },
    ),
}
Cell = tuple[float, ...]
Table = Mapping[Cell, Sequence[float]]


def read_table(grid: Grid) -> dict[Cell, tuple[float, ...]]:
    """Cell of the grid -> validation accuracy (fraction) by epoch."""
    with grid.table.open(newline="") as file:
        rows = list(csv.DictReader(file))

    return {
        tuple(float(row[key]) for key in grid.scales): tuple(
            float(value) for name, value in row.items() if name.startswith("epoch")
        )
        for row in rows
    }


def record(grid: Grid, store: FileStore) -> None:
    """Writes the table from the finished trials of the grid. Raises ValueError if some are
    missing.
    """
    rows = []
    for trial in load(grid.sweep).trials():
        folder = TrialFolder(store.path(f"trials/{trial.config.key()}"))
        curve = {
            event["epoch"]: event["metrics"]["val/accuracy"]
            for event in folder.epochs()
        }
        if len(curve) < trial.config.train.epochs:
            raise ValueError(
                f"trial {trial.config.key()} is not finished: pointsweep run {grid.sweep}"
            )

        plain = trial.config.to_dict()
        cell = {
            key: plain[key.partition(".")[0]][key.partition(".")[2]]
            for key in grid.scales
        }

        rows.append(
            cell
            | {
                f"epoch {epoch}": f"{value:.6f}"
                for epoch, value in sorted(curve.items())
            }
        )

    with grid.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def nearest(grid: Grid, table: Table, drawn: Mapping[str, Any]) -> Cell:
    """The cell of the grid that stands for drawn values."""
    places = [scale(float(drawn[key])) for key, scale in grid.scales.items()]
    scales = list(grid.scales.values())
    return min(
        table,
        key=lambda cell: sum(
            (f(x) - p) ** 2 for f, x, p in zip(scales, cell, places, strict=True)
        ),
    )


def goal(table: Table) -> float:
    """The final accuracy from which on a cell is among the best 5 %."""
    return sorted((curve[-1] for curve in table.values()), reverse=True)[
        round(BEST * len(table)) - 1
    ]


def cost(sweep: Sweep, grid: Grid, table: Table, seed: int) -> float:
    """Whole trials that a search trains until one of the best 5 % has run to its end; infinity if
    none does.
    """
    assert sweep.search is not None and sweep.cells[0].arm is not None
    search = dataclasses.replace(sweep.search, seed=seed)
    arm = sweep.cells[0].arm
    config = arm.config(next(arm.probes(0)))
    # Composing and checking the trial of every suggestion would be most of the time; here none is
    # trained.
    arm = dataclasses.replace(
        arm, settings_of=lambda drawn: Settings(), compose=lambda settings: (config, [])
    )
    study = Study(None, "tabulated", arm, search)
    study.start([])
    wanted, trained = goal(table), 0  # epochs
    batches = Batches(study)

    while asked := batches.ask():
        curves: dict[int, dict[int, float]] = {}
        results: dict[int, tuple[float, ...] | None] = {}
        for item in asked:
            recorded, limits = (
                table[nearest(grid, table, item.drawn)],
                batches.limits(item),
            )

            whole = len(recorded)
            end = next(
                (
                    epoch
                    for epoch in range(1, whole)
                    if recorded[epoch - 1] < limits.get(epoch, 0.0)
                ),
                whole,
            )

            trained += end - max(item.before(item.batches[-1])[1], default=0)

            if end == whole and recorded[-1] >= wanted:
                return trained / whole

            curves[item.number] = dict(enumerate(recorded[:end], start=1))
            results[item.number] = (recorded[-1],) if end == whole else None

        study.tell(
            results,
            curves,
            [number for number, values in results.items() if values is None],
        )

    return math.inf


def costs(searcher: str, grid: Grid, seeds: int) -> list[float]:
    """The cost of a searcher for each of its seeds."""
    table = read_table(grid)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tabulated.yaml"
        path.write_text(
            SEARCH.format(
                grid=grid.sweep.resolve(),
                space=grid.space,
                most=len(table),
                more=SEARCHERS[searcher],
            )
        )

        sweep = load(path)

    return [cost(sweep, grid, table, seed) for seed in range(seeds)]


def main() -> int:
    """The command."""
    made = argparse.ArgumentParser("python benchmarks/searchers.py")
    made.add_argument("--grid", choices=list(GRIDS), default=next(iter(GRIDS)))
    made.add_argument("--seeds", type=int, default=50, help="how many, from 0 on")
    made.add_argument(
        "--record",
        action="store_true",
        help="write the table from the grid's trials in the store",
    )

    made.add_argument(
        "--store", help="where they are (default: $POINTSWEEP_STORE, else ~/pointsweep)"
    )
    args = made.parse_args()
    grid = GRIDS[args.grid]

    if args.record:
        store = open_store(args.store)
        assert isinstance(store, FileStore)
        record(grid, store)

    table = read_table(grid)
    good = sum(curve[-1] >= goal(table) for curve in table.values())
    print(
        f"{len(table)} cells, {good} of them at {100 * goal(table):.1f} % or more; whole trials"
        " until one of these has finished"
    )

    print(
        f"{'':24}median  quartiles     of random's  found in {len(table)} suggestions"
    )
    base = 0.0

    for name in SEARCHERS:
        found = sorted(costs(name, grid, args.seeds))
        half = len(found) // 2
        low, middle, high = (
            statistics.median(part) for part in (found[:half], found, found[-half:])
        )
        base = base or middle
        share = sum(map(math.isfinite, found)) / len(found)
        print(
            f"{name:24}{middle:6.1f}  {low:5.1f} {high:5.1f}  {middle / base:10.2f}  {share:10.0%}",
            flush=True,
        )

    return 0


if __name__ == "__main__":
    sys.exit(main())
