"""Published sets over the general reader, each on a made-up folder in its layout; ModelNet10 on real clouds too."""

from __future__ import annotations

import hashlib
import pickle
import tarfile

import h5py
import numpy as np
import pytest

from pointsweep.cli.data import main as data_command
from pointsweep.data import scanobjectnn
from pointsweep.data.facts import facts_of
from pointsweep.data.modelnet40 import CLASSES
from pointsweep.data.readers.clouds import unit_sphere
from pointsweep.data.shapenetpart import CATEGORIES, PARTS
from pointsweep.errors import MissingDataError
from tests.data.made import SYNSETS, clouds, config, dataset, write_h5, write_shapenetpart

SMALL = {"num_points": 16, "presample": 24, "stored_points": 32}
MODELNET10 = ("bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet")


def test_modelnet10_is_read_from_its_meshes(root):
    trimesh = pytest.importorskip("trimesh")
    for number, name in enumerate(MODELNET10):
        for split in ("train", "test"):
            folder = root / "ModelNet10" / name / split
            folder.mkdir(parents=True)
            extents = np.random.default_rng([number, split == "test"]).uniform(0.5, 2, 3)
            trimesh.creation.box(extents=extents).export(folder / f"{name}_0001.off")
    data = dataset("modelnet10", **SMALL)
    assert data.class_names == MODELNET10
    assert data.train.labels.tolist() == data.test.labels.tolist() == list(range(10))
    assert data.train.points.shape == (10, 32, 3)
    assert facts_of(config("modelnet10", **SMALL)).published == {"train": [3991], "test": [908]}


def test_modelnet10_is_read_from_its_lists_beside_modelnet40s(root):
    folder = root / "modelnet40_normal_resampled"
    kept = {}
    for number, name in enumerate((*MODELNET10, "airplane")):
        for item in (1, 2):
            rows = np.random.default_rng([number, item]).normal(size=(40, 6))
            path = folder / name / f"{name}_{item:04d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, rows, fmt="%.6f", delimiter=",")
            kept[path.stem] = np.round(rows[:, :3], 6)
    for split, item in (("train", 1), ("test", 2)):
        names = [f"{name}_{item:04d}\n" for name in reversed(MODELNET10)]
        (folder / f"modelnet10_{split}.txt").write_text("".join(names))
    (folder / "modelnet10_shape_names.txt").write_text("\n".join(MODELNET10))
    data = dataset("modelnet10", root="modelnet40_normal_resampled", **SMALL | {"stored_points": 40})
    assert data.train.labels.tolist() == list(range(9, -1, -1))
    assert np.array_equal(data.test.points[0], unit_sphere(kept["toilet_0002"][None])[0])


