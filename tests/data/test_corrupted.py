"""ModelNet-C and ScanObjectNN-C: every corruption against its published parameters, and the two data sets made of them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from pointsweep.config import registry
from pointsweep.config.tokenizers import PointPNLightConfig
from pointsweep.config.validation import component_problems
from pointsweep.data import corruptions
from pointsweep.data.corruptions import CORRUPTIONS, corrupt
from pointsweep.data.readers.clouds import unit_sphere
from pointsweep.errors import MissingDataError
from pointsweep.models.tokenizers import PointPNLight
from pointsweep.utils.array_cache import content_digest
from tests.data.made import clouds, dataset, write_h5, write_modelnet, write_scanobjectnn

SEVERITIES = range(5)
CLEAN = unit_sphere(clouds(6, 1024, seed=8))


def rows(points: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(points, dtype=np.float64).round(5) + 0.0}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_sizes_are_the_published_ones(severity):
    sizes = {name: corrupt(CLEAN, name, severity).shape[1] for name in CORRUPTIONS}
    left = (768, 640, 512, 384, 256)[severity]
    more = 100 * (severity + 1)
    assert sizes == {
        "scale": 1024, "jitter": 1024, "rotate": 1024, "dropout_global": left, "dropout_local": 1024 - more,
        "add_global": 1024 + 10 * (severity + 1), "add_local": 1024 + more,
    }  # fmt: skip


@pytest.mark.parametrize("severity", SEVERITIES)
def test_scale_stretches_the_axes_and_returns_to_the_unit_sphere(severity):
    limit = (1.6, 1.7, 1.8, 1.9, 2.0)[severity]
    for before, after in zip(CLEAN, corrupt(CLEAN, "scale", severity), strict=True):
        fits = [np.polyfit(before[:, axis], after[:, axis], 1) for axis in range(3)]
        for axis, fit in enumerate(fits):
            np.testing.assert_allclose(np.polyval(fit, before[:, axis]), after[:, axis], atol=1e-5)
        factors = np.array([fit[0] for fit in fits])
        assert factors.min() > 0
        assert 1.01 < factors.max() / factors.min() <= limit**2
        assert np.linalg.norm(after, axis=1).max() == pytest.approx(1, abs=1e-5)
        assert np.abs(after.mean(axis=0)).max() < 1e-5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jitter_has_its_standard_deviation(severity):
    noise = corrupt(CLEAN, "jitter", severity) - CLEAN
    assert noise.std() == pytest.approx(0.01 * (severity + 1), rel=0.03)
    assert abs(noise.mean()) < 0.001 * (severity + 1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_rotations_turn_about_every_axis_within_their_limit(severity):
    limit = math.radians(6 * (severity + 1))
    found = []
    for before, after in zip(CLEAN, corrupt(CLEAN, "rotate", severity), strict=True):
        matrix = np.linalg.lstsq(before, after, rcond=None)[0]
        np.testing.assert_allclose(before @ matrix, after, atol=1e-5)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-5)
        # Rz Ry Rx: its last row is (-sin y, cos y sin x, cos y cos x), its first column (cos z cos y, sin z cos y, -sin y).
        found.append((math.atan2(matrix[2, 1], matrix[2, 2]), -math.asin(matrix[2, 0]), math.atan2(matrix[1, 0], matrix[0, 0])))
    assert limit / 2 < np.abs(found).max() <= limit + 1e-5


@pytest.mark.parametrize("name", ["dropout_global", "dropout_local"])
def test_dropping_leaves_points_of_the_cloud_none_twice(name):
    for before, after in zip(CLEAN, corrupt(CLEAN, name, 3), strict=True):
        assert len(rows(after)) == len(after)
        assert rows(after) < rows(before)


def test_dropout_local_drops_the_points_nearest_to_one_of_them(monkeypatch):
    monkeypatch.setattr(corruptions, "cluster_sizes", lambda severity, random: [100])
    before, after = CLEAN[0].astype(np.float64), corruptions.dropout_local(CLEAN[0].astype(np.float64), 0, np.random.default_rng(0))
    gone = rows(before) - rows(after)
    assert len(gone) == 100
    assert any(rows(before[np.argsort(((before - point) ** 2).sum(axis=1))[:100]]) == gone for point in before)


def test_cluster_sizes_add_up_over_one_to_seven_clusters():
    made = [corruptions.cluster_sizes(2, np.random.default_rng(seed)) for seed in range(200)]
    assert {sum(sizes) for sizes in made} == {300}
    assert {len(sizes) for sizes in made} == set(range(1, 8))


def test_added_points_are_uniform_in_the_unit_ball():
    added = np.concatenate([corruptions.add_global(np.zeros((0, 3)), 4, np.random.default_rng(seed)) for seed in range(100)])
    volume = np.linalg.norm(added, axis=1) ** 3
    assert (volume.max() <= 1, len(added)) == (True, 5000)
    np.testing.assert_allclose(np.quantile(volume, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    assert np.abs(added.mean(axis=0)).max() < 0.03


def test_added_clusters_lie_about_points_of_the_cloud_inside_the_sphere(monkeypatch):
    monkeypatch.setattr(corruptions, "cluster_sizes", lambda severity, random: [4000, 6000])
    cloud = np.array([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]])
    added = corruptions.add_local(cloud, 0, np.random.default_rng(1))[2:]
    assert np.linalg.norm(added, axis=1).max() <= 1
    for part in (added[:4000], added[4000:]):
        assert np.abs(np.abs(part.mean(axis=0)) - [0.5, 0, 0]).max() < 0.01
        assert (part.std(axis=0) > 0.07).all() and (part.std(axis=0) < 0.13).all()
    assert np.sign(added[:4000].mean(axis=0)[0]) != np.sign(added[4000:].mean(axis=0)[0])


def test_a_point_outside_the_sphere_is_inverted_at_it(monkeypatch):
    monkeypatch.setattr(corruptions, "cluster_sizes", lambda severity, random: [1])
    random, again = np.random.default_rng(3), np.random.default_rng(3)
    again.choice(1, 1, replace=False)
    spread = again.uniform(0.075, 0.125, 1)
    outside = np.array([3.0, 0, 0]) + spread * again.standard_normal((1, 3))[0]
    np.testing.assert_allclose(corruptions.add_local(np.array([[3.0, 0, 0]]), 0, random)[1], outside / (outside @ outside))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_cloud_is_corrupted_alike_whatever_stands_beside_it(name):
    whole = corrupt(CLEAN, name, 2)
    np.testing.assert_array_equal(corrupt(CLEAN[:2], name, 2), whole[:2])
    assert not np.array_equal(corrupt(CLEAN[1:2], name, 2), whole[1:2])  # each cloud has its own numbers


@pytest.mark.parametrize("name", ["clean", *CORRUPTIONS])
def test_clouds_keep_their_place_and_size(name):
    """What is stored 5 times larger and 100 away is corrupted alike, there."""
    moved = corrupt(5 * CLEAN.astype(np.float64) + 100, name, 1)
    np.testing.assert_allclose(moved, 5 * corrupt(CLEAN, name, 1) + 100, atol=2e-3)


def test_small_clouds_are_refused():
    with pytest.raises(ValueError, match="need clouds of 1024 points, these have 1000"):
        corrupt(CLEAN[:, :1000], "jitter", 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_modelnet(root / "modelnet40_ply_hdf5_2048", 1, 1, 1030)
    write_scanobjectnn(root / "scanobjectnn")
    return root


@pytest.fixture
def here(root, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(root))
    return root


PARENTS = {"modelnet40_c": "modelnet40", "scanobjectnn_c": "scanobjectnn"}


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_training_is_the_parents_and_the_test_split_is_corrupted(here, name, parent):
    data, whole = dataset(name, corruption="add_local", severity=1), dataset(parent)
    np.testing.assert_array_equal(data.train.points, whole.train.points)
    np.testing.assert_array_equal(data.test.labels, whole.test.labels)
    np.testing.assert_array_equal(data.test.points, corrupt(whole.test.points, "add_local", 1))
    assert (data.class_names, data.augment_first) == (whole.class_names, whole.augment_first)
    index, random = np.array([0, 3]), [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.testing.assert_close(data.train_batch(index, random[0])[0], whole.train_batch(index, random[1])[0])
    arrays = {f"{s.name}_{kind}": getattr(s, kind) for s in (data.train, data.test) for kind in ("points", "labels")}
    assert data.digest == content_digest(arrays)
    assert data.marks == ("generated corruption",)
    clean = dataset(name)
    np.testing.assert_array_equal(clean.test.points, whole.test.points[:, :1024])
    assert clean.marks == ()


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_fields_shared_with_the_parent_have_its_defaults(name, parent):
    own, parents = (registry.config_class("datasets", each)() for each in (name, parent))
    for field in set(type(parents).model_fields) - {"name"}:
        assert getattr(own, field) == getattr(parents, field), field
    assert own.num_classes == parents.num_classes


def test_test_clouds_are_given_whole_and_small_ones_filled_up(here):
    data = dataset("modelnet40_c", corruption="add_local", severity=4)
    assert data.eval_batch(data.test, np.arange(2))[0].shape == (2, 1524, 3)
    assert data.eval_batch(data.train, np.arange(2))[0].shape == (2, 1024, 3)
    small = dataset("modelnet40_c", corruption="dropout_global", severity=4)
    points = small.eval_batch(small.test, np.arange(2))[0]
    assert points.shape == (2, 512, 3)
    torch.testing.assert_close(points[:, :256], points[:, 256:])
    model = PointPNLight(PointPNLightConfig(), SimpleNamespace(dim=24, widths=[24], token_width=24, stem=None), "fixed").eval()
    assert model(points)[0].shape == (2, 128, 24)


def test_published_files_are_read_as_they_are(here, tmp_path):
    points, labels = clouds(40, 700, seed=9), np.arange(40)
    write_h5(here / "modelnet_c" / "jitter_2.h5", points, labels[:, None])
    data = dataset("modelnet40_c", source="published", corruption="jitter", severity=2)
    np.testing.assert_array_equal(data.test.points, points)
    assert data.test.labels.tolist() == labels.tolist()
    assert data.marks == ()
    with pytest.raises(MissingDataError, match=r"no file .*modelnet_c/jitter_3\.h5.*pointcloud-c"):
        dataset("modelnet40_c", source="published", corruption="jitter", severity=3)
    with pytest.raises(MissingDataError, match=r"no folder .*scanobjectnn_c .*AdaptPoint"):
        dataset("scanobjectnn_c", source="published")


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (np.full((4, 8, 3), np.inf, np.float32), np.arange(4), "cloud 0 holds a coordinate that is not finite"),
        (clouds(4, 8), np.array([0, 1, 2, 40]), "cloud 3 has label 40, allowed 0 to 39"),
        (clouds(4, 8)[:, :, :2], np.arange(4), r"data must be float or whole numbers \(n, P, 3\)"),
        (clouds(0, 8), np.arange(0), "holds no points"),
    ],
)
def test_bad_published_files_are_named(here, points, labels, message):
    write_h5(here / "modelnet_c" / "scale_0.h5", points, labels)
    with pytest.raises(ValueError, match=message) as error:
        dataset("modelnet40_c", source="published", corruption="scale")
    assert "scale_0.h5" in str(error.value)
    (here / "modelnet_c" / "scale_0.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match=r"scale_0\.h5: not a file of corrupted clouds"):
        dataset("modelnet40_c", source="published", corruption="scale")
    with h5py.File(here / "modelnet_c" / "scale_0.h5", "w") as file:
        file["data"] = points
    with pytest.raises(ValueError, match=r"scale_0\.h5: not a file of corrupted clouds"):
        dataset("modelnet40_c", source="published", corruption="scale")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"corruption": "clean", "severity": 1}, "dataset.severity"),
        ({"corruption": "scale", "severity": 5}, "dataset.severity"),
        ({"corruption": "scales"}, "dataset.corruption"),
        ({"source": "published", "variant": "obj_bg"}, "dataset.variant"),
    ],
)
def test_bad_settings_are_refused(fields, path):
    problems = component_problems("dataset", {"name": "scanobjectnn_c", **fields})
    assert [problem[0] for problem in problems] == [path]


def test_real_modelnet40_is_corrupted(data_root):
    folder = "modelnet40_mini/modelnet40_ply_hdf5_2048"
    data, whole = dataset("modelnet40_c", folder=folder, corruption="jitter", severity=4), dataset("modelnet40", folder=folder)
    assert (data.test.points - whole.test.points).std() == pytest.approx(0.05, rel=0.01)
    assert data.test.points.shape == (400, 1024, 3)


def test_real_scanobjectnn_is_corrupted(data_root):
    data, whole = (dataset(name, folder="scanobjectnn_dev") for name in ("scanobjectnn_c", "scanobjectnn"))
    np.testing.assert_array_equal(data.test.points, whole.test.points[:, :1024])
