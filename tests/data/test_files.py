"""Anybody's clouds: each layout is written by somebody else's library or by hand, and read from a few lines of YAML."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pointsweep.cli.data import main as data_command
from pointsweep.cli.run import main as run_command
from pointsweep.config.validation import component_problems
from pointsweep.data.facts import UnreadableDataError, facts_of
from pointsweep.data.files import resized
from pointsweep.data.readers.cloud_arrays import starts_of
from pointsweep.data.readers.cloud_files import read_cloud
from pointsweep.data.readers.clouds import unit_sphere
from pointsweep.errors import MissingDataError
from tests.data.made import clouds, config, dataset

laspy = pytest.importorskip("laspy", reason="pointsweep[files] is not installed")
plyfile = pytest.importorskip("plyfile")
pypcd4 = pytest.importorskip("pypcd4")
trimesh = pytest.importorskip("trimesh")

SMALL = {"num_points": 32, "presample": 48, "stored_points": 64}


def added(folder: Path, capsys) -> dict:
    """The section that `pointsweep data add` prints for a folder."""
    code = data_command(["add", str(folder)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    section = yaml.safe_load(printed.out)["dataset"]
    assert not component_problems("dataset", section)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}


def opened(section: dict, **fields):
    return dataset(**(section | fields))


def boxes(seed: int):
    return trimesh.creation.box(extents=np.random.default_rng(seed).uniform(0.5, 2, 3))


# Layouts: folders of meshes, files of points, arrays, lists


@pytest.mark.parametrize("kind", ["obj", "off", "stl", "ply"])
@pytest.mark.parametrize("split_first", [True, False])
def test_meshes_in_folders_of_classes_are_sampled_on_their_surface(root, capsys, kind, split_first):
    for number, (split, name) in enumerate((s, c) for s in ("train", "val", "test") for c in ("box", "ball")):
        folder = root / "shrec" / (f"{split}/{name}" if split_first else f"{name}/{split}") / "model_1"
        folder.mkdir(parents=True)
        mesh = boxes(number) if name == "box" else trimesh.creation.icosphere(radius=1 + number)
        mesh.export(folder / f"{number}.{kind}")
        (folder / ".DS_Store").write_bytes(b"\0")
    section = added(root / "shrec", capsys)
    assert section == {
        "name": "files", "root": "shrec", "num_classes": 2, "train": "train", "test": "test", "val": "val",
    }  # fmt: skip
    data = opened(section)
    assert data.class_names == ("ball", "box")
    assert data.train.labels.tolist() == data.val.labels.tolist() == data.test.labels.tolist() == [0, 1]
    assert data.test.points.shape == (2, 2048, 3)
    # A ball around the origin stays one: all of its points lie near the radius, which is 1 behind the scaling.
    assert np.linalg.norm(data.test.points[0], axis=1).min() > 0.85
    assert data.marks == ()


def test_points_of_a_mesh_are_drawn_by_area_and_are_the_same_every_time(tmp_path):
    # Two triangles, one of 9 times the area of the other.
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5]], [[0, 1, 2], [3, 4, 5]], process=False)
    mesh.export(tmp_path / "two.off")
    points = read_cloud(tmp_path / "two.off", 4000)
    assert (points[:, 2] > 2.5).mean() == pytest.approx(0.9, abs=0.03)
    assert np.array_equal(points, read_cloud(tmp_path / "two.off", 4000))


def write_cloud(path: Path, points: np.ndarray) -> None:
    """A cloud in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".npz":
        np.savez(path, intensity=points[:, 0], xyz=points)
    elif path.suffix == ".pcd":
        pypcd4.PointCloud.from_xyz_points(points).save(path, encoding=pypcd4.Encoding.BINARY_COMPRESSED)
    elif path.suffix == ".ply":
        rows = np.array([tuple(row) for row in points], dtype=[(axis, "f4") for axis in "xyz"])
        plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(path)
    elif path.suffix == ".las":
        header = laspy.LasHeader(point_format=0, version="1.2")
        header.scales = [1e-6] * 3
        las = laspy.LasData(header)
        las.x, las.y, las.z = points.T
        las.write(path)
    else:
        first = f"{len(points)}\n" if path.suffix == ".pts" else ""
        separator = {".csv": ";", ".txt": ","}.get(path.suffix, " ")
        path.write_text(first + "".join(separator.join(f"{value:.7f}" for value in row) + "\n" for row in points))


