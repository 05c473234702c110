"""Training of small trials on a CPU: this code against an earlier commit's, and bf16 against fp32.

    python -m benchmarks.quickstart [--against COMMIT] [--rounds 3] [--quick]

S4: the quick start of nine trials, one trial of each arm: 250 clouds of 128 points, 16 tokens of
Any2Point's tokenizer, two blocks of MiniLM. A process for each code and arm; the two take turns, an
epoch of training and an evaluation each. Then two arms of today's quick start of twelve trials, in
the same way, and in fp32 and bf16, by this code. One thread, processor seconds, medians; a first
epoch, in which code is compiled, is not counted. The earlier code is taken out of git.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "4503fc7^"  # the commit before a training step was worked on
CLOUDS: dict[str, Any] = {"name": "synthetic", "num_points": 128, "presample": 160}
LIGHT = {"name": "point_pn_light", "num_tokens": 16, "neighbours": 8}
PATCH = {"name": "patch", "num_tokens": 8, "neighbours": 16}
METHODS = ("head_only", "any2point", "full")
OF_PATCHES = ("head_only", "adapter")
Seconds = tuple[float, float]  # of training, of evaluation


def trial(
    tokenizer: Mapping[str, Any], method: str, precision: str, quick: bool
) -> dict[str, Any]:
    """Return the configuration of one arm's first trial."""
    per_class = 5 if quick else 25
    return {
        "dataset": {**CLOUDS, "train_per_class": per_class, "test_per_class": per_class},
        "tokenizer": dict(tokenizer),
        "backbone": {"name": "minilm", "num_blocks": 2},
        "method": method,
        "train": {
            "epochs": 12, "batch_size": 25, "lr": 3e-3, "warmup_epochs": 3, "precision": precision,
        },
        "seed": 0,
    }  # fmt: skip


def work(config: Mapping[str, Any]) -> None:
    """Train an epoch and evaluate for each line of the input; print what that took. It is run by
    each code that is measured, so it uses nothing that an earlier one lacks.
    """
    import torch

    from pointsweep.config.validation import trial_from_dict
    from pointsweep.models.point_model import build
    from pointsweep.training.loop import evaluate, make_optimizer, stream, train_epoch
    from pointsweep.training.runner import load_dataset

    torch.set_num_threads(1)
    made = trial_from_dict(config)
    dataset = load_dataset(made.dataset)
    torch.manual_seed(stream(made.seed, "init"))
    model = build(made, dataset.num_classes)
    optimizer = make_optimizer(model, made.train)

    for epoch, _ in enumerate(sys.stdin, start=1):
        begun = time.process_time()
        train_epoch(model, optimizer, dataset, made, epoch)
        trained = time.process_time()
        found = evaluate(model, dataset, dataset.test, made)
        print(trained - begun, time.process_time() - trained, found.loss, flush=True)


class Side:
    """A process that trains one arm by one code, an epoch when it is asked."""

    def __init__(self, code: Path, config: Mapping[str, Any]) -> None:
        # the work is this file's, the package that it imports is the side's
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from benchmarks.quickstart import work; work({config!r})",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=code,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{code}{os.pathsep}{ROOT}",
            },
        )
        self.seconds: list[Seconds] = []
        self.losses: list[float] = []  # of the test set, after each epoch

    def epoch(self) -> None:
        """Train one more epoch and evaluate."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()

        if len(answer) != 3:
            raise RuntimeError(
                f"a side ended: exit code {self.process.wait()}, see above"
            )

        trained, evaluated, loss = map(float, answer)
        self.seconds.append((trained, evaluated))
        self.losses.append(loss)

    def end(self) -> Seconds:
        """Return the median seconds of an epoch's training and of an evaluation."""
        self.process.communicate()
        trained, evaluated = zip(*self.seconds[1:], strict=True)
        return statistics.median(trained), statistics.median(evaluated)


def compare(sides: Sequence[Side], rounds: int) -> list[Seconds]:
    """Return each side's medians; one epoch of each in turn."""
    for _ in range(rounds + 1):
        for side in sides:
            side.epoch()

    return [side.end() for side in sides]


def row(
    label: str, names: Sequence[str], sides: Sequence[Side], found: Sequence[Seconds]
) -> str:
    """Return a line: seconds of both, their ratio, and the test losses of the first epoch.

    Later ones say nothing of the code: at this learning rate rounding grows within a few epochs.
    """
    first, second = found
    shown = ", ".join(
        f"{name} {trained:.2f} + {evaluated:.2f} CPU-s"
        for name, (trained, evaluated) in zip(names, found, strict=True)
    )

    losses = " and ".join(f"{side.losses[0]:.6f}" for side in sides)

    return (
        f"{label}: {shown}: training {first[0] / second[0]:.2f}x, evaluation"
        f" {first[1] / second[1]:.2f}x, both {sum(first) / sum(second):.2f}x; test loss {losses}"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", default=BEFORE, help=f"a commit; default: {BEFORE}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="few clouds: the figures say nothing"
    )
    args = parser.parse_args()
    print(machine())

    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder)
        packed = subprocess.run(
            ["git", "archive", args.against, "pointsweep"], cwd=ROOT, stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip

        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        for label, tokenizer, methods in (
            ("S4 nine trials", LIGHT, METHODS),
            ("twelve trials", PATCH, OF_PATCHES),
        ):
            total = [0.0, 0.0]
            for method in methods:
                config = trial(tokenizer, method, "fp32", args.quick)
                sides = [Side(before, config), Side(ROOT, config)]
                found = compare(sides, args.rounds)
                print(
                    row(f"{label}, {method}", ("before", "now"), sides, found),
                    flush=True,
                )
                total = [
                    sofar + sum(own) for sofar, own in zip(total, found, strict=True)
                ]

            ratio = total[0] / total[1]
            print(f"{label}, an epoch of all arms, evaluation included: {ratio:.2f}x")

    for method in OF_PATCHES:
        sides = [
            Side(ROOT, trial(PATCH, method, kind, args.quick))
            for kind in ("fp32", "bf16")
        ]
        found = compare(sides, args.rounds)
        print(row(f"bf16 {method}", ("fp32", "bf16"), sides, found), flush=True)

    print(machine())


if __name__ == "__main__":
    main()
