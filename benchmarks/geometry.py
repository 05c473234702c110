"""Farthest points and neighbours against a plain torch loop and fpsample, on the clouds of
ModelNet40 or drawn ones.

    python benchmarks/geometry.py [--rounds 5]

One thread. Plain: farthest points as PointNet++'s programs have them, cdist and topk for
neighbours. The compiled path needs numba (extra `fast`), QuickFPS needs `pip install fpsample`;
what is absent is left out. Rounds are interleaved; the medians of CPU seconds are compared, and a
ratio is void unless the indices are equal (of QuickFPS, which breaks ties otherwise, they need not
be).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pointsweep.config.validation import trial_from_dict
from pointsweep.errors import MissingDataError
from pointsweep.ops import point_ops as geometry
from pointsweep.training.runner import load_dataset

BATCH, NEIGHBOURS = 32, 81
STAGES = (
    (1024, 512),
    (512, 256),
    (256, 128),
)  # of Any2Point's tokenizer: points, centres


def clouds() -> tuple[str, Tensor]:
    """A batch (B, 2048, 3) and what it is."""
    try:
        config = trial_from_dict(
            {"dataset": {"name": "modelnet40"}, "network": "pointnet"}
        ).dataset
        points = torch.from_numpy(load_dataset(config).test.points[:BATCH].copy())
        if points.shape[1] == 2048:
            return "ModelNet40", points
    except MissingDataError:
        pass

    return "normal noise", torch.randn(
        BATCH, 2048, 3, generator=torch.Generator().manual_seed(0)
    )


def plain_farthest(points: Tensor, count: int) -> Tensor:
    """As PointNet++'s programs have it."""
    size, rows = points.shape[1], torch.arange(len(points))
    chosen, distance = (
        torch.zeros(len(points), count, dtype=torch.long),
        torch.full((len(points), size), 1e10),
    )

    farthest = torch.zeros(len(points), dtype=torch.long)

    for step in range(count):
        chosen[:, step] = farthest
        new = ((points - points[rows, farthest].unsqueeze(1)) ** 2).sum(-1)
        closer = new < distance
        distance[closer] = new[closer]
        farthest = distance.max(-1)[1]

    return chosen


def plain_nearest(queries: Tensor, points: Tensor, count: int) -> Tensor:
    """cdist and topk."""
    return (
        exact_cdist(queries, points)
        .topk(count, dim=2, largest=False, sorted=False)
        .indices
    )


def exact_cdist(queries: Tensor, points: Tensor) -> Tensor:
    """The expanded square that cdist takes by default finds other neighbours at near-ties."""
    return torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")


def plain_tokenizer(points: Tensor) -> list[Tensor]:
    """The sample of the data and the three stages, each sampled anew."""
    index = plain_farthest(points, 1200)
    places, found = geometry.gather(points, index)[:, :1024], [index]

    for _, centres in STAGES:
        chosen = plain_farthest(places, centres)
        centers = geometry.gather(places, chosen)
        found += [chosen, plain_nearest(centers, places, NEIGHBOURS)]
        places = centers

    return found


def our_tokenizer(points: Tensor) -> list[Tensor]:
    """The same, the later stages as the first centres of the first one."""
    index = geometry.farthest_points(points, 1200)
    places, found = geometry.gather(points, index)[:, :1024], [index]
    first = geometry.farthest_points(places, 512)
    order = geometry.gather(places, first)

    for stage, (_, centres) in enumerate(STAGES):
        chosen = first if stage == 0 else torch.arange(centres).expand(len(points), -1)
        found += [chosen, geometry.nearest(order[:, :centres], places, NEIGHBOURS)]
        places = order[:, :centres]

    return found


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def compare(
    title: str,
    sides: dict[str, Callable[[], Any]],
    rounds: int,
    same: Callable[[Any, Any], bool],
) -> None:
    """Prints every side's median and its ratio to the first one's."""
    results = {name: work() for name, work in sides.items()}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in sides}

    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work))

    base, *others = sides
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"| {title}: {base} | {1000 * medians[base]:.1f} ms | |")

    for name in others:
        equal = name == "QuickFPS" or same(results[base], results[name])
        ratio = (
            f"{medians[base] / medians[name]:.1f}x"
            if equal
            else "void: the indices differ"
        )

        print(f"| {title}: {name} | {1000 * medians[name]:.1f} ms | {ratio} |")


