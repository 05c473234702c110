"""Point-BERT's few-shot pickles -> npz, once and on demand (`pointsweep data --convert-fewshot
FOLDER`).

Source: the layout of spec 6.3: {5,10}way_{10,20}shot/{0..9}.pkl, each a dict train/test -> list of
(points (8192, 6) float32, label in the episode, class in ModelNet40).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pointsweep.data.modelnet40_fewshot import check_episode, episode_name
from pointsweep.data.readers.number_pickles import load_numbers, plain
from pointsweep.errors import MissingDataError


def read_pickle(path: Path, way: int, shot: int) -> dict[str, np.ndarray]:
    """A fold: {train,test}_points (n, P, 3) as stored and _labels (n,), classes (way,). Raises
    ValueError naming the file.
    """
    with path.open("rb") as file:
        content = load_numbers(file, str(path))

    arrays: dict[str, np.ndarray] = {}
    label_classes: set[tuple[int, int]] = set()  # (label, class)
    for split in ("train", "test"):
        clouds, labels = [], []
        try:
            for item in content[split]:
                cloud = item[0].array[:, :3]
                label, number = int(plain(item[1])), int(plain(item[2]))
                clouds.append(cloud)
                labels.append(label)
                label_classes.add((label, number))

            arrays[f"{split}_points"] = np.stack(clouds)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path}: {split} is not a list of (points, label, class) with as many points each:"
                f" {error}"
            ) from error

        arrays[f"{split}_labels"] = np.array(labels, dtype=np.int64)

    pairs = sorted(label_classes)
    if [label for label, _ in pairs] != list(range(way)):
        raise ValueError(
            f"{path}: labels must be 0 to {way - 1}, each of one class; found (label, class)"
            f" {pairs}"
        )

    arrays["classes"] = np.array([number for _, number in pairs], dtype=np.int64)
    check_episode(arrays, way, shot, str(path))
    return arrays


def convert(folder: Path) -> Iterator[Path]:
    """Convert every pickle of a ModelNetFewshot folder and yield each npz file. Raises
    MissingDataError, ValueError.
    """
    files = sorted(folder.glob("*way*shot/*.pkl"))
    if not files:
        raise MissingDataError(
            f"{folder}: no file {{5,10}}way_{{10,20}}shot/{{0..9}}.pkl (Point-BERT's"
            " ModelNetFewshot)"
        )

    for path in files:
        # Point-BERT's document writes the folder with and without the underscore.
        name = f"{path.parent.name}/{path.stem}"
        match = re.fullmatch(r"(5|10)way_?(10|20)shot/([0-9])", name)
        if match is None:
            raise ValueError(
                f"{path}: must be called {{5,10}}way_{{10,20}}shot/{{0..9}}.pkl"
            )

        way, shot, fold = map(int, match.groups())
        target = folder / f"{episode_name(way, shot, fold)}.npz"
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.npz")
        np.savez(temporary, **read_pickle(path, way, shot))  # type: ignore[arg-type]
        temporary.rename(target)
        yield target
