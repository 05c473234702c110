"""Few-shot ModelNet40: the draw by hand, Point-BERT's folds by way of npz, and pickles that mean harm."""

from __future__ import annotations

import builtins
import hashlib
import os
import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from pointsweep.config.validation import component_problems
from pointsweep.data.modelnet40 import CLASSES
from pointsweep.data.modelnet40_fewshot import draw, read_npz
from pointsweep.data.readers.clouds import unit_sphere
from pointsweep.data.readers.fewshot_pickles import convert
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import content_digest
from tests.data.made import clouds, config, dataset, write_modelnet


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with 21 training and 20 test shapes of every class."""
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write_modelnet(tmp_path / "modelnet40_ply_hdf5_2048", 21, 20, 16)
    return tmp_path


def order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_draw_is_the_documented_one(root):
    data = dataset("modelnet40_fewshot", way=10, shot=20, fold=3)
    chosen = sorted(CLASSES, key=lambda name: order(f"10way_20shot/3/class/{name}"))[:10]
    assert list(data.class_names[:10]) == chosen
    assert sorted(data.class_names) == sorted(CLASSES)
    whole = dataset("modelnet40")
    for split, stored in ((data.train, whole.train), (data.test, whole.test)):
        for label, name in enumerate(chosen):
            rows = np.flatnonzero(stored.labels == CLASSES.index(name))
            ranks = sorted(range(len(rows)), key=lambda k: order(f"10way_20shot/3/{split.name}/{name}/{k}"))[:20]
            expected = {stored.points[rows[k]].tobytes() for k in ranks}
            assert {cloud.tobytes() for cloud in split.points[split.labels == label]} == expected


@pytest.mark.parametrize("way", [5, 10])
@pytest.mark.parametrize("shot", [10, 20])
def test_an_episode_has_way_times_shot_clouds_and_20_test_clouds_a_class(root, way, shot):
    data = dataset("modelnet40_fewshot", way=way, shot=shot, fold=9)
    assert np.bincount(data.train.labels).tolist() == [shot] * way
    assert np.bincount(data.test.labels).tolist() == [20] * way
    assert data.num_classes == data.config.num_classes == 40
    assert data.marks == ("generated folds",)
    assert (np.diff(data.test.labels) < 0).any(), "classes in order would help a program that mixes the clouds of a batch"


def test_folds_differ_and_their_digest_covers_exactly_the_clouds_used(root):
    data = [dataset("modelnet40_fewshot", fold=fold) for fold in range(10)]
    assert len({each.digest for each in data}) == 10
    assert len({each.class_names[:5] for each in data}) == 10
    first = data[0]
    used = {"train_points": first.train.points, "train_labels": first.train.labels, "test_points": first.test.points}
    used |= {"test_labels": first.test.labels, "classes": np.array([CLASSES.index(name) for name in first.class_names[:5]])}
    assert content_digest(used) == first.digest


def test_real_modelnet40_gives_all_forty_episodes(data_root):
    """Drawn from the real labels; the points stand for nothing here."""
    labels = {"train": dataset("modelnet40", folder="modelnet40_1024/modelnet40_ply_hdf5_2048").train.labels}
    labels["test"] = dataset("modelnet40", folder="modelnet40_1024/modelnet40_ply_hdf5_2048").test.labels
    arrays = {f"{split}_labels": found for split, found in labels.items()}
    arrays |= {f"{split}_points": np.arange(len(found))[:, None, None] for split, found in labels.items()}
    for way, shot, fold in [(way, shot, fold) for way in (5, 10) for shot in (10, 20) for fold in range(10)]:
        episode = draw(arrays, way, shot, fold)
        for split, count in (("train", shot), ("test", 20)):
            rows = episode[f"{split}_points"].ravel()
            assert len(set(rows.tolist())) == way * count
            assert (labels[split][rows] == episode["classes"][episode[f"{split}_labels"]]).all()


def test_too_few_shapes_are_named(data_root):
    with pytest.raises(
        ValueError, match=r"few-shot episode 5way_10shot/0: 20 test shapes of a class are needed, here (\w+ has 10(, |$)){5}"
    ):
        dataset("modelnet40_fewshot", folder="modelnet40_mini/modelnet40_ply_hdf5_2048")


def fold(shot: int = 10, size: int = 16) -> dict[str, list]:
    """Point-BERT's layout: label i stands for class 7 i + 3; numpy numbers where its program leaves them."""
    made = {}
    for split, count, seed in (("train", shot, 5), ("test", 20, 6)):
        points = np.concatenate([clouds(5 * count, size, seed), clouds(5 * count, size, seed + 10)], axis=2)  # xyz and normals
        made[split] = [(cloud, i % 5, np.int32(7 * (i % 5) + 3)) for i, cloud in enumerate(points)]
    return made


def write(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("folder", ["5way_10shot", "5way10shot"])
def test_point_berts_folds_are_converted_and_read(tmp_path, monkeypatch, protocol, folder):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    made = fold()
    write(tmp_path / f"ModelNetFewshot/{folder}/4.pkl", made, protocol)
    assert [path.name for path in convert(tmp_path / "ModelNetFewshot")] == ["4.npz"]
    data = dataset("modelnet40_fewshot", source="point_bert", fold=4)
    assert data.class_names[:5] == tuple(CLASSES[7 * i + 3] for i in range(5))
    assert (data.marks, data.num_classes) == ((), 40)
    for split in (data.train, data.test):
        expected = np.stack([cloud[:, :3] for cloud, _, _ in made[split.name]])
        np.testing.assert_allclose(split.points, unit_sphere(expected), atol=1e-6)
        assert split.labels.tolist() == [label for _, label, _ in made[split.name]]
    assert not list(tmp_path.rglob("*.tmp*"))


def test_old_numpys_names_are_understood(tmp_path):
    """numpy 1 called its inner package `core`; a pickle of today with that name put in."""
    write(tmp_path / "5way_10shot/0.pkl", fold(), protocol=3)
    path = tmp_path / "5way_10shot/0.pkl"
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))
    assert len(list(convert(tmp_path))) == 1


