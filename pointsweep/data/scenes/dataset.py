"""A data set of semantic segmentation: blocks of scenes as clouds of the one category `scene`,
every point with its class.

In training a block gives `num_points` random points, as a shape of part segmentation does. In
evaluation every stored point of a block is predicted: the points are dealt at random into clouds,
which are filled up to `num_points` with further points of the block that are not counted.
Letters: B clouds, P points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointsweep.config.datasets import SceneDatasetConfig
from pointsweep.data.augment import normalise
from pointsweep.data.dataset import Split
from pointsweep.data.part_dataset import PartDataset, PartSplit
from pointsweep.results.confusion import IGNORED

CATEGORIES = ("scene",)


@dataclass(frozen=True)
class DealtSplit(PartSplit):
    """Clouds that together hold every stored point of their blocks: row r is cloud `piece[r]` of
    the `num_pieces[r]` of its block.
    """

    piece: np.ndarray  # (n,)
    num_pieces: np.ndarray  # (n,)

    def take(self, rows: np.ndarray, name: str) -> Split:
        rows = np.sort(rows)
        taken = super().take(rows, name)
        assert isinstance(taken, DealtSplit)
        return dataclasses.replace(
            taken, piece=self.piece[rows], num_pieces=self.num_pieces[rows]
        )

    def cloud(self, row: int, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        """Return points (num_points, 3) and their classes (num_points,), IGNORED of those that
        fill up.
        """
        points, classes, _ = self.shape(row)
        generator = np.random.default_rng([int(self.index[row]), self.name == "test"])
        order = generator.permutation(len(classes))
        own = order[self.piece[row] :: self.num_pieces[row]]
        fill = generator.choice(len(classes), num_points - len(own))
        own_classes = classes[own].astype(np.int64)
        ignored = np.full(len(fill), IGNORED, dtype=np.int64)

        rows = np.concatenate([own, fill])

        return points[rows], np.concatenate([own_classes, ignored])


def dealt(split: PartSplit, num_points: int) -> DealtSplit:
    """Return a split of blocks as clouds of at most `num_points` counted points each."""
    sizes = np.diff(split.starts)[split.index]
    counts = -(-sizes // num_points)  # clouds of each block, rounded up
    rows = np.repeat(np.arange(len(sizes)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)

    return DealtSplit(
        name=split.name,
        points=split.points,
        labels=split.labels[rows],
        index=split.index[rows],
        parts=split.parts,
        starts=split.starts,
        piece=np.arange(len(rows)) - first,
        num_pieces=counts[rows],
        groups=None if split.groups is None else split.groups[rows],
    )


class SceneDataset(PartDataset):
    """A batch is points (B, P, 3), categories (B,), all 0, and classes (B, P).

    The arrays are those of a data set of parts, and {split}_groups (n,): the room of each block,
    by a number that means the same in both splits. Validation blocks are those of whole rooms.
    """

    def __init__(
        self,
        config: SceneDatasetConfig,
        point_classes: Sequence[str],
        arrays: dict[str, np.ndarray],
        digest: str,
    ) -> None:
        parts = (tuple(range(len(point_classes))),)
        rooms = {split: arrays[f"{split}_groups"] for split in ("train", "test")}
        super().__init__(
            config, CATEGORIES, parts, arrays=arrays, digest=digest, groups=rooms
        )
        self.point_classes = tuple(point_classes)
        self.test = self._dealt(self.test)
        self.val = None if self.val is None else self._dealt(self.val)

    def _dealt(self, split: Split) -> DealtSplit:
        assert isinstance(split, PartSplit)
        return dealt(split, self.config.num_points)

    def eval_batch(self, split: Split, index: np.ndarray) -> tuple[Tensor, ...]:
        if not isinstance(split, DealtSplit):
            return super().eval_batch(split, index)

        clouds = []
        classes = []
        for row in index:
            cloud, cloud_classes = split.cloud(row, self.config.num_points)
            clouds.append(cloud)
            classes.append(cloud_classes)

        points = torch.from_numpy(np.stack(clouds))
        return (
            normalise(points, self.config),
            torch.from_numpy(split.labels[index]),
            torch.from_numpy(np.stack(classes)),
        )