def test_real_clouds_of_modelnet10(data_root, tmp_path, monkeypatch):
    pytest.importorskip("pypcd4")
    with tarfile.open(data_root / "format_samples" / "modelnet_off_pcd_samples.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    data = dataset("modelnet10", root="pcd", presample=1024)
    assert data.class_names == MODELNET10
    assert np.bincount(data.train.labels).tolist() == [3] * 10
    assert np.bincount(data.test.labels).tolist() == [2] * 10


def write_shapenet(root, folder: str = "shapenet_pc", separator: str = "-"):
    """Three shapes of two synsets to train on, two to test on."""
    base = root / "ShapeNet55-34"
    points = clouds(5, 40)
    names = [f"02691156{separator}1a-2b", f"03001627{separator}cc", f"02691156{separator}dd"]
    tests = [f"03001627{separator}ee", f"02691156{separator}ff"]
    (base / folder).mkdir(parents=True)
    (base / "ShapeNet-55").mkdir()
    for name, cloud in zip((*names, *tests), points, strict=True):
        np.save(base / folder / f"{name}.npy", cloud)
    (base / "ShapeNet-55" / "train.txt").write_text("".join(f"{name}.npy\n" for name in names))
    (base / "ShapeNet-55" / "test.txt").write_text("".join(f"{name}.npy\n" for name in tests))
    return points


def test_shapenet55_takes_the_class_from_the_beginning_of_a_files_name(root):
    points = write_shapenet(root)
    data = dataset("shapenet55", num_classes=2, **SMALL | {"stored_points": 40})
    assert data.class_names == ("02691156", "03001627")
    assert data.train.labels.tolist() == [0, 1, 0]
    assert data.test.labels.tolist() == [1, 0]
    assert np.array_equal(data.train.points, unit_sphere(points[:3]))


def test_what_shapenet55_lacks_is_named(root):
    write_shapenet(root, folder="shapenet")
    with pytest.raises(MissingDataError, match=r"lists_folder: no folder .*shapenet_pc.*ShapeNet55-34 holds ShapeNet-55/, shapenet/"):
        dataset("shapenet55", num_classes=2, **SMALL)
    with pytest.raises(ValueError, match=r"num_classes: 55 asked for, 2 are there"):
        dataset("shapenet55", lists_folder="shapenet", **SMALL)
    with pytest.raises(ValueError, match=r"train\.txt, line 1: 02691156-1a-2b\.npy has no class before '_'"):
        dataset("shapenet55", lists_folder="shapenet", class_before="_", num_classes=2, **SMALL)
    with pytest.raises(ValueError, match=r"lists_folder: '\.\./x' leads out"):
        dataset("shapenet55", lists_folder="../x", num_classes=2, **SMALL)


@pytest.mark.parametrize("field", ["lists_folder", "class_before"])
def test_settings_of_lists_are_refused_without_a_list(root, field):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / "set" / split / name).mkdir(parents=True)
            np.save(root / "set" / split / name / "0.npy", clouds(1, 40)[0])
    with pytest.raises(ValueError, match=rf"dataset\.{field}: '-' is for lists of files"):
        dataset("files", root="set", num_classes=2, **SMALL, **{field: "-"})


def test_omniobject3d_holds_out_a_share_of_every_class(root):
    plyfile = pytest.importorskip("plyfile")
    counts = {"anise": 5, "bowl": 10, "yam": 1}
    points = iter(clouds(16, 40))
    for name, count in counts.items():
        for number in range(count):
            path = root / "OmniObject3D/point_clouds/ply_files/1024" / name / f"{name}_{number:03d}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = np.array([tuple(row) for row in next(points)], dtype=[(axis, "f4") for axis in "xyz"])
            plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(path)
    data = dataset("omniobject3d", num_classes=3, **SMALL)
    assert np.bincount(data.train.labels, minlength=3).tolist() == [4, 8, 0]
    assert np.bincount(data.test.labels, minlength=3).tolist() == [1, 2, 1]
    assert "split drawn here: none is published" in data.marks


# Few-shot ScanObjectNN

BAG, TOILET = scanobjectnn.CLASSES.index("bag"), scanobjectnn.CLASSES.index("toilet")


def write_scans(root, train: dict[int, int], test: dict[int, int]) -> None:
    """Clouds of every class in obj_bg's layout: 12 to train on and 21 to test on, or as said by class."""
    for seed, (stem, usual, other) in enumerate((("training", 12, train), ("test", 21, test))):
        labels = np.concatenate([np.full(other.get(number, usual), number) for number in range(15)])
        labels = np.random.default_rng(seed).permutation(labels)
        write_h5(root / "scanobjectnn/main_split" / f"{stem}_objectdataset.h5", clouds(len(labels), 24, seed), labels)


