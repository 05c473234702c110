"""The data sets: real files, made-up bad files, and the order of augmentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig
from pointsweep.data.augment import augment, turns
from pointsweep.data.dataset import Dataset, sample
from pointsweep.data.modelnet40 import CLASSES
from pointsweep.data.readers.clouds import unit_sphere
from pointsweep.errors import MissingDataError

MINI = "modelnet40_mini/modelnet40_ply_hdf5_2048"


def dataset(name: str, **fields) -> Dataset:
    return registry.load("datasets", name)(registry.config_class("datasets", name)(name=name, **fields))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_modelnet40_mini_has_20_and_10_shapes_of_every_class(data_root):
    data = dataset("modelnet40", folder=MINI)
    assert (np.bincount(data.train.labels) == 20).all()
    assert (np.bincount(data.test.labels) == 10).all()
    assert data.train.points.shape == (800, 1024, 3)
    assert np.linalg.norm(data.test.points, axis=2).max(axis=1) == pytest.approx(1, abs=1e-5)


def test_modelnet40_has_the_published_numbers_of_shapes(data_root):
    data = dataset("modelnet40", folder="modelnet40_1024/modelnet40_ply_hdf5_2048")
    assert (len(data.train.labels), len(data.test.labels), data.num_classes) == (9840, 2468, 40)
    assert (np.diff(data.test.labels) < 0).any() or len(set(data.test.labels)) == 40


def test_the_text_layout_is_read_from_its_archive(data_root):
    data = dataset("modelnet40", folder="modelnet40_normal_resampled_sample")
    assert (len(data.train.labels), len(data.test.labels)) == (69, 25)
    assert data.train.points.shape[1:] == (2048, 3)
    assert CLASSES.index("door") not in set(data.train.labels)


def test_scanobjectnn_sample(data_root):
    data = dataset("scanobjectnn", folder="scanobjectnn_dev")
    assert (len(data.train.labels), len(data.test.labels), data.num_classes) == (10, 10, 15)
    points, _ = data.eval_batch(data.test, np.arange(10))
    assert points.shape == (10, 1024, 3)
    assert points.mean(dim=1).abs().max() < 1e-5
    stored = data.test.points
    assert torch.equal(
        points[3],
        sample(torch.from_numpy(np.array(stored[3:4])), 1024)[0]
        - sample(torch.from_numpy(np.array(stored[3:4])), 1024)[0].mean(dim=0),
    )


def test_scanobjectnn_training_follows_the_programs_order(data_root):
    """Scale per axis, centre, turn about y, then farthest points: the sample of the augmented cloud, by hand."""
    data = dataset("scanobjectnn", folder="scanobjectnn_dev", num_points=100, presample=120)
    found, _ = data.train_batch(np.array([0, 1]), generator(5))
    random, clouds = generator(5), torch.from_numpy(np.array(data.train.points[:2]))
    whole = sample(augment(clouds, data.config, random), 120)
    torch.testing.assert_close(found, whole[:, torch.randperm(120, generator=random)[:100]])


def test_modelnet40_training_follows_the_programs_order(data_root):
    """Each cloud's points shuffled, farthest points, a subset, then scale and shift, by hand."""
    data = dataset("modelnet40", folder=MINI, num_points=100, presample=120)
    found, _ = data.train_batch(np.array([0, 1]), generator(5))
    random, whole = generator(5), torch.from_numpy(np.array(data.train.points[:2]))
    orders = torch.rand(2, 1024, generator=random).argsort(dim=1)
    mixed = torch.stack([cloud[order] for cloud, order in zip(whole, orders, strict=True)])
    sampled = sample(mixed, 120)[:, torch.randperm(120, generator=random)[:100]]
    torch.testing.assert_close(found, augment(sampled, data.config, random))


def test_points_near_the_origin_are_skipped_where_the_program_skips_them(monkeypatch, tmp_path):
    """In training and in evaluation, but for the first point; |p|^2 <= 1e-3 is near (T40)."""
    monkeypatch.setenv("POINTSWEEP_CACHE", str(tmp_path))
    clouds = np.random.default_rng(0).normal(size=(4, 64, 3)).astype(np.float32)
    clouds[:, 5:25] = 0.0
    arrays = {f"{split}_{part}": made for split in ("train", "test") for part, made in (("points", clouds), ("labels", np.arange(4)))}
    for skips in (False, True):
        config = DatasetConfig(name="made", num_points=40, presample=44, skip_near_origin=skips, center=False)
        data = Dataset(config, ["a", "b", "c", "d"], arrays, f"digest-{skips}")
        for points in (data.train_batch(np.arange(4), generator())[0], data.eval_batch(data.test, np.arange(4))[0]):
            near = points.square().sum(dim=2) <= 1e-3
            assert points.shape[1] == 40
            assert bool(near.any()) != skips


