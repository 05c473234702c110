"""What a sweep adds to its trials: everything on (lease, checkpoints, history, mirror to MLflow)
against the bare training loop.

    python benchmarks/overhead.py [--rounds 5] [--epochs 8] [--clouds 384] [--trials 2]

Both sides train the same trials from the same seeds, one after the other in one process; the rounds
are interleaved, the order within a round alternates, and the medians are printed. The bare side
builds the model and calls the same train_epoch and evaluate, nothing else: it writes no byte. Of
the sweep side the time until MLflow is level, once the trials have ended, is told apart. The ratios
are void unless both give equal numbers.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.point_model import build
from pointsweep.results.records import CellLayout, Layout
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import FileStore
from pointsweep.tracking.mlflow.client import finish, prepare
from pointsweep.tracking.target import TrialTags, default_uri
from pointsweep.training.loop import evaluate, make_optimizer, stream, train_epoch
from pointsweep.training.runner import Job, Task, load_dataset, run_pack


@dataclass(frozen=True)
class Side:
    """Seconds of wall and processor time of one side of a round, and every trial's last test
    loss.
    """

    wall_s: float
    cpu_s: float
    losses: list[float]


def trials(args: argparse.Namespace) -> list[TrialConfig]:
    """Seeds of LoRA over a small pretrained-size transformer with random weights."""
    limits = {"train_limit": args.clouds, "test_limit": args.clouds // 4}
    return [
        trial_from_dict({
            "dataset": {"name": "synthetic", "num_points": 256, "presample": 256, **limits},
            "tokenizer": {"name": "point_pn_light", "num_tokens": 32, "neighbours": 16},
            "backbone": {"name": args.backbone, "weights": "random"},
            "method": "lora",
            "train": {"epochs": args.epochs, "batch_size": 16, "warmup_epochs": 0, "lr": 1e-3},
            "seed": seed,
        })
        for seed in range(args.trials)
    ]  # fmt: skip


def bare(configs: Sequence[TrialConfig]) -> Side:
    """The loop alone."""
    wall, cpu, losses = time.perf_counter(), time.process_time(), []
    for config in configs:
        dataset = load_dataset(config.dataset)
        torch.manual_seed(stream(config.seed, "init"))
        model = build(config, dataset.num_classes)
        optimizer = make_optimizer(model, config.train)

        for epoch in range(1, config.train.epochs + 1):
            train_epoch(model, optimizer, dataset, config, epoch)
            loss = evaluate(model, dataset, dataset.test, config).loss

        losses.append(loss)

    return Side(time.perf_counter() - wall, time.process_time() - cpu, losses)


def swept(
    configs: Sequence[TrialConfig], store: FileStore, empty: Path
) -> tuple[Side, float]:
    """The same through a pack's worker with all that keeps it safe; and the seconds until MLflow is
    level, after the trials.
    """
    store.root.mkdir()
    shutil.copy(empty, store.path("mlflow.db"))
    cells = tuple(
        CellLayout(number, 0, ((config.seed, config.key()),))
        for number, config in enumerate(configs)
    )

    rows = tuple((str(config.seed),) for config in configs)
    target = prepare(
        default_uri(store),
        store,
        Layout("overhead", "", ("seed",), rows, ("lora",), cells),
    )

    places = {
        config.key(): TrialTags("overhead", str(config.seed), "lora", config.seed)
        for config in configs
    }

    job, wall, cpu = (
        Job(store.url, {"overhead": target}),
        time.perf_counter(),
        time.process_time(),
    )

    for config in configs:
        outcomes = run_pack(
            [Task(config, places[config.key()])], job, lambda result: None
        )
        assert outcomes[0].status == "finished", outcomes

    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    begun = time.perf_counter()
    finish(target, store, places)
    after_s = time.perf_counter() - begun
    records = [
        TrialFolder(store.path(f"trials/{config.key()}")).record() for config in configs
    ]

    return (
        Side(
            wall,
            cpu,
            [
                record.metrics["last"]["test/loss"]
                for record in records
                if record is not None
            ],
        ),
        after_s,
    )


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--clouds", type=int, default=384)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--backbone", default="tiny")
    args = parser.parse_args()
    torch.set_num_threads(1)
    configs = trials(args)

    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(Path(folder, "empty"))
        prepare(
            default_uri(store),
            store,
            Layout("empty", "", ("m",), (("a",),), ("b",), ()),
        )

        empty = store.path("mlflow.db")
        # imports, the data's cache, compiled queries
        bare(configs), swept(configs, FileStore(Path(folder, "first")), empty)
        pairs = []

        for number in range(args.rounds):
            first = bare(configs) if number % 2 else None
            through, after_s = swept(
                configs, FileStore(Path(folder, str(number))), empty
            )
            pairs.append((first or bare(configs), through, after_s))

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )

    epoch_s = (
        statistics.median(plain.wall_s for plain, _, _ in pairs)
        / args.trials
        / args.epochs
    )

    print(f"{device}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(f"{args.trials} trials of {args.epochs} epochs of {epoch_s:.2f} s")

    for name in ("wall_s", "cpu_s"):
        shares = [
            getattr(through, name) / getattr(plain, name) - 1
            for plain, through, _ in pairs
        ]
        rounds = ", ".join(f"{share:+.1%}" for share in shares)
        print(
            f"added {name.removesuffix('_s')} time: {statistics.median(shares):+.1%} (rounds"
            f" {rounds})"
        )

    print(
        "until MLflow is level, after the trials:"
        f" {statistics.median(after for _, _, after in pairs):.2f} s"
    )

    print(
        "equal numbers: "
        + (
            "yes"
            if all(plain.losses == through.losses for plain, through, _ in pairs)
            else "NO, the ratios are void"
        )
    )


if __name__ == "__main__":
    main()