class Harm:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    mark = tmp_path / "executed"
    harms = [
        Harm(os.system, f"touch {mark}"),
        Harm(builtins.eval, f"open({str(mark)!r}, 'w')"),
        Harm(builtins.exec, f"open({str(mark)!r}, 'w')"),
        Harm(np.savez, str(mark)),
        Harm(getattr, "text", "upper"),
    ]
    path = tmp_path / "5way_10shot" / "0.pkl"
    for harm in harms:
        for content in (harm, fold() | {"more": harm}, {"train": [(harm, 0, 3)], "test": []}):
            write(path, content)
            with pytest.raises(ValueError, match=r"0\.pkl: not a pickle of numpy arrays: refused .* only numpy arrays"):
                list(convert(tmp_path))
    assert not mark.exists()
    assert not mark.with_suffix(".npz").exists()
    assert not path.with_suffix(".npz").exists()
    pickle.loads(pickle.dumps(harms[0]))
    assert mark.exists(), "the attack of this test is no attack"


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, None], dtype=object),
        np.zeros(2, dtype=[("x", "f4"), ("y", "O")]),
        np.zeros(2, dtype="U3"),
        np.ma.masked_array([1.0]),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    write(tmp_path / "5way_10shot/0.pkl", fold() | {"more": array})
    with pytest.raises(ValueError, match="refused"):
        list(convert(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04.", pickle.dumps([1, 2]), pickle.dumps(fold())[:3000]])
def test_damaged_pickles_are_named(tmp_path, content):
    path = tmp_path / "5way_10shot" / "0.pkl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"5way_10shot/0\.pkl"):
        list(convert(tmp_path))


def test_conversion_says_what_it_looked_for(tmp_path):
    with pytest.raises(MissingDataError, match=r"no file .*way.*shot.*\.pkl"):
        list(convert(tmp_path))
    write(tmp_path / "7way_10shot/0.pkl", fold())
    with pytest.raises(ValueError, match="must be called"):
        list(convert(tmp_path))


ARRAYS = {
    "train_points": clouds(50, 16), "train_labels": np.arange(50) % 5, "test_points": clouds(100, 16, 1),
    "test_labels": np.arange(100) % 5, "classes": np.array([3, 9, 1, 39, 0]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_points": np.full((50, 16, 3), np.nan, np.float32)}, "train: cloud 0 holds a coordinate that is not finite"),
        ({"test_points": clouds(100, 16)[:, :, :2]}, r"test: data must be float or whole numbers \(n, P, 3\)"),
        ({"test_labels": np.arange(100) % 6}, "test: cloud 5 has label 5, allowed 0 to 4"),
        ({"test_labels": np.arange(100.0) % 5}, "test_labels must be whole numbers"),
        ({"train_labels": np.zeros(50, int)}, r"train must hold 10 clouds of each of 5 classes, found \[50, 0"),
        ({"train_points": clouds(0, 16), "train_labels": np.zeros(0, int)}, "train: holds no points"),
        ({"classes": np.array([3, 9, 1, 40, 0])}, "classes must be from 0 to 39"),
        ({"classes": np.array([3, 9, 1, 3, 0])}, "classes must be 5 different numbers"),
        ({"classes": np.array([None] * 5)}, "not a converted few-shot fold"),
    ],
)
def test_bad_converted_folds_are_named(tmp_path, change, message):
    path = tmp_path / "0.npz"
    np.savez(path, **(ARRAYS | change))
    with pytest.raises(ValueError, match=message) as error:
        read_npz(path, 5, 10)
    assert str(path) in str(error.value)


def test_damaged_converted_folds_are_named_and_pickles_are_never_read(tmp_path):
    path = tmp_path / "0.npz"
    np.savez(path, **ARRAYS)
    whole = path.read_bytes()
    mark = tmp_path / "executed"
    npy = tmp_path / "one.npy"
    np.save(npy, ARRAYS["classes"])
    for content in (b"", whole[:2000], whole[:-40], npy.read_bytes(), pickle.dumps(Harm(os.system, f"touch {mark}"))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"0\.npz: not a converted few-shot fold"):
            read_npz(path, 5, 10)
    assert not mark.exists()


def test_a_fold_that_waits_for_its_conversion_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("POINTSWEEP_DATA", str(tmp_path))
    write(tmp_path / "ModelNetFewshot/5way_10shot/0.pkl", fold())
    with pytest.raises(MissingDataError, match=r"0\.pkl is not converted: run pointsweep data --convert-fewshot"):
        dataset("modelnet40_fewshot", source="point_bert")
    with pytest.raises(MissingDataError, match=r"no file .*1\.npz"):
        dataset("modelnet40_fewshot", source="point_bert", fold=1)


def test_folds_out_of_range_are_refused():
    problems = component_problems("dataset", {"name": "modelnet40_fewshot", "way": 6, "fold": 10})
    assert problems == [
        ("dataset.way", "unknown value '6'. Allowed: 10, 5"),
        ("dataset.fold", "must be from 0 to 9 or null, got 10"),
    ]
    with pytest.raises(ValidationError):
        config("modelnet40_fewshot", fold=10)
