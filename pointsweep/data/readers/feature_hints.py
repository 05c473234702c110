"""Which features the first file of a folder gives, for `pointsweep data add`.

Formats that name their fields, and arrays with names of their own, are asked by name. Columns have
no names: three of unit length are taken for normals, three from 0 to 1 or whole numbers up to 255
for colours, and a single last one of many values for intensity. So what is found is a hint, which
its user confirms.

Letters: P points, C columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointsweep.config.datasets import FEATURE_CHANNELS
from pointsweep.data.readers.cloud_arrays import Keys, points_of, read_arrays
from pointsweep.data.readers.cloud_files import READERS, columns_of, read_cloud
from pointsweep.data.readers.file_splits import SplitFiles

SAMPLED = 64  # points of a mesh that are drawn to see its normals
MOST_ROWS = 10_000  # of a file of columns that are looked at
# Text files round normals to a few digits, and a few may be missing.
LENGTH_ERROR, SHARE = 0.02, 0.95
MANY = 32  # values of a column: more than a file has classes or parts


def features_in(files: SplitFiles, keys: Keys, split: str) -> tuple[str, ...]:
    """Return the features that the first file of a split gives beside the coordinates, in the order
    in which `dataset.features` has to list them.
    """
    if files.arrays:
        path = files.arrays[0]
        points = points_of(path, keys.of(split))
        if points.shape[-1] != 3:
            return in_columns(points.reshape(-1, points.shape[-1]))

        names = []
        for name in FEATURE_CHANNELS:
            if _arrays_give(path, keys, split, name):
                names.append(name)

        return tuple(names)

    path, _ = files.clouds[0]
    if path.suffix.lower() in READERS:
        return tuple(name for name in FEATURE_CHANNELS if _fields_give(path, name))

    return in_columns(columns_of(path, keys.points))


def in_columns(rows: np.ndarray) -> tuple[str, ...]:
    """Return which features the columns behind x, y, z of rows (P, C) look like."""
    rows = rows[:MOST_ROWS].astype(np.float64)
    names: list[str] = []
    first = 3

    while first < rows.shape[1]:
        three = rows[:, first : first + 3]
        if "normal" not in names and _are_normals(three):
            names.append("normal")
        elif "color" not in names and _are_colors(three):
            names.append("color")
        else:
            break

        first += 3

    if first == rows.shape[1] - 1 and _is_intensity(rows[:, first]):
        names.append("intensity")

    return tuple(names)


def _are_normals(three: np.ndarray) -> bool:
    if three.shape[1] < 3:
        return False

    is_unit = np.abs(np.linalg.norm(three, axis=1) - 1) < LENGTH_ERROR
    return bool(is_unit.mean() >= SHARE) and bool((three < 0).any())


def _are_colors(three: np.ndarray) -> bool:
    if three.shape[1] < 3 or not np.isfinite(three).all() or three.min() < 0:
        return False

    are_bytes = three.max() <= 255 and bool((three == np.floor(three)).all())
    return (are_bytes or three.max() <= 1) and len(np.unique(three)) > MANY


def _is_intensity(values: np.ndarray) -> bool:
    return (
        bool(np.isfinite(values).all())
        and values.min() >= 0
        and len(np.unique(values)) > MANY
    )


def _arrays_give(path: Path, keys: Keys, split: str, name: str) -> bool:
    try:
        read_arrays(path, keys, split, features=(name,))
    except ValueError:
        return False

    return True


def _fields_give(path: Path, name: str) -> bool:
    try:
        read_cloud(path, SAMPLED, features=(name,))
    except ValueError:
        return False

    return True
