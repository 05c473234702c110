"""Semantic segmentation: S3DIS's readers on made-up rooms in the published layouts, mIoU against scikit-learn and a formula written
out, and a sweep from its rooms to its table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from pointsweep.cli.verify_store import verify_store
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import check_trial, trial_from_dict
from pointsweep.data.facts import facts_of
from pointsweep.data.scenes.s3dis import CLASSES, class_of, cut
from pointsweep.errors import MissingDataError
from pointsweep.models.point_model import build, count_parameters, load_trained_state
from pointsweep.reporting.bundle import BundleError, recomputed
from pointsweep.results.agreement import read_arrays
from pointsweep.results.confusion import IGNORED, confusion, confusion_scores
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.stores import FileStore
from pointsweep.training.loop import score_scenes
from pointsweep.training.runner import load_dataset
from tests.data.made import config, dataset
from tests.training.test_trial import outcome, run

ROOMS = {"Area_1_office_1": (2.4, 1.7), "Area_3_hallway_1": (3.0, 1.0), "Area_5_office_1": (2.2, 2.1), "Area_6_WC_1": (1.6, 1.5)}


def room(name: str, per_square_metre: int = 300) -> np.ndarray:
    """Rows (P, 7) x y z r g b class, z up: a floor (1), a wall (2) at x = 0, a table (7) in the middle; far from the origin."""
    width, depth = ROOMS[name]
    random = np.random.default_rng(list(name.encode()))
    count = int(per_square_metre * width * depth)
    floor = np.stack([random.uniform(0, width, count), random.uniform(0, depth, count), np.zeros(count)], axis=1)
    wall = np.stack([np.zeros(count // 2), random.uniform(0, depth, count // 2), random.uniform(0, 2.5, count // 2)], axis=1)
    table = np.array([width, depth, 0]) / 2 + random.uniform(-0.3, 0.3, (count // 3, 3)) * [1, 1, 0] + [0, 0, 0.7]
    points = np.concatenate([floor, wall, table]) + np.array([-20.0, 31.0, 4.0])
    classes = np.repeat([1, 2, 7], [len(floor), len(wall), len(table)])
    return np.column_stack([points, random.integers(0, 256, (len(points), 3)), classes])


@pytest.fixture
def rooms(root) -> Path:
    """The layout that PointNet's collect_indoor3d_data.py writes."""
    folder = root / "stanford_indoor3d"
    folder.mkdir()
    for name in ROOMS:
        np.save(folder / f"{name}.npy", room(name))
    return folder