def test_few_shot_scans_are_drawn_by_sha256_from_classes_that_have_enough(root):
    write_scans(root, train={TOILET: 9}, test={BAG: 19})
    whole = dataset("scanobjectnn", variant="obj_bg", num_points=16, presample=24)
    names = [name for name in scanobjectnn.CLASSES if name not in ("bag", "toilet")]

    def order(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    for fold in range(10):
        data = dataset("scanobjectnn_fewshot", fold=fold, num_points=16, presample=24)
        episode = f"5way_10shot/{fold}"
        chosen = sorted(names, key=lambda name: order(f"{episode}/class/{name}"))[:5]
        assert list(data.class_names[:5]) == chosen
        assert data.marks == ("generated folds", "too few clouds to be drawn: bag, toilet")
        for split, count in ((data.train, 10), (data.test, 20)):
            stored = {"train": whole.train, "test": whole.test}[split.name]
            for label, name in enumerate(chosen):
                rows = np.flatnonzero(stored.labels == scanobjectnn.CLASSES.index(name))
                ranks = sorted(range(len(rows)), key=lambda k: order(f"{episode}/{split.name}/{name}/{k}"))[:count]
                expected = {stored.points[rows[k]].tobytes() for k in ranks}
                assert {cloud.tobytes() for cloud in split.points[split.labels == label]} == expected


def test_a_fold_left_open_is_that_of_the_seed_and_too_few_classes_are_refused(root):
    write_scans(root, train={}, test=dict.fromkeys(range(7), 3))
    with pytest.raises(ValueError, match=r"10way_10shot/0: 10 classes are needed .* 8 have them"):
        dataset("scanobjectnn_fewshot", way=10, num_points=16, presample=24)
    assert dataset("scanobjectnn_fewshot", num_points=16, presample=24).num_classes == 15


# ShapeNetPart in PointNet's hdf5 files


def write_part_h5(root, splits: dict[str, list[str]], points: np.ndarray, pid=None):
    folder = root / "hdf5_data"
    folder.mkdir()
    names = "".join(f"{name}\t{synset}\n" for name, synset in SYNSETS.items())
    (folder / "all_object_categories.txt").write_text(names)
    first = 0
    for split, categories in splits.items():
        labels = np.array([CATEGORIES.index(name) for name in categories], dtype=np.uint8)[:, None]
        last = first + len(labels)
        parts = np.stack([np.resize(PARTS[int(label)], points.shape[1]) for label in labels[:, 0]])
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"], file["label"] = points[first:last], labels
            file["pid"] = parts.astype(np.uint8) if pid is None else pid
        (folder / f"{split}_hdf5_file_list.txt").write_text(f"./hdf5_data/ply_data_{split}0.h5\n")
        first = last
    return folder


SPLITS = {"train": ["airplane", "mug"], "val": ["table"], "test": ["mug", "airplane"]}


def test_both_layouts_of_shapenetpart_give_the_same_shapes(root):
    points = np.round(clouds(5, 30).astype(np.float64), 6)
    write_part_h5(root, SPLITS, points)
    shapes: dict[str, dict[str, np.ndarray]] = {}
    number = 0
    for split, categories in SPLITS.items():
        shapes[split] = {}
        for name in categories:
            parts = np.resize(PARTS[CATEGORIES.index(name)], 30)
            rows = np.concatenate([points[number], np.zeros((30, 3)), parts[:, None]], axis=1)
            shapes[split][f"{name.capitalize()}/{number}"] = rows
            number += 1
    write_shapenetpart(root / "text", shapes)
    one, other = (dataset("shapenetpart", folder=folder, num_points=20, presample=20) for folder in ("hdf5_data", "text"))
    for mine, theirs in ((one.train, other.train), (one.test, other.test)):
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert mine.parts.tolist() == theirs.parts.tolist()
        assert mine.starts.tolist() == theirs.starts.tolist()
        np.testing.assert_allclose(mine.points, theirs.points, atol=1e-6)
    assert [CATEGORIES[label] for label in one.train.labels] == ["airplane", "mug", "table"]


def test_a_part_of_another_category_is_named(root):
    folder = write_part_h5(root, {"train": ["mug"], "val": ["mug"], "test": ["mug"]}, clouds(3, 30), pid=np.full((1, 30), 4))
    with pytest.raises(ValueError, match=r"train0\.h5: point 0 of cloud 0 has part 4, mug has 36 to 37 \(30 such points\)"):
        dataset("shapenetpart", folder="hdf5_data")
    (folder / "all_object_categories.txt").write_text("Bag\t1\nAirplane\t2\n")
    with pytest.raises(ValueError, match=r"all_object_categories\.txt: must list airplane, bag"):
        dataset("shapenetpart", folder="hdf5_data")
    (folder / "val_hdf5_file_list.txt").unlink()
    with pytest.raises(MissingDataError, match=r"no file .*val_hdf5_file_list\.txt"):
        dataset("shapenetpart", folder="hdf5_data")


# ModelNet40's pickled caches


def write_fps(folder, labels: np.ndarray, seed: int, split: str, protocol: int = 4) -> np.ndarray:
    """The layout of Point-BERT's cache: points (P, 6) with normals, labels (1,) int32."""
    points = np.concatenate([clouds(len(labels), 64, seed), clouds(len(labels), 64, seed + 5)], axis=2)
    content = [list(points), [np.array([label]).astype(np.int32) for label in labels]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"modelnet40_{split}_64pts_fps.dat").write_bytes(pickle.dumps(content, protocol=protocol))
    return points[:, :, :3]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickled_caches_of_modelnet40_are_converted_once_and_read_as_modelnet40(root, capsys, protocol):
    folder = root / "ModelNet"
    labels = {"train": np.array([39, 0, 7, 7]), "test": np.array([7, 12])}
    points = {split: write_fps(folder, own, seed, split, protocol) for seed, (split, own) in enumerate(labels.items())}
    assert data_command(["--convert-fps", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "modelnet40_64pts_fps")
    for path in folder.glob("*.dat"):
        path.unlink()  # a trial does not need the pickles
    data = dataset("modelnet40", folder="ModelNet/modelnet40_64pts_fps", num_points=32, presample=48)
    for split in (data.train, data.test):
        assert split.labels.tolist() == labels[split.name].tolist()
        assert np.array_equal(split.points, unit_sphere(points[split.name]))
    assert not list(folder.rglob("*.tmp*"))
    assert (folder / "modelnet40_64pts_fps" / "shape_names.txt").read_text().split() == list(CLASSES)


class Harm:
    """What a crafted cache may hold: reading it with pickle makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.place),)


def test_a_cache_that_runs_something_is_refused_and_runs_nothing(root, capsys):
    folder = root / "ModelNet"
    for split in ("train", "test"):
        write_fps(folder, np.array([0, 1]), 0, split)
    harmful = pickle.dumps([[Harm(root / "harm")], [0]])
    (folder / "modelnet40_train_64pts_fps.dat").write_bytes(harmful)
    assert data_command(["--convert-fps", str(folder)]) == 1
    assert "only numpy arrays of numbers are admitted" in capsys.readouterr().err
    assert not (root / "harm").exists()
    assert not list(folder.rglob("*.h5"))
    pickle.loads(harmful)
    assert (root / "harm").exists(), "the file is harmless: the test shows nothing"


def test_what_is_wrong_with_a_cache_is_named(root, capsys):
    folder = root / "ModelNet"
    folder.mkdir()
    assert data_command(["--convert-fps", str(folder)]) == 2
    write_fps(folder, np.array([0, 1]), 0, "train")
    assert data_command(["--convert-fps", str(folder)]) == 2
    assert "no file modelnet40_test_64pts_fps.dat beside modelnet40_train_64pts_fps.dat" in capsys.readouterr().err
    write_fps(folder, np.array([0, 40]), 1, "test")
    assert data_command(["--convert-fps", str(folder)]) == 1
    assert "modelnet40_test_64pts_fps.dat" in capsys.readouterr().err
    (folder / "modelnet40_test_64pts_fps.dat").write_bytes(pickle.dumps([[clouds(1, 64)[0]], [0, 1]]))
    assert data_command(["--convert-fps", str(folder)]) == 1
    assert "1 clouds of 1 sizes and 2 labels" in capsys.readouterr().err


def test_pointsweep_data_looks_at_the_named_sets(root, capsys):
    write_shapenet(root)
    write_part_h5(root, SPLITS, clouds(5, 30))
    data_command([str(root), "--allow-parts"])
    printed = capsys.readouterr().out
    assert "hdf5_data\n" in printed
    assert "train 2, val 1, test 2; 30 points a cloud" in printed
    assert "num_classes: 55 asked for, 2 are there" in printed
