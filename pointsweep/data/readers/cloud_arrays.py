"""Many clouds a file: arrays of h5 and npz files, of one size (n, P, 3) or end to end (total, 3)
with offsets.

Letters: n clouds, P points.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.lib.npyio import NpzFile

from pointsweep.config.datasets import FEATURE_CHANNELS
from pointsweep.data.readers.cloud_files import POINT_KEYS, array_key, checked_cloud
from pointsweep.data.readers.features import ARRAY_KEYS, scaled

HDF5 = (".h5", ".hdf5")
SUFFIXES = (*HDF5, ".npz")
LABEL_KEYS = (
    "labels",
    "label",
    "y",
    "cls",
    "class",
    "category",
    "target",
    "targets",
    "class_id",
)
NAME_KEYS = (
    "class_names",
    "classes",
    "names",
    "label_names",
    "shape_names",
    "categories",
)
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    zipfile.BadZipFile,
)
OFFSET_KEYS = (
    "offsets",
    "offset",
    "starts",
    "ends",
    "lengths",
    "sizes",
    "counts",
    "num_points",
)


@dataclass(frozen=True)
class Keys:
    """Under which names a file holds its arrays; None: under a usual name. `{split}` stands for
    train, val or test.
    """

    points: str | None = None
    labels: str | None = None
    offsets: str | None = None
    groups: str | None = None  # None: the file says nothing of objects
    # of the split of each cloud, for a file that holds several; None: all are of one
    splits: str | None = None

    def of(self, split: str) -> Keys:
        """Return the keys of a split."""

        def filled(key: str | None) -> str | None:
            return None if key is None else key.replace("{split}", split)

        return Keys(
            points=filled(self.points),
            labels=filled(self.labels),
            offsets=filled(self.offsets),
            groups=filled(self.groups),
            splits=filled(self.splits),
        )


@dataclass(frozen=True)
class CloudArrays:
    """The clouds of a file, each (P, 3) in its stored type; `labels` and `groups` (n,) are numbers
    or texts.
    """

    clouds: Sequence[np.ndarray]
    labels: np.ndarray
    groups: np.ndarray | None


def read_arrays(
    path: Path, keys: Keys, split: str, features: tuple[str, ...] = ()
) -> CloudArrays:
    """Read the clouds of a split, with `features` behind their coordinates: further columns of the
    points, or where they have three, arrays of their own. Raises ValueError naming the file, the
    key, and what was found under it.
    """
    keys = keys.of(split)
    content = keys_of(path)
    points_key = array_key(path, content, keys.points, POINT_KEYS, field="points_key")
    labels_key = array_key(path, content, keys.labels, LABEL_KEYS, field="labels_key")
    points = _array(path, points_key)
    source = f"{path}: {points_key}"

    if points.shape[-1:] == (3,):
        for name in features:
            key = array_key(path, content, None, ARRAY_KEYS[name], field="features")
            values = _array(path, key)
            points = _with_feature(points, values, name=name, source=f"{path}: {key}")

    is_cloud = points.ndim in (2, 3) and points.shape[-1] >= 3 and len(points) > 0
    if not is_cloud or points.dtype.kind not in "fiu":
        raise ValueError(
            f"{source} must be float or whole numbers (n, P, 3) or, with offsets, (total, 3); found"
            f" {points.dtype} {points.shape}"
        )

    clouds: list[np.ndarray]
    if points.ndim == 2:
        offsets_key = array_key(
            path, content, keys.offsets, OFFSET_KEYS, field="offsets_key"
        )
        offsets = _array(path, offsets_key)
        starts = starts_of(offsets, len(points), f"{path}: {offsets_key}")
        clouds = np.split(points, starts[1:-1])
    elif keys.offsets is None:
        clouds = list(points)
    else:
        raise ValueError(
            f"{source} has clouds of one size, {points.shape}; leave out dataset.offsets_key"
        )

    def column(key: str) -> np.ndarray:
        return _column(_array(path, key), len(clouds), f"{path}: {key}")

    labels = column(labels_key)
    rows = np.arange(len(clouds))
    if keys.splits is not None:
        splits_key = array_key(path, content, keys.splits, (), field="split_key")
        rows = _rows_of(split, column(splits_key), f"{path}: {splits_key}")

    groups = None
    if keys.groups is not None:
        groups_key = array_key(path, content, keys.groups, (), field="groups_key")
        groups = column(groups_key)[rows]

    checked = []
    for row in rows:
        cloud = checked_cloud(clouds[row], source, number=int(row), features=features)
        checked.append(cloud)

    return CloudArrays(checked, labels[rows], groups)


def points_of(path: Path, keys: Keys) -> np.ndarray:
    """Return the points of a file with all their columns, as they are stored. Raises ValueError."""
    key = array_key(path, keys_of(path), keys.points, POINT_KEYS, field="points_key")
    return _array(path, key)


def _with_feature(
    points: np.ndarray, values: np.ndarray, name: str, source: str
) -> np.ndarray:
    """Return points (..., C) with a feature in further columns. Raises ValueError for an array that
    does not fit them.
    """
    channels = FEATURE_CHANNELS[name]
    expected = (*points.shape[:-1], channels)

    if channels == 1 and values.shape == points.shape[:-1]:
        values = values[..., None]

    if values.shape != expected or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{source} must be numbers of the shape {expected}, found {values.dtype} {values.shape}"
        )

    values = scaled(name, values.reshape(-1, channels)).reshape(expected)
    dtype = points.dtype if points.dtype.kind == "f" else np.dtype(np.float64)
    return np.concatenate([points.astype(dtype), values.astype(dtype)], axis=-1)


def _rows_of(split: str, splits: np.ndarray, source: str) -> np.ndarray:
    """Return the rows of the clouds of a split. Raises ValueError if there is none, or if the
    splits are no names.
    """
    rows = np.flatnonzero(splits == split)
    if splits.dtype.kind != "U" or len(rows) == 0:
        present = ", ".join(map(str, np.unique(splits)[:10]))
        raise ValueError(
            f"{source} must name the split of each cloud: train, val or test; none is {split},"
            f" found {present}"
        )

    return rows


def names_in(path: Path, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers, if a file of arrays holds as
    many; else nothing.
    """
    for key in keys_of(path):
        if key.lower() not in NAME_KEYS:
            continue

        values = _array(path, key)
        if values.shape == (num_classes,) and values.dtype.kind in "USO":
            return tuple(map(str, _column(values, num_classes, f"{path}: {key}")))

    return ()


