"""The clouds of a dry run: a few of a data set, with a memory of what was taken of them, and what
is wrong with them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset, Split, sample
from pointsweep.data.facts import MADE
from pointsweep.data.part_dataset import PartDataset
from pointsweep.errors import MissingDataError
from pointsweep.results.failures import DataError
from pointsweep.training.runner import load_dataset

BATCH = 3  # clouds of a step
STEPS = 2  # of an epoch
TEST_CLOUDS, VAL_CLOUDS = 5, 4  # numbers that tell the splits apart
EVAL_BATCH = 3  # so that an evaluation has several batches, the last one smaller


class Recording(Dataset):
    """A few clouds of a data set, which remembers what the loop and the evaluation took of it.
    Points are doubles.
    """

    train_calls: list[tuple[np.ndarray, tuple[Tensor, ...]]]
    # of the random numbers of augmentation, before each training batch
    states: list[bytes]


def small(dataset: Dataset) -> Recording:
    """A few rows of every split; numbers of clouds that differ, so that a split taken for another
    shows.
    """
    kind = type(dataset)

    class Small(kind, Recording):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            self.__dict__.update(dataset.__dict__)
            # its own: what is kept of a few clouds must never stand for those of the whole set
            self._sampled = {}
            self.train_calls = []
            self.states = []
            self.train = few(dataset.train, STEPS * BATCH + 1)
            self.test = few(dataset.test, TEST_CLOUDS)
            self.val = None if dataset.val is None else few(dataset.val, VAL_CLOUDS)
            self.digest = f"few-{dataset.digest}"

        def train_batch(
            self, index: np.ndarray, generator: torch.Generator, *rest: Any, **more: Any
        ) -> tuple[Tensor, ...]:
            self.states.append(generator.get_state().numpy().tobytes())
            batch = _double(super().train_batch(index, generator, *rest, **more))
            self.train_calls.append((np.array(index), batch))
            return batch

        def eval_batch(self, split: Split, index: np.ndarray) -> tuple[Tensor, ...]:
            return _double(super().eval_batch(split, index))

        def _samples(self, split: Split) -> np.ndarray:
            # Training and validation clouds are stored together in a data set, and apart here: each
            # split has its own samples.
            points = torch.from_numpy(np.array(split.points))
            config = self.config
            return sample(points, config.num_points, config.skip_near_origin).numpy()

        def augmented(self, points: Tensor, generator: torch.Generator) -> Tensor:
            return super().augmented(points.float(), generator).double()  # type: ignore[no-any-return]

    return Small()


def few(split: Split, count: int) -> Split:
    """`count` rows spread over a split, with the stored clouds of these alone where clouds are
    stored alike.
    """
    total = len(split.labels)
    spread = np.linspace(0, total - 1, min(count, total))
    rows = np.unique(spread.astype(np.int64))

    taken = split.take(rows, split.name)

    if taken.points.ndim != 3:
        return taken

    points = np.array(taken.points[taken.index])
    return dataclasses.replace(taken, points=points, index=np.arange(len(rows)))


def first_rows(split: Split) -> np.ndarray:
    """Return the rows of the first two clouds of a split, or of the only one."""
    return np.arange(min(2, len(split.labels)))


def _double(batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
    tensors = []
    for tensor in batch:
        tensors.append(tensor.double() if tensor.is_floating_point() else tensor)

    return tuple(tensors)


def dataset_of(config: DatasetConfig) -> Dataset | None:
    """The data set, where it can be read here at once; None where it cannot, which the plan
    says.
    """
    loader = registry.load("datasets", config.name)
    if loader.made_from and config.name not in MADE:  # type: ignore[attr-defined]
        return None

    try:
        return load_dataset(config)
    except (MissingDataError, DataError, ValueError, OSError):
        return None


def wrong_data(dataset: Dataset, config: TrialConfig) -> Iterator[str]:
    """Say what a data set's batches have wrong: labels or points of other clouds, splits that share
    clouds, changes at random.
    """
    if dataset.test.points is dataset.train.points:
        shared = np.intersect1d(dataset.train.index, dataset.test.index)
        if len(shared):
            yield "test clouds are training clouds"

    if dataset.val is not None and dataset.val.points is dataset.train.points:
        shared = np.intersect1d(dataset.train.index, dataset.val.index)
        if len(shared):
            yield f"{len(shared)} validation clouds are training clouds"

    if isinstance(dataset, PartDataset) or dataset.train.points.ndim != 3:
        return

    data = small(dataset)
    plain = small(dataset)
    unchanged = {
        "scale": (1.0, 1.0),
        "rotate": "none",
        "translate": 0.0,
        "center": False,
        "unit_sphere": False,
    }

    plain.config = dataset.config.model_copy(update={"heights": False, **unchanged})
    rows = np.arange(len(data.train.labels))[::-1].copy()
    points, labels = plain.train_batch(rows, torch.Generator().manual_seed(0))

    if not np.array_equal(labels.numpy(), data.train.labels[rows]):
        yield "the labels of a training batch are not those of its clouds"

    yield from _of_other_clouds(points, data.train, rows, "training")
    for split in filter(None, (plain.test, plain.val)):
        order = np.arange(len(split.labels))[::-1].copy()
        points, labels = plain.eval_batch(split, order)
        if not np.array_equal(labels.numpy(), split.labels[order]):
            yield f"the labels of a {split.name} batch are not those of its clouds"

        yield from _of_other_clouds(points, split, order, split.name)

    yield from _wrong_changes(data)


def _of_other_clouds(
    points: Tensor, split: Split, rows: np.ndarray, name: str
) -> Iterator[str]:
    """points (B, P, 3), unchanged at random: each must be one of the stored cloud's."""
    for cloud, row in zip(points.numpy(), rows, strict=True):
        stored = np.asarray(split.points[split.index[row]], dtype=np.float32)
        if not _point_set(cloud) <= _point_set(stored.astype(np.float64)):
            yield f"a {name} batch holds points that are not those of its clouds"
            return


