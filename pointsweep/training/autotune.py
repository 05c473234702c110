"""How many trials a pack should hold on this machine: a few steps of packs of 1, 2, 4 and 8, timed
once and remembered.

Likewise the part of a GPU that a pack needs: by the peak of its memory in one step. What is timed
are steps on random clouds of the trial's shapes. A larger pack is taken only if it saves SAVES of
the time of a trial's step; what does not fit into memory is not. Letters: B clouds, P points.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pointsweep.config.parts import TrainConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.models.activation_checkpointing import recompute_stages
from pointsweep.models.batch_cache import LIMIT_BYTES
from pointsweep.models.compilation import compile_parts
from pointsweep.models.layers import set_noise
from pointsweep.ops.point_ops import to_device
from pointsweep.storage.base import write_whole
from pointsweep.training.fusion.coroutines import run_together, take_step, take_turns
from pointsweep.training.fusion.pack import SharedBackbone, shared_part
from pointsweep.training.loop import accumulate, make_optimizer, prepare
from pointsweep.training.prefetch import one_ahead
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.provenance import origin

SIZES = (1, 2, 4, 8)
STEPS = 3  # timed, after one that is not
SAVES = 0.05  # of the time of a trial's step, at least, for each doubling
MEMORY_SHARE = 0.5  # of what is free on a CPU
HEADROOM = 1.2  # of the peak of a training step: evaluation, fragmentation
CONTEXT_BYTES = 1 << 29  # what CUDA takes for each process, and torch does not count


def pack_size(config: TrialConfig, device: torch.device | None = None) -> int:
    """The size of packs for trials like this one; measured at most once per machine, code and kind
    of trial.
    """
    if shared_part(config) is None or config.dataset.num_categories:
        # segmentation's inputs are not points alone; its packs are as large as the sweep says
        return 1

    chosen_device = device or torch.device(
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    path = cache_folder() / "packs" / f"{_kind(config, chosen_device)}.json"
    if not path.is_file():
        write_whole(path, json.dumps(times(config, chosen_device)).encode())

    return best(
        {int(size): step_s for size, step_s in json.loads(path.read_text()).items()}
    )


def gpu_share(
    config: TrialConfig, size: int, device: torch.device | None = None
) -> float:
    """The part of a GPU that a pack of this size needs, in hundredths; measured once, as
    `pack_size`. 1 where no pack is possible.
    """
    if shared_part(config) is None or config.dataset.num_categories:
        return 1.0

    chosen_device = device or torch.device("cuda")
    path = (
        cache_folder() / "packs" / f"{_kind(config, chosen_device)}-{size}.memory.json"
    )
    if not path.is_file():
        assert config.backbone is not None
        step_s(config, SharedBackbone(config.backbone, chosen_device), size, 1)
        write_whole(path, json.dumps(peak_and_total(chosen_device)).encode())

    return share(*json.loads(path.read_text()))


def share(peak_bytes: int, total_bytes: int) -> float:
    """Rounded up to hundredths, so that as many packs as Ray then puts on a GPU fit; at most a
    whole one.
    """
    return min(
        1.0,
        math.ceil(100 * (HEADROOM * peak_bytes + CONTEXT_BYTES) / total_bytes) / 100,
    )


def peak_and_total(device: torch.device) -> tuple[int, int]:
    """The most bytes that this process has taken of a GPU, with those that batch_cache.py may come
    to keep, and the GPU's.
    """
    return (
        torch.cuda.max_memory_reserved(device) + LIMIT_BYTES["cuda"],
        torch.cuda.mem_get_info(device)[1],
    )


def best(step_s: Mapping[int, float]) -> int:
    """Pack sizes and seconds of a trial's step -> the smallest size that no larger one beats by
    SAVES a doubling.
    """
    chosen = min(step_s)
    for size in sorted(step_s):
        if step_s[size] < step_s[chosen] * (1 - SAVES):
            chosen = size

    return chosen


def _kind(config: TrialConfig, device: torch.device) -> str:
    """A name for all trials that take the same time on this machine: neither the seed nor the rates
    count.
    """
    train = TrainConfig(
        batch_size=config.train.batch_size,
        precision=config.train.precision,
        compile=config.train.compile,
    )

    facts = origin(str(device))

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = (
            Path("/proc/cpuinfo")
            .read_text()
            .partition("model name")[2]
            .partition("\n")[0]
        )

    parts = [
        config.replace(seed=0, train=train).key(),
        name,
        facts.get("code", ""),
        torch.__version__,
        str(torch.get_num_threads()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def times(config: TrialConfig, device: torch.device) -> dict[int, float]:
    """Seconds of a trial's step in packs of every size that fits into memory."""
    assert config.backbone is not None
    shared = SharedBackbone(config.backbone, device)
    seconds_by_size: dict[int, float] = {}

    for size in SIZES:
        free = _free_bytes()
        try:
            seconds_by_size[size] = step_s(config, shared, size, STEPS)
        except torch.OutOfMemoryError:
            break

        if device.type == "cpu" and 2 * (free - _free_bytes()) > MEMORY_SHARE * free:
            break

    return seconds_by_size


def step_s(
    config: TrialConfig,
    shared: SharedBackbone,
    size: int,
    steps: int,
    recompute: bool = False,
    warm: int = 1,
) -> float:
    """Seconds of one step of one of `size` members, over so many steps after all members' first
    `warm` ones.
    """
    num_warm, started_at = 0, 0.0

    def body() -> None:
        nonlocal num_warm, started_at
        for step, _ in enumerate(
            train_steps(config, shared, warm + steps, recompute), start=1
        ):
            num_warm += step == warm
            if step == warm and num_warm == size:
                started_at = _now(shared.device)

    run_together([body] * size, torch.get_num_threads())
    return (_now(shared.device) - started_at) / (steps * size)


def train_steps(
    config: TrialConfig, shared: SharedBackbone, count: int, recompute: bool = False
) -> Iterator[Tensor]:
    """Train on random clouds of the trial's shapes, new ones every step; yield after each its loss,
    float64 and on the device.
    """
    device, train = shared.device, config.train
    classes: int = config.dataset.num_classes  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)
    model = shared.build(config, classes).to(device).train()

    if train.compile:
        compile_parts(model, device)

    if recompute:
        recompute_stages(model.tokenizer)  # type: ignore[arg-type]

    clouds = [torch.rand(train.batch_size, config.dataset.num_points, 3, device=device)]
    model.method.prepare(model, clouds)  # type: ignore[operator, union-attr]
    set_noise(model, torch.Generator(device).manual_seed(config.seed))
    optimizer = make_optimizer(model, train)
    draws = torch.Generator().manual_seed(config.seed)
    labels = torch.arange(train.batch_size, device=device) % classes
    trained = [p for p in model.parameters() if p.requires_grad]

    def load(_: int) -> list[Tensor]:
        # (B, P, 3)
        return [
            to_device(
                torch.rand(
                    train.batch_size, config.dataset.num_points, 3, generator=draws
                ),
                device,
            )
        ]

    for points in one_ahead(
        range(count),
        load,
        functools.partial(prepare, model, train.precision, 1),
        device,
    ):
        loss, _ = accumulate(model, points, labels, train, 1)
        take_step(optimizer, trained, train.clip_norm)
        optimizer.zero_grad()
        yield loss
        take_turns(device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free_bytes() -> int:
    """Return what the machine could still give to this process."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * int(text.partition("MemAvailable:")[2].split()[0])