def write_blocks(folder: Path, per_file: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """PointNet's hdf5 layout: seven blocks of 64 points in files of at most three."""
    random = np.random.default_rng(0)
    names = [*["Area_1_office_1"] * 2, "Area_3_hallway_1", *["Area_5_office_1"] * 2, *["Area_6_WC_1"] * 2]
    data = random.normal(size=(len(names), 64, 9)).astype(np.float32)
    labels = random.integers(0, 13, (len(names), 64)).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    files = []
    for start in range(0, len(names), per_file):
        files.append(f"ply_data_all_{len(files)}.h5")
        with h5py.File(folder / files[-1], "w") as file:
            file["data"], file["label"] = data[start : start + per_file], labels[start : start + per_file]
    (folder / "all_files.txt").write_text("".join(f"indoor3d_sem_seg_hdf5_data/{name}\n" for name in files))
    (folder / "room_filelist.txt").write_text("\n".join(names) + "\n")
    return data, labels, names


@pytest.fixture
def blocks(root):
    return write_blocks(root / "indoor3d_sem_seg_hdf5_data")


def small(**fields):
    return dataset("s3dis", **{"num_points": 64, "presample": 64} | fields)


# Readers


def test_the_classes_are_the_published_ones():
    assert len(CLASSES) == config("s3dis").num_classes == 13
    assert [CLASSES[i] for i in (0, 1, 2, 8, 12)] == ["ceiling", "floor", "wall", "chair", "clutter"]


@pytest.mark.parametrize("area", [5, 1])
def test_blocks_are_split_by_area_and_turned_so_that_y_is_up(blocks, area):
    data, labels, names = blocks
    found = small(test_area=area)
    tested = [i for i, name in enumerate(names) if name.startswith(f"Area_{area}_")]
    trained = [i for i in range(len(names)) if i not in tested]
    for split, rows in ((found.train, trained), (found.test, tested)):
        assert len(split.labels) == len(rows)
        for number, row in enumerate(rows):
            points, classes, category = split.shape(number)
            x, y, z = data[row, :, :3].T
            np.testing.assert_array_equal(points, np.stack([x, z, -y], axis=1))
            assert (classes.tolist(), category) == (labels[row].tolist(), 0)
    assert found.test.groups.tolist() == [sorted(set(names)).index(names[i]) for i in tested]


def test_rooms_are_cut_every_stride_for_training_and_edge_to_edge_for_testing(rooms):
    """A room of 2.4 m x 1.7 m: blocks of 1 m from 0, 0.5, 1 and 1.5 m times 0, 0.5 and 1 m in training, 3 x 2 in testing."""
    found = small(layout="rooms", stored_points=None)
    counts = {"Area_1_office_1": 4 * 3, "Area_3_hallway_1": 5 * 1, "Area_6_WC_1": 3 * 2}
    assert len(found.train.labels) == sum(counts.values())
    assert np.bincount(found.train.groups).tolist() == [12, 5, 0, 6]
    sizes = [len(found.train.shape(row)[1]) for row in range(12)]
    rows = room("Area_1_office_1")
    places = rows[:, :2] - rows[:, :2].min(axis=0)
    lowest, ends = np.meshgrid([0, 0.5, 1, 1.5], [0, 0.5, 1], indexing="ij"), places.max(axis=0)
    for size, x, y in zip(sizes, lowest[0].ravel(), lowest[1].ravel(), strict=True):
        inside = (places >= (x, y)).all(axis=1) & ((places < (x + 1, y + 1)) | (np.array([x + 1, y + 1]) > ends)).all(axis=1)
        assert size == inside.sum()


def test_every_point_of_a_test_room_is_counted_once_and_only_once(rooms):
    found = small(layout="rooms", stored_points=None)
    stored = room("Area_5_office_1")
    sizes = np.diff(found.test.starts)
    assert sizes.sum() == len(stored)
    assert len(found.test.labels) == np.ceil(sizes / 64).sum()
    seen: list[np.ndarray] = []
    truth: list[int] = []
    for row in range(len(found.test.labels)):
        points, category, classes = found.eval_batch(found.test, np.array([row]))
        assert (points.shape, category.tolist(), classes.shape) == ((1, 64, 3), [0], (1, 64))
        counted = classes[0] != IGNORED
        block = int(found.test.index[row])
        seen += [np.array([block, *point]) for point in points[0][counted].numpy()]
        truth += classes[0][counted].tolist()
    assert len(np.unique(np.stack(seen).round(5), axis=0)) == len(stored)
    assert np.bincount(truth, minlength=13).tolist() == np.bincount(stored[:, 6].astype(int), minlength=13).tolist()


def test_points_of_a_block_are_in_metres_around_its_middle(rooms):
    """The first test block holds what is within 1 m of the room's corner; heights are above the lowest point."""
    found = small(layout="rooms", stored_points=None)
    rows = room("Area_5_office_1")
    inside = rows[:, :3] - rows[:, :3].min(axis=0)
    first = inside[(inside[:, :2] < 1).all(axis=1)]
    expected = np.stack([first[:, 0] - 0.5, first[:, 2], 0.5 - first[:, 1]], axis=1)
    points, _, _ = found.test.shape(0)
    np.testing.assert_allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)], atol=1e-5)


def test_at_most_stored_points_of_a_block_are_kept_the_same_ones_every_time(rooms):
    made = config("s3dis", layout="rooms", stored_points=80, num_points=64, presample=64)
    rows = room("Area_1_office_1")
    points, classes = rows[:, :3] - rows[:, :3].min(axis=0), rows[:, 6].astype(np.uint8)
    first, again = (cut("Area_1_office_1", points, classes, made, trains=True) for _ in range(2))
    assert first.sizes.max() == 80
    np.testing.assert_array_equal(first.points, again.points)
    whole = cut("Area_1_office_1", points, classes, made.model_copy(update={"stored_points": None}), trains=True)
    kept, there = (np.split(b.points, np.cumsum(b.sizes)[:-1])[0].round(5) for b in (first, whole))
    assert set(map(tuple, kept.tolist())) <= set(map(tuple, there.tolist()))