@pytest.mark.parametrize("kind", ["npy", "npz", "pcd", "ply", "las", "csv", "txt", "xyz", "pts"])
def test_files_of_points_are_read_as_they_were_written(root, capsys, kind):
    points = clouds(6, 40)
    for number, cloud in enumerate(points):
        write_cloud(root / "scans" / ("cat", "dog")[number % 2] / f"{number}.{kind}", cloud)
    section = added(root / "scans", capsys)
    assert (section["train"], section["test"], section["test_fraction"], section["num_points"]) == (".", None, 0.2, 40)
    data = opened(section)
    # Of every class one is held out to test on.
    assert (len(data.train.labels), data.test.labels.tolist()) == (4, [0, 1])
    found = [*data.train.points, *data.test.points]
    for cloud in unit_sphere(points):
        nearest = min(np.abs(cloud - other).max() for other in found)
        assert nearest < 1e-4


def test_clouds_of_lidar_end_to_end_with_offsets(root, capsys):
    folder = root / "lidar"
    folder.mkdir()
    stored = {}
    for split, seed in (("train", 0), ("test", 1)):
        random = np.random.default_rng(seed)
        sizes = random.integers(20, 90, 6)
        # Map coordinates, which float32 would round to half metres.
        points = random.normal(size=(sizes.sum(), 4)) + np.array([4.5e6, 5.2e6, 0, 0])
        stored[split] = np.split(points[:, :3], np.cumsum(sizes)[:-1])
        labels = np.array(["car", "tree", "pole"])[np.arange(6) % 3]
        np.savez(folder / f"{split}.npz", points=points, offsets=np.concatenate([[0], np.cumsum(sizes)]), labels=labels)
    section = added(folder, capsys)
    data = opened(section, **SMALL)
    assert data.class_names == ("car", "pole", "tree")
    assert data.test.labels.tolist() == [0, 2, 1, 0, 2, 1]
    assert data.test.points.shape == (6, 64, 3)
    for cloud, original in zip(data.test.points, stored["test"], strict=True):
        assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1, abs=1e-6)
        assert len(np.unique(cloud, axis=0)) == min(64, len(original))
    short = sum(len(cloud) < 32 for cloud in stored["train"])
    fewest = min(len(cloud) for cloud in stored["train"])
    assert (short > 0) == any(
        f"{short} of 6 training clouds have fewer than 32 points (the fewest {fewest})" in m for m in data.marks
    )


def write_crops(path: Path, size: int, seed: int, **more) -> None:
    with h5py.File(path, "w") as file:
        file["crops/points"] = clouds(8, size, seed)
        file["crops/category"] = (np.arange(8) % 4)[:, None].astype(np.uint8)
        for name, values in more.items():
            file[name] = values


