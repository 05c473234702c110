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
    num_blocks = {"train": num_train, "test": config.test_per_category}

    for number, (split, count) in enumerate(num_blocks.items()):
        points = []
        classes = []
        for i in range(count):
            random = np.random.default_rng([config.data_seed, number, i])
            block_points, block_classes = make_block(config, random)
            points.append(block_points)
            classes.append(block_classes)

        arrays[f"{split}_points"] = np.concatenate(points)
        arrays[f"{split}_parts"] = np.concatenate(classes)
        arrays[f"{split}_starts"] = np.arange(count + 1) * config.source_points
        arrays[f"{split}_labels"] = np.zeros(count, dtype=np.int64)
        # rooms of the test split are numbered behind those of the training split
        arrays[f"{split}_groups"] = np.arange(count) + number * num_train

    return arrays


def make_block(
    config: SyntheticRoomsConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """points (P, 3) float32 in metres around the block's middle, the floor at 0, and their classes
    (P,): a floor, and one to three other things.
    """
    shuffled = random.permutation([WALL, TABLE, CHAIR, CLUTTER])
    num_others = random.integers(1, 4)
    things = [FLOOR, *shuffled[:num_others]]
    chances = np.full(len(things), 1 / len(things))
    counts = random.multinomial(config.source_points, chances)

    pieces = []

    for thing, count in zip(things, counts, strict=True):
        pieces.append(_thing(thing, random, count))

    points = np.concatenate(pieces)
    points = points + random.normal(scale=config.noise, size=points.shape)
    classes = np.repeat(things, counts)
    order = random.permutation(len(points))

    return points[order].astype(np.float32), classes[order]


def _thing(thing: int, random: np.random.Generator, count: int) -> np.ndarray:
    """Points (count, 3) on the surface of a thing at a random place."""
    if thing == FLOOR:
        return box(random, count, np.array([1.0, 0.02, 1.0]))

    if thing == WALL:
        wall = box(random, count, np.array([1.0, 2.5, 0.1]))
        wall = wall + np.array([0, 1.25, -0.45])
        return wall if random.random() < 0.5 else wall[:, [2, 1, 0]]

    x, z = random.uniform(-0.25, 0.25, 2)
    if thing == TABLE:
        board = box(random, count, np.array([0.9, 0.05, 0.6]))
        return board + np.array([x, 0.75, z])

    if thing == CHAIR:
        num_seat = count // 2
        seat = box(random, num_seat, np.array([0.45, 0.05, 0.45]))
        seat = seat + np.array([0, 0.45, 0])
        back = box(random, count - num_seat, np.array([0.45, 0.5, 0.05]))
        back = back + np.array([0, 0.7, -0.2])

        return np.concatenate([seat, back]) + np.array([x, 0, z])

    size = random.uniform(0.1, 0.3, 3)
    clutter = box(random, count, size)
    height = size[1] / 2 + random.uniform(0, 1.5)

    return clutter + np.array([x, height, z])