def test_the_annotations_of_the_original_give_the_same_blocks_as_the_arrays(rooms, root):
    folder = root / "Stanford3dDataset_v1.2_Aligned_Version"
    for name in ROOMS:
        area, inner = name[:6], name[7:]
        notes = folder / area / inner / "Annotations"
        notes.mkdir(parents=True)
        rows = room(name)
        for number in np.unique(rows[:, 6]).astype(int):
            np.savetxt(notes / f"{CLASSES[number]}_1.txt", rows[rows[:, 6] == number, :6], fmt="%.9f")
    arrays = small(layout="rooms", stored_points=None)
    texts = small(layout="rooms", stored_points=None, folder=folder.name)
    for first, second in ((arrays.train, texts.train), (arrays.test, texts.test)):
        assert first.groups.tolist() == second.groups.tolist()
        for row in range(len(first.labels)):
            (one, own, _), (other, named, _) = first.shape(row), second.shape(row)
            order, same = (np.lexsort((*points.round(4).T, classes)) for points, classes in ((one, own), (other, named)))
            np.testing.assert_allclose(one[order], other[same], atol=1e-5)
            assert own[order].tolist() == named[same].tolist()
    assert (class_of(Path("chair_12.txt")), class_of(Path("stairs_1.txt"))) == (8, 12)


def test_validation_blocks_are_those_of_whole_rooms(rooms):
    found = small(layout="rooms", val_fraction=0.2)
    assert found.val is not None
    assert not set(found.val.groups) & set(found.train.groups)
    assert set(found.val.groups) | set(found.train.groups) == {0, 1, 3}


def test_training_draws_other_points_of_a_block_every_time(blocks):
    found, random = small(num_points=32, presample=32), torch.Generator().manual_seed(0)
    (first, _, classes), (second, _, _) = (found.train_batch(np.array([0, 2]), random) for _ in range(2))
    assert first.shape == (2, 32, 3)
    assert not torch.equal(first, second)
    points, stored, _ = found.train.shape(2)
    for point, label in zip(first[1].numpy(), classes[1].tolist(), strict=True):
        assert stored[int(np.flatnonzero((points == point).all(axis=1))[0])] == label


def test_a_part_of_the_dealt_clouds_keeps_its_points(blocks):
    found = small(num_points=20, presample=20)  # four clouds of each of the two blocks
    rows = np.array([7, 1, 4])
    few = found.test.take(rows, "test")
    for row, kept in enumerate(sorted(rows)):
        for first, second in zip(few.cloud(row, 20), found.test.cloud(kept, 20), strict=True):
            np.testing.assert_array_equal(first, second)


def test_what_is_known_of_the_published_blocks_is_compared(blocks):
    found = facts_of(config("s3dis", num_points=64, presample=64))
    assert found.published == {"train": [16733], "test": [6852]}
    assert (found.taken, found.num_classes) == ({"train": 5, "test": 2}, 1)
    assert found.shared == {"test": 0}


def test_what_the_folder_lacks_is_named(root):
    for layout, folder, text in (
        ("blocks", "indoor3d_sem_seg_hdf5_data", "all_files.txt"),
        ("rooms", "stanford_indoor3d", "holds neither Area_N_ROOM.npy"),
    ):
        with pytest.raises(MissingDataError, match=folder):
            small(layout=layout)
        (root / folder).mkdir()
        with pytest.raises(MissingDataError, match=text):
            small(layout=layout)


def test_bad_blocks_are_named(blocks, root):
    folder = root / "indoor3d_sem_seg_hdf5_data"
    with h5py.File(folder / "ply_data_all_1.h5", "a") as file:
        file["label"][1, 5] = 13
    with pytest.raises(ValueError, match=r"ply_data_all_1\.h5: point 5 has class 13, allowed 0 to 12"):
        small()
    write_blocks(folder)
    (folder / "room_filelist.txt").write_text("Area_1_office_1\n")
    with pytest.raises(ValueError, match=r"room_filelist\.txt: names the rooms of 1 blocks, the h5 files hold 7"):
        small()
    (folder / "room_filelist.txt").write_text("Area_1_office_1\n" * 7)
    with pytest.raises(ValueError, match="test_area 5 needs rooms of that area and of others; here are areas 1"):
        small()