def test_crops_with_their_own_validation_file_and_their_own_keys(root):
    folder = root / "crops"
    folder.mkdir()
    for seed, split in enumerate(("train", "val", "test")):
        write_crops(folder / f"{split}.h5", 64, seed, scene=np.arange(8) // 2 * 4 + np.arange(8) % 4 + 100 * seed)
    (folder / "names.txt").write_text("bed\ndesk\nsofa\nlamp\n")
    section = {
        "name": "files", "root": "crops", "num_classes": 4, "train": "train.h5", "val": "val.h5", "test": "test.h5",
        "points_key": "crops/points", "labels_key": "crops/category", "groups_key": "scene", "class_names": "names.txt",
    }  # fmt: skip
    data = opened(section, **SMALL)
    assert data.class_names == ("bed", "desk", "sofa", "lamp")
    assert (len(data.train.labels), len(data.val.labels), len(data.test.labels)) == (8, 8, 8)
    assert np.array_equal(data.val.points, unit_sphere(clouds(8, 64, 1)))
    assert data.config.has_validation and data.has_own_val
    seen, labels = data.eval_batch(data.val, np.arange(3))
    assert labels.tolist() == [0, 1, 2]
    rows = {tuple(row) for row in np.round(data.val.points[1] - data.val.points[1].mean(axis=0), 2)}
    assert len(seen[1]) == 32 and len(rows) == 64
    assert facts_of(config(**(section | SMALL))).sizes == {"train": 8, "val": 8, "test": 8}


def test_several_files_of_arrays_are_one_split(root, capsys):
    folder = root / "parts"
    folder.mkdir()
    for number, name in enumerate(("ply_train0", "ply_train1", "ply_test0")):
        write_crops(folder / f"{name}.h5", 64, number)
    (folder / "train_files.txt").write_text("/home/somebody/parts/ply_train0.h5\nply_train1.h5\n")
    (folder / "test_files.txt").write_text("ply_test0.h5\n")
    section = {"name": "files", "root": "parts", "num_classes": 4, **SMALL, "points_key": "crops/points"}
    listed = dataset(**section, labels_key="crops/category", train="train_files.txt", test="test_files.txt")
    matched = dataset(**section, labels_key="crops/category", train="ply_train*.h5", test="ply_test0.h5")
    assert len(listed.train.labels) == 16
    assert np.array_equal(listed.train.points, matched.train.points)


def test_modelnets_text_files_are_read_by_its_lists(root, capsys):
    folder = root / "modelnet40_normal_resampled"
    numbers = {}
    for number, name in enumerate(("night_stand", "airplane", "car")):
        for item in range(4):
            rows = np.random.default_rng([number, item]).normal(size=(50, 6))
            path = folder / name / f"{name}_{item:04d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path, rows, fmt="%.6f", delimiter=",")
            numbers[path.stem] = np.round(rows[:, :3], 6)
    lists = {"train": [0, 1, 2], "test": [3]}
    for split, items in lists.items():
        lines = [f"{name}_{item:04d}" for name in ("night_stand", "airplane", "car") for item in items]
        (folder / f"modelnet40_{split}.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
        (folder / f"modelnet10_{split}.txt").write_text(f"night_stand_000{items[0]}\n")
    (folder / "modelnet40_shape_names.txt").write_text("airplane\ncar\nnight_stand\n")
    (folder / "modelnet10_shape_names.txt").write_text("night_stand\n")
    section = added(folder, capsys)
    assert (section["train"], section["class_names"]) == ("modelnet40_train.txt", "modelnet40_shape_names.txt")
    data = opened(section)
    assert data.class_names == ("airplane", "car", "night_stand")
    assert data.train.labels.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.test.points[1], unit_sphere(numbers["airplane_0003"][None])[0])


def test_real_samples_of_modelnet_are_read(data_root, tmp_path, monkeypatch):
    import tarfile

    with tarfile.open(data_root / "format_samples" / "modelnet_off_pcd_samples.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    found = facts_of(config("files", root="pcd", num_classes=10, presample=1024))
    assert (found.sizes, found.classes) == ({"train": 30, "test": 20}, {"train": 10, "test": 10})
    for path in sorted((tmp_path / "off").rglob("*.off")):
        assert read_cloud(path, 500).shape == (500, 3)


def test_one_file_with_keys_for_each_split_or_with_the_split_of_each_cloud(root, capsys):
    points = clouds(12, 40)
    labels = np.arange(12) % 3
    names = np.array(["cup", "jar", "pan"])
    (root / "keys").mkdir()
    (root / "column").mkdir()
    parts = {"X_train": points[:8], "y_train": labels[:8], "X_test": points[8:], "y_test": labels[8:]}
    np.savez(root / "keys" / "all.npz", **parts, classes=names)
    splits = np.array(["test"] * 4 + ["train"] * 8)
    sizes = np.full(12, 40)
    np.savez(
        root / "column" / "objects.npz", points=points.reshape(-1, 3), sizes=sizes, label=labels, split=splits, class_names=names
    )
    first, second = added(root / "keys", capsys), added(root / "column", capsys)
    assert (first["train"], first["test"], first["points_key"], first["labels_key"]) == (
        "all.npz", "all.npz", "X_{split}", "y_{split}",
    )  # fmt: skip
    assert (second["train"], second["test"], second["split_key"]) == ("objects.npz", "objects.npz", "split")
    one, other = opened(first), opened(second)
    assert one.class_names == other.class_names == ("cup", "jar", "pan")
    assert np.array_equal(one.test.points, unit_sphere(points[8:]))
    assert np.array_equal(other.test.points, unit_sphere(points[:4]))
    assert other.train.labels.tolist() == labels[4:].tolist()


def test_pixels_of_a_depth_camera_that_saw_nothing_are_no_points(tmp_path):
    points = clouds(1, 20)[0]
    points[3] = np.nan
    write_cloud(tmp_path / "image.pcd", points)
    assert np.array_equal(read_cloud(tmp_path / "image.pcd", 100), np.delete(points, 3, axis=0))
    points[5, 0] = np.nan
    write_cloud(tmp_path / "image.pcd", points)
    with pytest.raises(ValueError, match="not finite: nan at point 4"):
        read_cloud(tmp_path / "image.pcd", 100)


def test_names_that_yaml_would_read_otherwise_are_quoted(root, capsys):
    for number, split in enumerate(("shapes_train", "shapes_test")):
        for name in ("true", "Große Tüte"):
            write_cloud(root / "2024" / split / name / "a b.npy", clouds(2, 40, number)[int(name == "true")])
    section = added(root / "2024", capsys)
    assert (section["root"], section["train"], section["test"]) == ("2024", "shapes_train", "shapes_test")
    assert opened(section).class_names == ("Große Tüte", "true")


def test_files_that_the_suggested_pattern_leaves_out_are_counted(root, capsys):
    for split, seed in (("train", 0), ("test", 1)):
        for name, number in (("bus", 0), ("car", 1)):
            some = clouds(6, 40, seed)
            for index, suffix in enumerate((".npy", ".npy", ".xyz")):
                write_cloud(root / "mixed" / split / name / f"{index}{suffix}", some[3 * number + index])
    assert data_command(["add", str(root / "mixed")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "# files of several kinds: 8 .npy, 4 .xyz; pattern '*.npy' reads one of them, '*' all" in lines
    assert "# train: 4 clouds of 2 classes, 40 points each" in lines


def test_a_class_may_be_called_as_a_split(root, capsys):
    for number, (name, split) in enumerate((name, split) for name in ("bus", "train") for split in ("a", "b")):
        write_cloud(root / "vehicles" / name / f"{split}.npy", clouds(1, 40, number)[0])
    assert added(root / "vehicles", capsys)["train"] == "."


# The number of points


def test_a_part_of_a_cloud_does_not_depend_on_the_order_of_its_points_nor_on_its_place():
    cloud = clouds(1, 300)[0].astype(np.float64)
    part = resized(cloud, 100)
    assert len(np.unique(part, axis=0)) == 100
    assert {tuple(point) for point in part} < {tuple(point) for point in cloud}
    shuffled = np.random.default_rng(5).permutation(cloud)
    assert np.array_equal(resized(shuffled, 100), part)
    assert resized(cloud * 2 + 8, 100) == pytest.approx(part * 2 + 8)


def test_a_copy_in_the_test_split_is_found_though_a_part_of_it_is_taken(root):
    cloud = clouds(8, 200)
    for number in range(4):
        write_cloud(root / "set" / "train" / f"c{number % 2}" / f"{number}.npy", cloud[number])
        write_cloud(root / "set" / "test" / f"c{number % 2}" / f"{number}.npy", cloud[4 + number])
    write_cloud(root / "set" / "test" / "c0" / "copy.npy", np.random.default_rng(1).permutation(3 * cloud[0]))
    assert facts_of(config("files", root="set", num_classes=2, **SMALL)).shared == {"test": 1}


@pytest.mark.parametrize(
    ("numbers", "starts"),
    [
        ([0, 3, 7], [0, 3, 7]),  # starts and the end
        ([0, 3], [0, 3, 7]),  # starts
        ([3, 7], [0, 3, 7]),  # ends
        ([3, 4], [0, 3, 7]),  # sizes
    ],
)
def test_offsets_are_starts_or_ends_or_sizes(numbers, starts):
    assert starts_of(np.array(numbers), 7, "file").tolist() == starts


@pytest.mark.parametrize(("numbers", "message"), [([1, 3], "neither starts"), ([0, 3, 3, 7], "cloud 1 starts at 3 and ends at 3")])
def test_other_offsets_are_refused(numbers, message):
    with pytest.raises(ValueError, match=f"file.*{message}"):
        starts_of(np.array(numbers), 7, "file")


# What is refused


def test_what_is_wrong_with_a_file_is_said_with_its_name_and_line(root):
    good = root / "set" / "train" / "a" / "1.xyz"
    for number, (split, name) in enumerate((s, c) for s in ("train", "test") for c in "ab"):
        write_cloud(root / "set" / split / name / "1.xyz", clouds(1, 40, number)[0])

    def refused(text: str, **fields) -> None:
        with pytest.raises((UnreadableDataError, MissingDataError), match=text):
            facts_of(config("files", **({"root": "set", "num_classes": 2} | SMALL | fields)))

    refused("num_classes: 3 asked for, 2 are there: a, b", num_classes=3)
    refused(r"dataset.train: 'trian': .*Did you mean 'train'\? set holds", train="trian")
    refused("dataset.val: 'val'", val="val")
    refused("leads out of dataset.root", train="../set/train")
    refused(r"hold no file called '\*.obj'; a holds 1.xyz", pattern="*.obj")
    refused("no folder .*/sett .dataset.root below.*Did you mean 'set'", root="sett")

    text = good.read_text()
    good.write_text(text.replace("\n", " 1 2\n", 1))
    refused(r"1\.xyz, line 2: 3 columns, but 5 in line 1")
    good.write_text("1 2 3\n")
    refused(r"1\.xyz: the cloud has 1 points, at least 4")
    good.write_text(text + "nan 0 0\n")
    refused(r"1\.xyz: the cloud holds a coordinate that is not finite: nan at point 40")
    good.write_text(text)

    lists = root / "set" / "list.txt"
    lists.write_text("train/a/1.xyz\ntrain/b/2.xyz\n")
    refused(r"list.txt, line 2: names 'train/b/2.xyz', which is not in .*Did you mean 'train/b/1.xyz'", train="list.txt")
    lists.write_text("train/a/1\ntrain/a/1.xyz b\n")
    refused(r"list.txt, line 2: .* is listed in line 1 already", train="list.txt")
    (root / "set" / "train" / "a" / "2.npy").write_bytes(b"no array")
    refused(r"files of several kinds: 4 .xyz, 1 .npy; set dataset.pattern")
    refused(r"2.npy: not a readable .npy file", pattern="*")


def test_damaged_meshes_and_clouds_are_refused_by_name(tmp_path):
    cases = {
        "cut.off": ("OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n", "announces 4 vertices and 2 faces, 5 lines follow"),
        "word.off": ("OFF\n3 1 0\n0 0 0\n1 0 zz\n1 1 0\n3 0 1 2\n", "could not convert string to float: 'zz'"),
        "nan.off": ("OFF\n3 1 0\n0 0 0\n1 0 nan\n1 1 0\n3 0 1 2\n", "vertex 1 has a coordinate that is not finite"),
        "flat.off": ("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "the 1 triangles have no area"),
        "index.obj": ("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 9\n", "not a readable OBJ mesh"),
        "points.obj": ("v 0 0 0\nv 1 0 0\nv 1 1 0\n", "holds no face"),
        "open.stl": ("solid x\n facet normal 0 0 1\n", "holds no face"),
        "cut.ply": ("ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1\n", "early end-of-file"),
        "cut.pcd": ("# .PCD\nVERSION 0.7\nFIELDS x y z\n", "not a readable PCD file"),
        "cut.las": ("LASF", "not a readable LAS file"),
        "pts.pts": ("3\n0 0 0\n1 0 0\n", "line 1: announces 3 points, 2 lines follow"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            read_cloud(path, 100)
    points = clouds(1, 50)[0]
    write_cloud(tmp_path / "whole.pcd", points)
    for name in ("whole.pcd",):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[: len(raw) // 2])
        with pytest.raises(ValueError, match=name):
            read_cloud(tmp_path / name, 100)


def test_keys_of_arrays_are_named_when_they_are_refused(root):
    folder = root / "crops"
    folder.mkdir()
    write_crops(folder / "train.h5", 40, 0)
    write_crops(folder / "test.h5", 40, 1)
    np.savez(folder / "objects.npz", points=np.array([np.zeros((3, 3)), 1], dtype=object), labels=np.zeros(2))

    def refused(text: str, **fields) -> None:
        given = {"root": "crops", "num_classes": 4, "train": "train.h5", "test": "test.h5", **SMALL}
        with pytest.raises(UnreadableDataError, match=text):
            facts_of(config("files", **(given | fields)))

    refused("none of the usual names .*; set dataset.points_key to one of its keys: crops/category, crops/points")
    refused("no key 'crop', which dataset.points_key names; keys: crops/category", points_key="crop")
    keys = {"points_key": "crops/points", "labels_key": "crops/category"}
    refused("cloud 3 has label 3, allowed 0 to 2", num_classes=3, **keys)
    refused("num_points: 32|of one size.*leave out dataset.offsets_key", offsets_key="crops/category", **keys)
    refused("points is no array of numbers .*end to end.*with offsets", train="objects.npz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ["xyz", "normals"]}, "Did you mean 'normal'?"),
        ({"features": ["normal"]}, "must be xyz and then each of normal, color, intensity at most once"),
        ({"test": None}, "set test, or test_fraction above 0"),
        ({"test_fraction": 0.2}, "set one of the two"),
        ({"val": "val", "val_fraction": 0.2}, "val names a validation split of its own"),
        ({"num_classes": 0}, "must be at least 2, got 0"),
        ({"stored_points": 100}, "must be at least num_points (1024), got 100"),
        ({"root": ""}, "must be set"),
        ({"patern": "*.obj"}, "Did you mean 'pattern'"),
    ],
)
def test_a_section_that_cannot_mean_what_it_says_is_refused(fields, message):
    given = {"name": "files", "root": "set", "num_classes": 2, **fields}
    assert [text for _, text in component_problems("dataset", given) if message in text]


def test_a_folder_that_cannot_be_read_is_refused_with_what_was_looked_for(root, capsys):
    (root / "notes").mkdir()
    (root / "notes" / "readme.md").write_text("nothing")
    assert data_command(["add", str(root / "notes")]) == 2
    assert "no layout that is read. Looked for: lists" in capsys.readouterr().err
    assert data_command(["add"]) == 2
    assert "add needs the folder" in capsys.readouterr().err


# A trial


def test_a_strangers_folder_is_trained_on_from_what_the_command_prints(root, store, tmp_path, capsys):
    """End to end: two kinds of meshes that anything can tell apart, and a validation split of their own."""
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for number in range(count):
            seed = number + 100 * len(split)
            for name, mesh in (("box", boxes(seed)), ("ball", trimesh.creation.icosphere(radius=1 + seed))):
                folder = root / "shapes" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                mesh.export(folder / f"{number}.obj")
    section = added(root / "shapes", capsys)
    # Balls of every size are copies of one another.
    section |= SMALL | {"allow_overlap": True}
    lines = [
        "name: stranger",
        "base:",
        f"  dataset: {json.dumps(section)}",
        "  network: pointnet",
        "  train: {epochs: 1, batch_size: 8, warmup_epochs: 0}",
        "rows: [{label: PointNet}]",
        "seeds: [0]",
        "protocol: best_val",
    ]
    path = tmp_path / "stranger.yaml"
    path.write_text("\n".join(lines))
    assert run_command([str(path), "--inline", "--tracking-uri", "none", "--store", str(store)]) == 0, capsys.readouterr().err
    records = [json.loads(file.read_text()) for file in store.rglob("record.json")]
    assert [(record["dataset"]["num_train"], record["dataset"]["num_val"]) for record in records] == [(16, 8)]
    assert "test clouds are training clouds (allowed by dataset.allow_overlap)" in " ".join(records[0]["marks"])