def without_compiler(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work as where no compiler is installed."""

    def run() -> Any:
        before, geometry.compiled = geometry.compiled, lambda device: None
        try:
            return work()
        finally:
            geometry.compiled = before

    return run


def equal_neighbours(
    queries: Tensor, points: Tensor, first: Tensor, second: Tensor
) -> bool:
    """The same ones, but where distances are equal as cdist rounds them: its root makes ties that
    squares do not have.
    """
    distance = exact_cdist(queries, points)
    return torch.equal(
        distance.gather(2, first).sort(dim=2).values,
        distance.gather(2, second).sort(dim=2).values,
    )


def equal_stages(points: Tensor, first: list[Tensor], second: list[Tensor]) -> bool:
    """All samples equal, and all neighbours as above."""
    if not torch.equal(first[0], second[0]):
        return False

    places = geometry.gather(points, first[0])[:, :1024]
    for stage in range(len(STAGES)):
        chosen, near = first[1 + 2 * stage], first[2 + 2 * stage]
        centers = geometry.gather(places, chosen)
        if not torch.equal(chosen, second[1 + 2 * stage]) or not equal_neighbours(
            centers, places, near, second[2 + 2 * stage]
        ):
            return False

        places = centers

    return True


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    kind, points = clouds()
    print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch"
        f" {torch.__version__}; {kind}\n"
    )

    print("| what, batch of 32 | CPU time | plain / this |\n| --- | --- | --- |")
    has_numba = geometry.compiled("cpu") is not None

    for size, count in ((2048, 1200), (1024, 512)):
        part = points[:, :size].contiguous()

        def ours(part: Tensor = part, count: int = count) -> Tensor:
            return geometry.farthest_points(part, count)

        sides = {
            "plain torch": lambda part=part, count=count: plain_farthest(part, count),
            "no compiler": without_compiler(ours),
        }
        if has_numba:
            sides["compiled"] = ours

        if importlib.util.find_spec("fpsample"):
            import fpsample

            def quick(part: Tensor = part, count: int = count) -> list[Any]:
                return [
                    fpsample.bucket_fps_kdline_sampling(cloud, count, h=7, start_idx=0)
                    for cloud in part.numpy()
                ]

            sides["QuickFPS"] = quick

        compare(f"farthest points {size} -> {count}", sides, rounds, torch.equal)

    for size, count in STAGES:
        queries, part = points[:, :count].contiguous(), points[:, :size].contiguous()

        def near(queries: Tensor = queries, part: Tensor = part) -> Tensor:
            return geometry.nearest(queries, part, NEIGHBOURS)

        sides = {
            "plain torch": lambda queries=queries, part=part: plain_nearest(
                queries, part, NEIGHBOURS
            ),
            "no compiler": without_compiler(near),
        } | ({"compiled": near} if has_numba else {})

        compare(
            f"{NEIGHBOURS} neighbours of {count} among {size}",
            sides,
            rounds,
            partial(equal_neighbours, queries, part),
        )

    whole = {
        "plain torch": lambda: plain_tokenizer(points),
        "no compiler": without_compiler(lambda: our_tokenizer(points)),
    }
    if has_numba:
        whole["compiled"] = lambda: our_tokenizer(points)

    compare(
        "the tokenizer's geometry, 4 samplings and 3 searches",
        whole,
        rounds,
        partial(equal_stages, points),
    )


if __name__ == "__main__":
    main()