def _point_set(cloud: np.ndarray) -> set[bytes]:
    """Return the bytes of each point of a cloud (P, 3); -0.0 counts as 0.0."""
    return {point.tobytes() for point in np.ascontiguousarray(cloud + 0.0)}


def _wrong_changes(data: Recording) -> Iterator[str]:
    """Say which random change of training clouds does nothing, is the same for all clouds, or
    reaches an evaluation.
    """
    config = data.config
    neutral: dict[str, Any] = {"scale": (1.0, 1.0), "rotate": "none", "translate": 0.0}
    active = [name for name, value in neutral.items() if getattr(config, name) != value]
    same_twice = np.zeros(2, dtype=np.int64)  # the same cloud twice
    augmented, _ = data.train_batch(same_twice, torch.Generator().manual_seed(0))

    for name in active:
        without = copy.copy(data)
        without.config = config.model_copy(update={name: neutral[name]})
        other, _ = without.train_batch(same_twice, torch.Generator().manual_seed(0))

        if torch.equal(augmented, other):
            yield f"dataset.{name}: {getattr(config, name)} changes no training cloud"

    if active:
        if torch.equal(augmented[0], augmented[1]):
            yield "all clouds of a batch are changed alike by augmentation"

        other, _ = data.train_batch(same_twice, torch.Generator().manual_seed(1))
        if torch.equal(augmented, other):
            yield "augmentation changes a cloud alike in every epoch"

        without = copy.copy(data)
        without.config = config.model_copy(update=neutral)
        for split in filter(None, (data.test, data.val)):
            rows = first_rows(split)
            points, *_ = data.eval_batch(split, rows)
            expected, *_ = without.eval_batch(split, rows)
            if not torch.equal(points, expected):
                yield f"augmentation reaches the {split.name} clouds"
