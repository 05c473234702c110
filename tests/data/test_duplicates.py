"""Copies of clouds are found in any order of their points, and only copies are; all numbers are planted."""

from __future__ import annotations

import numpy as np
import pytest

from pointsweep.data.check import check
from pointsweep.data.duplicates import are_copies, copy_groups, groups_of_splits, shared_clouds
from tests.data.made import clouds, write_h5, write_modelnet
from tests.data.test_check import modelnet_copy

RANDOM = np.random.default_rng(5)

CHANGES = {
    "same": lambda points: points,
    "reversed": lambda points: points[:, ::-1],
    "shuffled": lambda points: np.stack([RANDOM.permutation(cloud) for cloud in points]),
    "moved": lambda points: points + np.float32(3),
    "scaled": lambda points: points * np.float32(0.1),
    "rounded": lambda points: np.round(points, 5),
    "half a unit in the last place": lambda points: np.nextafter(points, np.float32(np.inf)),
    "all at once": lambda points: np.round(np.stack([RANDOM.permutation(cloud) for cloud in points]) * 7 - 2, 4),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [4, 33, 1024])
def test_every_planted_copy_is_counted(change, size):
    train, test = clouds(60, size, 1), clouds(50, size, 2)
    rows = RANDOM.choice(50, 20, replace=False)
    test[rows] = CHANGES[change](train[RANDOM.choice(60, 20, replace=False)])
    groups = groups_of_splits({"train": train, "test": test})
    assert shared_clouds(groups, "train", "test").tolist() == sorted(rows.tolist())


def test_copies_in_one_split_and_in_three_are_counted():
    train, val, test = (clouds(number, 20, seed) for seed, number in enumerate((30, 10, 12)))
    train[[7, 9, 11]] = train[3]
    val[4] = train[3, ::-1]
    test[[1, 2]] = val[6]
    groups = groups_of_splits({"train": train, "val": val, "test": test})
    assert len(np.unique(groups["train"])) == 27
    assert shared_clouds(groups, "train", "val").tolist() == [4]
    assert shared_clouds(groups, "train", "test").tolist() == []
    assert shared_clouds(groups, "val", "test").tolist() == [1, 2]


def test_clouds_of_different_sizes_are_no_copies():
    cloud = clouds(1, 30)[0]
    assert copy_groups([cloud, cloud[:29], cloud[::-1], cloud[:29][::-1]]).tolist() == [0, 1, 0, 1]


def test_a_cloud_that_is_nearly_the_same_is_no_copy():
    """One point of a thousand has moved by a thousandth of the radius: the moments agree, the points do not."""
    first = clouds(1, 1000)[0].astype(np.float64)
    second = first.copy()
    second[500] += 1e-3 * np.linalg.norm(first, axis=1).max() / np.sqrt(3)
    assert not are_copies(first, second)
    assert copy_groups([first, second]).tolist() == [0, 1]


def test_mirrored_and_turned_clouds_are_no_copies():
    cloud = clouds(1, 40)[0]
    assert copy_groups([cloud, -cloud, cloud[:, [1, 0, 2]], cloud[:, [2, 0, 1]]]).tolist() == [0, 1, 2, 3]


def test_real_modelnet40_has_no_copies_and_400_planted_ones_are_found(data_root):
    from tests.data.made import dataset

    data = dataset("modelnet40", folder="modelnet40_1024/modelnet40_ply_hdf5_2048")
    train, test = np.asarray(data.train.points), np.asarray(data.test.points)
    groups = groups_of_splits({"train": train, "test": test})
    assert len(shared_clouds(groups, "train", "test")) == 0
    planted = train[1000:1400, ::-1]
    groups = groups_of_splits({"train": train, "test": planted})
    assert len(shared_clouds(groups, "train", "test")) == 400


@pytest.mark.parametrize("reverse", [False, True])
def test_eighty_leaks_are_eighty(tmp_path, reverse):
    """Through the reader, whose mean depends on the order of the points in its last bits."""
    folder = write_modelnet(tmp_path / "set", 2, 1, 64)
    points = clouds(80, 64, 1)
    write_h5(folder / "ply_data_test0.h5", points[:, ::-1] if reverse else points, np.tile(np.arange(40), 2))
    assert check(modelnet_copy(folder)).wrong == ["train and test share 80 clouds; test cloud 0 is train cloud 0"]
