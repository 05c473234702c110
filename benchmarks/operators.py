"""How many operators a training step of a pack of 8 takes, against 8 steps of a trial alone: what a
small trial on a GPU waits for.

    python -m benchmarks.operators [--members 8] [--rows any2point adapter lora appt point_peft
    prompt dapt]

Counted on a CPU in the twin of what runs on a GPU: forward, backward, clipping and optimiser, tiny
shapes, all blocks, every member another seed and another learning rate. An operator is counted if
its result is memory of its own, so views are not; one may be several kernels, or on a GPU a fused
one. The geometry that is compiled on either device is no operator of torch's. `--peak` prints
instead the peak memory of a process that takes two steps of a pack, with 8 clouds, 64 tokens and
two blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import machine
from benchmarks.pack import own_bytes
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.training.autotune import train_steps
from pointsweep.training.fusion import coroutines as members
from pointsweep.training.fusion.coroutines import run_together
from pointsweep.training.fusion.pack import SharedBackbone

SOURCE = {"name": "clip_text", "weights": "random"}
POINTS = {"name": "point_mae", "weights": "random"}
LIGHT = {"name": "point_pn_light", "num_tokens": 8, "neighbours": 8}
# the backbone and the tokenizer of each method
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "any2point": (SOURCE, LIGHT),
    "adapter": (SOURCE, LIGHT),
    "lora": (SOURCE, LIGHT),
    "appt": (
        SOURCE,
        {"name": "point_pn", "num_tokens": 8, "neighbours": 8, "embed_dim": 24},
    ),
    "point_peft": (POINTS, {"name": "patch", "num_tokens": 8, "neighbours": 8}),
    "prompt": (POINTS, {"name": "patch", "num_tokens": 8, "neighbours": 8}),
    "dapt": (POINTS, {"name": "patch", "num_tokens": 8, "neighbours": 8}),
}


class Operators(TorchDispatchMode):
    """Counts what would be kernels on a GPU: operators whose result is memory of its own."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        views = any(
            found.alias_info is not None and not found.alias_info.is_write
            for found in function._schema.returns
        )
        self.count += not views and function.overloadpacket.__name__ != "_unsafe_view"
        return function(*args, **(kwargs or {}))


def trial(arm: str, seed: int, peak: bool = False) -> TrialConfig:
    backbone, tokenizer = ARMS[arm]
    if peak:
        backbone, tokenizer = (
            backbone | {"num_blocks": 2},
            tokenizer | {"num_tokens": 64},
        )

    return trial_from_dict({
        "dataset": {"name": "synthetic", "num_points": 512 if peak else 128,
        "presample": 512 if peak else 128},
        "tokenizer": tokenizer,
        "backbone": backbone,
        "method": arm,
        "train": {"batch_size": 8 if peak else 4, "lr": 1e-3 * (1 + seed)},
        "seed": seed,
    })  # fmt: skip


def operators(shared: SharedBackbone, configs: list[TrialConfig], steps: int) -> int:
    """Of so many steps of a pack, with what comes before them."""
    counters: list[Operators] = []

    def body(config: TrialConfig) -> None:
        with counted(counters):
            for _ in train_steps(config, shared, steps):
                pass

    with counted(counters):  # the thread that runs the pack
        run_together(
            [functools.partial(body, config) for config in configs],
            torch.get_num_threads(),
        )

    return sum(counter.count for counter in counters)


@contextlib.contextmanager
def counted(counters: list[Operators]) -> Iterator[None]:
    """A mode is its thread's own."""
    with Operators() as counter:
        counters.append(counter)
        yield


def a_step(shared: SharedBackbone, configs: list[TrialConfig]) -> int:
    """Of one step: the third, when nothing is made for the first time."""
    return operators(shared, configs, 3) - operators(shared, configs, 2)


def main() -> None:
    """Prints one row for each arm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rows", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--peak", action="store_true")
    args = parser.parse_args()
    members.JOINED_ON = {"cpu"}
    print(f"{machine()}; torch {torch.__version__}; {args.members} members")

    for arm in args.rows:
        configs = [trial(arm, seed, args.peak) for seed in range(args.members)]
        assert configs[0].backbone is not None
        shared = SharedBackbone(configs[0].backbone, torch.device("cpu"))

        if args.peak:
            run_together(
                [
                    functools.partial(list, train_steps(config, shared, 2))
                    for config in configs
                ],
                1,
            )
            print(f"{arm}: {own_bytes()[0] / 1e6:.0f} MB")
            continue

        alone, pack = a_step(shared, configs[:1]), a_step(shared, configs)
        print(
            f"| {arm} | {args.members * alone} | {pack} | {args.members * alone / pack:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
