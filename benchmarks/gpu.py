"""G1 to G7: what a GPU gains, at the shapes of Any2Point on ScanObjectNN (32 clouds of 1024 points,
bf16).

    python -m benchmarks.gpu [--rows G1 G2 G3 G4 G5 G6 G7] [--steps 20] [--quick]

Prints one row a line, with device and date above. Nothing that could be taken for a figure of a GPU
is printed where there is none: there only `--quick` runs, tiny shapes that show that the rows work.
Every timing follows three steps that do not count; the device is waited for around it; every step
sees new clouds, so its geometry is in it. G1 one step of a pack of 8 against one trial at a time,
eager and compiled, void unless a pack gives the losses of its members alone; G2 against 8 processes
on the GPU that start together; G3 a trial alone against a rendering of the public program's layers
(fp32, views in a loop, the usual loop of farthest points, nothing ahead), void unless both give
equal losses; G4 the share of the 3.4 ms that the matrix products of a step take at 800 TFLOP/s; G5
farthest points 2048 -> 1200, and a step with its geometry ahead or in it; G6 the adapter's views in
one tensor against a loop; G7 members that fit into memory with the tokenizer's stages computed
again. A row that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import machine
from benchmarks.public_layers import in_the_step, looped_after_block, public_layers
from benchmarks.sweep import plain_farthest_points
from pointsweep.config.backbones import BackboneConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.methods.any2point import Any2Point
from pointsweep.models.point_model import PointModel
from pointsweep.ops import point_ops as geometry
from pointsweep.training.autotune import step_s, train_steps
from pointsweep.training.fusion.coroutines import run_together
from pointsweep.training.fusion.pack import SharedBackbone
from pointsweep.training.loop import autocast

ROWS = ["G1", "G2", "G3", "G4", "G5", "G6", "G7"]
MEMBERS, FLOOR_S, WARM = 8, 3.4e-3, 3
# Relative, of fp32 losses of four steps. Rounding grows by itself: from some starts 2e-5 was seen.
FUSED_EQUAL, PUBLIC_EQUAL = 5e-5, 1e-4
RUNS_ONLY = "runs; a figure needs a GPU and the full shapes"


def trial(
    args: argparse.Namespace, precision: str = "bf16", **train: Any
) -> TrialConfig:
    """The main setting, or a tiny one."""
    quick = {
        "points": 64,
        "batch": 4,
        "tokens": 8,
        "near": 8,
        "backbone": {"name": "tiny", "modality": "1d"},
    }

    full = {
        "points": 1024,
        "batch": 32,
        "tokens": 128,
        "near": 81,
        "backbone": {"name": "clip_text", "weights": "random"},
    }

    size: dict[str, Any] = quick if args.quick else full

    return trial_from_dict({
        "dataset": {"name": "synthetic", "num_points": size["points"], "presample": size["points"],
        "source_points": 2048},
        "tokenizer": {"name": "point_pn_light", "num_tokens": size["tokens"],
        "neighbours": size["near"]},
        "backbone": size["backbone"],
        "method": "any2point",
        "train": {"batch_size": size["batch"], "precision": precision, **train},
    })  # fmt: skip


def shared_of(config: TrialConfig) -> SharedBackbone:
    """The frozen weights, where the rows run."""
    assert config.backbone is not None
    return _shared(config.backbone)


@functools.cache
def _shared(config: BackboneConfig) -> SharedBackbone:
    return SharedBackbone(config, device())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object], steps: int) -> float:
    """The median time of a call, after some that warm up."""
    times = []
    for _ in range(WARM + steps):
        _wait()
        begun = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - begun)

    return statistics.median(times[WARM:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _clear() -> None:
    """Nothing of the row before is left on the GPU, and its peak is forgotten."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step(
    config: TrialConfig, size: int, steps: int, recompute: bool = False
) -> tuple[float, bool]:
    """Seconds of a trial's step in a pack, and whether its memory sufficed only with the
    tokenizer's stages computed again.
    """
    _clear()
    try:
        return step_s(
            config, shared_of(config), size, steps, recompute, WARM
        ), recompute
    except torch.OutOfMemoryError:
        if recompute:
            raise

    return step(config, size, steps, True)


