"""Torus knots: a class is a pair (p, q), the turns around the two axes of a torus. Made from a
seed.

Letters: P points.
"""

from typing import ClassVar, Literal

import numpy as np

from pointsweep.config.base import Count, NonNegative, Whole
from pointsweep.config.datasets import DatasetConfig, NumPoints, Rotation
from pointsweep.data.dataset import Dataset
from pointsweep.utils.array_cache import content_digest

KNOTS = {
    "trefoil": (2, 3),
    "cinquefoil": (2, 5),
    "three_four": (3, 4),
    "three_five": (3, 5),
}


class KnotsConfig(DatasetConfig):
    """What a sweep file can set under `dataset:`; the fields of DatasetConfig come with it."""

    num_classes: ClassVar[int] = len(KNOTS)

    name: Literal["knots"] = "knots"
    train_per_class: Count = 32
    test_per_class: Count = 20
    noise: NonNegative = 0.1
    """Standard deviation of a point's place; a knot is 6 wide."""
    data_seed: Whole = 0
    num_points: NumPoints = 128
    presample: Whole = 128
    rotate: Rotation = "gravity"


class Knots(Dataset):
    """The clouds (n, P, 3) float32 and labels (n,) of both splits."""

    Config = KnotsConfig

    def __init__(self, config: KnotsConfig) -> None:
        generator = np.random.default_rng(config.data_seed)
        arrays = {}
        for split, per_class in (
            ("train", config.train_per_class),
            ("test", config.test_per_class),
        ):
            labels = np.arange(per_class * len(KNOTS)) % len(KNOTS)
            clouds = [knot(label, config, generator) for label in labels]
            arrays[f"{split}_points"] = np.stack(clouds).astype(np.float32)
            arrays[f"{split}_labels"] = labels

        super().__init__(config, list(KNOTS), arrays, content_digest(arrays))
        self.marks = ("synthetic data",)


def knot(label: int, config: KnotsConfig, generator: np.random.Generator) -> np.ndarray:
    """Return points (P, 3) at random places of a knot, with noise."""
    p, q = list(KNOTS.values())[label]
    angle = generator.uniform(0, 2 * np.pi, config.presample)
    radius = 2 + np.cos(q * angle)
    points = np.stack(
        [radius * np.cos(p * angle), radius * np.sin(p * angle), -np.sin(q * angle)],
        axis=1,
    )

    return points + generator.normal(0, config.noise, points.shape)
