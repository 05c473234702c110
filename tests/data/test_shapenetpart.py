"""ShapeNetPart's reader on a made-up folder in its layout, and the two mean IoUs on examples worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pointsweep.data.part_dataset import PartDataset
from pointsweep.data.part_metrics import part_score, shape_iou
from pointsweep.data.shapenetpart import CATEGORIES, FIRST_PARTS, NUM_PARTS, PARTS, read
from pointsweep.errors import MissingDataError
from tests.data.made import SYNSETS, config, dataset, rows, write_shapenetpart

SHAPES = {
    "train": {"Airplane/a1": rows(30, [0, 1, 2, 3]), "Table/t1": rows(25, [47, 49], 1), "Mug/m1": rows(40, [36, 37], 2)},
    "val": {"Airplane/a2": rows(20, [0, 3], 3)},
    "test": {"Table/t2": rows(35, [47], 4), "Airplane/a3": rows(33, [1], 5)},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    return write_shapenetpart(tmp_path / config("shapenetpart").folder, SHAPES)


def data(**fields) -> PartDataset:
    return dataset("shapenetpart", **fields)


def test_parts_are_the_published_ranges():
    """Spec 6.4: 16 categories, 50 parts, a range of numbers each."""
    assert (len(CATEGORIES), NUM_PARTS) == (16, 50)
    assert [part for parts in PARTS for part in parts] == list(range(50))
    assert tuple(parts[0] for parts in PARTS) == FIRST_PARTS
    assert {name: len(PARTS[CATEGORIES.index(name)]) for name in ("airplane", "motorbike", "mug", "table")} == {
        "airplane": 4, "motorbike": 6, "mug": 2, "table": 3,
    }  # fmt: skip


def test_shapes_come_in_the_order_of_their_lists_with_their_parts(folder):
    """Those of the validation list stand behind those of the training list: the programs train on both."""
    found = data()
    assert [CATEGORIES[c] for c in found.train.labels] == ["airplane", "table", "mug", "airplane"]
    assert [CATEGORIES[c] for c in found.test.labels] == ["table", "airplane"]
    assert (found.num_classes, found.parts) == (50, tuple(map(tuple, PARTS)))
    for index, stored in enumerate([*SHAPES["train"].values(), *SHAPES["val"].values()]):
        points, parts, category = found.train.shape(index)
        centred = stored[:, :3] - stored[:, :3].mean(axis=0)
        np.testing.assert_allclose(points, centred / np.linalg.norm(centred, axis=1).max(), atol=1e-5)
        assert parts.tolist() == stored[:, 6].astype(int).tolist()
        assert set(parts.tolist()) <= set(PARTS[category])
    assert found.digest == data().digest
    assert len(found.digest) == 64
    assert [len(read(folder)[f"{split}_labels"]) for split in ("train", "val", "test")] == [3, 1, 2]


def test_a_part_of_a_split_keeps_its_shapes(folder):
    whole, small = data(), data(train_limit=2, val_fraction=0.5)
    assert small.val is not None
    for split in (small.train, small.val):
        for row, stored in enumerate(split.index):
            assert all(np.array_equal(a, b) for a, b in zip(split.shape(row), whole.train.shape(stored), strict=True))


def test_a_batch_takes_points_with_their_parts(folder):
    found = data(num_points=30, presample=30)
    points, category, parts = (tensor.numpy() for tensor in found.eval_batch(found.train, np.array([2, 0])))
    assert (points.shape, parts.shape, category.tolist()) == ((2, 30, 3), (2, 30), [11, 0])
    for taken, labels, index in zip(points, parts, (2, 0), strict=True):
        whole, all_labels, _ = found.train.shape(index)
        places = [int(np.flatnonzero((whole == point).all(axis=1))[0]) for point in taken]
        assert len(set(places)) == 30
        assert all_labels[places].tolist() == labels.tolist()
    assert data(num_points=60, presample=60).eval_batch(found.train, np.array([1]))[0].shape == (1, 60, 3)


def test_evaluation_takes_the_same_points_in_every_batch_and_training_others(folder):
    found, random = data(num_points=20, presample=20), torch.Generator().manual_seed(0)
    alone = found.eval_batch(found.test, np.array([1]))
    assert all(torch.equal(a[1:], b) for a, b in zip(found.eval_batch(found.test, np.array([0, 1])), alone, strict=True))
    first, again = (found.train_batch(np.array([0, 2]), random) for _ in range(2))
    assert not torch.equal(first[0], again[0])
    assert first[1].tolist() == again[1].tolist() == [0, 11]


def test_training_points_are_scaled_and_shifted_with_their_parts(folder):
    """30 points of 30: a permutation, so each point is found again by its part once scale and shift are undone."""
    found = data(num_points=30, presample=30)
    points, _, parts = found.train_batch(np.array([0]), torch.Generator().manual_seed(1))
    whole, labels, _ = found.train.shape(0)
    spread, there = points[0].amax(dim=0) - points[0].amin(dim=0), torch.from_numpy(np.array(whole))
    factor = spread / (there.amax(dim=0) - there.amin(dim=0))
    assert ((factor >= 0.8) & (factor <= 1.25)).all()
    back = (points[0] - points[0].mean(dim=0)) / factor + there.mean(dim=0)
    nearest = torch.cdist(back, there).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(30))
    assert labels[nearest.numpy()].tolist() == parts[0].tolist()


BAD = [
    (rows(5, [4]), "point 0 has part 4, airplane has 0 to 3"),
    (rows(5, [1.5]), r"point 0 has part 1\.5"),
    (np.full((5, 7), np.nan), "cloud 0 holds a coordinate that is not finite"),
    (np.zeros((5, 7)), "cloud 0 is a single point repeated"),
    (rows(5, [1])[:, :6], r"line 1: 6 columns, 7 are expected"),
    (np.zeros((0, 7)), "holds no row of numbers; rows of 7 numbers are expected"),
]


@pytest.mark.parametrize(("stored", "message"), BAD)
def test_bad_shapes_are_named(folder, stored, message):
    np.savetxt(folder / SYNSETS["Airplane"] / "a2.txt", stored)
    with pytest.raises(ValueError, match=message) as error:
        data()
    assert f"{SYNSETS['Airplane']}/a2.txt" in str(error.value)


def test_text_that_is_not_numbers_is_named(folder):
    (folder / SYNSETS["Table"] / "t2.txt").write_text("1 2 three 4 5 6 7\n")
    with pytest.raises(ValueError, match=r"t2\.txt, line 1: not a row of numbers: '1 2 three 4 5 6 7'"):
        data()


def test_what_is_missing_is_named(folder, monkeypatch):
    (folder / SYNSETS["Table"] / "t2.txt").unlink()
    with pytest.raises(MissingDataError, match=r"no file .*t2\.txt \(1 such shapes of 6\)"):
        data()
    (folder / "train_test_split" / "shuffled_val_file_list.json").unlink()
    with pytest.raises(MissingDataError, match=r"shuffled_val_file_list\.json"):
        data()
    with pytest.raises(MissingDataError, match="no folder"):
        data(folder="elsewhere")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["shape_data/12345678/x"], "12345678/x is of no known synset"),
        ([f"shape_data/{SYNSETS['Table']}/t1"], "t1 is listed twice, first in train"),
        ([], "lists no shape"),
        ([1], "not a list of prefix/synset/id"),
    ],
)
def test_bad_lists_are_named(folder, entries, message):
    (folder / "train_test_split" / "shuffled_test_file_list.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message) as error:
        data()
    assert "shuffled_test_file_list.json" in str(error.value)


def test_categories_must_be_the_sixteen(folder):
    (folder / "synsetoffset2category.txt").write_text("Airplane 02691156\n")
    with pytest.raises(ValueError, match=r"synsetoffset2category\.txt: must give a synset to each of airplane"):
        data()


def test_iou_of_a_shape_by_hand():
    # Part 0: points 0, 1 true; 0 predicted -> 1/2. Part 1: 2, 3 true; 1, 2, 3 predicted -> 2/3. Part 2 in neither -> 1.
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert shape_iou(predicted, truth, (0, 1, 2)) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    # Predicted only -> 0; of another category -> wrong, and it counts in no other part's union.
    assert shape_iou(np.array([0, 0, 2, 9]), truth, (0, 1, 2)) == pytest.approx((1 + 0 + 0) / 3)
    assert shape_iou(truth, truth, (0, 1, 2)) == 1


def test_means_over_shapes_and_over_categories_by_hand():
    parts = (range(0, 2), range(2, 4))
    truth = [np.array([0, 1]), np.array([0, 0]), np.array([2, 3])]
    predicted = [np.array([0, 1]), np.array([0, 1]), np.array([3, 3])]
    # Shapes: 1; (1/2 + 0) / 2 = 1/4; (0 + 1/2) / 2 = 1/4. Categories: (1 + 1/4) / 2 = 5/8 and 1/4.
    score = part_score(predicted, truth, [0, 0, 1], parts)
    assert score.instance_miou == pytest.approx((1 + 1 / 4 + 1 / 4) / 3)
    assert score.class_miou == pytest.approx((5 / 8 + 1 / 4) / 2)
    assert score.by_category == pytest.approx({0: 5 / 8, 1: 1 / 4})
    assert score.by_shape == pytest.approx((1, 1 / 4, 1 / 4))


def test_bad_predictions_are_refused():
    with pytest.raises(ValueError, match="must be"):
        shape_iou(np.zeros(3, int), np.zeros(4, int), (0, 1))
    with pytest.raises(ValueError, match="not empty"):
        shape_iou(np.zeros(0, int), np.zeros(0, int), (0, 1))
    with pytest.raises(ValueError, match=r"the shape holds part 5, its category has \[0, 1\]"):
        shape_iou(np.array([0, 0]), np.array([0, 5]), (0, 1))
    with pytest.raises(ValueError, match="must be as many"):
        part_score([np.zeros(2, int)], [], [0], ((0, 1),))


def test_the_readers_output_fits_the_metrics(folder):
    split = data().test
    truth = [split.shape(index)[1] for index in range(len(split.labels))]
    assert part_score(truth, truth, split.labels.tolist(), PARTS).class_miou == 1
    # A table that is all part 47, called 48: parts 47 and 48 are 0, 49 is in neither.
    assert part_score([truth[0] + 1], truth[:1], [15], PARTS).instance_miou == pytest.approx(1 / 3)
