"""pointsweep data: what it says of real data, of made-up whole sets, and of what is wrong with them."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from pointsweep.cli.data import NOTHING, SOUND, WRONG, main
from pointsweep.config import registry
from pointsweep.data.check import check
from pointsweep.data.dataset import Copy
from pointsweep.data.readers.fewshot_pickles import convert
from tests.data.made import clouds, dataset, rows, write_h5, write_modelnet, write_scanobjectnn, write_shapenetpart
from tests.data.test_fewshot import fold, write

H5 = "ply_data_test0.h5"


def modelnet_copy(folder: Path) -> Copy:
    (found,) = registry.load("datasets", "modelnet40").copies(folder.parent)
    return found


def report(folder: Path):
    return check(modelnet_copy(folder))


@pytest.fixture
def folder(tmp_path):
    return write_modelnet(tmp_path / "set", 2, 1, 12)


def test_the_whole_of_modelnet40_is_sound(data_root):
    """The published numbers, 40 classes, and not one cloud twice."""
    copies = registry.load("datasets", "modelnet40").copies(data_root)
    place = "modelnet40_1024/modelnet40_ply_hdf5_2048"
    found = check(next(copy for copy in copies if copy.location == place))
    assert (found.parts, found.wrong) == ([], [])
    assert found.facts[0] == "train 9840, test 2468; 1024 points a cloud"
    assert found.facts[1] == f"digest {dataset('modelnet40', folder=place).digest}"
    assert found.facts[2] == "train and test share 0 clouds"


def test_the_samples_are_parts_of_sets_and_otherwise_sound(data_root, tmp_path, capsys):
    for name in ("modelnet40_mini", "scanobjectnn_dev", "modelnet40_normal_resampled_sample"):
        shutil.copytree(data_root / name, tmp_path / name)
    assert main([str(tmp_path)]) == WRONG
    text = capsys.readouterr().out
    assert "part: train holds 800 clouds, published: 9840 or 9843\n" in text
    assert "part: test holds 25 clouds, published: 2468\n" in text
    assert "part: train holds 10 clouds, published: 11416\n" in text
    assert "wrong:" not in text
    assert f"digest {dataset('scanobjectnn', folder='scanobjectnn_dev').digest}" in text
    assert "0 sound, 3 wrong" in text
    assert main([str(tmp_path), "--allow-parts"]) == SOUND


def test_every_registered_data_set_is_spoken_of(tmp_path, capsys):
    assert main([str(tmp_path)]) == NOTHING
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-2]] == registry.names("datasets")
    text = dict(line.split(": ", 1) for line in lines[:-2])
    assert "terms-of-use form" in text["scanobjectnn"]
    assert "Princeton" in text["modelnet40"]
    assert text["synthetic"] == "made from a seed"
    assert "made from modelnet40, which is not here" in text["modelnet40_fewshot"]


def test_without_a_root_there_is_nothing_to_check(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("POINTSWEEP_DATA", raising=False)
    assert main([]) == NOTHING
    assert "POINTSWEEP_DATA is not set" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == NOTHING
    assert "is not a folder" in capsys.readouterr().err


def test_copies_of_a_cloud_are_counted_whatever_their_points_order(folder):
    with h5py.File(folder / "ply_data_train0.h5") as file:
        points = np.asarray(file["data"])
    test = clouds(40, 12, seed=2)
    test[3], test[7] = points[5, ::-1], points[9]
    test[10] = test[11]
    write_h5(folder / H5, test, np.arange(40))
    assert report(folder).wrong == [
        "test holds 1 copies of its own clouds",
        "train and test share 2 clouds; test cloud 3 is train cloud 5",
    ]


def test_more_clouds_than_published_are_wrong(folder):
    copy = modelnet_copy(folder)
    fewer = Copy(copy.location, copy.read, copy.class_names, {"train": (79,), "test": (39, 41)})
    assert check(fewer).wrong == ["train holds 80 clouds, published: 79", "test holds 40 clouds, published: 39 or 41"]


def test_classes_without_a_cloud_are_named(folder):
    write_h5(folder / H5, clouds(39, 12, seed=2), np.arange(1, 40))
    assert "test holds no cloud of airplane (39 classes present)" in report(folder).parts


def _second_file(folder: Path) -> None:
    write_h5(folder / "ply_data_test1.h5", clouds(2, 9), np.arange(2))
    (folder / "test_files.txt").write_text(f"{H5}\nply_data_test1.h5\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / H5).write_bytes((folder / H5).read_bytes()[:900]), "not a ModelNet40 file with data and label"),
        (lambda folder: (folder / H5).unlink(), "test_files.txt names"),
        (lambda folder: (folder / "shape_names.txt").unlink(), "no file"),
        (lambda folder: (folder / "shape_names.txt").write_text("bathtub airplane"), "class 0 is bathtub, expected airplane"),
        (lambda folder: write_h5(folder / H5, np.full((2, 9, 3), np.nan), np.arange(2)), "cloud 0 holds a coordinate"),
        (lambda folder: write_h5(folder / H5, clouds(2, 9), np.array([0, 40])), "cloud 1 has label 40, allowed 0 to 39"),
        (lambda folder: write_h5(folder / H5, clouds(0, 9), np.arange(0)), "holds no points"),
        (lambda folder: write_h5(folder / H5, clouds(2, 9)[0], np.arange(9)), "data must be float or whole numbers (n, P, 3)"),
        (_second_file, "clouds of 9 points, those before have 12"),
    ],
)
def test_damage_is_told_in_one_line_that_names_the_file(folder, damage, message, capsys):
    damage(folder)
    (line,) = report(folder).wrong
    assert message in line
    assert str(folder) in line
    assert main([str(folder.parent), "--allow-parts"]) == WRONG
    assert f"wrong: {line}" in capsys.readouterr().out


def test_the_check_does_not_trust_the_cache(folder, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(folder.parent))
    before = dataset("modelnet40", folder="set").digest
    assert f"digest {before}" in report(folder).facts
    stat = (folder / H5).stat()
    write_h5(folder / H5, clouds(40, 12, seed=77), np.arange(40))
    os.utime(folder / H5, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert f"digest {before}" not in report(folder).facts


def test_scanobjectnns_class_order_is_compared_where_it_is_given(tmp_path, capsys):
    folder = write_scanobjectnn(tmp_path / "h5" / "scan", size=20)
    (folder / "shape_names.txt").write_text("bag bed bin")
    assert main([str(tmp_path), "--allow-parts"]) == WRONG
    assert "shape_names.txt: not the 15 classes in the order of their labels" in capsys.readouterr().out
    (folder / "shape_names.txt").unlink()
    (folder / "main_split" / "test_objectdataset_augmentedrot_scale75.h5").unlink()
    assert main([str(tmp_path), "--allow-parts"]) == WRONG
    assert "variant pb_t50_rs: no file" in capsys.readouterr().out


def test_published_corruptions_and_folds_are_checked_one_by_one(tmp_path, capsys):
    write_h5(tmp_path / "modelnet_c" / "clean.h5", clouds(2468, 8), np.arange(2468) % 40)
    write_h5(tmp_path / "modelnet_c" / "jitter_4.h5", clouds(2469, 8), np.arange(2469) % 40)
    write(tmp_path / "ModelNetFewshot/5way_10shot/0.pkl", fold())
    write(tmp_path / "ModelNetFewshot/5way_10shot/1.pkl", fold())
    list(convert(tmp_path / "ModelNetFewshot"))
    (tmp_path / "ModelNetFewshot/5way_10shot/1.npz").unlink()
    assert main([str(tmp_path)]) == WRONG
    text = capsys.readouterr().out
    # clean and fold 0 are sound; jitter_4 has one too many, 34 files and 9 folds are missing.
    assert "2 sound, 44 wrong" in text
    assert "wrong: test holds 2469 clouds, published: 2468" in text
    assert "1.pkl is not converted" in text
    assert "train 50, test 100; 16 points a cloud" in text


def test_shapenetpart_is_checked(tmp_path, capsys):
    shared = rows(9, [0, 1])
    shapes = {"train": {"Airplane/a": shared, "Mug/m": rows(12, [36], 1)}, "val": {"Mug/v": rows(8, [37], 2)}}
    write_shapenetpart(tmp_path / "parts", shapes | {"test": {"Airplane/b": shared}})
    assert main([str(tmp_path), "--allow-parts"]) == WRONG
    text = capsys.readouterr().out
    assert "train 2, val 1, test 1; 8 to 12 points a cloud" in text
    assert "wrong: train and test share 1 clouds" in text
    assert "part: train holds 2 clouds, published: 12137" in text


def test_the_command_converts_folds(tmp_path, capsys):
    assert main(["--convert-fewshot", str(tmp_path)]) == NOTHING
    write(tmp_path / "5way_10shot/0.pkl", fold())
    assert main(["--convert-fewshot", str(tmp_path)]) == SOUND
    assert capsys.readouterr().out.strip() == str(tmp_path / "5way_10shot/0.npz")
    (tmp_path / "5way_10shot/1.pkl").write_bytes(pickle.dumps(print))
    assert main(["--convert-fewshot", str(tmp_path)]) == WRONG
    assert "refused builtins.print" in capsys.readouterr().err
