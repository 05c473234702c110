"""Runs per second that an MLflow server takes from several writers: pointsweep's mirror against
plain logging, call by call.

    python benchmarks/tracking_server.py --tracking-uri http://127.0.0.1:5000 --workers 8 --runs 5
    --epochs 20

Every writer is a process. `mirror` sends finished trial folders as pointsweep.tracking does:
parameters in one call, metrics in batches, config, data set and record beside them. `plain` logs
the same parameters and metrics by mlflow.log_param and mlflow.log_metric, one call per value;
`batched` by mlflow.log_params and one mlflow.log_metrics per epoch. These two cannot be continued
after a kill, and keep no record. Each round writes experiments of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.tracking.mlflow.client import Runs, prepare, sync_trial
from pointsweep.tracking.mlflow.payload import flat
from pointsweep.tracking.target import Target, TrialTags
from pointsweep.training.runner import Job, Task, run_pack

TRIAL = {
    "dataset": {"name": "synthetic", "num_points": 64, "presample": 64, "train_limit": 32,
    "test_limit": 16},
    "tokenizer": {"name": "point_pn_light", "num_tokens": 8, "neighbours": 8},
    "backbone": {"name": "tiny", "modality": "1d"}, "method": {"name": "lora"},
    "train": {"batch_size": 16, "warmup_epochs": 0},
}  # fmt: skip


def trial(epochs: int, seed: int) -> TrialConfig:
    """A trial of seconds, with as many epochs as the runs are to have."""
    config, problems = check_trial(
        TRIAL | {"train": {**TRIAL["train"], "epochs": epochs}, "seed": seed}
    )
    assert config is not None, problems

    return config


def mirror(folders: Sequence[Path], target: Target) -> None:
    """What a worker of a sweep does about MLflow."""
    runs = Runs(target)
    for number, path in enumerate(folders):
        sync_trial(
            runs, TrialFolder(path), TrialTags(target.sweep, "row", "column", number)
        )


def plain(folders: Sequence[Path], target: Target) -> None:
    """One call per value."""
    _fluent(folders, target, batched=False)


def batched(folders: Sequence[Path], target: Target) -> None:
    """One call per epoch."""
    _fluent(folders, target, batched=True)


def _fluent(folders: Sequence[Path], target: Target, batched: bool) -> None:
    import mlflow

    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow.set_tracking_uri(target.uri)

    for path in folders:
        folder = TrialFolder(path)
        parameters = dict(flat(folder.events()[0]["config"]))
        with mlflow.start_run(experiment_id=target.experiment_id):
            if batched:
                mlflow.log_params(parameters)
            else:
                for name, value in parameters.items():
                    mlflow.log_param(name, value)

            for event in folder.epochs():
                values = {
                    **event["metrics"],
                    "lr": event["lr"],
                    "seconds": event["seconds"],
                }
                if batched:
                    mlflow.log_metrics(values, step=event["epoch"])
                else:
                    for name, value in values.items():
                        mlflow.log_metric(name, value, step=event["epoch"])


WAYS: dict[str, Callable[[Sequence[Path], Target], None]] = {
    "mirror": mirror,
    "batched": batched,
    "plain": plain,
}


def work(way: str, folders: Sequence[Path], target: Target, gate: object) -> None:
    """A writer: imports, waits for the others, writes."""
    import mlflow  # noqa: F401 - before the clock runs

    gate.wait()  # type: ignore[attr-defined]
    WAYS[way](folders, target)


def measure(way: str, source: Path, args: argparse.Namespace, folder: Path) -> float:
    """Runs per second over all writers."""
    from pointsweep.results.records import Layout
    from pointsweep.storage.base import FileStore

    name = f"bench_{way}_{uuid.uuid4().hex[:8]}"
    layout = Layout(
        name=name,
        title=name,
        row_headers=("row",),
        rows=(("row",),),
        columns=("column",),
        cells=(),
    )

    target = prepare(args.tracking_uri, FileStore(folder), layout)
    shares = [
        [copied(source, folder) for _ in range(args.runs)] for _ in range(args.workers)
    ]
    context = get_context("spawn")
    gate = context.Barrier(args.workers + 1)
    writers = [
        context.Process(target=work, args=(way, share, target, gate))
        for share in shares
    ]

    load = os.getloadavg()[0]

    for writer in writers:
        writer.start()

    gate.wait()
    begun = time.perf_counter()
    for writer in writers:
        writer.join()

    assert all(writer.exitcode == 0 for writer in writers), "a writer failed"
    rate = args.workers * args.runs / (time.perf_counter() - begun)
    print(f"  {way}: {rate:.2f} runs/s, load {load:.0f}", flush=True)

    return rate


def copied(source: Path, folder: Path) -> Path:
    """A finished trial's folder under another key."""
    path = folder / uuid.uuid4().hex[:16]
    path.mkdir()

    for name in ("history.jsonl", "record.json"):
        (path / name).write_bytes((source / name).read_bytes())

    return path


def main() -> None:
    """Prints one line per way, and the ratios."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--tracking-uri", required=True, help="of the MLflow server")
    made.add_argument(
        "--workers", type=int, default=8, help="writers at once (default: 8)"
    )
    made.add_argument("--runs", type=int, default=5, help="of each writer (default: 5)")
    made.add_argument(
        "--epochs", type=int, default=20, help="of each run (default: 20)"
    )
    made.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of all ways in turn; the best of each counts (default: 3)",
    )

    args = made.parse_args()

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = trial(args.epochs, 0)
        [ended] = run_pack(
            [Task(config, TrialTags("bench", "row", "column", 0))],
            Job(place),
            lambda result: None,
        )

        assert ended.status == "finished", ended.reason
        source = folder / "trials" / config.key()
        events = TrialFolder(source).epochs()
        turns = [
            {way: measure(way, source, args, folder) for way in WAYS}
            for _ in range(args.rounds)
        ]

    best = {way: max(turn[way] for turn in turns) for way in WAYS}
    print(
        f"{args.workers} writers, {args.runs} runs each, {args.epochs} epochs of"
        f" {len(events[0]['metrics'])} metrics"
    )

    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    )

    for way, rate in best.items():
        every = ", ".join(f"{turn[way]:.2f}" for turn in turns)
        print(
            f"{way:8} {rate:6.2f} runs/s (rounds: {every}); the mirror is"
            f" {best['mirror'] / rate:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
