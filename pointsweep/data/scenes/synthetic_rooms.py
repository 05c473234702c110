"""Synthetic blocks of rooms, 1 m wide: floor, wall, table, chair and clutter.

Made from a seed, so that semantic segmentation can be tried and tested without data. y is up.
Letters: P points.
"""

from __future__ import annotations

import numpy as np

from pointsweep.config.datasets import SyntheticRoomsConfig
from pointsweep.data.dataset import text_digest
from pointsweep.data.scenes.dataset import SceneDataset
from pointsweep.data.synthetic import box
from pointsweep.utils.array_cache import cached_arrays

REVISION = 1  # of the blocks below; part of the cache's key
CLASSES = ("floor", "wall", "table", "chair", "clutter")
FLOOR, WALL, TABLE, CHAIR, CLUTTER = range(len(CLASSES))


class SyntheticRooms(SceneDataset):
    """Blocks of rooms; each block is a room of its own."""

    made_from = "a seed"

    def __init__(self, config: SyntheticRoomsConfig) -> None:
        key = text_digest(f"{REVISION} {config}")
        arrays, digest = cached_arrays(
            f"synthetic-rooms-{key}", lambda: make_arrays(config)
        )
        super().__init__(config, CLASSES, arrays, digest)
        self.marks = ("synthetic data",)


def make_arrays(config: SyntheticRoomsConfig) -> dict[str, np.ndarray]:
    """{train,test}_points (total, 3) float32, _parts (total,), _starts (n + 1,), _labels and
    _groups (n,).
    """
    arrays: dict[str, np.ndarray] = {}
    num_train = config.train_per_category

    for number, (split, count) in enumerate(
        (("train", num_train), ("test", config.test_per_category))
    ):
        blocks = [
            make_block(config, np.random.default_rng([config.data_seed, number, i]))
            for i in range(count)
        ]
        arrays |= {
            f"{split}_points": np.concatenate([points for points, _ in blocks]),
            f"{split}_parts": np.concatenate([classes for _, classes in blocks]),
            f"{split}_starts": np.arange(count + 1) * config.source_points,
            f"{split}_labels": np.zeros(count, dtype=np.int64),
            f"{split}_groups": np.arange(count) + number * num_train,
        }

    return arrays


def make_block(
    config: SyntheticRoomsConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """points (P, 3) float32 in metres around the block's middle, the floor at 0, and their classes
    (P,): a floor, and one to three other things.
    """
    things = [
        FLOOR,
        *random.permutation([WALL, TABLE, CHAIR, CLUTTER])[: random.integers(1, 4)],
    ]

    shares = random.multinomial(
        config.source_points, np.full(len(things), 1 / len(things))
    )
    points = np.concatenate(
        [
            _thing(thing, random, count)
            for thing, count in zip(things, shares, strict=True)
        ]
    )

    points = points + random.normal(scale=config.noise, size=points.shape)
    order = random.permutation(len(points))

    return points[order].astype(np.float32), np.repeat(things, shares)[order]


def _thing(thing: int, random: np.random.Generator, count: int) -> np.ndarray:
    """Points (count, 3) on the surface of a thing at a random place."""
    if thing == FLOOR:
        return box(random, count, np.array([1.0, 0.02, 1.0]))

    if thing == WALL:
        wall = box(random, count, np.array([1.0, 2.5, 0.1])) + np.array(
            [0, 1.25, -0.45]
        )
        return wall if random.random() < 0.5 else wall[:, [2, 1, 0]]

    x, z = random.uniform(-0.25, 0.25, 2)
    if thing == TABLE:
        return box(random, count, np.array([0.9, 0.05, 0.6])) + np.array([x, 0.75, z])

    if thing == CHAIR:
        seat = count // 2
        parts = [
            box(random, seat, np.array([0.45, 0.05, 0.45])) + np.array([0, 0.45, 0]),
            box(random, count - seat, np.array([0.45, 0.5, 0.05]))
            + np.array([0, 0.7, -0.2]),
        ]
        return np.concatenate(parts) + np.array([x, 0, z])

    size = random.uniform(0.1, 0.3, 3)
    return box(random, count, size) + np.array(
        [x, size[1] / 2 + random.uniform(0, 1.5), z]
    )