def test_bad_rooms_are_named(rooms):
    rows = room("Area_1_office_1")
    np.save(rooms / "Area_1_office_1.npy", rows[:, :6])
    with pytest.raises(ValueError, match=r"Area_1_office_1\.npy: must be rows of numbers x y z r g b class, found float64"):
        small(layout="rooms")
    rows[3, 6] = 2.5
    np.save(rooms / "Area_1_office_1.npy", rows)
    with pytest.raises(ValueError, match=r"Area_1_office_1\.npy: point 3 has class 2\.5, allowed 0 to 12"):
        small(layout="rooms")


def test_options_without_effect_are_refused():
    found = check_trial(
        {"dataset": {"name": "s3dis", "stride": 1.0}, "tokenizer": "patch", "backbone": "point_mae", "method": "head_only"}
    )[1]
    assert [path for path, _ in found] == ["dataset.stride"]
    assert "acts on `layout: rooms` alone" in found[0][1]
    wide = {"name": "s3dis", "layout": "rooms", "stride": 2.0}
    found = check_trial({"dataset": wide, "tokenizer": "patch", "backbone": "point_mae", "method": "head_only"})[1]
    assert found == [("dataset.stride", "must be at most block (1), got 2: points between two blocks would be in none")]


# Metrics


def test_the_miou_is_that_of_all_points_together_and_not_the_mean_of_the_blocks():
    """Two clouds by hand. Class 0: 3 right, 4 true, 3 predicted: 3 / 4. Class 1: 1 right, 1 true, 3 predicted: 1 / 3. Class 2: 0 of 1."""
    logits = torch.zeros(2, 4, 3)
    for cloud, predicted in enumerate(([0, 0, 1], [0, 1, 1])):
        logits[cloud, predicted, range(3)] = 5.0
    truth = torch.tensor([[0, 0, 0], [0, 2, 1]])
    found = score_scenes([(np.array([1]), logits[1:], truth[1:]), (np.array([0]), logits[:1], truth[:1])], 4)
    assert found.more["miou"] == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert found.more["mean_class_accuracy"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.predictions.shape == (2, 4, 4)
    assert (found.predictions[0, 0].tolist(), found.predictions[1, 2].tolist()) == ([2, 1, 0, 0], [0, 1, 0, 0])
    of_blocks = np.mean([confusion_scores(block)["miou"] for block in found.predictions])
    assert of_blocks != pytest.approx(found.more["miou"], abs=0.05)


def test_the_metrics_equal_scikit_learns():
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 9, 4000), random.integers(0, 11, 4000)  # 9 and 10 are never true, 11 and 12 never predicted
    predicted[:2500] = truth[:2500]
    scores = confusion_scores(confusion(predicted, truth, 13))
    assert scores["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"), abs=1e-12)
    assert scores["mean_class_accuracy"] == pytest.approx(recall_score(truth, predicted, labels=range(9), average="macro"), abs=1e-12)
    assert scores["accuracy"] == accuracy_score(truth, predicted)


def test_points_that_fill_up_are_not_counted():
    truth = np.array([0, 1, IGNORED, IGNORED])
    assert confusion(np.array([0, 0, 1, 1]), truth, 2).tolist() == [[1, 0], [1, 0]]
    logits = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    found = score_scenes([(np.array([0]), logits, torch.from_numpy(truth)[None])], 2)
    chance = logits[0].log_softmax(dim=0)
    assert found.loss == pytest.approx(float(-(chance[0, 0] + chance[1, 1]) / 2))


# Trials


def trial(method: str | dict = "head_only", **changes) -> TrialConfig:
    return trial_from_dict({
        "dataset": {"name": "s3dis", "layout": "rooms", "num_points": 64, "presample": 64},
        "tokenizer": {"name": "patch", "num_tokens": 8, "neighbours": 8},
        "backbone": {"name": "tiny", "modality": "3d"},
        "method": method,
        "head": {"segmentation_widths": [32, 32, 24, 16]},
        "train": {"epochs": 3, "batch_size": 8, "eval_batch_size": 16, "warmup_epochs": 0, "lr": 1e-2},
    } | changes)  # fmt: skip


