"""Contract of every data set of whole clouds. Each check raises AssertionError.

Letters: B clouds, P points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pointsweep.config import registry
from pointsweep.data.dataset import Dataset, Split
from pointsweep.testing.pytest_cases import Check


def checks(name: str, fields: Mapping[str, Any]) -> dict[str, Check]:
    """Return every check by a name."""
    contract = (
        clouds_and_labels_fit,
        every_class_is_in_both_splits,
        no_test_cloud_is_trained_on,
        read_again_it_is_the_same,
        batches_are_clouds_of_the_size_that_is_asked_for,
        a_limit_takes_fewer_clouds,
        validation_is_held_out_of_training,
    )

    cases: dict[str, Check] = {}

    for check in contract:
        cases[check.__name__] = functools.partial(check, name, fields)

    return cases


def opened(name: str, fields: Mapping[str, Any]) -> Dataset:
    """Return the data set with these settings."""
    config = registry.config_class("datasets", name)(**{"name": name, **fields})
    dataset: Dataset = registry.load("datasets", name)(config)
    return dataset


def splits(dataset: Dataset) -> Iterator[Split]:
    """Yield the training and the test split."""
    yield dataset.train
    yield dataset.test


def clouds_and_labels_fit(name: str, fields: Mapping[str, Any]) -> None:
    """Points are (n, P, 3) float32 and finite, labels (n,) from 0 to below the number of
    classes.
    """
    dataset = opened(name, fields)
    config: Any = dataset.config
    assert dataset.num_classes == config.num_classes, (
        "the class and its configuration name different numbers of classes"
    )

    for split in splits(dataset):
        points = split.points[split.index]
        labels = split.labels
        assert (
            points.dtype == np.float32 and points.ndim == 3 and points.shape[2] == 3
        ), f"{split.name} points are {points.dtype} {points.shape}"
        assert np.isfinite(points).all(), f"{split.name} points are not finite"
        assert labels.shape == (len(points),), (
            f"{labels.shape} labels of {len(points)} clouds"
        )
        assert labels.min() >= 0 and labels.max() < dataset.num_classes, (
            f"{split.name} labels leave the classes"
        )


def every_class_is_in_both_splits(name: str, fields: Mapping[str, Any]) -> None:
    """Every class has training and test clouds."""
    dataset = opened(name, fields)
    for split in splits(dataset):
        missing = sorted(set(range(dataset.num_classes)) - set(split.labels.tolist()))
        assert not missing, f"no {split.name} cloud is of the classes {missing}"


def no_test_cloud_is_trained_on(name: str, fields: Mapping[str, Any]) -> None:
    """No cloud stands in both splits, whatever the order of its points."""
    dataset = opened(name, fields)
    train_clouds = set(_contents(dataset.train))
    num_shared = sum(cloud in train_clouds for cloud in _contents(dataset.test))
    assert not num_shared, f"{num_shared} test clouds are training clouds"


def _contents(split: Split) -> Iterator[bytes]:
    """Yield the clouds of a split, each with its points in one order."""
    for row in split.index[: len(split.labels)]:
        cloud = np.ascontiguousarray(split.points[row])
        yield cloud[np.lexsort(cloud.T)].tobytes()


def read_again_it_is_the_same(name: str, fields: Mapping[str, Any]) -> None:
    """Two readings have one digest and the same clouds."""
    first, second = opened(name, fields), opened(name, fields)
    assert first.digest and first.digest == second.digest, (
        "two readings have two digests"
    )

    for one, other in zip(splits(first), splits(second), strict=True):
        assert np.array_equal(one.points, other.points), "two readings differ"
        assert np.array_equal(one.labels, other.labels), "two readings differ"


def batches_are_clouds_of_the_size_that_is_asked_for(
    name: str, fields: Mapping[str, Any]
) -> None:
    """Batches are (B, num_points, 3) with their labels; a generator with the same seed draws the
    same training batch.
    """
    dataset = opened(name, fields)
    index = np.arange(4)
    num_points = min(dataset.config.num_points, dataset.test.points.shape[1])
    shape = (4, num_points, 3)

    first, _ = dataset.train_batch(index, torch.Generator().manual_seed(0))
    again, _ = dataset.train_batch(index, torch.Generator().manual_seed(0))
    assert tuple(first.shape) == shape, (
        f"a training batch is {tuple(first.shape)}, not {shape}"
    )
    assert torch.equal(first, again), "one seed draws two training batches"

    points, labels = dataset.eval_batch(dataset.test, index)
    assert tuple(points.shape) == shape, (
        f"a test batch is {tuple(points.shape)}, not {shape}"
    )
    assert labels.tolist() == dataset.test.labels[index].tolist()


def a_limit_takes_fewer_clouds(name: str, fields: Mapping[str, Any]) -> None:
    """`train_limit` and `test_limit` are heeded."""
    limit = opened(name, fields).num_classes
    limited = opened(name, {**fields, "train_limit": limit, "test_limit": limit})
    assert len(limited.train.labels) == limit
    assert len(limited.test.labels) == limit


def validation_is_held_out_of_training(name: str, fields: Mapping[str, Any]) -> None:
    """`val_fraction` takes clouds of the training split, which are trained on no more."""
    without = opened(name, fields)
    held_out = opened(name, {**fields, "val_fraction": 0.25})
    assert held_out.val is not None, "val_fraction gives no validation split"

    if without.val is None:
        num_train, num_val = len(held_out.train.labels), len(held_out.val.labels)
        assert num_train + num_val == len(without.train.labels)
        shared = np.intersect1d(held_out.train.index, held_out.val.index)
        assert not len(shared), "validation clouds are trained on"
