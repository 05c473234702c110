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
    per_class = {"train": config.train_per_class, "test": config.test_per_class}

    for number, (split, count) in enumerate(per_class.items()):
        labels = np.arange(count * config.num_classes) % config.num_classes
        clouds = []
        for i, label in enumerate(labels):
            random = np.random.default_rng([config.data_seed, number, i])
            clouds.append(make_cloud(makers[label], config, random))

        arrays[f"{split}_points"] = np.stack(clouds)
        arrays[f"{split}_labels"] = labels.astype(np.int64)

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
    num_seen = int(len(points) * (1 - config.partial))
    seen = np.argsort(points @ side)[:num_seen]
    points = points[random.choice(seen, count, replace=len(seen) < count)]

    points = points + random.normal(scale=config.noise, size=points.shape)
    stray = int(config.clutter * count)
    points[:stray] = random.uniform(-1, 1, (stray, 3))
    points = points - points.mean(axis=0)
    points = points / np.linalg.norm(points, axis=1).max()

    return random.permutation(points).astype(np.float32)


def turn(random: np.random.Generator) -> np.ndarray:
    """Any turn about y and a small tilt about x."""
    angle = random.uniform(-np.pi, np.pi)
    tilt = random.normal(scale=0.15)
    cos, sin = np.cos(angle), np.sin(angle)
    about_y = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    cos, sin = np.cos(tilt), np.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])

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
    x, y, z = np.array([size for _, size in parts]).T
    areas = x * y + y * z + x * z
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
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    return directions * random.uniform(0.6, 1.0, 3)


def _capsule(random: np.random.Generator, count: int) -> np.ndarray:
    length = random.uniform(0.3, 1.0)
    points = _ellipsoid(random, count)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    heights = points[:, 1]
    points[:, 1] = heights + np.sign(heights) * random.uniform(0, length, count)

    return points * [0.6, 1, 0.6]


def _cylinder(random: np.random.Generator, count: int) -> np.ndarray:
    height = random.uniform(1.0, 2.2)
    return revolved(random, count, lambda t: np.full_like(t, 0.6), height)


def _cone(random: np.random.Generator, count: int) -> np.ndarray:
    top = random.uniform(0.0, 0.25)
    height = random.uniform(1.0, 2.0)
    return revolved(random, count, lambda t: 0.75 - (0.75 - top) * t, height)


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
    """Four boxes below the corners of a seat or a board."""
    boxes: list[Part] = []
    for sx in (-1, 1):
        for sz in (-1, 1):
            x = sx * (width - thick) / 2
            z = sz * (depth - thick) / 2
            boxes.append(([x, -height / 2, z], [thick, height, thick]))

    return boxes


def _table(random: np.random.Generator, count: int) -> np.ndarray:
    width = random.uniform(1.2, 1.8)
    depth = random.uniform(0.8, 1.6)
    height = random.uniform(0.7, 1.2)
    board: Part = ([0, 0, 0], [width, 0.1, depth])

    return _boxes(random, count, [board, *legs(width, depth, height, thick=0.15)])


def _chair(random: np.random.Generator, count: int) -> np.ndarray:
    width = random.uniform(0.8, 1.1)
    depth = random.uniform(0.8, 1.1)
    height = random.uniform(0.6, 1.0)
    back = random.uniform(0.6, 1.1)
    seat: Part = ([0, 0, 0], [width, 0.1, depth])
    rest: Part = ([0, back / 2, -depth / 2], [width, back, 0.1])

    return _boxes(random, count, [seat, rest, *legs(width, depth, height, thick=0.15)])


def _mug(random: np.random.Generator, count: int) -> np.ndarray:
    height = random.uniform(1.0, 1.8)
    num_handle = count // 6
    wall = revolved(random, count - num_handle, lambda t: np.full_like(t, 0.6), height)

    return np.concatenate([wall, handle(random, num_handle)])


def handle(random: np.random.Generator, count: int) -> np.ndarray:
    """Half a ring at the wall of a mug, (count, 3)."""
    angle = random.uniform(-np.pi / 2, np.pi / 2, count)
    around = random.uniform(-np.pi, np.pi, count)
    reach = 0.4 + 0.08 * np.cos(around)
    x = 0.6 + reach * np.cos(angle)
    y = reach * np.sin(angle)
    z = 0.08 * np.sin(around)

    return np.stack([x, y, z], axis=1)


def _shelf(random: np.random.Generator, count: int) -> np.ndarray:
    width = random.uniform(0.8, 1.2)
    height = random.uniform(1.4, 2.0)
    num_boards = int(random.integers(2, 5))
    boxes: list[Part] = []

    for side in (-1, 1):
        boxes.append(([side * width / 2, 0.0, 0.0], [0.08, height, 0.5]))

    for i in range(num_boards):
        y = height * (i / (num_boards - 1) - 0.5)
        boxes.append(([0.0, y, 0.0], [width, 0.08, 0.5]))

    return _boxes(random, count, boxes)


def _bracket(random: np.random.Generator, count: int) -> np.ndarray:
    length = random.uniform(1.2, 1.8)
    height = random.uniform(0.8, 1.6)
    foot: Part = ([0, 0, 0], [length, 0.3, 0.6])
    arm: Part = ([-length / 2 + 0.15, height / 2, 0], [0.3, height, 0.6])

    return _boxes(random, count, [foot, arm])


SHAPES: dict[str, Maker] = {
    "cylinder": _cylinder, "mug": _mug, "cone": _cone, "pyramid": _pyramid, "table": _table,
    "chair": _chair,
    "crate": _crate, "capsule": _capsule, "ellipsoid": _ellipsoid, "torus": _torus, "shelf": _shelf,
    "bracket": _bracket,
}  # fmt: skip
