"""Synthetic shapes made of labelled parts: four categories, ten parts, in the manner of the
synthetic classes.

Made from a seed, so that part segmentation can be tried and tested without data. y is up. Letters:
P points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pointsweep.config.datasets import SyntheticPartsConfig
from pointsweep.data.dataset import text_digest
from pointsweep.data.part_dataset import PartDataset, arrays_of_shapes
from pointsweep.data.synthetic import box, handle, legs, revolved, turn
from pointsweep.utils.array_cache import cached_arrays

REVISION = 1  # of the shapes below; part of the cache's key


class SyntheticParts(PartDataset):
    """Balanced categories in turn: shape i is of category i modulo four."""

    made_from = "a seed"

    def __init__(self, config: SyntheticPartsConfig) -> None:
        key = text_digest(f"{REVISION} {config}")
        arrays, digest = cached_arrays(
            f"synthetic-parts-{key}", lambda: make_arrays(config)
        )
        super().__init__(config, list(SHAPES), PARTS, arrays=arrays, digest=digest)
        self.marks = ("synthetic data",)


def make_arrays(config: SyntheticPartsConfig) -> dict[str, np.ndarray]:
    """{train,test}_points (total, 3) float32, _parts (total,), _starts (n + 1,) and _labels (n,),
    the categories.
    """
    arrays: dict[str, np.ndarray] = {}
    per_category = {
        "train": config.train_per_category,
        "test": config.test_per_category,
    }

    for number, (split, count) in enumerate(per_category.items()):
        labels = np.arange(count * len(SHAPES)) % len(SHAPES)
        shapes = []
        for i, label in enumerate(labels):
            random = np.random.default_rng([config.data_seed, number, i])
            shapes.append(make_shape(int(label), config, random))

        arrays |= arrays_of_shapes(split, shapes, labels)

    return arrays


def make_shape(
    category: int, config: SyntheticPartsConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """points (P, 3) float32 in the unit sphere and their parts (P,): shape, turn, noise,
    shuffled.
    """
    count = config.source_points + int(random.integers(config.source_points // 4 + 1))
    pieces = list(SHAPES.values())[category](random, count)
    points = np.concatenate(pieces)
    parts = np.repeat(PARTS[category], [len(piece) for piece in pieces])
    points = points / np.abs(points).max() @ turn(random)
    points = points + random.normal(scale=config.noise, size=points.shape)
    points = points - points.mean(axis=0)
    points = points / np.linalg.norm(points, axis=1).max()
    order = random.permutation(len(points))

    return points[order].astype(np.float32), parts[order]


# the points of each part, in the order of the category's parts
Pieces = list[np.ndarray]


def _shares(count: int, *weights: float) -> list[int]:
    """`count` in proportion to the weights; the first takes the rest."""
    rest = [int(count * weight / sum(weights)) for weight in weights[1:]]
    return [count - sum(rest), *rest]


def _boxes(
    random: np.random.Generator,
    count: int,
    boxes: list[tuple[list[float], list[float]]],
) -> np.ndarray:
    """Boxes (centre, size) of one part, with as many points each."""
    numbers = _shares(count, *[1.0] * len(boxes))
    points = []

    for n, (center, size) in zip(numbers, boxes, strict=True):
        points.append(box(random, n, np.array(size)) + center)

    return np.concatenate(points)


def _table(random: np.random.Generator, count: int) -> Pieces:
    width = random.uniform(1.2, 1.8)
    depth = random.uniform(0.8, 1.6)
    height = random.uniform(0.7, 1.2)
    num_board, num_legs = _shares(count, 2, 1)
    board = box(random, num_board, np.array([width, 0.1, depth]))

    return [board, _boxes(random, num_legs, legs(width, depth, height, thick=0.15))]


def _chair(random: np.random.Generator, count: int) -> Pieces:
    width = random.uniform(0.8, 1.1)
    depth = random.uniform(0.8, 1.1)
    height = random.uniform(0.6, 1.0)
    high = random.uniform(0.6, 1.1)
    num_seat, num_back, num_legs = _shares(count, 1, 1, 1)
    back = box(random, num_back, np.array([width, high, 0.1]))
    back = back + np.array([0, high / 2, -depth / 2])
    seat = box(random, num_seat, np.array([width, 0.1, depth]))

    return [
        seat,
        back,
        _boxes(random, num_legs, legs(width, depth, height, thick=0.15)),
    ]


def _mug(random: np.random.Generator, count: int) -> Pieces:
    num_wall, num_handle = _shares(count, 5, 1)
    loop = handle(random, num_handle)
    height = random.uniform(1.0, 1.8)
    wall = revolved(random, num_wall, lambda t: np.full_like(t, 0.6), height)

    return [wall, loop]


def _lamp(random: np.random.Generator, count: int) -> Pieces:
    height = random.uniform(1.2, 1.8)
    width = random.uniform(0.4, 0.7)
    half = np.array([0, height / 2, 0])
    num_foot, num_pole, num_shade = _shares(count, 1, 1, 2)
    foot = revolved(random, num_foot, lambda t: 0.5 - 0.2 * t, height=0.1) - half
    shade = (
        revolved(random, num_shade, lambda t: width - (width - 0.2) * t, height=0.6)
        + half
    )

    pole = revolved(random, num_pole, lambda t: np.full_like(t, 0.06), height)

    return [foot, pole, shade]


SHAPES: dict[str, Callable[[np.random.Generator, int], Pieces]] = {
    "table": _table,
    "chair": _chair,
    "mug": _mug,
    "lamp": _lamp,
}
PARTS = ((0, 1), (2, 3, 4), (5, 6), (7, 8, 9))
