"""P1 and P1b: a sweep of 3 rows x 2 tiny backbones x seeds with MLflow on, against plain Ray Tune.

    python -m benchmarks.sweep [--seeds 6] [--rounds 1] [--pack 1] [--sides plain reused ours]

`ours` is the command `python -m pointsweep.run`, from its start to its end, of arms that were not
planned before. `plain` (P1) is Ray Tune as its documentation shows: a fresh worker for every trial,
the loop in eager fp32, farthest points by the usual loop in torch, torch's own AdamW, one MLflow
call per value. `reused` (P1b) reuses the workers and has our own kernels. Both train the same
trials from the same seeds, and the ratios are void unless the losses are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import interleaved, machine, python, table
from pointsweep.utils.array_cache import cache_folder

SWEEP: dict[str, Any] = {
    "name": "benchmark",
    "base": {
        "dataset": {
            "name": "synthetic",
            "num_points": 512,
            "presample": 600,
            "train_limit": 64,
            "test_limit": 32,
        },
        "tokenizer": {"name": "point_pn_light", "num_tokens": 32, "neighbours": 16},
        "backbone": {"name": "tiny", "modality": "1d"},
        "train": {"epochs": 3, "batch_size": 16, "warmup_epochs": 1, "lr": 1e-3},
    },
    "rows": {"method": ["any2point", "adapter", "lora"]},
    "axes": {"backbone.modality": ["1d", "2d"]},
}


def plain_farthest_points(
    points: Any, count: int, skip_near_origin: bool = False
) -> Any:
    """The loop that public programs of the field share: points (B, P, 3) -> indices (B, count),
    starting from index 0.
    """
    import torch

    batch = torch.arange(len(points), device=points.device)
    chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
    distance = torch.full(points.shape[:2], 1e10, device=points.device)
    farthest = chosen[:, 0]

    for step in range(count):
        chosen[:, step] = farthest
        centre = points[batch, farthest].unsqueeze(1)
        distance = torch.minimum(distance, ((points - centre) ** 2).sum(-1))
        farthest = distance.max(-1)[1]

    return chosen


def train(config: dict[str, Any]) -> None:
    """One trial of plain Ray Tune, with MLflow as its documentation shows."""
    import mlflow
    import torch
    from ray import tune

    from pointsweep.config.validation import trial_from_dict
    from pointsweep.models.point_model import build, count_parameters
    from pointsweep.ops import point_ops as geometry
    from pointsweep.tracking.mlflow.payload import flat
    from pointsweep.training.loop import evaluate, make_optimizer, stream, train_epoch
    from pointsweep.training.runner import load_dataset

    torch.set_num_threads(1)

    if config["plain"]:
        for module in [
            m for name, m in sys.modules.items() if name.startswith("pointsweep.")
        ]:
            if getattr(module, "farthest_points", None) is not None:
                module.farthest_points = plain_farthest_points  # type: ignore[attr-defined]

        assert geometry.farthest_points is plain_farthest_points

    mlflow.set_tracking_uri(config["uri"])
    mlflow.set_experiment("benchmark")
    trial = trial_from_dict(json.loads(config["trial"]))

    with mlflow.start_run(run_name=trial.key()):
        for name, value in flat(trial.to_dict()):
            mlflow.log_param(name, value)

        dataset = load_dataset(trial.dataset)
        torch.manual_seed(stream(trial.seed, "init"))
        model = build(trial, dataset.num_classes)

        for name, count in vars(count_parameters(model)).items():
            mlflow.log_metric(f"parameters/{name}", count)

        optimizer: Any = make_optimizer(model, trial.train)
        if config["plain"]:
            optimizer = torch.optim.AdamW(optimizer.param_groups, fused=True)

        for epoch in range(1, trial.train.epochs + 1):
            metrics = train_epoch(model, optimizer, dataset, trial, epoch)
            metrics |= evaluate(model, dataset, dataset.test, trial).metrics("test")
            for name, value in metrics.items():
                mlflow.log_metric(name, value, step=epoch)

            mlflow.log_metric("lr", optimizer.param_groups[0]["lr"], step=epoch)

        torch.save(model.state_dict(), Path(config["folder"], f"{trial.key()}.pt"))

    tune.report({"key": trial.key(), "loss": metrics["train/loss"]})


def ray_tune(args: argparse.Namespace, plain: bool) -> dict[str, float]:
    """Runs in a process of its own; key -> the last training loss."""
    import ray
    from mlflow.tracking import MlflowClient
    from ray import tune

    from pointsweep.sweep.sweep import load

    folder = Path(args.folder)
    trials = [
        json.dumps(trial.config.to_dict())
        for trial in load(folder / "sweep.yaml").trials()
    ]

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    # Of several workers that open a fresh database at once all but one fail.
    MlflowClient(uri).create_experiment(
        "benchmark", artifact_location=(folder / "artifacts").as_uri()
    )
    ray.init(
        num_cpus=os.cpu_count(),
        log_to_driver=False,
        logging_level="ERROR",
        include_dashboard=False,
    )

    space = {
        "trial": tune.grid_search(trials),
        "uri": uri,
        "plain": plain,
        "folder": str(folder),
    }

    results = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(reuse_actors=not plain),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    ).fit()

    return {result.metrics["key"]: result.metrics["loss"] for result in results}


def ours(folder: Path) -> dict[str, float]:
    """The command; key -> the last training loss."""
    # Its arms are planned as if they were never seen; only what this machine remembers of plans is
    # forgotten for that.
    shutil.rmtree(cache_folder() / "plans", ignore_errors=True)
    python(
        "-m",
        "pointsweep.run",
        folder / "sweep.yaml",
        "--store",
        folder / "store",
        "--workers",
        os.cpu_count(),
    )

    records = [
        json.loads(path.read_text())
        for path in (folder / "store" / "trials").glob("*/record.json")
    ]

    return {
        record["key"]: record["metrics"]["last"]["train/loss"] for record in records
    }


def side(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One side from nothing, in processes and a folder of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        resources = {"cpus": 1, "pack": args.pack}
        folder.joinpath("sweep.yaml").write_text(
            yaml.safe_dump({**SWEEP, "seeds": args.seeds, "resources": resources})
        )

        if name == "ours":
            return ours(folder)

        said = python(
            "-m",
            "benchmarks.sweep",
            "--side",
            name,
            "--folder",
            folder,
            RAY_USAGE_STATS_ENABLED="0",
        )
        return dict(json.loads(said.splitlines()[-1]))


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pack", type=int, default=1)
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["plain", "reused", "ours"],
        choices=["plain", "reused", "ours"],
    )

    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(
        OMP_NUM_THREADS="1",
        MLFLOW_DISABLE_TELEMETRY="true",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="0",
    )

    if args.side:
        print("\n" + json.dumps(ray_tune(args, args.side == "plain")))
        return

    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)

    print(machine())
    count = 6 * args.seeds
    print(f"{count} trials, {args.rounds} rounds; per trial:")
    found = interleaved(
        {name: lambda name=name: side(name, args) for name in args.sides}, args.rounds
    )
    print(table(found, count, args.sides[-1]))
    results = [each.value for sides in found.values() for each in sides]
    worst = max(
        abs(one[key] / results[0][key] - 1) for one in results for key in results[0]
    )
    complete = all(
        one.keys() == results[0].keys() and len(one) == count for one in results
    )
    print(
        f"equal losses: {'yes' if complete and worst < 1e-5 else 'NO, the ratios are void'}"
        f" (largest difference {worst:.1e})"
    )


if __name__ == "__main__":
    main()