def starts_of(numbers: np.ndarray, total: int, source: str) -> np.ndarray:
    """Return where clouds start (n + 1,), the last entry being `total`.

    Taken are starts (n,) or (n + 1,) that begin with 0, ends (n,) that end with `total`, and sizes
    (n,) that add up to it. Raises ValueError for anything else.
    """
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(
            f"{source} must be whole numbers (n,) or (n + 1,), found {numbers.dtype}"
            f" {numbers.shape}"
        )

    values = numbers.astype(np.int64)
    first, last = values[0], values[-1]
    if first == 0 and last == total:
        starts = values
    elif first == 0:
        starts = np.append(values, total)
    elif last == total:
        starts = np.insert(values, 0, 0)
    elif values.sum() == total:
        starts = np.insert(np.cumsum(values), 0, 0)
    else:
        raise ValueError(
            f"{source} are {len(values)} numbers from {first} to {last}: neither starts (the first"
            f" is 0), nor ends (the last is the number of points, {total}), nor sizes (their sum is"
            f" {total}, here {values.sum()})"
        )

    empty = np.flatnonzero(np.diff(starts) <= 0)
    if len(empty):
        cloud = int(empty[0])
        raise ValueError(
            f"{source}: cloud {cloud} starts at {starts[cloud]} and ends at {starts[cloud + 1]}: it"
            " has no points"
        )

    return starts


def splits_in(path: Path, key: str) -> list[str]:
    """Return which of train, val and test an array of a file names."""
    values = _array(path, key)
    present = set(_column(values, values.size, f"{path}: {key}").tolist())
    return [split for split in ("train", "val", "test") if split in present]


def keys_of(path: Path) -> dict[str, None]:
    """Return the keys of a file's arrays; those in groups of an h5 file as group/name."""
    keys: dict[str, None] = {}
    try:
        if path.suffix.lower() in HDF5:
            with h5py.File(path, "r") as file:

                def add_key(name: str, item: object) -> None:
                    if isinstance(item, h5py.Dataset):
                        keys[name] = None

                file.visititems(add_key)
        else:
            with _open_npz(path) as archive:
                keys = dict.fromkeys(archive.files)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error

    return keys


def _array(path: Path, key: str) -> np.ndarray:
    try:
        if path.suffix.lower() in HDF5:
            with h5py.File(path, "r") as file:
                return np.asarray(file[key][()])
        with _open_npz(path) as archive:
            array: np.ndarray = archive[key]
            return array
    except ValueError as error:
        raise ValueError(
            f"{path}: {key} is no array of numbers ({error}). Clouds of different size are stored"
            " end to end, as (total, 3), with offsets (n + 1,)"
        ) from error
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _open_npz(path: Path) -> NpzFile:
    content = np.load(path, allow_pickle=False)
    if not isinstance(content, NpzFile):
        raise TypeError("not an archive of arrays")

    return content


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a readable {path.suffix} file of arrays: {error}")


def _column(values: np.ndarray, count: int, source: str) -> np.ndarray:
    """Return labels or groups (n,), texts as texts. Raises ValueError for another number of
    them.
    """
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"{source} has the shape {values.shape}, there are {count} clouds: ({count},) or"
            f" ({count}, 1) is allowed"
        )

    values = values.reshape(-1)
    if values.dtype.kind in "SO":
        with suppress(UnicodeDecodeError, AttributeError):
            texts = []
            for value in values:
                texts.append(value if isinstance(value, str) else value.decode())

            return np.array(texts)

    return values
