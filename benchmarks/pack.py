"""K trials in one pack against the same K trials one after the other, and their memory against K
processes.

    python -m benchmarks.pack [--members 8] [--blocks 4] [--backbone small_vit] [--steps 10]

Both sides train the same trials from the same seeds; the ratio is void unless they give equal
numbers. The rounds are interleaved, the medians are printed. On a CPU the frozen matrix products
are bound by arithmetic either way: what a pack saves there is memory. Processes are counted twice:
each with all its pages, and with those of the libraries, which they share, counted once for all.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from pointsweep.config import registry
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.tracking.target import TrialTags
from pointsweep.training.runner import Job, Task, run_pack


def trials(args: argparse.Namespace) -> list[TrialConfig]:
    """Seeds of any2point over one wide frozen backbone with random weights; one epoch of `steps`
    steps.
    """
    return [
        trial_from_dict({
            "dataset": {"name": "synthetic", "num_points": 128, "presample": 128,
            "train_limit": 8 * args.steps, "test_limit": 16},
            "tokenizer": {"name": "point_pn_light", "num_tokens": 16, "neighbours": 8},
            "backbone": {"name": args.backbone, "weights": "random", "num_blocks": args.blocks},
            "method": "any2point",
            "train": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "lr": 1e-3},
            "seed": seed,
        })
        for seed in range(args.members)
    ]  # fmt: skip


def run(
    configs: list[TrialConfig], together: bool
) -> tuple[float, list[dict[str, np.ndarray]]]:
    """Seconds, and what every trial trained."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(f"file://{folder}")
        tasks = [
            Task(config, TrialTags("benchmark", "r", "c", config.seed))
            for config in configs
        ]

        begun = time.perf_counter()

        for pack in [tasks] if together else [[task] for task in tasks]:
            outcomes = run_pack(pack, job, lambda result: None)
            assert all(outcome.status == "finished" for outcome in outcomes), outcomes

        seconds = time.perf_counter() - begun
        return seconds, [
            load_file(Path(folder, "trials", config.key(), "weights.safetensors"))
            for config in configs
        ]


def equal(
    first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]
) -> bool:
    """Whether both trained the same values, to 1e-5."""
    pairs = zip(first, second, strict=True)
    return all(
        np.allclose(a[name], b[name], rtol=1e-5, atol=1e-6)
        for a, b in pairs
        for name in a
    )


def peak_bytes(args: argparse.Namespace, members: int) -> tuple[int, int]:
    """Peak memory of a fresh process that trains so many members in a pack, and how much of it are
    pages of files.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.pack",
        "--members",
        str(members),
        "--only-peak",
        "--blocks",
        str(args.blocks),
    ]

    done = subprocess.run(
        [*command, "--backbone", args.backbone, "--steps", "2"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    peak, files = map(int, done.stdout.split()[-2:])

    return peak, files


def own_bytes() -> tuple[int, int]:
    """This process's peak, and its pages of files. Not ru_maxrss, which a process inherits from the
    one that started it.
    """
    status = Path("/proc/self/status").read_text()
    peak, files = (
        1024 * int(status.split(f"{name}:")[1].split()[0])
        for name in ("VmHWM", "RssFile")
    )

    return peak, files


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--backbone", default="small_vit")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from benchmarks.small_vit import SmallViTConfig

    registry.register("backbones", SmallViTConfig, "benchmarks.small_vit:SmallViT")
    configs = trials(args)

    if args.only_peak:
        run(configs, together=True)
        print(*own_bytes())
        return

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    )

    what = f"{args.members} members, {args.blocks} blocks of {args.backbone}"
    print(f"{device}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}: {what}")
    run(configs[:1], together=False)  # imports, the data's cache
    rounds = [
        (run(configs, together=False), run(configs, together=True))
        for _ in range(args.rounds)
    ]

    same = all(equal(alone[1], packed[1]) for alone, packed in rounds)
    ratios = [alone[0] / packed[0] for alone, packed in rounds]
    all_rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"time of {args.members} trials alone / in a pack: {statistics.median(ratios):.2f} (rounds"
        f" {all_rounds})"
    )

    (one, files), (many, _) = peak_bytes(args, 1), peak_bytes(args, args.members)
    shared = args.members * (one - files) + files
    print(
        f"memory of a process {one / 1e6:.0f} MB ({files / 1e6:.0f} MB of it files), of the pack"
        f" {many / 1e6:.0f} MB"
    )

    print(
        f"memory of {args.members} processes / of the pack: {args.members * one / many:.1f}, files"
        f" once {shared / many:.1f}"
    )

    print("equal numbers: " + ("yes" if same else "NO, the ratios are void"))


if __name__ == "__main__":
    main()
