"""P3: what a trial's life costs in MLflow, against one call per value. Both through MLflow's public
calls, on a SQLite database.

    python -m benchmarks.tracking [--trials 10] [--rounds 3] [--folder /dev/shm]

A life is the config of an Any2Point trial as parameters, tags, ten epochs of seven values, and the
record. The plain side is written as MLflow's documentation shows: start_run, then log_param,
set_tag, log_metric and log_input, value by value. `at the end` is a trial that ends before the
mirror's next turn; `every epoch` one whose epochs are sent one by one. The runs of both sides are
read back and must be equal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.common import interleaved, machine, table
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.results.records import Layout, Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.tracking.mlflow import client as tracking
from pointsweep.tracking.target import Target, TrialTags, default_uri

EPOCHS, TAGS = 10, TrialTags("life", "r", "c", 0)


def config(seed: int) -> TrialConfig:
    """A trial of Any2Point's main setting."""
    return trial_from_dict({
        "dataset": {"name": "synthetic"},
        "tokenizer": {"name": "point_pn_light"},
        "backbone": {"name": "clip_text", "weights": "random"},
        "method": "any2point",
        "train": {"epochs": EPOCHS},
        "seed": seed,
    })  # fmt: skip


def events(trial: TrialConfig) -> list[dict]:
    """What a trial's history holds."""
    facts = {
        "name": "synthetic",
        "digest": "d" * 64,
        "num_train": 100,
        "num_test": 50,
        "num_val": 0,
        "num_classes": 10,
    }

    origin = {"code": "abc", "host": "h", "torch": "2", "python": "3", "device": "cpu"}
    found = [
        {
            "type": "start",
            "attempt": 1,
            "time": 1.0,
            "config": trial.to_dict(),
            "dataset": facts,
            "origin": origin,
        }
    ]

    for epoch in range(1, EPOCHS + 1):
        metrics = {
            "train/loss": 1 / epoch,
            "train/accuracy": epoch / 20,
            "test/loss": 2 / epoch,
            "test/accuracy": epoch / 30,
        }
        found.append({
            "type": "epoch", "epoch": epoch, "metrics": metrics, "time": 1.0 + epoch, "lr": 0.1,
            "seconds": 1.0,
            "peak_memory_bytes": 5,
        })  # fmt: skip

    return found


def record(trial: TrialConfig) -> Record:
    """As a finished trial leaves it."""
    best = {"epoch": EPOCHS, "test/accuracy": 1 / 3, "test/loss": 0.2}
    return Record(
        key=trial.key(), config=trial.to_dict(), metrics={"last": best, "best_test": best},
        parameters={"trainable": 9, "trainable_without_head": 5, "total": 10},
        dataset={"name": "synthetic"}, weights_origin="random",
        marks=("random frozen weights",), seconds={"total": 10.0, "train": 9.0},
        peak_memory_bytes=5, clouds_per_s=1.0,
        origin={"code": "abc"}, attempts=1, correct={},
    )  # fmt: skip


class Live(TrialFolder):
    """A finished trial's folder, of which only the first `shown` events are seen."""

    shown = 1

    def events(self) -> list[dict]:
        return super().events()[: self.shown]

    def record(self) -> Record | None:
        return super().record() if self.shown > EPOCHS else None


def write(store: FileStore, trials: list[TrialConfig]) -> None:
    """The trials' folders, as training leaves them."""
    for trial in trials:
        folder = TrialFolder(store.path(f"trials/{trial.key()}"))
        for event in events(trial):
            folder.append(event)

        folder.finish(record(trial))


def ours(
    store: FileStore, target: Target, trials: list[TrialConfig], every_epoch: bool
) -> None:
    """From the trials' folders, through the code that a worker's mirror calls."""
    runs = tracking.Runs(target)
    for trial in trials:
        folder = Live(store.path(f"trials/{trial.key()}"))
        for shown in range(2, EPOCHS + 2) if every_epoch else [EPOCHS + 1]:
            folder.shown = shown
            tracking.sync_trial(runs, folder, TAGS)


