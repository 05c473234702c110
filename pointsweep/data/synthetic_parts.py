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
from pointsweep.data.part_dataset import PartDataset
from pointsweep.data.synthetic import box, legs, revolved, turn
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
        super().__init__(config, list(SHAPES), PARTS, arrays, digest)
        self.marks = ("synthetic data",)


def make_arrays(config: SyntheticPartsConfig) -> dict[str, np.ndarray]:
    """{train,test}_points (total, 3) float32, _parts (total,), _starts (n + 1,) and _labels (n,),
    the categories.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, (split, count) in enumerate(
        (("train", config.train_per_category), ("test", config.test_per_category))
    ):
        labels = np.arange(count * len(SHAPES)) % len(SHAPES)
        shapes = []
        for i, label in enumerate(labels):
            shapes.append(
                make_shape(
                    int(label),
                    config,
                    np.random.default_rng([config.data_seed, number, i]),
                )
            )

        arrays |= {
            f"{split}_points": np.concatenate([points for points, _ in shapes]),
            f"{split}_parts": np.concatenate([parts for _, parts in shapes]),
            f"{split}_starts": np.cumsum([0, *(len(parts) for _, parts in shapes)]),
            f"{split}_labels": labels.astype(np.int64),
        }

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


Pieces = list[
    np.ndarray
]  # the points of each part, in the order of the category's parts


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
    return np.concatenate(
        [
            box(random, n, np.array(size)) + center
            for n, (center, size) in zip(numbers, boxes, strict=True)
        ]
    )


def _table(random: np.random.Generator, count: int) -> Pieces:
    width = random.uniform(1.2, 1.8)
    depth = random.uniform(0.8, 1.6)
    height = random.uniform(0.7, 1.2)
    top, leg = _shares(count, 2, 1)
    board = box(random, top, np.array([width, 0.1, depth]))

    return [board, _boxes(random, leg, legs(width, depth, height, 0.15))]


def _chair(random: np.random.Generator, count: int) -> Pieces:
    width = random.uniform(0.8, 1.1)
    depth = random.uniform(0.8, 1.1)
    height = random.uniform(0.6, 1.0)
    high = random.uniform(0.6, 1.1)
    seat, back, leg = _shares(count, 1, 1, 1)
    rest = box(random, back, np.array([width, high, 0.1])) + np.array(
        [0, high / 2, -depth / 2]
    )

    return [
        box(random, seat, np.array([width, 0.1, depth])),
        rest,
        _boxes(random, leg, legs(width, depth, height, 0.15)),
    ]


def _mug(random: np.random.Generator, count: int) -> Pieces:
    wall, handle = _shares(count, 5, 1)
    angle = random.uniform(-np.pi / 2, np.pi / 2, handle)
    around = random.uniform(-np.pi, np.pi, handle)
    reach = 0.4 + 0.08 * np.cos(around)
    loop = np.stack(
        [0.6 + reach * np.cos(angle), reach * np.sin(angle), 0.08 * np.sin(around)],
        axis=1,
    )

    return [
        revolved(
            random, wall, lambda t: np.full_like(t, 0.6), random.uniform(1.0, 1.8)
        ),
        loop,
    ]


def _lamp(random: np.random.Generator, count: int) -> Pieces:
    height, wide = random.uniform(1.2, 1.8), random.uniform(0.4, 0.7)
    foot, pole, shade = _shares(count, 1, 1, 2)
    plate = revolved(random, foot, lambda t: 0.5 - 0.2 * t, 0.1) - np.array(
        [0, height / 2, 0]
    )
    cone = revolved(random, shade, lambda t: wide - (wide - 0.2) * t, 0.6) + np.array(
        [0, height / 2, 0]
    )

    return [
        plate,
        revolved(random, pole, lambda t: np.full_like(t, 0.06), height),
        cone,
    ]


SHAPES: dict[str, Callable[[np.random.Generator, int], Pieces]] = {
    "table": _table,
    "chair": _chair,
    "mug": _mug,
    "lamp": _lamp,
}
PARTS = ((0, 1), (2, 3, 4), (5, 6), (7, 8, 9))
