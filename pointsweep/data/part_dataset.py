"""Data sets of part segmentation: clouds of any size in categories, every point with the number of
its part.

Letters: B clouds, P points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointsweep.config.datasets import PartDatasetConfig
from pointsweep.data.augment import augment, normalise
from pointsweep.data.dataset import CPU, Dataset, Split


@dataclass(frozen=True)
class PartSplit(Split):
    """Stored shape i has rows starts[i] to starts[i + 1] of points (total, 3) and of parts
    (total,); `labels` are categories.
    """

    parts: np.ndarray
    starts: np.ndarray  # (stored shapes + 1,)

    def shape(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
        """points (P, 3), parts (P,) and the category of one shape."""
        stored = int(self.index[row])
        rows = slice(int(self.starts[stored]), int(self.starts[stored + 1]))
        return self.points[rows], self.parts[rows], int(self.labels[row])

    def batch(
        self, rows: np.ndarray, num_points: int, random: Sequence[np.random.Generator]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Random points (B, num_points, 3) and their parts (B, num_points), each shape's from a
        generator of its own.

        No point is taken twice, except of shapes with fewer points than `num_points`.
        """
        points, parts = [], []
        for row, generator in zip(rows, random, strict=True):
            shape_points, shape_parts, _ = self.shape(row)
            size = len(shape_parts)
            chosen = generator.choice(size, num_points, replace=size < num_points)
            points.append(shape_points[chosen])
            parts.append(shape_parts[chosen])

        return np.stack(points), np.stack(parts)


def arrays_of_shapes(
    split: str,
    shapes: Iterable[tuple[np.ndarray, np.ndarray]],
    labels: Sequence[int] | np.ndarray,
) -> dict[str, np.ndarray]:
    """Join shapes, each points (P, 3) and parts (P,), to the arrays that a split is kept as:
    {split}_points (total, 3), _parts (total,), _starts (n + 1,) and _labels (n,), the categories.
    """
    points = []
    parts = []
    starts = [0]
    for shape_points, shape_parts in shapes:
        points.append(shape_points)
        parts.append(shape_parts)
        starts.append(starts[-1] + len(shape_parts))

    return {
        f"{split}_points": np.concatenate(points),
        f"{split}_parts": np.concatenate(parts),
        f"{split}_starts": np.array(starts),
        f"{split}_labels": np.array(labels, dtype=np.int64),
    }


class PartDataset(Dataset):
    """A batch is points (B, P, 3), categories (B,) and parts (B, P). `parts` lists the numbers of
    every category's parts.

    In training the points are drawn anew every time; in evaluation a shape's are always the same.
    """

    def __init__(
        self,
        config: PartDatasetConfig,
        categories: Sequence[str],
        parts: Sequence[Sequence[int]],
        arrays: dict[str, np.ndarray],
        digest: str,
        groups: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(config, categories, arrays, digest=digest, groups=groups)
        self.parts = tuple(tuple(numbers) for numbers in parts)
        self.num_classes = max(max(numbers) for numbers in parts) + 1

    def _stored_split(
        self, name: str, arrays: Mapping[str, np.ndarray], labels: np.ndarray
    ) -> PartSplit:
        return PartSplit(
            name,
            points=arrays[f"{name}_points"],
            labels=labels,
            index=np.arange(len(labels)),
            parts=arrays[f"{name}_parts"],
            starts=arrays[f"{name}_starts"],
        )

    def train_batch(
        self, index: np.ndarray, generator: torch.Generator, device: torch.device = CPU
    ) -> tuple[Tensor, ...]:
        seeds = torch.randint(2**62, (len(index),), generator=generator).tolist()
        generators = [np.random.default_rng(seed) for seed in seeds]
        points, categories, parts = self._draw(self.train, index, generators)
        points = augment(points, self.config, generator).contiguous()

        return points, categories, parts

    def eval_batch(self, split: Split, index: np.ndarray) -> tuple[Tensor, ...]:
        is_test = split.name == "test"
        generators = []
        for row in index:
            seed = [int(split.index[row]), is_test]
            generators.append(np.random.default_rng(seed))

        points, categories, parts = self._draw(split, index, generators)

        return normalise(points, self.config), categories, parts

    def _draw(
        self, split: Split, index: np.ndarray, random: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return points (B, num_points, 3), categories (B,) and parts (B, num_points)."""
        assert isinstance(split, PartSplit)
        points, parts = split.batch(index, self.config.num_points, random)
        return (
            torch.from_numpy(points),
            torch.from_numpy(split.labels[index]),
            torch.from_numpy(parts.astype(np.int64)),
        )
