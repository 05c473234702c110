"""Normals, colours and intensity behind the coordinates: read from every kind of file, changed with the cloud, seen by networks."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
import yaml

from pointsweep.cli.data import main as data_command
from pointsweep.cli.run import main as run_command
from pointsweep.config.networks import PointNet2Config, PointNeXtConfig
from pointsweep.config.validation import component_problems
from pointsweep.data.readers.cloud_files import read_cloud
from pointsweep.data.readers.clouds import unit_sphere
from pointsweep.errors import ConfigError
from pointsweep.models.networks.pointnet2 import PointNet2
from pointsweep.models.networks.pointnext import PointNeXt
from pointsweep.sweep.sweep import load
from tests.data.made import clouds, dataset

SMALL = {"num_points": 32, "presample": 40, "stored_points": 64}


def planes(count: int, seed: int = 0) -> np.ndarray:
    """Clouds (count, 60, 6) of two planes each, with their normals, of lengths other than 1."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows = []
        for _ in range(2):
            along = np.linalg.qr(random.normal(size=(3, 3)))[0]
            places = random.uniform(-1, 1, (30, 2)) @ along[:2] + random.normal(size=3)
            rows.append(np.concatenate([places, np.tile(3 * along[2], (30, 1))], axis=1))
        found.append(np.concatenate(rows))
    return np.stack(found)


