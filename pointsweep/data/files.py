"""Anybody's clouds: a folder of files or arrays, described in the sweep file.

A split is a folder with a folder for each class, a folder of its name in each class's folder, a
list of file names, or h5 and npz files of arrays. Every cloud is brought to one number of points:
of a larger one a random part is kept, a smaller one is filled up with its own points, a mesh is
sampled on its surface. The choice depends on the cloud alone, so that it is the same on every
machine, and a copy of a cloud stays a copy.

Letters: n clouds, P points.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pointsweep.config.datasets import CloudFilesConfig, DatasetConfig
from pointsweep.data.dataset import Copy, Dataset, data_folder
from pointsweep.data.readers.cloud_arrays import Keys, names_in, read_arrays
from pointsweep.data.readers.cloud_files import read_cloud
from pointsweep.data.readers.clouds import as_stored, unit_sphere, whole_labels
from pointsweep.data.readers.file_splits import (
    SplitFiles,
    contents,
    names_of,
    one_kind,
    split_files,
)
from pointsweep.data.splits import hold_out
from pointsweep.errors import MissingDataError, unknown
from pointsweep.utils.array_cache import arrays_of_files

ORIGIN = (
    "Any folder of clouds: `pointsweep data add FOLDER` prints the section that reads it"
    " (docs/data.md)."
)
SPLITS = ("train", "val", "test")
REVISION = 1  # of what is made of the same files; part of the cache's key


class Files(Dataset):
    """Sampled first, then scaled and translated, as ModelNet40 (spec 2.9)."""

    augment_first = False
    shuffles = True
    origin = ORIGIN

    def __init__(self, config: CloudFilesConfig) -> None:
        content = stored(self.as_found(config), folder_of(config, self.origin))
        arrays = content.arrays
        groups = {}

        for split in SPLITS:
            if f"{split}_groups" in arrays:
                groups[split] = arrays[f"{split}_groups"]

        super().__init__(
            config,
            content.class_names,
            arrays,
            digest=content.digest,
            groups=groups or None,
        )

        self.marks = tuple(_marks(arrays, config))

    @classmethod
    def as_found(cls, config: CloudFilesConfig) -> CloudFilesConfig:
        """Return the configuration with what the layout of the folder decides; a set that is
        published in several layouts has its own. Raises MissingDataError.
        """
        return config

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        files_of(cls.as_found(config), folder_of(config, cls.origin))  # type: ignore[arg-type]

    @classmethod
    def folders(cls, config: DatasetConfig) -> list[Path]:
        return [folder_of(config, cls.origin)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stored:
    """The clouds of a folder: {split}_points (n, P, 3) float32, _labels (n,), _sizes (n,) as found,
    perhaps _groups (n,).
    """

    arrays: Mapping[str, np.ndarray]
    digest: str
    class_names: tuple[str, ...]


def folder_of(config: CloudFilesConfig, origin: str = ORIGIN) -> Path:
    """Return the folder of the clouds. Raises MissingDataError."""
    return data_folder(config.name, config.root, origin, key="root")


def files_of(config: CloudFilesConfig, root: Path) -> dict[str, SplitFiles]:
    """Return the files of each split that the configuration names. Raises MissingDataError,
    ValueError.
    """
    splits = {}
    for split in SPLITS:
        value = getattr(config, split)
        if value is not None:
            splits[split] = split_files(
                root,
                split,
                value,
                pattern=config.pattern,
                lists_folder=config.lists_folder,
                class_before=config.class_before,
            )

    if len({bool(files.arrays) for files in splits.values()}) > 1:
        kinds = []
        for split, files in splits.items():
            kind = "arrays" if files.arrays else "a cloud a file"
            kinds.append(f"{split}: {kind}")

        raise ValueError(
            f"{root}: the splits must be of one kind, found {', '.join(kinds)}"
        )

    one_kind(list(splits.values()), config.pattern)
    return splits


def stored(config: CloudFilesConfig, root: Path) -> Stored:
    """Return all clouds of a folder, memory-mapped. Raises MissingDataError, ValueError."""
    splits = files_of(config, root)
    names_file = _names_file(config, root)
    files: list[Path] = []
    # A cloud's class may be its folder, which the digest of its content does not cover.
    paths, class_of_clouds = {}, {}

    for split, listing in splits.items():
        files += listing.files
        paths[split] = [str(path.relative_to(root)) for path in listing.files]
        class_of_clouds[split] = [name for _, name in listing.clouds]

    if names_file is not None:
        files.append(names_file)

    settings = [
        REVISION,
        config.num_classes,
        config.stored_points,
        config.keep_units,
        config.test_fraction,
        *_keys(config),
        *config.point_features,
    ]

    key = json.dumps([paths, settings, class_of_clouds])
    class_names = _class_names(config, splits, names_file)
    read = partial(_read, config, splits, class_names)
    arrays, digest = arrays_of_files("files", files, read, key)

    if "class_names" in arrays:  # of arrays whose labels are names
        class_names = tuple(map(str, arrays["class_names"]))

    return Stored(arrays, digest, class_names)


def named_copies(
    config: CloudFilesConfig, data_root: Path, published: Mapping[str, int]
) -> list[Copy]:
    """Return the copy of a published set that lies where its configuration says, below a data root,
    for `pointsweep data`; none if there is no such folder.
    """
    root = data_root / config.root
    if not root.is_dir():
        return []

    names: list[str] = []

    def read() -> Mapping[str, np.ndarray]:
        splits = files_of(config, root)
        names.extend(_class_names(config, splits, _names_file(config, root)))
        return _read(config, splits, tuple(names))

    counts = {split: (count,) for split, count in published.items()}
    return [Copy(config.root, read, names, counts)]


def _names_file(config: CloudFilesConfig, root: Path) -> Path | None:
    if config.class_names is None:
        return None

    path = root / config.class_names
    if not path.is_file():
        raise MissingDataError(f"dataset.class_names: no file {path}; {contents(root)}")

    return path


def _keys(config: CloudFilesConfig) -> tuple[str | None, ...]:
    return (
        config.points_key,
        config.labels_key,
        config.offsets_key,
        config.groups_key,
        config.split_key,
    )


def _class_names(
    config: CloudFilesConfig, splits: Mapping[str, SplitFiles], names_file: Path | None
) -> tuple[str, ...]:
    """Return the classes in the order of their numbers; of arrays without a file of names,
    numbers.
    """
    listed = None if names_file is None else names_of(names_file)
    arrays: list[Path] = []
    folder_names: set[str] = set()

    for files in splits.values():
        arrays += files.arrays
        folder_names.update(name for _, name in files.clouds)

    if not arrays:
        return checked_names(sorted(folder_names), listed, config.num_classes)

    names = listed or names_in(arrays[0], config.num_classes)
    if not names:
        names = tuple(map(str, range(config.num_classes)))

    return checked_names((), names, config.num_classes)


def checked_names(
    present: Sequence[str], listed: Sequence[str] | None, num_classes: int
) -> tuple[str, ...]:
    """Return the classes in the order of their numbers. Raises ValueError unless there are
    `num_classes`, all of them listed.
    """
    for name in present:
        if listed is not None and name not in listed:
            raise ValueError(
                unknown("class", name, listed, "dataset.class_names lists")
            )

    names = tuple(present if listed is None else listed)
    if len(names) != num_classes:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(
            f"dataset.num_classes: {num_classes} asked for, {len(names)} are there: {shown}"
        )

    return names


# Reading


@dataclass(frozen=True)
class _Clouds:
    """Collector of clouds (P, 3) of any sizes, at most `stored_points`; how many points each had;
    numbers or names of classes.
    """

    clouds: list[np.ndarray]
    sizes: list[int]
    labels: np.ndarray
    groups: np.ndarray | None


def _read(
    config: CloudFilesConfig,
    splits: Mapping[str, SplitFiles],
    class_names: tuple[str, ...],
) -> dict[str, np.ndarray]:
    clouds_of: dict[str, _Clouds] = {}
    for split, files in splits.items():
        if files.arrays:
            clouds_of[split] = _read_arrays(config, split, files)
        else:
            clouds_of[split] = _read_files(config, files, class_names)

    arrays: dict[str, np.ndarray] = {}
    if any(clouds.labels.dtype.kind == "U" for clouds in clouds_of.values()):
        clouds_of, names = _numbered(clouds_of, config, class_names)
        arrays["class_names"] = np.array(names)

    if config.test is None:
        train, test = _train_test_split(clouds_of["train"], config.test_fraction)
        clouds_of |= {"train": train, "test": test}

    arrays |= _group_numbers(clouds_of)

    sizes: list[int] = []
    for clouds in clouds_of.values():
        sizes += map(len, clouds.clouds)

    largest = max(sizes)
    for split, clouds in clouds_of.items():
        points = np.stack([resized(cloud, largest) for cloud in clouds.clouds])
        xyz, features = points[:, :, :3], points[:, :, 3:]
        source = f"dataset.{split}"
        xyz = as_stored(xyz, source) if config.keep_units else unit_sphere(xyz)

        if features.shape[2]:
            xyz = np.concatenate([xyz, features.astype(np.float32)], axis=2)

        arrays[f"{split}_points"] = xyz
        arrays[f"{split}_labels"] = clouds.labels.astype(np.int64)
        arrays[f"{split}_sizes"] = np.array(clouds.sizes, dtype=np.int64)

    return arrays


def _group_numbers(clouds_of: Mapping[str, _Clouds]) -> dict[str, np.ndarray]:
    """Return the numbers of the objects that clouds are of, by split; nothing where no file says
    it.
    """
    if all(clouds.groups is None for clouds in clouds_of.values()):
        return {}

    groups = [np.asarray(clouds.groups) for clouds in clouds_of.values()]
    names = np.unique(np.concatenate(groups))
    numbers = {}

    for split, split_groups in zip(clouds_of, groups, strict=True):
        rows = np.searchsorted(names, split_groups)
        numbers[f"{split}_groups"] = rows.astype(np.int64)

    return numbers


def _read_files(
    config: CloudFilesConfig, files: SplitFiles, class_names: tuple[str, ...]
) -> _Clouds:
    numbers = {name: number for number, name in enumerate(class_names)}
    clouds: list[np.ndarray] = []
    sizes: list[int] = []

    for path, _ in files.clouds:
        cloud = read_cloud(
            path,
            config.stored_points,
            points_key=config.points_key,
            features=config.point_features,
        )
        clouds.append(_at_most(cloud, config.stored_points))
        sizes.append(len(cloud))

    labels = np.array([numbers[name] for _, name in files.clouds], dtype=np.int64)
    return _Clouds(clouds, sizes, labels, groups=None)


def _read_arrays(config: CloudFilesConfig, split: str, files: SplitFiles) -> _Clouds:
    keys = Keys(*_keys(config))
    clouds: list[np.ndarray] = []
    sizes: list[int] = []
    labels: list[np.ndarray] = []
    groups: list[np.ndarray] = []

    for path in files.arrays:
        content = read_arrays(path, keys, split, config.point_features)
        for cloud in content.clouds:
            clouds.append(_at_most(cloud, config.stored_points))
            sizes.append(len(cloud))

        if content.labels.dtype.kind != "U":
            labels.append(whole_labels(content.labels, config.num_classes, str(path)))
        else:
            labels.append(content.labels)

        if content.groups is not None:
            groups.append(content.groups)

    return _Clouds(
        clouds,
        sizes=sizes,
        labels=np.concatenate(labels),
        groups=np.concatenate(groups) if groups else None,
    )


def _numbered(
    clouds_of: Mapping[str, _Clouds],
    config: CloudFilesConfig,
    class_names: tuple[str, ...],
) -> tuple[dict[str, _Clouds], tuple[str, ...]]:
    """Return the clouds with numbers in place of names of classes, and the names."""
    present: set[str] = set()
    for split, clouds in clouds_of.items():
        if clouds.labels.dtype.kind != "U":
            raise ValueError(
                f"dataset.{split}: labels are numbers, those of another split are names; one kind"
                " is allowed"
            )

        present.update(map(str, clouds.labels))

    listed = class_names if config.class_names is not None else None
    names = checked_names(sorted(present), listed, config.num_classes)
    numbers = {name: number for number, name in enumerate(names)}
    numbered = {}

    for split, clouds in clouds_of.items():
        labels = [numbers[str(name)] for name in clouds.labels]
        numbered[split] = dataclasses.replace(
            clouds, labels=np.array(labels, dtype=np.int64)
        )

    return numbered, names


def _train_test_split(clouds: _Clouds, fraction: float) -> tuple[_Clouds, _Clouds]:
    """Return the clouds to train on, and those held out to test on."""
    groups = None
    if clouds.groups is not None:
        _, groups = np.unique(clouds.groups, return_inverse=True)

    train_rows, test_rows = hold_out(clouds.labels, fraction, groups)

    return _subset(clouds, train_rows), _subset(clouds, test_rows)


def _subset(clouds: _Clouds, rows: np.ndarray) -> _Clouds:
    return _Clouds(
        [clouds.clouds[row] for row in rows],
        sizes=[clouds.sizes[row] for row in rows],
        labels=clouds.labels[rows],
        groups=None if clouds.groups is None else clouds.groups[rows],
    )


def _at_most(cloud: np.ndarray, count: int) -> np.ndarray:
    if len(cloud) > count:
        return resized(cloud, count)
    return cloud


def resized(cloud: np.ndarray, count: int) -> np.ndarray:
    """Return a cloud (count, 3): a random part of a larger one (P, 3), a smaller one with points of
    its own repeated.

    What is drawn depends on P alone, and a larger cloud's points are sorted first: the same points
    in another order, moved or scaled, give the same part.
    """
    size = len(cloud)
    if size == count:
        return cloud

    generator = np.random.default_rng(size)
    if size < count:
        repeated = cloud[generator.choice(size, count - size)]
        return np.concatenate([cloud, repeated])

    order = np.lexsort(cloud.T[::-1])
    rows = np.sort(generator.choice(size, count, replace=False))
    return cloud[order[rows]]


def _marks(arrays: Mapping[str, np.ndarray], config: CloudFilesConfig) -> Iterator[str]:
    """Yield what a table must say of clouds that were filled up."""
    for split, name in (("train", "training"), ("test", "test")):
        sizes = arrays[f"{split}_sizes"]
        short = int((sizes < config.num_points).sum())
        if short:
            yield (
                f"{short:,} of {len(sizes):,} {name} clouds have fewer than {config.num_points:,}"
                f" points (the fewest {sizes.min():,}) and are filled up with their own"
            )
