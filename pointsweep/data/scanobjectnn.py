"""ScanObjectNN: real scans of 15 kinds of objects.

Source: arXiv 1908.04616; layout, splits and class order of spec 6.1. y is up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pointsweep.config.datasets import DatasetConfig, ScanObjectNNConfig
from pointsweep.data.dataset import Copy, Dataset, data_folder, folders_with
from pointsweep.data.readers.clouds import as_stored
from pointsweep.data.readers.hdf5 import read_h5
from pointsweep.data.readers.text import read_text
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import arrays_of_files

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed",
    "pillow", "sink", "sofa", "toilet",
)  # fmt: skip
VARIANTS = {  # variant -> folder, ending of the file names
    "pb_t50_rs": ("main_split", "_augmentedrot_scale75"),
    "pb_t50_r": ("main_split", "_augmentedrot"),
    "pb_t25_r": ("main_split", "_augmented25rot"),
    "pb_t25": ("main_split", "_augmented25_norot"),
    "obj_bg": ("main_split", ""),
    "obj_only": ("main_split_nobg", ""),
}
# training and test objects (spec 6.1)
PUBLISHED = {"pb_t50_rs": (11416, 2882), "obj_bg": (2309, 581), "obj_only": (2309, 581)}
ONE_CLOUD_AN_OBJECT = ("obj_bg", "obj_only")
# beside a split's file, with its stem: the object of each cloud, one a line
OBJECTS_FILE = "_objects.txt"
RANDOM_ORDERS = 199  # that an order of copies is compared with
ORIGIN = (
    "ScanObjectNN is handed out after a terms-of-use form by its authors"
    " (hkust-vgd.github.io/scanobjectnn)."
)


class ScanObjectNN(Dataset):
    """2,048 points a cloud, not normalised; augmented before it is sampled (spec 2.9).

    The perturbed variants (PB_...) have about five clouds of each object, which differ in crop,
    rotation and scale. No published file says which these are, and in the files the classes of
    neighbouring clouds differ: see `objects_of`.
    """

    origin = ORIGIN

    def __init__(self, config: ScanObjectNNConfig) -> None:
        folder = data_folder("scanobjectnn", config.folder, ORIGIN)
        arrays, digest = stored(folder, config.variant)
        files = split_files(folder, config.variant)
        groups = objects_of(files, arrays, config.copies_in_a_row)
        super().__init__(config, CLASSES, arrays, digest=digest, groups=groups)

    @classmethod
    def holds_copies(cls, config: DatasetConfig) -> bool:
        return config.variant not in ONE_CLOUD_AN_OBJECT  # type: ignore[attr-defined]

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        split_files(data_folder("scanobjectnn", config.folder, ORIGIN), config.variant)  # type: ignore[attr-defined]

    @classmethod
    def published_sizes(cls, config: DatasetConfig) -> Mapping[str, Sequence[int]]:
        return published_sizes(config.variant)  # type: ignore[attr-defined]

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        markers = (
            "main_split",
            "main_split_nobg",
            "h5_files/main_split",
            "h5_files/main_split_nobg",
        )

        folders = set()
        for marker in markers:
            for path in folders_with(root, marker):
                # The folder above h5_files/ is the one that a config names.
                if path.name == "h5_files" and path != root:
                    path = path.parent

                folders.add(path)

        for folder in sorted(folders):
            for variant in VARIANTS:
                paths = candidates(folder, variant)
                if any(path.is_file() for path in (*paths["train"], *paths["test"])):
                    yield Copy(
                        location=f"{folder.relative_to(root)} ({variant})",
                        read=partial(read, folder, variant),
                        class_names=CLASSES,
                        published=published_sizes(variant),
                    )


def published_sizes(variant: str) -> dict[str, Sequence[int]]:
    """The published numbers of training and test objects of a variant; nothing for a variant
    without known ones.
    """
    counts = PUBLISHED.get(variant)
    if counts:
        return {"train": (counts[0],), "test": (counts[1],)}

    return {}


def stored(folder: Path, variant: str) -> tuple[dict[str, np.ndarray], str]:
    """All clouds and labels of a variant, memory-mapped, and their digest. Raises MissingDataError,
    ValueError.
    """
    files = list(split_files(folder, variant).values())
    names = folder / "shape_names.txt"

    if names.is_file():
        files.append(names)

    return arrays_of_files("scanobjectnn", files, lambda: read(folder, variant))


def read(folder: Path, variant: str) -> dict[str, np.ndarray]:
    """{train,test}_points (n, 2048, 3) float32 and _labels (n,) int64. Raises MissingDataError,
    ValueError.
    """
    names = folder / "shape_names.txt"
    if names.is_file() and tuple(read_text(names).split()) != CLASSES:
        raise ValueError(
            f"{names}: not the {len(CLASSES)} classes in the order of their labels:"
            f" {', '.join(CLASSES)}"
        )

    arrays = {}
    for split, file in split_files(folder, variant).items():
        points, labels = read_h5(file, len(CLASSES), "ScanObjectNN file")
        arrays[f"{split}_points"] = as_stored(points, str(file))
        arrays[f"{split}_labels"] = labels

    return arrays


def objects_of(
    files: Mapping[str, Path],
    arrays: Mapping[str, np.ndarray],
    copies_in_a_row: int | None,
) -> dict[str, np.ndarray] | None:
    """Return which object each cloud is of, by split; None where it is not known. Raises
    ValueError.

    Taken from the text files `<stem of the split's file>_objects.txt`, else from the order that the
    configuration claims.
    """
    lists = {}
    for split, path in files.items():
        lists[split] = path.with_name(path.stem + OBJECTS_FILE)

    if any(path.is_file() for path in lists.values()):
        return _listed_objects(lists)
    if copies_in_a_row is None:
        return None

    objects: dict[str, np.ndarray] = {}
    start = 0
    for split in files:
        points, labels = arrays[f"{split}_points"], arrays[f"{split}_labels"]
        groups = np.arange(len(labels)) // copies_in_a_row
        _require_copies(points, labels, groups, copies_in_a_row, split)
        objects[split] = start + groups
        start += int(groups[-1]) + 1

    return objects


def _listed_objects(lists: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Return the objects' numbers by split, from a list of names beside the file of each split."""
    present = [path for path in lists.values() if path.is_file()]
    missing = [path for path in lists.values() if not path.is_file()]

    if missing:
        raise ValueError(
            f"{present[0]} says which clouds are of one object, {missing[0]} is not there"
        )

    names = {split: read_text(path).split() for split, path in lists.items()}
    distinct = sorted(set().union(*names.values()))
    number_of = {name: number for number, name in enumerate(distinct)}
    objects = {}

    for split, names_of_split in names.items():
        numbers = [number_of[name] for name in names_of_split]
        objects[split] = np.array(numbers, dtype=np.int64)

    return objects