def one_call_per_value(uri: str, experiment: str, lives: list[dict]) -> None:
    """As the documentation of MLflow shows."""
    import mlflow
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=experiment)

    for life in lives:
        with mlflow.start_run(run_name=TAGS.cell):
            for name, value in life["params"].items():
                mlflow.log_param(name, value)

            for name, value in life["tags"].items():
                mlflow.set_tag(name, value)

            for name, points in life["metrics"].items():
                for step, value in points:
                    mlflow.log_metric(name, value, step=step)

            for data in life["datasets"]:
                dataset = MetaDataset(
                    LocalArtifactDatasetSource(json.loads(data["source"])["folder"]),
                    data["name"],
                    data["digest"],
                )
                mlflow.log_input(dataset)


def lives(uri: str, experiment: str) -> list[dict]:
    """All that stands in an experiment's trial runs: parameters, tags, every point of every metric,
    files.
    """
    client = tracking.connected(uri)
    found = []

    for run in client.search_runs(
        [experiment],
        "tags.`pointsweep.kind` = 'trial'",
        order_by=["attributes.start_time"],
    ):
        history = {
            name: client.get_metric_history(run.info.run_id, name)
            for name in run.data.metrics
        }
        found.append({
            "params": run.data.params,
            "tags": {
                name: value
                for name, value in run.data.tags.items()
                if not name.startswith("mlflow.") or name == "mlflow.parentRunId"
            },
            "metrics": {name: sorted((point.step, point.value) for point in points) for name,
            points in history.items()},
            "datasets": [dict(each.dataset) for each in run.inputs.dataset_inputs],
        })  # fmt: skip

    return sorted(found, key=lambda life: life["tags"]["pointsweep.key"])


def main() -> None:
    """Prints the costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        help="where the database is made; one in memory shows what the calls cost without a disk",
    )

    args = parser.parse_args()
    print(machine())

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = FileStore(Path(folder))
        uri = default_uri(store)
        begun, numbers = time.perf_counter(), iter(range(10**6))

        def fresh(name: str) -> tuple[Target, list[TrialConfig]]:
            number = next(numbers)
            trials = [
                config(seed)
                for seed in range(number * args.trials, (number + 1) * args.trials)
            ]

            write(store, trials)
            layout = Layout(f"{name}{number}", name, ("m",), (("r",),), ("c",), ())

            return tracking.prepare(uri, store, layout), trials

        target, trials = fresh("warm")
        ours(store, target, trials, False)
        wanted = lives(uri, target.experiment_id)
        first = wanted[0]
        points = sum(map(len, first["metrics"].values()))
        print(
            f"database made in {time.perf_counter() - begun:.1f} s; a life: "
            f"{len(first['params'])} parameters, {len(first['tags'])} tags, {points} points,"
            " a data set"
        )

        made = {
            name: [fresh(name) for _ in range(args.rounds)]
            for name in ("plain", "end", "epochs")
        }

        def next_of(name: str) -> tuple[Target, list[TrialConfig]]:
            made[name].append(made[name].pop(0))
            return made[name][-1]

        found = interleaved({
            "one call per value": lambda: one_call_per_value(uri, next_of("plain")[0].experiment_id,
            wanted),
            "ours, sent every epoch": lambda: ours(store, *next_of("epochs"), True),
            "ours, sent at the end": lambda: ours(store, *next_of("end"), False),
        }, args.rounds)  # fmt: skip

        print(table(found, args.trials, "ours, sent at the end"))
        sides = {
            name: [lives(uri, target.experiment_id) for target, _ in made[name]]
            for name in made
        }

        same = all(
            bare(side) == bare(wanted) for each in sides.values() for side in each
        )
        print("equal runs: " + ("yes" if same else "NO, the ratios are void"))


def bare(found: list[dict]) -> str:
    """Lives without what tells one trial from another: its key, its seed and its parent."""
    own = {"pointsweep.key", "mlflow.parentRunId", "pointsweep.sweep"}
    kept = []

    for life in found:
        tags = {
            name: value
            for name, value in life["tags"].items()
            if name not in own and ".record." not in name
        }
        params = {
            name: value for name, value in life["params"].items() if name != "seed"
        }
        kept.append(
            json.dumps(
                [
                    params,
                    tags,
                    life["metrics"],
                    [data["name"] for data in life["datasets"]],
                ],
                sort_keys=True,
            )
        )

    return "\n".join(sorted(kept))


if __name__ == "__main__":
    main()