@functools.cache
def fused(quick: bool, steps: int) -> tuple[float, bool]:
    """`step` of the pack of the main setting, which several rows need."""
    return step(trial(argparse.Namespace(quick=quick)), 2 if quick else MEMBERS, steps)


def losses(config: TrialConfig, count: int = 4) -> list[float]:
    """Of the first steps of a trial."""
    return [float(loss) for loss in train_steps(config, shared_of(config), count)]


def difference(first: list[float], second: list[float]) -> float:
    """The largest, relative."""
    return max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))


def told_equal(found: float, most: float) -> str:
    return f"equal losses: {'yes' if found <= most else 'NO, the ratio is void'} ({found:.0e})"


def g1(args: argparse.Namespace) -> str:
    plain = trial(args, "fp32")
    seeds = [plain.replace(seed=seed) for seed in range(2)]
    alone_losses = [loss for config in seeds for loss in losses(config)]
    packed: list[list[float]] = run_together(
        [functools.partial(losses, config) for config in seeds], torch.get_num_threads()
    )
    equal = told_equal(difference(alone_losses, [*packed[0], *packed[1]]), FUSED_EQUAL)
    (together, recompute), (alone, _) = (
        fused(args.quick, args.steps),
        step(trial(args), 1, args.steps),
    )

    text = (
        f"pack of {MEMBERS}{again(recompute)}: {1e3 * together:.2f} ms a trial's step,"
        f" {alone / together:.2f}x alone (2.5x)"
    )

    if not args.quick:
        compiled = trial(args, compile=True)
        (solo, _), (pack, _) = (
            step(compiled, 1, args.steps),
            step(compiled, MEMBERS, args.steps, recompute),
        )

        text += (
            f"; compiled alone {1e3 * solo:.2f} ms, in a pack {1e3 * pack:.2f} ms:"
            f" {solo / min(pack, together):.2f}x (1.2x)"
        )

    return f"{text}; {equal}"


def again(recompute: bool) -> str:
    return " with recomputed stages" if recompute else ""


def g2(args: argparse.Namespace) -> str:
    together, recompute = fused(args.quick, args.steps)
    _clear()
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--solo",
        "--steps",
        str(args.steps),
    ]

    command += (["--quick"] if args.quick else []) + (
        ["--recompute"] if recompute else []
    )
    count = 2 if args.quick else MEMBERS
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]

    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n", (
            "a process ended before its first step"
        )

    begun = time.perf_counter()
    for process in processes:
        process.communicate("go\n")

    each = (time.perf_counter() - begun) / (args.steps * len(processes))
    return (
        f"{len(processes)} processes: {1e3 * each:.2f} ms a trial's step; pack"
        f" {each / together:.2f}x (3x)"
    )


def solo(args: argparse.Namespace) -> None:
    """One of the processes of G2: warms up, says so, and trains when it is told to."""
    config = trial(args)
    steps = train_steps(config, shared_of(config), WARM + args.steps, args.recompute)

    for _ in range(WARM):
        next(steps)

    _wait()
    print("ready", flush=True)
    sys.stdin.readline()

    for _ in steps:
        pass

    _wait()


def g3(args: argparse.Namespace) -> str:
    plain = trial(args, "fp32")
    ours, _ = step(trial(args), 1, args.steps)
    our_losses = losses(plain)

    with public_layers():
        equal = told_equal(difference(our_losses, losses(plain)), PUBLIC_EQUAL)
        public, recompute = step(plain, 1, args.steps)

    times = f"public layers{again(recompute)} {1e3 * public:.2f} ms, ours {1e3 * ours:.2f} ms"
    return f"{times}: {public / ours:.2f}x (3x); {equal}"


def g4(args: argparse.Namespace) -> str:
    return (
        f"{FLOOR_S / fused(args.quick, args.steps)[0]:.1%} of the floor of {1e3 * FLOOR_S} ms"
        " (15 %)"
    )