def test_a_turn_may_be_the_same_for_a_whole_batch():
    clouds = torch.randn(1, 20, 3).expand(3, -1, -1)
    together, apart = (
        augment(clouds, DatasetConfig(name="made", rotate="gravity", rotate_together=one, center=False), generator())
        for one in (True, False)
    )
    assert torch.equal(together[0], together[1])
    assert not torch.allclose(together[0], clouds[0], atol=1e-3)
    torch.testing.assert_close(together[..., 1], clouds[..., 1])
    assert not torch.allclose(apart[0], apart[1], atol=1e-3)


@pytest.mark.parametrize(("name", "shuffles"), [("modelnet40", True), ("scanobjectnn", False)])
def test_over_epochs_modelnet40_shows_most_points_of_a_cloud_and_scanobjectnn_the_farthest(data_root, name, shuffles):
    """Of 1,024 or 2,048 points 600 are sampled. In the programs for ScanObjectNN a cloud is sampled as it is stored."""
    plain = {"scale": [1.0, 1.0], "translate": 0.0, "rotate": "none", "center": False, "num_points": 600, "presample": 600}
    folder = MINI if name == "modelnet40" else "scanobjectnn_dev"
    data = dataset(name, folder=folder, **plain)
    seen = {tuple(p) for epoch in range(6) for p in data.train_batch(np.array([0]), generator(epoch))[0][0].tolist()}
    assert (len(seen) > 800) if shuffles else (len(seen) <= 600)


def clouds(count: int = 50) -> torch.Tensor:
    return torch.randn(count, 30, 3, generator=generator(9))


def test_scaling_is_per_axis_and_within_its_range():
    factors = (augment(clouds(), DatasetConfig(scale=(0.9, 1.1), center=False), generator()) / clouds())[:, 0]
    assert 0.9 <= factors.min() < factors.max() <= 1.1
    assert (factors[:, 0] != factors[:, 1]).all()


def test_turns_about_gravity_keep_heights_and_lengths():
    turned = augment(clouds(), DatasetConfig(rotate="gravity", center=False), generator())
    torch.testing.assert_close(turned[..., 1], clouds()[..., 1])
    torch.testing.assert_close(turned.norm(dim=2), clouds().norm(dim=2))
    assert len({round(float(x), 3) for x in turned[:, 0, 0]}) > 40


def test_free_turns_are_rotations():
    made = turns(20, generator())
    torch.testing.assert_close(made @ made.transpose(1, 2), torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(made), torch.ones(20), atol=1e-5, rtol=0)


def test_translation_moves_a_cloud_as_a_whole():
    moved = augment(clouds(), DatasetConfig(translate=0.2, center=False), generator()) - clouds()
    assert moved.abs().max() <= 0.2
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-6, rtol=0)


def test_synthetic_clouds_are_the_same_in_another_process():
    code = "from tests.data.test_datasets import dataset; print(dataset('synthetic').digest)"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert out.strip() == dataset("synthetic").digest
    assert dataset("synthetic", data_seed=1).digest != dataset("synthetic").digest


def test_synthetic_classes_are_balanced_and_told_apart_by_more_than_their_extent():
    """Nearest neighbours on sorted coordinates, which see size and proportions only, must not solve it, nor fail altogether."""
    data = dataset("synthetic", train_per_class=30, test_per_class=20)
    assert (np.bincount(data.test.labels) == 20).all()

    def features(split):
        return np.sort(np.linalg.norm(np.asarray(split.points), axis=2), axis=1)

    distance = ((features(data.test)[:, None] - features(data.train)[None]) ** 2).sum(axis=2)
    accuracy = (data.train.labels[distance.argmin(axis=1)] == data.test.labels).mean()
    assert 0.2 < accuracy < 0.7


