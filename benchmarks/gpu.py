"""G1 to G7: what a GPU gains, at the shapes of Any2Point on ScanObjectNN (32 clouds of 1024 points, bf16).

    python -m benchmarks.gpu [--rows G1 G2 G3 G4 G5 G6 G7] [--steps 20] [--tiny]

Prints nothing that could be taken for a figure of a GPU where there is none: there only `--tiny` runs, which shows that the rows
work. G1 one step of a pack of 8 against one trial at a time, eager and compiled; G2 against 8 processes on the GPU; G3 a trial
alone against a rendering of the public program's layers (fp32, views in a loop, the usual loop of farthest points); G4 the share of
the 3.4 ms that the matrix products of a step take at 800 TFLOP/s; G5 farthest points 2048 -> 1200; G6 the adapter's views in one
tensor against a loop; G7 members that fit into memory with the tokenizer's stages computed again.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import machine
from benchmarks.sweep import plain_farthest_points
from pointsweep import geometry, tokenizers
from pointsweep.calibrate import step_s
from pointsweep.checks import trial_from_dict
from pointsweep.config import TrialConfig
from pointsweep.layers import set_noise
from pointsweep.methods import any2point
from pointsweep.methods.any2point import Any2Point, Cells, Neighbourhoods
from pointsweep.model import PointModel
from pointsweep.pack import SharedBackbone
from pointsweep.train import accumulate, make_optimizer

ROWS = ["G1", "G2", "G3", "G4", "G5", "G6", "G7"]
MEMBERS, FLOOR_S = 8, 3.4e-3


def trial(args: argparse.Namespace, precision: str = "bf16") -> TrialConfig:
    """The main setting, or a tiny one."""
    tiny = {"points": 64, "batch": 4, "tokens": 8, "near": 8, "backbone": {"name": "tiny", "modality": "1d"}}
    full = {"points": 1024, "batch": 32, "tokens": 128, "near": 81, "backbone": {"name": "clip_text", "weights": "random"}}
    size: dict[str, Any] = tiny if args.tiny else full
    return trial_from_dict({
        "dataset": {"name": "synthetic", "num_points": size["points"], "presample": size["points"]},
        "tokenizer": {"name": "point_pn_light", "num_tokens": size["tokens"], "neighbours": size["near"]},
        "backbone": size["backbone"],
        "method": "any2point",
        "train": {"batch_size": size["batch"], "precision": precision},
    })  # fmt: skip


def shared_of(config: TrialConfig) -> SharedBackbone:
    """The frozen weights, where the rows run."""
    assert config.backbone is not None
    return SharedBackbone(config.backbone, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def seconds(work: Callable[[], object], steps: int) -> float:
    """The median time of a call, after three that warm up."""
    times = []
    for _ in range(3 + steps):
        _wait()
        begun = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def looped_after_block(self: Any2Point, index: int, tokens: Tensor, context: Neighbourhoods | None) -> Tensor:
    """`Any2Point.after_block` as the public program has it: one view after the other. The same numbers but for rounding."""
    assert context is not None
    classes, t = tokens[:, : self.prefix], tokens[:, self.prefix :]
    views = [_one_view(self, index, view, t, context) for view in range(self.num_views)]
    together = torch.stack(views, dim=1)  # (B, M, N, C)
    return torch.cat([classes, t + self.config.coef_pro * self._ensemble(self.voxel_norms[index], together, t, context)], dim=1)


def _one_view(method: Any2Point, index: int, view: int, t: Tensor, context: Neighbourhoods) -> Tensor:
    """(B, N, C) -> (B, N, C)."""
    attention, heads, y = method.attention, method.attention.num_heads, t
    part = slice(view, view + 1)
    rows = slice(view * attention.dim, (view + 1) * attention.dim)
    x = nn.functional.layer_norm(t, (attention.dim,), attention.norm_weight[rows], attention.norm_bias[rows])
    qkv = x @ attention.qkv_weight[view] + attention.qkv_bias.view(method.num_views, -1)[view]
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, middle / H) each
    weights = (q @ k.transpose(-2, -1) * attention.out_weight.shape[1] ** -0.5 + context.far[:, view]).softmax(dim=-1)
    y = t + (weights @ v).transpose(1, 2).flatten(2) @ attention.out_weight[view] + attention.out_bias[rows]
    cells = Cells(context.cells.first[:, part], context.cells.share[:, part], context.cells.count)
    pooled = cells.mean(y.unsqueeze(1))  # (B, 1, N, C)
    norm = method.cell_norms[index]
    # Running statistics of all views lie in one tensor: a single view's are computed and dropped.
    own = SimpleNamespace(momentum=0.1, running_mean=torch.zeros_like(norm.bias[rows]), running_var=torch.zeros_like(norm.bias[rows]))
    mean, var = any2point.CellNorm._statistics(own, pooled.float(), cells)  # type: ignore[arg-type]
    scale = norm.weight[rows] * torch.rsqrt(var + norm.eps)
    return nn.functional.gelu(pooled * scale + (norm.bias[rows] - mean * scale)).squeeze(1)


@contextmanager
def public_layers() -> Iterator[None]:
    """Views in a loop and the usual loop of farthest points, as in the public program."""
    before = Any2Point.after_block, tokenizers.farthest_points
    any2point.Any2Point.after_block = looped_after_block  # type: ignore[method-assign]
    tokenizers.farthest_points = plain_farthest_points  # type: ignore[assignment]
    try:
        yield
    finally:
        any2point.Any2Point.after_block, tokenizers.farthest_points = before  # type: ignore[method-assign,assignment]


def compiled_step_s(config: TrialConfig, shared: SharedBackbone, steps: int) -> float:
    """A trial alone, its forward compiled."""
    classes: int = config.dataset.num_classes  # type: ignore[attr-defined]
    model = shared.build(config, classes).to(shared.device).train()
    set_noise(model, torch.Generator(shared.device).manual_seed(0))
    optimizer, compiled = make_optimizer(model, config.train), torch.compile(model)
    points = torch.rand(config.train.batch_size, config.dataset.num_points, 3, device=shared.device)
    labels = torch.arange(config.train.batch_size, device=shared.device) % classes

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        accumulate(compiled, [points], labels, config.train, 1)
        nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
        optimizer.step()

    return seconds(step, steps)


def g1(args: argparse.Namespace) -> str:
    config = trial(args)
    shared = shared_of(config)
    alone, fused = (step_s(config, shared, size, args.steps) for size in (1, MEMBERS))
    compiled = "" if args.tiny else f", {compiled_step_s(config, shared, args.steps) / fused:.2f}x a compiled step (target 1.2x)"
    return f"pack of {MEMBERS}: {1e3 * fused:.2f} ms a trial's step, {alone / fused:.2f}x one at a time (target 2.5x){compiled}"


def g2(args: argparse.Namespace) -> str:
    config = trial(args)
    fused = step_s(config, shared_of(config), MEMBERS, args.steps)
    command = [sys.executable, "-m", "benchmarks.gpu", "--solo", "--steps", str(args.steps), *(["--tiny"] if args.tiny else [])]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2 if args.tiny else MEMBERS)]
    times = [float(process.communicate()[0]) for process in processes]
    each = statistics.median(times) / len(times)
    return f"{len(times)} processes: {1e3 * each:.2f} ms a trial's step; pack {each / fused:.2f}x (target 3x)"


def g3(args: argparse.Namespace) -> str:
    config, plain = trial(args), trial(args, "fp32")
    ours = step_s(config, shared_of(config), 1, args.steps)
    with public_layers():
        public = step_s(plain, shared_of(plain), 1, args.steps)
    return f"public layers {1e3 * public:.2f} ms, ours {1e3 * ours:.2f} ms: {public / ours:.2f}x (target 3x)"


def g4(args: argparse.Namespace) -> str:
    config = trial(args)
    fused = step_s(config, shared_of(config), MEMBERS, args.steps)
    return f"{FLOOR_S / fused:.1%} of the floor of {1e3 * FLOOR_S} ms (target 15 %)"


def g5(args: argparse.Namespace) -> str:
    count, kept = (64, 40) if args.tiny else (2048, 1200)
    points = torch.rand(32, count, 3, device="cuda" if torch.cuda.is_available() else "cpu")
    ours, plain = (
        seconds(functools.partial(find, points, kept), args.steps) for find in (geometry.farthest_points, plain_farthest_points)
    )
    same = bool((geometry.farthest_points(points, kept) == plain_farthest_points(points, kept)).all())
    return f"{1e3 * ours:.2f} ms (target 2.5 ms), {plain / ours:.1f}x the usual loop; the same indices: {same}"


def g6(args: argparse.Namespace) -> str:
    config = trial(args)
    shared = shared_of(config)
    classes: int = config.dataset.num_classes  # type: ignore[attr-defined]
    model = shared.build(config, classes).to(shared.device).train()
    assert isinstance(model, PointModel)
    batched, looped = (seconds(block(model, loop), args.steps) for loop in (False, True))
    return f"views in a loop {1e3 * looped:.2f} ms, in one tensor {1e3 * batched:.2f} ms: {looped / batched:.2f}x (target 3x)"


def block(model: PointModel, loop: bool) -> Callable[[], Tensor]:
    """One adapter block forward and backward on random tokens; the block's output."""
    method, device = model.method, next(model.parameters()).device
    assert isinstance(method, Any2Point)
    generator = torch.Generator().manual_seed(0)
    batch = 4 if model.tokenizer.num_tokens < 128 else 32
    tokens = torch.randn(batch, method.prefix + model.tokenizer.num_tokens, model.backbone.dim, generator=generator).to(device)
    centers = torch.rand(batch, model.tokenizer.num_tokens, 3, generator=generator).to(device)
    _, context = method.begin(0, tokens, centers, model.positions.places(centers), None)
    after = functools.partial(looped_after_block, method) if loop else method.after_block

    def work() -> Tensor:
        found = after(0, tokens, context)
        found.square().mean().backward()
        return found

    return work


def g7(args: argparse.Namespace) -> str:
    config = trial(args)
    shared, parts = shared_of(config), []
    for recompute in (False, True):
        size = 1
        while size < (2 if args.tiny else 24):
            try:
                took = step_s(config, shared, size + 1, 1, recompute)
            except torch.OutOfMemoryError:
                break
            size += 1
        torch.cuda.empty_cache()
        parts.append(f"{size} members{' with recomputed stages' if recompute else ''}, {1e3 * took:.2f} ms a trial's step")
    return f"{'; '.join(parts)} (target 12)"


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="other shapes, to see that the rows work; without a GPU too")
    parser.add_argument("--solo", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.tiny:
        sys.exit("there is no GPU here: these rows are not measured (--tiny shows on a CPU that they work)")
    if args.solo:
        config = trial(args)
        print(step_s(config, shared_of(config), 1, args.steps))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{machine()}; {device}, torch {torch.__version__}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in args.rows:
        told = globals()[name.lower()](args)
        print(f"{name}: {'runs; a figure needs a GPU and the full shapes' if args.tiny else told}", flush=True)


if __name__ == "__main__":
    main()
