"""Small folders in the layouts of the real data sets, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from pointsweep.config import registry
from pointsweep.data.dataset import Dataset
from pointsweep.data.modelnet40 import CLASSES


def dataset(name: str, **fields) -> Dataset:
    return registry.load("datasets", name)(config(name, **fields))


def config(name: str, **fields):
    return registry.config_class("datasets", name)(name=name, **fields)


def clouds(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size, 3)).astype(np.float32)


def write_h5(path: Path, points: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = points, labels


def write_modelnet(folder: Path, num_train: int, num_test: int, size: int) -> Path:
    """The hdf5 layout with so many shapes of every class, the classes in turn."""
    for split, number, seed in (("train", num_train, 1), ("test", num_test, 2)):
        labels = np.tile(np.arange(40), number)
        write_h5(folder / f"ply_data_{split}0.h5", clouds(len(labels), size, seed), labels[:, None])
        (folder / f"{split}_files.txt").write_text(f"data/modelnet40_ply_hdf5_2048/ply_data_{split}0.h5\n")
    (folder / "shape_names.txt").write_text("\n".join(CLASSES))
    return folder


def write_scanobjectnn(folder: Path, num_train: int = 15, num_test: int = 15, size: int = 1100) -> Path:
    for stem, number, seed in (("training", num_train, 3), ("test", num_test, 4)):
        path = folder / "main_split" / f"{stem}_objectdataset_augmentedrot_scale75.h5"
        write_h5(path, clouds(number, size, seed), np.arange(number) % 15)
    return folder


SYNSETS = {name: f"0{number:07d}" for number, name in enumerate(
    ("Airplane", "Bag", "Cap", "Car", "Chair", "Earphone", "Guitar", "Knife", "Lamp", "Laptop", "Motorbike", "Mug", "Pistol",
     "Rocket", "Skateboard", "Table"))}  # fmt: skip


def write_shapenetpart(folder: Path, shapes: dict[str, dict[str, np.ndarray]]) -> Path:
    """`shapes`: split -> <category>/<id> -> rows (P, 7)."""
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "synsetoffset2category.txt").write_text("".join(f"{name}\t{synset}\n" for name, synset in SYNSETS.items()))
    for split, members in shapes.items():
        entries = []
        for name, rows in members.items():
            category, _, number = name.partition("/")
            path = folder / SYNSETS[category] / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, rows, fmt="%.6f")
            entries.append(f"shape_data/{SYNSETS[category]}/{number}")
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(entries))
    return folder


def rows(size: int, parts: list[int], seed: int = 0) -> np.ndarray:
    """Rows (size, 7) whose parts are those given, in turn."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(size=(size, 6)), np.resize(parts, size)[:, None]], axis=1)
