"""Synthetic shapes: twelve parametric classes whose proportions overlap, seen from one side, with
noise, in any turn about gravity.

Made from a seed, so that the quick start, the tests and the smoke runs need no data. Records and
tables that hold such clouds say so. y is up. Letters: P points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pointsweep.config.datasets import SyntheticConfig
from pointsweep.data.dataset import Dataset, text_digest
from pointsweep.utils.array_cache import cached_arrays

REVISION = 1  # of the shapes below; part of the cache's key


class Synthetic(Dataset):
    """Balanced classes in turn: cloud i is of class i modulo num_classes."""

    made_from = "a seed"

    def __init__(self, config: SyntheticConfig) -> None:
        key = text_digest(f"{REVISION} {config}")
        arrays, digest = cached_arrays(f"synthetic-{key}", lambda: make_arrays(config))
        super().__init__(config, list(SHAPES)[: config.num_classes], arrays, digest)
        self.marks = ("synthetic data",)


def make_arrays(config: SyntheticConfig) -> dict[str, np.ndarray]:
    """{train,test}_points (n, source_points, 3) float32 and _labels (n,), each cloud from a
    generator of its own.
    """
    arrays: dict[str, np.ndarray] = {}
    makers = list(SHAPES.values())[: config.num_classes]

    for part, (split, per_class) in enumerate(
        (("train", config.train_per_class), ("test", config.test_per_class))
    ):
        labels = np.arange(per_class * config.num_classes) % config.num_classes
        clouds = []
        for i, label in enumerate(labels):
            clouds.append(
                make_cloud(
                    makers[label],
                    config,
                    np.random.default_rng([config.data_seed, part, i]),
                )
            )

        arrays |= {
            f"{split}_points": np.stack(clouds),
            f"{split}_labels": labels.astype(np.int64),
        }

    return arrays


Maker = Callable[[np.random.Generator, int], np.ndarray]
Part = tuple[list[float], list[float]]  # centre and size of a box


def make_cloud(
    maker: Maker, config: SyntheticConfig, random: np.random.Generator
) -> np.ndarray:
    """One cloud (P, 3) float32: shape, turn, one side cut away, noise, clutter, unit sphere,
    shuffled.
    """
    count = config.source_points
    points = maker(random, 4 * count)
    points = points - points.mean(axis=0)
    points = points / np.abs(points).max() @ turn(random)
    side = random.normal(size=3) * [1, 0.3, 1]
    kept = np.argsort(points @ side)[: int(len(points) * (1 - config.partial))]
    points = points[random.choice(kept, count, replace=len(kept) < count)]
    points = points + random.normal(scale=config.noise, size=points.shape)
    stray = int(config.clutter * count)
    points[:stray] = random.uniform(-1, 1, (stray, 3))
    points = points - points.mean(axis=0)
    points = points / np.linalg.norm(points, axis=1).max()

    return random.permutation(points).astype(np.float32)


def turn(random: np.random.Generator) -> np.ndarray:
    """Any turn about y and a small tilt about x."""
    a, b = random.uniform(-np.pi, np.pi), random.normal(scale=0.15)
    about_y = np.array(
        [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )

    return about_y @ about_x


def box(random: np.random.Generator, count: int, size: np.ndarray) -> np.ndarray:
    """Points (count, 3) on the surface of a box, every face by its area."""
    x, y, z = size
    areas = np.array([y * z, y * z, x * z, x * z, x * y, x * y])
    face = random.choice(6, count, p=areas / areas.sum())
    points = random.uniform(-0.5, 0.5, (count, 3))
    points[np.arange(count), face // 2] = face % 2 - 0.5

    return points * size


def _boxes(random: np.random.Generator, count: int, parts: list[Part]) -> np.ndarray:
    """Several boxes (centre, size), points by surface."""
    sizes = np.array([size for _, size in parts])
    areas = (
        sizes[:, 0] * sizes[:, 1]
        + sizes[:, 1] * sizes[:, 2]
        + sizes[:, 0] * sizes[:, 2]
    )

    numbers = random.multinomial(count, areas / areas.sum())
    boxes = []

    for n, (center, size) in zip(numbers, parts, strict=True):
        boxes.append(box(random, n, np.array(size)) + center)

    return np.concatenate(boxes)


def revolved(
    random: np.random.Generator,
    count: int,
    radius: Callable[[np.ndarray], np.ndarray],
    height: float,
) -> np.ndarray:
    """A surface of revolution about y; radius(t) for t in [0, 1] from bottom to top, points by
    circumference.
    """
    t = random.uniform(0, 1, 8 * count)
    weight = np.maximum(radius(t), 1e-3)
    t = random.choice(t, count, p=weight / weight.sum())
    angle = random.uniform(-np.pi, np.pi, count)
    r = radius(t)

    return np.stack([r * np.cos(angle), height * (t - 0.5), r * np.sin(angle)], axis=1)


def _ellipsoid(random: np.random.Generator, count: int) -> np.ndarray:
    points = random.normal(size=(count, 3))
    return (
        points
        / np.linalg.norm(points, axis=1, keepdims=True)
        * random.uniform(0.6, 1.0, 3)
    )


def _capsule(random: np.random.Generator, count: int) -> np.ndarray:
    length, points = random.uniform(0.3, 1.0), _ellipsoid(random, count)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[:, 1] = points[:, 1] + np.sign(points[:, 1]) * random.uniform(
        0, length, count
    )

    return points * [0.6, 1, 0.6]


def _cylinder(random: np.random.Generator, count: int) -> np.ndarray:
    return revolved(
        random, count, lambda t: np.full_like(t, 0.6), random.uniform(1.0, 2.2)
    )


def _cone(random: np.random.Generator, count: int) -> np.ndarray:
    top = random.uniform(0.0, 0.25)
    return revolved(
        random, count, lambda t: 0.75 - (0.75 - top) * t, random.uniform(1.0, 2.0)
    )


def _crate(random: np.random.Generator, count: int) -> np.ndarray:
    return box(random, count, random.uniform(0.8, 1.6, 3))


def _pyramid(random: np.random.Generator, count: int) -> np.ndarray:
    points = box(random, count, np.array([1.5, random.uniform(1.0, 1.8), 1.5]))
    shrink = 1 - 0.95 * (points[:, 1] / np.ptp(points[:, 1]) + 0.5)
    return points * np.stack([shrink, np.ones(count), shrink], axis=1)


def _torus(random: np.random.Generator, count: int) -> np.ndarray:
    thick = random.uniform(0.2, 0.45)
    a, b = random.uniform(-np.pi, np.pi, (2, count))
    ring = 1 + thick * np.cos(b)
    return np.stack([ring * np.cos(a), thick * np.sin(b), ring * np.sin(a)], axis=1)


def legs(width: float, depth: float, height: float, thick: float) -> list[Part]:
    corners = []
    for sx in (-1, 1):
        for sz in (-1, 1):
            corners.append((sx * (width - thick) / 2, sz * (depth - thick) / 2))

    return [([x, -height / 2, z], [thick, height, thick]) for x, z in corners]


def _table(random: np.random.Generator, count: int) -> np.ndarray:
    width = random.uniform(1.2, 1.8)
    depth = random.uniform(0.8, 1.6)
    height = random.uniform(0.7, 1.2)
    return _boxes(
        random,
        count,
        [([0, 0, 0], [width, 0.1, depth]), *legs(width, depth, height, 0.15)],
    )


def _chair(random: np.random.Generator, count: int) -> np.ndarray:
    width = random.uniform(0.8, 1.1)
    depth = random.uniform(0.8, 1.1)
    height = random.uniform(0.6, 1.0)
    back = random.uniform(0.6, 1.1)
    parts: list[Part] = [
        ([0, 0, 0], [width, 0.1, depth]),
        ([0, back / 2, -depth / 2], [width, back, 0.1]),
    ]

    return _boxes(random, count, [*parts, *legs(width, depth, height, 0.15)])


def _mug(random: np.random.Generator, count: int) -> np.ndarray:
    height, handle = random.uniform(1.0, 1.8), count // 6
    wall = revolved(random, count - handle, lambda t: np.full_like(t, 0.6), height)
    angle = random.uniform(-np.pi / 2, np.pi / 2, handle)
    around = random.uniform(-np.pi, np.pi, handle)
    reach = 0.4 + 0.08 * np.cos(around)
    loop = np.stack(
        [0.6 + reach * np.cos(angle), reach * np.sin(angle), 0.08 * np.sin(around)],
        axis=1,
    )

    return np.concatenate([wall, loop])


def _shelf(random: np.random.Generator, count: int) -> np.ndarray:
    width = random.uniform(0.8, 1.2)
    height = random.uniform(1.4, 2.0)
    boards = int(random.integers(2, 5))
    sides = [([sx * width / 2, 0.0, 0.0], [0.08, height, 0.5]) for sx in (-1, 1)]
    shelves = []

    for i in range(boards):
        shelves.append(
            ([0.0, height * (i / (boards - 1) - 0.5), 0.0], [width, 0.08, 0.5])
        )

    return _boxes(random, count, [*sides, *shelves])


def _bracket(random: np.random.Generator, count: int) -> np.ndarray:
    long, high = random.uniform(1.2, 1.8), random.uniform(0.8, 1.6)
    return _boxes(
        random,
        count,
        [
            ([0, 0, 0], [long, 0.3, 0.6]),
            ([-long / 2 + 0.15, high / 2, 0], [0.3, high, 0.6]),
        ],
    )


SHAPES: dict[str, Maker] = {
    "cylinder": _cylinder, "mug": _mug, "cone": _cone, "pyramid": _pyramid, "table": _table,
    "chair": _chair,
    "crate": _crate, "capsule": _capsule, "ellipsoid": _ellipsoid, "torus": _torus, "shelf": _shelf,
    "bracket": _bracket,
}  # fmt: skip
