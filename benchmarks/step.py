"""One training step on a CPU: against the released program's structure, against the machine's
matrix rate, and its memory.

    python -m benchmarks.step [--rounds 3] [--quick]

S1: Any2Point on CLIP's text tower (2 blocks, 8 clouds of 1,024 points, 81 neighbours), forward and
backward, against the same model with the layers of benchmarks/public_layers.py in plain torch; the
ratio is void unless loss and gradients are equal. S2: of MiniLM's 6 blocks, the counted work of a
plain step (matrix products, forward and backward) in the time that this machine's own product of
2048 x 768 by 768 x 768 takes for it, over the time of the step. S3: the peak memory of a fresh
process that takes those steps, in both forms. One thread; processor seconds; sides in turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import machine
from benchmarks.pack import own_bytes
from benchmarks.public_layers import public_layers
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.layers import set_noise
from pointsweep.models.point_model import PointModel

CLOUDS = 8
Side = Callable[[], AbstractContextManager[None]]
SIDES: dict[str, Side] = {"public layers": public_layers, "ours": nullcontext}


class Trial:
    """A model with random frozen weights, and a batch."""

    def __init__(self, backbone: str, blocks: int, method: str, quick: bool) -> None:
        points, tokens, neighbours = (128, 16, 8) if quick else (1024, 128, 81)
        dataset = {"num_points": points, "presample": points, "source_points": points}
        config = trial_from_dict({
            "dataset": {"name": "synthetic", **dataset},
            "tokenizer": {"name": "point_pn_light", "num_tokens": tokens, "neighbours": neighbours},
            "backbone": {"name": backbone, "weights": "random", "num_blocks": blocks},
            "method": method, "train": {"epochs": 1, "warmup_epochs": 0}, "seed": 0,
        })  # fmt: skip

        torch.manual_seed(0)
        self.model = PointModel(config, CLOUDS).train()
        clouds = torch.randn(CLOUDS, points, 3)
        self.points = clouds / clouds.norm(dim=2).amax(dim=1)[:, None, None]

    def step(self) -> Tensor:
        """The loss; gradients lie in the model's parameters."""
        self.model.zero_grad(set_to_none=True)
        set_noise(self.model, torch.Generator().manual_seed(0))
        loss = F.cross_entropy(self.model(self.points), torch.arange(CLOUDS))
        loss.backward()

        return loss.detach()

    def seconds(self, side: Side) -> float:
        """Processor seconds of a step."""
        with side():
            begun = time.process_time()
            self.step()
            return time.process_time() - begun

    def looked_at(self, side: Side) -> tuple[Tensor, Tensor]:
        """The loss, and all gradients but those of biases in front of a norm, which are zero."""
        with side():
            loss = self.step()

        found = [
            p.grad.flatten()
            for name, p in self.model.named_parameters()
            if p.grad is not None
            and not name.endswith(("layers.0.bias", "layers.3.bias"))
        ]
        return loss, torch.cat(found)

    def work(self) -> int:
        """Floating point operations of a plain step's products."""
        counter = FlopCounterMode(display=False)
        with public_layers(), counter:
            self.step()

        return counter.get_total_flops()


def matrix_rate() -> float:
    """Floating point operations a second of the machine's matrix product on one thread."""
    a, b = torch.randn(2048, 768), torch.randn(768, 768)
    a @ b
    begun = time.process_time()

    for _ in range(20):
        a @ b

    return 20 * 2 * 2048 * 768 * 768 / (time.process_time() - begun)


def equality(method: str, backbone: str, blocks: int) -> str:
    """What a reader must know of a ratio: whether both sides compute the same. In double precision
    and at small shapes, as in single precision each side's own rounding is larger.
    """
    trial = Trial(backbone, blocks, method, quick=True)
    trial.model.double()
    trial.points = trial.points.double()
    (theirs, their_gradient), (ours, our_gradient) = map(
        trial.looked_at, SIDES.values()
    )
    of_loss = abs(float(ours - theirs))
    of_gradient = float((our_gradient - their_gradient).norm() / their_gradient.norm())
    said = f"loss differs by {of_loss:.1e}, gradient by {of_gradient:.1e} of its length"

    return said if max(of_loss, of_gradient) < 1e-5 else f"{said}: THE RATIO IS VOID"


def medians(trial: Trial, rounds: int) -> dict[str, float]:
    """Processor seconds of a step of each side, in turn; the first steps are not counted."""
    found: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds + 1):
        for name, side in SIDES.items():
            found[name].append(trial.seconds(side))

    return {name: statistics.median(each[1:]) for name, each in found.items()}


def peak_bytes(side: str, arguments: list[str]) -> int:
    """Peak memory of a fresh process that takes two steps."""
    command = [sys.executable, "-m", "benchmarks.step", "--only-peak", side, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, whose figures say nothing"
    )
    parser.add_argument("--only-peak", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="any2point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    quick = ["--quick"] if args.quick else []

    if args.only_peak:
        trial = Trial("minilm", 6, args.method, args.quick)
        for _ in range(2):
            trial.seconds(SIDES[args.only_peak])

        print(own_bytes()[0])
        return

    print(machine())
    trial = Trial("clip_text", 2, "any2point", args.quick)
    said = equality("any2point", "clip_text", 2)
    seconds = medians(trial, args.rounds)
    ratio = seconds["public layers"] / seconds["ours"]
    told = ", ".join(f"{name} {value:.2f} CPU-s" for name, value in seconds.items())
    print(
        f"S1 any2point, CLIP's text tower, 2 blocks: {told}: {ratio:.2f}x (2.5x); {said}"
    )

    for method, target in (("head_only", 0.35), ("any2point", 0.30)):
        trial = Trial("minilm", 6, method, args.quick)
        seconds, work, rate = medians(trial, args.rounds), trial.work(), matrix_rate()
        share = work / rate / seconds["ours"]
        told = ", ".join(f"{name} {value:.2f} CPU-s" for name, value in seconds.items())
        print(
            f"S2 {method}, MiniLM, 6 blocks: {told}; {work / 1e9:.0f} GFLOP at"
            f" {rate / 1e9:.0f} GFLOP/s: share {share:.2f} ({target})"
        )

        peaks = [peak_bytes(side, [*quick, "--method", method]) for side in SIDES]
        told = ", ".join(
            f"{name} {1e-6 * p:.0f} MB" for name, p in zip(SIDES, peaks, strict=True)
        )
        print(f"S3 {method}: {told}")

    print(machine())


if __name__ == "__main__":
    main()