def g5(args: argparse.Namespace) -> str:
    count, kept = (64, 40) if args.quick else (2048, 1200)
    points = torch.rand(32, count, 3, device=device())
    ours, plain = (
        seconds(functools.partial(find, points, kept), args.steps)
        for find in (geometry.farthest_points, plain_farthest_points)
    )

    same = bool(
        (
            geometry.farthest_points(points, kept)
            == plain_farthest_points(points, kept)
        ).all()
    )

    before, _ = step(trial(args), 1, args.steps)

    with in_the_step():
        inside, _ = step(trial(args), 1, args.steps)

    step_text = (
        f"a trial's step {1e3 * before:.2f} ms with its geometry ahead, {1e3 * inside:.2f} ms with"
        " it inside"
    )
    return (
        f"{1e3 * ours:.2f} ms (2.5 ms), {plain / ours:.1f}x the usual loop, the same indices:"
        f" {same}; {step_text}"
    )


def g6(args: argparse.Namespace) -> str:
    config = trial(args)
    _clear()
    model = shared_of(config).build(config, config.dataset.num_classes).train()  # type: ignore[attr-defined]
    assert isinstance(model, PointModel)
    batched, looped = (
        seconds(block(model, loop, "bf16"), args.steps) for loop in (False, True)
    )

    return (
        f"views in a loop {1e3 * looped:.2f} ms, in one tensor {1e3 * batched:.2f} ms:"
        f" {looped / batched:.2f}x (3x)"
    )


def block(
    model: PointModel, loop: bool, precision: str = "fp32"
) -> Callable[[], Tensor]:
    """One adapter block forward and backward on random tokens, which have a gradient as within a
    model; the block's output.
    """
    method, place = model.method, next(model.parameters()).device
    assert isinstance(method, Any2Point)
    generator = torch.Generator().manual_seed(0)
    batch = 4 if model.tokenizer.num_tokens < 128 else 32
    tokens = torch.randn(
        batch,
        method.prefix + model.tokenizer.num_tokens,
        model.backbone.dim,
        generator=generator,
    ).to(place)

    centers = torch.rand(batch, model.tokenizer.num_tokens, 3, generator=generator).to(
        place
    )
    _, context = method.begin(
        0, tokens, centers, model.positions.project(centers), None
    )
    after = (
        functools.partial(looped_after_block, method) if loop else method.after_block
    )
    tokens.requires_grad_()

    def work() -> Tensor:
        with autocast(precision, place):
            found = after(0, tokens, context)

        found.float().square().mean().backward()
        return found

    return work


def g7(args: argparse.Namespace) -> str:
    config, parts = trial(args), []
    for recompute in (False, True):
        most = 2 if args.quick else min(24, _fit(config, recompute))
        while True:
            _clear()
            try:
                took = step_s(config, shared_of(config), most, 1, recompute)
                break
            except torch.OutOfMemoryError:
                most -= 1

        parts.append(
            f"{most} members{again(recompute)}, {1e3 * took:.2f} ms a trial's step"
        )

    return f"{'; '.join(parts)} (12)"


def _fit(config: TrialConfig, recompute: bool) -> int:
    """How many members should fit, by the peaks of one and of three: what is tried first."""
    peaks = []
    for size in (1, 3):
        _clear()
        step_s(config, shared_of(config), size, 1, recompute)
        peaks.append(torch.cuda.max_memory_allocated())

    each = (peaks[1] - peaks[0]) / 2
    return int((torch.cuda.mem_get_info()[1] - (peaks[0] - each)) / each)


def main() -> None:
    """Prints the rows; ends with 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="other shapes, to see that the rows work; without a GPU too",
    )

    parser.add_argument("--solo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if not torch.cuda.is_available() and not args.quick:
        sys.exit(
            "there is no GPU here: these rows are not measured (--quick shows on a CPU that they"
            " work)"
        )

    if args.solo:
        solo(args)
        return

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(
        f"{machine()}; {name}, torch {torch.__version__}; targets in brackets\n\n| row | measured"
        " |\n| --- | --- |",
        flush=True,
    )

    failed = False

    for row in args.rows:
        try:
            told = globals()[row.lower()](args)
        except (RuntimeError, AssertionError) as error:
            # of CUDA, or of a compiler: the other rows are not lost with it
            failed, told = (
                True,
                f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}",
            )

        print(
            f"| {row} | {RUNS_ONLY if args.quick and not failed else told} |",
            flush=True,
        )

    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
