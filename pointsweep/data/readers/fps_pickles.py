"""`modelnet40_{train,test}_8192pts_fps.dat` -> the hdf5 layout of ModelNet40, once and on demand
(`pointsweep data --convert-fps FOLDER`).

Source: the caches that the programs of Point-BERT, Point-MAE and those built on them read: a pickle
of two lists, points (P, 6) float32 with x y z and the normal, and labels (1,), in the order of
`modelnet40_{train,test}.txt`. What is written is read as any other copy of ModelNet40.

Letters: n clouds, P points.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pointsweep.data.modelnet40 import CLASSES
from pointsweep.data.readers.clouds import check_clouds
from pointsweep.data.readers.number_pickles import load_numbers, plain
from pointsweep.errors import MissingDataError

NAME = re.compile(r"modelnet40_(train|test)_(\d+)pts_fps\.dat")
SPLITS = ("train", "test")


def convert(folder: Path) -> Iterator[Path]:
    """Convert the two files of a folder and yield the folder that is written for them, one for each
    number of points. Raises MissingDataError, ValueError.
    """
    files_of: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("*_fps.dat")):
        match = NAME.fullmatch(path.name)
        if match is not None:
            files_of.setdefault(int(match[2]), {})[match[1]] = path

    if not files_of:
        raise MissingDataError(
            f"{folder}: no file modelnet40_{{train,test}}_8192pts_fps.dat (Point-BERT's ModelNet)"
        )

    for size, files in sorted(files_of.items()):
        missing = [split for split in SPLITS if split not in files]
        if missing:
            raise MissingDataError(
                f"{folder}: no file modelnet40_{missing[0]}_{size}pts_fps.dat beside"
                f" {next(iter(files.values())).name}"
            )

        target = folder / f"modelnet40_{size}pts_fps"
        target.mkdir(exist_ok=True)
        for split in SPLITS:
            _write(target / f"{split}.h5", *read_pickle(files[split]))
            (target / f"{split}_files.txt").write_text(f"{split}.h5\n")

        (target / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
        yield target


def read_pickle(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the clouds (P, 3) of a file, all of one size, and their labels (n,). Raises ValueError
    naming the file.
    """
    with path.open("rb") as file:
        content = load_numbers(file, str(path))

    try:
        stored_clouds, stored_labels = content
        clouds = [_xyz(plain(cloud)) for cloud in stored_clouds]
        numbers = [np.asarray(plain(label)).item() for label in stored_labels]
        labels = np.array(numbers)
        sizes = {len(cloud) for cloud in clouds}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: must hold a list of clouds (P, 3 or more) and a list of labels: {error}"
        ) from error

    if len(clouds) != len(labels) or len(sizes) != 1:
        raise ValueError(
            f"{path}: must hold as many labels as clouds, all of one size; found {len(clouds)}"
            f" clouds of {len(sizes)} sizes and {len(labels)} labels"
        )

    for number, cloud in enumerate(clouds):
        label = labels[number : number + 1]
        check_clouds(cloud[None], label, len(CLASSES), source=f"{path}: {number}")

    return clouds, labels.astype(np.int64)


def _xyz(cloud: Any) -> np.ndarray:
    if not isinstance(cloud, np.ndarray) or cloud.ndim != 2 or cloud.shape[1] < 3:
        raise ValueError(f"a cloud is {getattr(cloud, 'shape', type(cloud).__name__)}")
    return cloud[:, :3]


def _write(path: Path, clouds: list[np.ndarray], labels: np.ndarray) -> None:
    """Write an hdf5 file whole: a reader never sees a part of it."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.h5")
    with h5py.File(temporary, "w") as file:
        shape = (len(clouds), len(clouds[0]), 3)
        points = file.create_dataset("data", shape=shape, dtype=clouds[0].dtype)
        # Cloud by cloud: the pickle's own numbers fill two gigabytes.
        for number, cloud in enumerate(clouds):
            points[number] = cloud

        file["label"] = labels

    temporary.rename(path)
