"""What readers refuse of clouds and labels, and that what they give equals formulas written out in float64."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from pointsweep.cli.data import WRONG, main
from pointsweep.data.corrupted import read_split
from pointsweep.data.modelnet40 import CLASSES
from pointsweep.data.modelnet40_fewshot import read_npz
from pointsweep.data.readers.clouds import as_stored, check_clouds, unit_sphere, whole_labels
from tests.data.made import clouds, dataset, write_h5, write_modelnet, write_scanobjectnn

UTM = np.array([4.5e5, 120.0, 5.4e6])
NO_DATA = (-9999.0, -99999.0, 9999.0, -32768.0, 1e10, 1e30, -3.4e38)


def by_the_formula(points: np.ndarray) -> np.ndarray:
    """Every cloud less its mean, divided by its largest norm, cloud by cloud in float64."""
    result = []
    for cloud in points.astype(np.float64):
        centred = cloud - cloud.sum(axis=0) / len(cloud)
        result.append(centred / np.sqrt((centred**2).sum(axis=1)).max())
    return np.stack(result)


def faults(points: np.ndarray) -> str:
    """The message that refuses these clouds; empty if none does."""
    try:
        check_clouds(points, np.zeros(len(points), dtype=np.int64), 40, "FILE")
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    return tmp_path


def test_map_coordinates_give_the_shapes_at_the_origin(root):
    write_modelnet(root / "near", 1, 1, 64)
    write_modelnet(root / "far", 1, 1, 64)
    for split, seed in (("train", 1), ("test", 2)):
        shapes = clouds(40, 64, seed).astype(np.float64)
        write_h5(root / "far" / f"ply_data_{split}0.h5", shapes + UTM, np.arange(40))
    near, far = dataset("modelnet40", folder="near"), dataset("modelnet40", folder="far")
    for split, seed in (("train", 1), ("test", 2)):
        expected = by_the_formula(clouds(40, 64, seed))
        np.testing.assert_allclose(getattr(far, split).points, expected, atol=1e-6)
        np.testing.assert_allclose(getattr(near, split).points, expected, atol=1e-6)
        assert getattr(far, split).points.dtype == np.float32


def test_text_in_map_coordinates_gives_the_shapes_at_the_origin(root):
    folder = root / "text"
    shapes = {name: clouds(1, 32, seed)[0].astype(np.float64) for seed, name in enumerate(CLASSES)}
    for name, shape in shapes.items():
        (folder / name).mkdir(parents=True)
        np.savetxt(folder / name / f"{name}_0001.txt", shape + UTM, fmt="%.9f", delimiter=",")
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES))
    for split in ("train", "test"):
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(f"{name}_0001" for name in CLASSES))
    found = dataset("modelnet40", folder="text").train.points
    np.testing.assert_allclose(found, by_the_formula(np.stack(list(shapes.values()))), atol=1e-6)


def test_scans_in_map_coordinates_are_centred_before_they_become_float32(root):
    near, far = write_scanobjectnn(root / "near"), write_scanobjectnn(root / "far")
    expected = {}
    for split, stem in (("train", "training"), ("test", "test")):
        name = f"main_split/{stem}_objectdataset_augmentedrot_scale75.h5"
        with h5py.File(near / name) as file:
            points, labels = np.asarray(file["data"], dtype=np.float64), np.asarray(file["label"])
        write_h5(far / name, points + UTM, labels)
        expected[split] = points - points.mean(axis=1, keepdims=True)
    found = dataset("scanobjectnn", folder="far")
    np.testing.assert_allclose(found.train.points, expected["train"], atol=1e-6)
    np.testing.assert_allclose(found.test.points, expected["test"], atol=1e-6)


def test_scans_near_the_origin_are_given_as_they_are_stored():
    points = clouds(3, 20) + np.float32(0.25)
    assert as_stored(points, "FILE").tobytes() == points.tobytes()
    assert as_stored(points.astype(np.float64), "FILE").tobytes() == points.tobytes()


def test_published_corruptions_in_map_coordinates_are_centred(tmp_path):
    points = clouds(4, 30).astype(np.float64)
    write_h5(tmp_path / "clean.h5", points + UTM, np.arange(4))
    found = read_split(tmp_path / "clean.h5", 40)["test_points"]
    np.testing.assert_allclose(found, points - points.mean(axis=1, keepdims=True), atol=1e-6)


def test_few_shot_folds_in_map_coordinates_give_the_shapes_at_the_origin(tmp_path):
    arrays = {"classes": np.arange(5)}
    for split, count, seed in (("train", 10, 1), ("test", 20, 2)):
        arrays[f"{split}_points"] = clouds(5 * count, 16, seed).astype(np.float64) + UTM
        arrays[f"{split}_labels"] = np.repeat(np.arange(5), count)
    np.savez(tmp_path / "0.npz", **arrays)
    found = read_npz(tmp_path / "0.npz", 5, 10)
    for split, count, seed in (("train", 10, 1), ("test", 20, 2)):
        np.testing.assert_allclose(found[f"{split}_points"], by_the_formula(clouds(5 * count, 16, seed)), atol=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e-25, 1e-3, 1.0, 1e18, 1e30])
def test_the_scale_of_float32_clouds_does_not_matter(factor):
    points = clouds(3, 50)
    stored = points * np.float32(factor)
    assert not faults(stored)
    np.testing.assert_allclose(unit_sphere(stored), by_the_formula(points), atol=1e-6)


@pytest.mark.parametrize("factor", [1e-200, 1e-160, 1e160, 1e300])
def test_the_scale_of_float64_clouds_does_not_matter(factor):
    points = clouds(3, 50).astype(np.float64)
    np.testing.assert_allclose(unit_sphere(points * factor), by_the_formula(points), atol=1e-6)


def test_coordinates_that_float32_has_rounded_to_a_grid_are_refused():
    """At 5.4e6 neighbouring float32 numbers are 0.5 apart: a shape about 3 wide is lost."""
    assert "cloud 0 was rounded when it was stored: float32 holds steps of" in faults((clouds(2, 50) + UTM).astype(np.float32))
    assert not faults(clouds(2, 50) + UTM)
    # Denormal numbers are 1.4e-45 apart.
    assert "was rounded when it was stored" in faults(clouds(2, 50) * np.float32(1e-44))


@pytest.mark.parametrize("value", NO_DATA)
@pytest.mark.parametrize("share", [1 / 64, 0.3])
@pytest.mark.parametrize("axes", [[2], [0, 1, 2]])
def test_a_no_data_value_is_refused_by_cloud_and_value(value, share, axes):
    points = clouds(6, 64)
    for axis in axes:
        points[4, 10 : 10 + round(64 * share), axis] = value
    message = faults(points)
    assert message.startswith("FILE: cloud 4 ")
    assert f"the coordinate {value:g} at point 10" in message


def test_most_points_at_one_place_are_refused():
    points = clouds(3, 64)
    points[1, :40] = -9999
    assert "cloud 1 has more than half of its points at one place, (-9999, -9999, -9999)" in faults(points)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_coordinate_that_is_not_finite_is_refused_wherever_it_is(value):
    points = clouds(300, 10)
    points[299, 9, 1] = value
    assert faults(points) == f"FILE: cloud 299 holds a coordinate that is not finite: {value} at point 9"


def test_one_place_and_too_few_points_are_refused():
    assert "cloud 0 is a single point repeated: (0, 0, 0)" in faults(np.zeros((2, 9, 3)))
    assert "clouds of 3 points, at least 4 are needed" in faults(clouds(2, 3))
    points = clouds(2, 9)
    points[1] = 7
    assert "cloud 1 is a single point repeated: (7, 7, 7)" in faults(points)


def test_real_shapes_are_far_from_being_refused(data_root):
    for name, folder in (("modelnet40", "modelnet40_1024/modelnet40_ply_hdf5_2048"), ("scanobjectnn", "scanobjectnn_dev")):
        data = dataset(name, folder=folder)
        for split in (data.train, data.test):
            away = np.linalg.norm(split.points - np.median(split.points, axis=1, keepdims=True), axis=2)
            assert (away.max(axis=1) < 20 * np.median(away, axis=1)).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1.5, 2]), "cloud 1 has label 1.5; whole numbers from 0 to 39 are allowed"),
        (np.array([0, np.nan, 2]), "cloud 1 has label nan"),
        (np.array([0, np.inf, 2]), "cloud 1 has label inf"),
        (np.array([0, -1, 2]), "cloud 1 has label -1, allowed 0 to 39"),
        (np.array([0, 1, 2**63], dtype=np.uint64), "cloud 2 has label 9.22337e+18, allowed 0 to 39"),
        (np.array([0, 1, 40.0]), "cloud 2 has label 40, allowed 0 to 39"),
        (np.array([True, False, True]), "labels are of type bool"),
        (np.array([b"a", b"b", b"c"]), "labels are of type |S1"),
        (np.array([1j, 0, 2]), "labels are of type complex128"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, message):
    with pytest.raises(ValueError, match="FILE") as error:
        whole_labels(labels, 40, "FILE")
    assert message in str(error.value)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8"])
def test_whole_numbers_of_any_type_are_labels(dtype):
    found = whole_labels(np.array([[0], [39], [7]], dtype=dtype), 40, "FILE")
    assert found.dtype == np.int64
    assert found.tolist() == [0, 39, 7]


@pytest.mark.parametrize("shape", [(2,), (8,), (2, 2), (4, 2), (1, 4)])
def test_as_many_labels_as_clouds_are_needed(shape):
    with pytest.raises(ValueError, match="FILE: 4 clouds but labels of shape"):
        check_clouds(clouds(4, 9), np.zeros(shape, dtype=np.int64), 40, "FILE")


@pytest.mark.parametrize("factor", [1e-25, 1e9])
def test_scans_of_an_impossible_size_are_refused(factor):
    with pytest.raises(ValueError, match=r"FILE: cloud 0 has a radius of .*, allowed 1e-06 to 10000"):
        as_stored(clouds(2, 20).astype(np.float64) * factor, "FILE")


def test_both_commands_refuse_a_no_data_value_by_file_and_cloud(root, capsys):
    """In an hdf5 file, after the reader's own conversions."""
    folder = write_modelnet(root / "modelnet40_ply_hdf5_2048", 2, 1, 64)
    points = clouds(80, 64, 1)
    points[5, 7] = 1e30
    write_h5(folder / "ply_data_train0.h5", points, np.tile(np.arange(40), 2))
    expected = f"{folder / 'ply_data_train0.h5'}: cloud 5 has the coordinate 1e+30 at point 7"
    assert main([str(root), "--allow-parts"]) == WRONG
    assert expected in capsys.readouterr().out
    with pytest.raises(ValueError) as error:
        dataset("modelnet40")
    assert expected in str(error.value)