def write(root, stored: np.ndarray) -> dict:
    """Text files in folders of classes; the section that reads them."""
    for number, rows in enumerate(stored):
        split = "test" if number % 4 == 3 else "train"
        path = root / "set" / split / ("cup", "jar")[number // 4 % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, rows, fmt="%.8f")
    return {"name": "files", "root": "set", "num_classes": 2, "features": ("xyz", "normal"), **SMALL}


def test_columns_behind_the_coordinates_are_normals(root):
    stored = planes(8)
    data = dataset(**write(root, stored))
    plain = dataset(**write(root, stored) | {"features": ("xyz",)})
    assert data.train.points.shape == (6, 60, 6)
    assert np.array_equal(data.train.points[:, :, :3], plain.train.points)
    assert data.digest != plain.digest
    np.testing.assert_allclose(data.test.points[0, :, :3], unit_sphere(stored[3:4, :, :3])[0], atol=1e-6)
    np.testing.assert_allclose(data.test.points[0, :, 3:], stored[3, :, 3:] / 3, atol=1e-6)


@pytest.mark.parametrize("rotate", ["none", "gravity", "all"])
def test_normals_stay_at_right_angles_to_the_surface_when_a_cloud_is_stretched_and_turned(root, rotate):
    section = write(root, planes(8)) | {"rotate": rotate, "scale": (0.5, 2.0), "num_points": 60, "presample": 60}
    data = dataset(**section)
    points, _ = data.train_batch(np.arange(6), torch.Generator().manual_seed(1))
    before = torch.from_numpy(np.array(data.train.points))
    assert not torch.allclose(points[:, :, 3:], before[:, :, 3:], atol=0.05)
    assert torch.allclose(points[:, :, 3:].norm(dim=2), torch.ones(6, 60), atol=1e-5)
    checked = 0
    for cloud in points.double():
        for normal in torch.unique(cloud[:, 3:].round(decimals=3), dim=0):
            own = (cloud[:, 3:] - normal).norm(dim=1) < 0.01
            offsets = cloud[own, :3] - cloud[own, :3].mean(dim=0)
            if own.sum() >= 10:
                across = torch.linalg.svd(offsets, full_matrices=False)[2][2]  # at right angles to the plane
                assert abs(float(across @ cloud[own, 3:].mean(dim=0))) == pytest.approx(1, abs=1e-4)
                checked += 1
    assert checked >= 12


def test_evaluation_sees_the_stored_features(root):
    data = dataset(**write(root, planes(8)))
    points, _ = data.eval_batch(data.test, np.array([0]))
    assert points.shape == (1, 32, 6)
    known = {tuple(normal) for normal in data.test.points[0, :, 3:]}
    assert {tuple(normal) for normal in points[0, :, 3:].numpy()} <= known


def test_fields_of_ply_pcd_and_las_are_read_by_name(tmp_path):
    plyfile, pypcd4, laspy = (pytest.importorskip(name) for name in ("plyfile", "pypcd4", "laspy"))
    places = clouds(1, 20)[0]
    colors = np.random.default_rng(3).integers(0, 256, (20, 3)).astype(np.uint8)
    fields = [(axis, "f4") for axis in "xyz"] + [("intensity", "u2")] + [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.zeros(20, dtype=fields)
    for axis, values in zip("xyz", places.T, strict=True):
        rows[axis] = values
    for name, values in zip(("red", "green", "blue"), colors.T, strict=True):
        rows[name] = values
    rows["intensity"] = np.arange(20) * 1000
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(tmp_path / "a.ply")
    found = read_cloud(tmp_path / "a.ply", 10, features=("intensity", "color"))
    expected = np.concatenate([places, np.arange(20)[:, None] * 1000 / 65535, colors / 255], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)

    packed = pypcd4.PointCloud.encode_rgb(colors)
    pypcd4.PointCloud.from_xyzrgb_points(np.column_stack([places, packed])).save(tmp_path / "a.pcd")
    np.testing.assert_allclose(read_cloud(tmp_path / "a.pcd", 10, features=("color",))[:, 3:], colors / 255, atol=1e-6)

    las = laspy.LasData(laspy.LasHeader(point_format=2, version="1.2"))
    las.x, las.y, las.z = places.T
    las.red, las.green, las.blue = (colors.astype(np.uint16) * 257).T
    las.write(tmp_path / "a.las")
    np.testing.assert_allclose(read_cloud(tmp_path / "a.las", 10, features=("color",))[:, 3:], colors / 255, atol=1e-6)
    with pytest.raises(ValueError, match=r"a\.las.*no normal \(fields nx, ny, nz or normal_x, normal_y, normal_z\)"):
        read_cloud(tmp_path / "a.las", 10, features=("normal",))


def test_the_normals_of_a_mesh_are_those_of_its_faces(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box(extents=(2, 2, 2)).export(tmp_path / "box.off")
    found = read_cloud(tmp_path / "box.off", 300, features=("normal",))
    # Each point lies on the side of the cube that its normal points out of.
    np.testing.assert_allclose((found[:, :3] * found[:, 3:]).sum(axis=1), np.ones(300), atol=1e-6)
    with pytest.raises(ValueError, match=r"box\.off: a mesh .* normals alone are known; dataset\.features asks for color"):
        read_cloud(tmp_path / "box.off", 300, features=("color",))


def test_arrays_of_their_own_and_further_columns_are_the_same(root):
    places, normals = clouds(8, 40), np.random.default_rng(1).normal(size=(8, 40, 3)).astype(np.float32)
    for folder in ("beside", "behind"):
        (root / folder).mkdir()
        for split, rows in (("train", slice(0, 6)), ("test", slice(6, 8))):
            with h5py.File(root / folder / f"{split}.h5", "w") as file:
                file["label"] = np.arange(8)[rows] % 2
                if folder == "beside":
                    file["data"], file["normal"] = places[rows], normals[rows]
                else:
                    file["data"] = np.concatenate([places, normals], axis=2)[rows]
    section = {"name": "files", "num_classes": 2, "train": "train.h5", "test": "test.h5", "features": ("xyz", "normal"), **SMALL}
    one, other = (dataset(**section, root=folder) for folder in ("beside", "behind"))
    np.testing.assert_allclose(one.train.points, other.train.points, atol=1e-6)
    lengths = np.linalg.norm(normals[6:], axis=2, keepdims=True)
    np.testing.assert_allclose(one.test.points[:, :, 3:], normals[6:] / lengths, atol=1e-6)


def test_missing_columns_and_features_that_are_not_finite_are_named(root):
    stored = planes(8)
    section = write(root, stored)
    path = root / "set" / "train" / "cup" / "1.txt"
    np.savetxt(path, stored[1, :, :5])
    with pytest.raises(ValueError, match=r"1\.txt: dataset\.features \[xyz, normal\] are 6 columns, found 5"):
        dataset(**section)
    np.save(path.with_suffix(".npy"), np.where(np.arange(6) == 4, np.nan, stored[1]))
    path.unlink()
    with pytest.raises(ValueError, match=r"1\.npy: the cloud has a feature that is not finite: nan at point 0"):
        dataset(**section, pattern="*")


@pytest.mark.parametrize("asked", [["normal"], ["xyz", "normal", "normal"], ["xyz", "normals"], ["normal", "xyz"]])
def test_other_lists_of_features_are_refused(asked):
    problems = component_problems("dataset", {"name": "files", "root": "set", "num_classes": 2, "features": asked})
    assert problems and all(path == ("features",) or "features" in str(path) for path, *_ in problems)


@pytest.mark.parametrize(
    ("network", "settings", "each"),
    [(PointNet2, PointNet2Config(), 64), (PointNeXt, PointNeXtConfig(), 32)],
)
def test_networks_have_one_more_weight_of_the_first_layer_for_each_channel_and_see_it(network, settings, each):
    plain, more = network(settings, 10, "fixed"), network(settings, 10, "fixed", 3)
    counts = [sum(p.numel() for p in made.parameters()) for made in (plain, more)]
    assert counts[1] - counts[0] == 3 * each
    points = torch.randn(2, 256, 6, generator=torch.Generator().manual_seed(0))
    more.eval()
    other = points.clone()
    other[:, :, 5] += 1
    assert not torch.allclose(more(points), more(other))


SWEEP = """
name: normals
base: {dataset: {name: files, root: set, num_classes: 2, num_points: 32, presample: 40, stored_points: 64}, network: pointnet2}
rows:
  - {label: places}
  - {label: places and normals, dataset.features: [xyz, normal]}
settings: [{when: {network: pointnet2}, network.radii: [0.5, 1.0], network.neighbours: 8}]
seeds: 1
"""


def test_a_sweep_trains_with_and_without_normals(root, tmp_path, store, capsys):
    write(root, planes(24))
    file = tmp_path / "normals.yaml"
    file.write_text(SWEEP + "profiles: {}\n")
    arguments = [str(file), "train.epochs=1", "train.batch_size=6", "train.warmup_epochs=0"]
    assert run_command([*arguments, "--inline", "--tracking-uri", "none"]) == 0, capsys.readouterr()
    records = [json.loads(path.read_text()) for path in store.glob("trials/*/record.json")]
    counts = sorted(record["parameters"]["trainable"] for record in records)
    assert counts[1] - counts[0] == 3 * 64


@pytest.mark.parametrize("model", ["network: pointnet", "network: dgcnn", "tokenizer: point_pn_light, backbone: tiny, method: lora"])
def test_models_of_coordinates_alone_are_refused_by_name(tmp_path, model):
    file = tmp_path / "normals.yaml"
    base = "base: {dataset: {name: files, root: set, num_classes: 2, features: [xyz, normal]}, " + model + "}\n"
    file.write_text("name: x\n" + base + "rows: [{label: a}]\nseeds: 1\n")
    with pytest.raises(
        ConfigError, match=r"normal: .* takes coordinates alone; allowed: \[xyz\], or one of the networks pointnet2, pointnext"
    ):
        load(file)


def hinted(folder, capsys) -> list[str]:
    """The features of the commented line that `pointsweep data add` prints; none where there is no line."""
    assert data_command(["add", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "features" not in yaml.safe_load(printed)["dataset"]  # most models refuse them
    lines = [line.removeprefix("  # ") for line in printed.splitlines() if line.startswith("  # features:")]
    if not lines:
        return []
    assert "for the networks pointnet2, pointnext" in lines[0]
    section = yaml.safe_load(printed)["dataset"] | yaml.safe_load(lines[0])
    assert not component_problems("dataset", section)
    data = dataset(**{name: tuple(value) if isinstance(value, list) else value for name, value in section.items()})
    assert data.train.points.shape[2] == 3 + data.config.feature_channels
    return list(data.config.point_features)


RANDOM = np.random.default_rng(5)
UNIT = (lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True))(RANDOM.normal(size=(60, 3)))
BYTES = RANDOM.integers(0, 256, (60, 3))


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ([UNIT], ["normal"]),
        ([BYTES], ["color"]),
        ([BYTES / 255], ["color"]),
        ([UNIT, BYTES], ["normal", "color"]),
        ([RANDOM.uniform(0, 1, (60, 1))], ["intensity"]),
        ([BYTES, RANDOM.uniform(0, 4000, (60, 1))], ["color", "intensity"]),
        ([UNIT, RANDOM.integers(0, 4, (60, 1))], ["normal"]),  # ShapeNetPart's last column is a part
        ([RANDOM.normal(size=(60, 3))], []),
        ([RANDOM.integers(0, 6, (60, 1))], []),
        ([], []),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "npy"])
def test_data_add_looks_for_features_in_columns(root, capsys, kind, columns, found):
    for number, name in enumerate(("cup", "jar") * 4):
        path = root / "set" / ("train", "test")[number // 4] / name / f"{number}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.concatenate([clouds(1, 60, number)[0], *columns], axis=1)
        np.savetxt(path, rows, fmt="%.4f") if kind == "txt" else np.save(path, rows)
    assert hinted(root / "set", capsys) == found


def test_data_add_finds_features_by_their_names(root, capsys):
    plyfile, trimesh = (pytest.importorskip(name) for name in ("plyfile", "trimesh"))
    rows = np.zeros(60, dtype=[(name, "f4") for name in ("x", "y", "z", "nx", "ny", "nz", "intensity")])
    for axis, values in zip(rows.dtype.names, np.random.default_rng(2).normal(size=(7, 60)), strict=True):
        rows[axis] = values
    for split, number in (("train", 0), ("test", 1)):
        for name in ("cup", "jar"):
            for folder in ("scans", "meshes"):
                (root / folder / split / name).mkdir(parents=True)
            place = root / "scans" / split / name / f"{number}.ply"
            plyfile.PlyData([plyfile.PlyElement.describe(np.roll(rows, number), "vertex")]).write(place)
            trimesh.creation.box(extents=(1 + number, 2, 3)).export(root / "meshes" / split / name / "box.off")
    (root / "arrays").mkdir()
    for split in ("train", "test"):
        with h5py.File(root / "arrays" / f"{split}.h5", "w") as file:
            file["data"], file["label"] = clouds(4, 60, len(split)), np.arange(4) % 2
            file["rgb"] = np.random.default_rng(1).integers(0, 256, (4, 60, 3)).astype(np.uint8)
    assert hinted(root / "scans", capsys) == ["normal", "intensity"]
    assert hinted(root / "meshes", capsys) == ["normal"]
    assert hinted(root / "arrays", capsys) == ["color"]