def test_a_random_subset_is_shared_by_the_batch():
    data = dataset("synthetic", num_points=32, presample=64, source_points=64, rotate="none", scale=[1.0, 1.0], center=False)
    points, _ = data.train_batch(np.array([0, 1]), generator())
    rows = [[int((np.asarray(data.train.points[b]) == p.numpy()).all(axis=1).argmax()) for p in points[b]] for b in range(2)]
    assert rows[0] == rows[1]


def test_validation_is_held_out_of_training_by_class_and_always_the_same():
    data, again = (dataset("synthetic", val_fraction=0.25) for _ in range(2))
    assert data.val is not None
    assert not set(data.train.index) & set(data.val.index)
    assert (np.bincount(data.val.labels) == 10).all()
    assert again.val is not None
    assert data.val.index.tolist() == again.val.index.tolist()


def test_limits_take_classes_in_turn():
    data = dataset("synthetic", train_limit=25, test_limit=10)
    assert sorted(np.bincount(data.train.labels).tolist()) == [2] * 5 + [3] * 5
    assert sorted(data.test.labels.tolist()) == list(range(10))


def test_two_processes_convert_at_once(tmp_path):
    code = "from tests.data.test_datasets import dataset; print(dataset('synthetic', data_seed=7).digest)"
    environment = {"POINTSWEEP_CACHE": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=environment
        )
        for _ in range(3)
    ]
    digests = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(digests) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_missing_data_say_where_they_were_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("POINTSWEEP_DATA", raising=False)
    with pytest.raises(MissingDataError, match="POINTSWEEP_DATA is not set"):
        dataset("modelnet40")
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"no folder .*scanobjectnn.*terms-of-use form"):
        dataset("scanobjectnn")
    with pytest.raises(MissingDataError, match="leads out of POINTSWEEP_DATA"):
        dataset("modelnet40", folder="../elsewhere")
    (tmp_path / "scanobjectnn").mkdir()
    with pytest.raises(MissingDataError, match=r"variant obj_bg: no file .*training_objectdataset\.h5"):
        dataset("scanobjectnn", variant="obj_bg")


GOOD = {"data": np.random.default_rng(0).normal(size=(4, 2048, 3)).astype(np.float32), "label": np.array([0, 1, 2, 14])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.full((4, 2048, 3), np.nan, np.float32)}, "cloud 0 holds a coordinate that is not finite"),
        ({"label": np.array([0, 1, 2, 15])}, "cloud 3 has label 15, allowed 0 to 14"),
        ({"label": np.array([0, 1])}, "4 clouds but labels of shape"),
        ({"data": np.zeros((4, 2048, 3), np.float32)}, "cloud 0 is a single point repeated"),
        ({"data": np.zeros((4, 2048, 2), np.float32)}, r"data must be float or whole numbers \(n, P, 3\)"),
        ({"data": None}, "not a ScanObjectNN file with data and label"),
        ({"data": np.zeros((0, 2048, 3), np.float32), "label": np.zeros(0, int)}, "holds no points"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(monkeypatch, tmp_path, change, message):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    folder = tmp_path / "scanobjectnn" / "main_split"
    folder.mkdir(parents=True)
    for name, arrays in (("training", GOOD | change), ("test", GOOD)):
        with h5py.File(folder / f"{name}_objectdataset_augmentedrot_scale75.h5", "w") as file:
            for key, value in arrays.items():
                if value is not None:
                    file[key] = value
    with pytest.raises(ValueError, match=message) as error:
        dataset("scanobjectnn")
    assert "training_objectdataset" in str(error.value)


def test_a_truncated_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    folder = tmp_path / "scanobjectnn" / "main_split"
    folder.mkdir(parents=True)
    for name in ("training", "test"):
        with h5py.File(folder / f"{name}_objectdataset_augmentedrot_scale75.h5", "w") as file:
            file["data"], file["label"] = GOOD["data"], GOOD["label"]
    broken = folder / "test_objectdataset_augmentedrot_scale75.h5"
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"test_objectdataset.*not a ScanObjectNN file"):
        dataset("scanobjectnn")


def test_unit_sphere_by_hand():
    points = np.array([[[0.0, 0, 0], [2.0, 0, 0], [4.0, 0, 0]]])
    assert unit_sphere(points)[0, :, 0].tolist() == [-1, 0, 1]
