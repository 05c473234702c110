"""Features of points beside their coordinates: normals, colours and intensity, as files give them.

Formats that name their fields are read by name; in rows and arrays the columns stand in the order
of `dataset.features`, x y z first. Normals are brought to unit length, whole numbers are divided by
the largest of their type, and colours from 0 to 255 in any type by 255: what a network sees is
about 1 in size.

Letters: P points, F channels of all features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from pointsweep.config.datasets import FEATURE_CHANNELS

# The names of a feature's fields in PLY, PCD and LAS.
FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "normal": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
    "color": (("red", "green", "blue"), ("r", "g", "b")),
    "intensity": (("intensity",), ("scalar_Intensity",), ("i",)),
}
# The names of a feature's own array in a file whose points have three columns.
ARRAY_KEYS: dict[str, tuple[str, ...]] = {
    "normal": ("normal", "normals"),
    "color": ("color", "colors", "rgb"),
    "intensity": ("intensity", "intensities"),
}


def from_fields(
    names: Sequence[str], present: Collection[str], read: Callable[[str], np.ndarray]
) -> list[np.ndarray]:
    """Return each feature (P, channels) of a file whose fields have names. Raises ValueError naming
    the feature that has none.
    """
    columns = []
    for name in names:
        fields = _fields_of(name, present)
        values = np.stack([np.asarray(read(field)) for field in fields], axis=1)
        columns.append(scaled(name, values))

    return columns


def _fields_of(name: str, present: Collection[str]) -> tuple[str, ...]:
    for fields in FIELDS[name]:
        if set(fields) <= set(present):
            return fields

    expected = " or ".join(", ".join(fields) for fields in FIELDS[name])
    raise ValueError(
        f"no {name} (fields {expected}), which dataset.features asks for; fields:"
        f" {', '.join(present)}"
    )


def from_columns(points: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
    """Return the coordinates and features (P, 3 + F) of rows (P, C) whose columns stand in the
    order of the features. Raises ValueError for too few columns.
    """
    width = 3 + sum(FEATURE_CHANNELS[name] for name in names)
    if points.ndim != 2 or points.shape[1] < width:
        raise ValueError(
            f"{source}: dataset.features [{', '.join(('xyz', *names))}] are {width} columns, found"
            f" {points.shape[-1]}"
        )

    columns = []
    first = 3
    for name in names:
        last = first + FEATURE_CHANNELS[name]
        columns.append(scaled(name, points[:, first:last]))
        first = last

    return joined(points[:, :3], columns)


def joined(points: np.ndarray, features: Sequence[np.ndarray]) -> np.ndarray:
    """Return coordinates (P, 3) with their features behind them (P, 3 + F), in the coordinates'
    type where that has fractions; without features the coordinates as they are.
    """
    if not features:
        return points

    dtype = points.dtype if points.dtype.kind == "f" else np.dtype(np.float64)
    columns = [values.astype(dtype) for values in (points, *features)]
    return np.concatenate(columns, axis=1)


def scaled(name: str, values: np.ndarray) -> np.ndarray:
    """Return a feature (P, channels) as numbers of about 1 in size; float64."""
    scaled_values = values.astype(np.float64)
    if name == "normal":
        lengths = np.linalg.norm(scaled_values, axis=1, keepdims=True)
        normals = np.zeros_like(scaled_values)  # a normal of length 0 stays 0
        return np.divide(scaled_values, lengths, out=normals, where=lengths != 0)

    if name == "color" and (values.dtype.kind == "f" or values.dtype.itemsize > 2):
        if len(scaled_values) and scaled_values.max() > 1:
            return scaled_values / 255
        return scaled_values

    if values.dtype.kind in "iu":
        return scaled_values / np.iinfo(values.dtype).max

    return scaled_values