def test_the_head_of_scenes_has_no_embedding_of_the_only_category():
    """As of shapes, less the category's 64 channels: 16 x 64 + 2 x 64 there, 64 x 512 of the layer behind."""
    shared = {"tokenizer": "patch", "backbone": {"name": "point_mae", "weights": "random"}, "method": "head_only"}
    sizes = {}
    with torch.device("meta"):
        for name, classes in (("s3dis", 13), ("shapenetpart", 50)):
            counts = count_parameters(build(trial_from_dict({"dataset": name, **shared}), classes))
            sizes[name] = counts.trainable - counts.trainable_without_head
    assert sizes["shapenetpart"] - sizes["s3dis"] == 16 * 64 + 2 * 64 + 64 * 512 + 37 * 256 + 37


def test_the_records_numbers_are_those_of_the_weights_on_all_points(rooms, tmp_path):
    """From the stored weights, cloud by cloud, by scikit-learn."""
    made, folder = trial(), TrialFolder(tmp_path / "trial")
    run(made, folder)
    record, data = folder.record(), load_dataset(made.dataset)
    assert (record.dataset["num_classes"], record.dataset["num_test"]) == (13, len(data.test.labels))
    torch.manual_seed(0)
    model = build(made, 13)
    load_trained_state(model, load_file(folder.path / "weights.safetensors"))
    model.eval()
    predicted, truth = [], []
    for row in range(len(data.test.labels)):
        points, category, classes = data.eval_batch(data.test, np.array([row]))
        with torch.no_grad():
            logits = model(points, category)[0]
        counted = classes[0] != IGNORED
        predicted.append(logits.argmax(dim=0)[counted].numpy())
        truth.append(classes[0][counted].numpy())
    predicted, truth = np.concatenate(predicted), np.concatenate(truth)
    assert len(truth) == len(room("Area_5_office_1"))
    last = record.metrics["last"]
    assert last["test/miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert last["test/accuracy"] == pytest.approx(np.mean(predicted == truth))
    assert last["test/mean_class_accuracy"] == pytest.approx(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))
    epochs = [event["metrics"] for event in folder.epochs()]
    assert epochs[-1]["train/loss"] < epochs[0]["train/loss"]
    values = [metrics["test/miou"] for metrics in epochs]
    assert record.metrics["best_test"]["epoch"] == 1 + values.index(max(values))
    arrays = read_arrays((folder.path / "predictions.npz").read_bytes())
    for metric in ("test/miou", "test/mean_class_accuracy", "test/accuracy"):
        assert recomputed(record, arrays, metric) == record
    arrays["last"][0] = np.eye(13, dtype=np.int32)
    with pytest.raises(BundleError, match="last: test/accuracy is .* by its predictions, the record says"):
        recomputed(record, arrays, "test/miou")
    arrays["last"] = arrays["last"][:, 0]
    with pytest.raises(BundleError, match="predictions .* of .* test objects"):
        recomputed(record, arrays, "test/miou")


def test_a_resumed_trial_gives_the_same_bits_as_an_undisturbed_one(rooms, tmp_path):
    made = trial("lora")
    run(made, TrialFolder(tmp_path / "whole"))
    run(made, TrialFolder(tmp_path / "cut"), stop_after=2)
    assert TrialFolder(tmp_path / "cut").record() is None
    run(made, TrialFolder(tmp_path / "cut"))
    assert outcome(TrialFolder(tmp_path / "cut")) == outcome(TrialFolder(tmp_path / "whole"))


SWEEP = """name: rooms
base:
  dataset: {name: s3dis, layout: rooms, num_points: 64, presample: 64, val_fraction: 0.3}
  tokenizer: {name: patch, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 3d}
  head: {segmentation_widths: [32, 32, 24, 16]}
  train: {epochs: 2, batch_size: 4, warmup_epochs: 0}
rows: {method: [head_only]}
seeds: 1
metric: test/miou
protocol: best_val
"""


def test_the_command_trains_on_rooms_and_prints_the_miou(rooms, store, tmp_path):
    path = tmp_path / "rooms.yaml"
    path.write_text(SWEEP)
    line = [sys.executable, "-m", "pointsweep.run", str(path), "--inline", "--tracking-uri", "none", "--store", str(store)]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "test/miou in %" in ended.stdout
    (row,) = [line for line in ended.stdout.splitlines() if line.startswith("head_only")]
    assert 0 < float(row.split()[1]) < 100
    assert json.loads((store / "sweeps/rooms/table.json").read_text())["metric"] == "test/miou"
    assert verify_store(FileStore(store)).problems == []