def _require_copies(
    points: np.ndarray, labels: np.ndarray, groups: np.ndarray, copies: int, split: str
) -> None:
    """Raise ValueError unless the clouds of a row are of one class, and more alike than clouds of a
    class in any other order.
    """
    claim = f"dataset.copies_in_a_row: {copies}, but"
    if len(labels) % copies:
        raise ValueError(
            f"{claim} the {len(labels)} {split} clouds are no multiple of it"
        )

    by_row = labels.reshape(-1, copies)
    mixed_rows = np.flatnonzero((by_row != by_row[:, :1]).any(axis=1))
    if len(mixed_rows):
        first = int(mixed_rows[0]) * copies
        raise ValueError(
            f"{claim} {split} clouds {first} to {first + copies - 1} are of different classes"
        )

    shapes = np.stack([_shape(cloud) for cloud in points])  # (n, 3)
    spread = _spread_in_groups(shapes, copies)
    generator = np.random.default_rng(0)
    by_class = np.argsort(labels, kind="stable")
    at_random = []

    for _ in range(RANDOM_ORDERS):
        # Clouds change places within their class.
        shuffled = np.lexsort((generator.random(len(labels)), labels))
        order = np.empty_like(by_class)
        order[by_class] = shuffled
        at_random.append(_spread_in_groups(shapes[order], copies))

    if spread >= min(at_random):
        raise ValueError(
            f"{claim} {split} clouds in a row are no more alike than others of their class"
        )


def _shape(points: np.ndarray) -> np.ndarray:
    """Return what turning a cloud (P, 3) leaves: the extents along its own axes, sorted (3,)."""
    centred = points.astype(np.float64) - points.mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred / len(points))
    extents: np.ndarray = np.sqrt(np.maximum(variances, 0.0))  # rounding goes below 0

    return extents


def _spread_in_groups(shapes: np.ndarray, copies: int) -> float:
    """The mean variance inside rows of so many clouds."""
    return float(shapes.reshape(-1, copies, shapes.shape[1]).var(axis=1).mean())


def candidates(folder: Path, variant: str) -> dict[str, list[Path]]:
    """Return where the training and the test file of a variant may lie: below the folder, or below
    h5_files/ in it.
    """
    inner, ending = VARIANTS[variant]
    stems = {"train": "training_objectdataset", "test": "test_objectdataset"}
    paths: dict[str, list[Path]] = {}

    for split, stem in stems.items():
        file = Path(inner, f"{stem}{ending}.h5")
        paths[split] = [folder / file, folder / "h5_files" / file]

    return paths


def split_files(folder: Path, variant: str) -> dict[str, Path]:
    """The training and the test file of a variant. Raises MissingDataError."""
    files = {}
    for split, paths in candidates(folder, variant).items():
        file = next((path for path in paths if path.is_file()), None)
        if file is None:
            raise MissingDataError(
                f"data set scanobjectnn, variant {variant}: no file {paths[0]}, nor below"
                f" h5_files/. {ORIGIN}"
            )

        files[split] = file

    return files
