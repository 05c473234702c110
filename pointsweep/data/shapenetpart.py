"""ShapeNetPart: 16,881 shapes of 16 categories, every point labelled with one of 50 parts.

Source: A Scalable Active Framework for Region Annotation (Yi et al. 2016). Text layout of spec 6.4:
`synsetoffset2category.txt`, `<synset>/<id>.txt` with rows x y z nx ny nz part,
`train_test_split/shuffled_{train,val,test}_file_list.json`. HDF5 layout of PointNet's program
(`shapenet_part_seg_hdf5_data`): `{train,val,test}_hdf5_file_list.txt` and the files that they name,
with `data` (n, 2048, 3), the category `label` (n, 1) and the part `pid` (n, 2048) from 0 to 49.
Every cloud is moved to its mean and scaled to the unit sphere when it is read. Shapes of the text
layout differ in their number of points, so arrays lie end to end. As in the published programs
(Point-MAE, arXiv 2203.06604) one trains on the training and the validation list together. Letters:
B shapes, P points.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath

import h5py
import numpy as np

from pointsweep.config.datasets import ShapeNetPartConfig
from pointsweep.data.dataset import Copy, data_folder, folders_with
from pointsweep.data.part_dataset import PartDataset, arrays_of_shapes
from pointsweep.data.readers.clouds import check_clouds, unit_sphere
from pointsweep.data.readers.hdf5 import read_h5
from pointsweep.data.readers.text import files_of_list, lines_of, number_rows, read_text
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import arrays_of_files

CATEGORIES = (
    "airplane", "bag", "cap", "car", "chair", "earphone", "guitar", "knife", "lamp", "laptop",
    "motorbike", "mug", "pistol", "rocket",
    "skateboard", "table",
)  # fmt: skip
FIRST_PARTS = (0, 4, 6, 8, 12, 16, 19, 22, 24, 28, 30, 36, 38, 41, 44, 47)
NUM_PARTS = 50
# by category
PARTS = tuple(
    range(first, end)
    for first, end in zip(FIRST_PARTS, (*FIRST_PARTS[1:], NUM_PARTS), strict=True)
)
PUBLISHED = {"train": 12137, "val": 1870, "test": 2874}
HDF5_LIST = "train_hdf5_file_list.txt"
HDF5_NAMES = "all_object_categories.txt"
ORIGIN = (
    "ShapeNetPart (shapenetcore_partanno_segmentation_benchmark_v0_normal) comes from Stanford;"
    " ShapeNet's terms of use apply."
)


class ShapeNetPart(PartDataset):
    """16 categories, 50 parts. Validation shapes, where a trial asks for them, are held out of the
    two lists' shapes.
    """

    origin = ORIGIN

    def __init__(self, config: ShapeNetPartConfig) -> None:
        arrays, digest = stored(data_folder("shapenetpart", config.folder, ORIGIN))
        super().__init__(config, CATEGORIES, PARTS, arrays=arrays, digest=digest)

    @classmethod
    def available(cls, config: ShapeNetPartConfig) -> None:  # type: ignore[override]
        layout(data_folder("shapenetpart", config.folder, ORIGIN))

    @classmethod
    def published_sizes(cls, config: ShapeNetPartConfig) -> Mapping[str, Sequence[int]]:  # type: ignore[override]
        return {
            "train": (PUBLISHED["train"] + PUBLISHED["val"],),
            "test": (PUBLISHED["test"],),
        }

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        """See `Dataset.copies`."""
        counts = {split: (count,) for split, count in PUBLISHED.items()}
        for marker, reader in (
            ("synsetoffset2category.txt", read),
            (HDF5_LIST, read_hdf5),
        ):
            for folder in folders_with(root, marker):
                yield Copy(
                    location=str(folder.relative_to(root)),
                    read=partial(reader, folder),
                    class_names=CATEGORIES,
                    published=counts,
                )


def layout(folder: Path) -> tuple[list[Path], Callable[[], dict[str, np.ndarray]]]:
    """Return all files of a folder's layout, and a function that reads them. Raises
    MissingDataError, ValueError.
    """
    if (folder / HDF5_LIST).is_file():
        return hdf5_files(folder), partial(read_hdf5, folder)

    files = listed_files(folder)
    files.append(folder / "synsetoffset2category.txt")
    for split in PUBLISHED:
        files.append(list_file(folder, split))

    return files, partial(read, folder)


def listed_files(folder: Path) -> list[Path]:
    """The files of all shapes, in the lists' order. Raises MissingDataError, ValueError."""
    files: list[Path] = []
    for entries in split_lists(folder, synsets(folder)).values():
        files += [folder / f"{entry}.txt" for entry in entries]

    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingDataError(
            f"data set shapenetpart: no file {missing[0]} ({len(missing)} such shapes of"
            f" {len(files)}). {ORIGIN}"
        )

    return files


def stored(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of `training`, memory-mapped, and their digest. Raises MissingDataError,
    ValueError.
    """
    files, reader = layout(folder)
    return arrays_of_files("shapenetpart-trainval", files, lambda: training(reader()))


def training(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what `read` gives, with the validation shapes behind the training shapes."""
    joined = {}
    for name in ("points", "parts", "starts", "labels"):
        first, behind = arrays[f"train_{name}"], arrays[f"val_{name}"]
        if name == "starts":
            behind = behind[1:] + first[-1]

        joined[f"train_{name}"] = np.concatenate([first, behind])

    for name, array in arrays.items():
        if name.startswith("test_"):
            joined[name] = array

    return joined


def read(folder: Path) -> dict[str, np.ndarray]:
    """{train,val,test}_points (total, 3), _parts (total,), _starts (n + 1,) and _labels (n,), the
    categories.

    Raises MissingDataError, and ValueError naming the file and what is wrong with it.
    """
    categories = synsets(folder)
    arrays: dict[str, np.ndarray] = {}

    for split, entries in split_lists(folder, categories).items():
        labels = [categories[entry.partition("/")[0]] for entry in entries]
        shapes = []
        for entry, label in zip(entries, labels, strict=True):
            shapes.append(read_shape(folder / f"{entry}.txt", label))

        arrays |= arrays_of_shapes(split, shapes, labels)

    return arrays


def synsets(folder: Path) -> dict[str, int]:
    """Synset (a folder's name) -> its place in CATEGORIES. Raises MissingDataError, ValueError."""
    path = folder / "synsetoffset2category.txt"
    if not path.is_file():
        raise MissingDataError(
            f"data set shapenetpart: {folder} holds neither {path.name} (text layout) nor"
            f" {HDF5_LIST} (hdf5 layout). {ORIGIN}"
        )

    pairs = [line.split() for line in lines_of(read_text(path))]
    names = tuple(sorted(pair[0].lower() for pair in pairs))
    if any(len(pair) != 2 for pair in pairs) or names != CATEGORIES:
        raise ValueError(
            f"{path}: must give a synset to each of {', '.join(CATEGORIES)}, found {pairs}"
        )

    return {synset: CATEGORIES.index(name.lower()) for name, synset in pairs}


def list_file(folder: Path, split: str) -> Path:
    """Return the file that lists the shapes of a split."""
    return folder / "train_test_split" / f"shuffled_{split}_file_list.json"


def split_lists(folder: Path, categories: Mapping[str, int]) -> dict[str, list[str]]:
    """Split -> `<synset>/<id>` of its shapes, in the list's order. Raises MissingDataError,
    ValueError.
    """
    lists: dict[str, list[str]] = {}
    seen: dict[str, str] = {}

    for split in PUBLISHED:
        path = list_file(folder, split)
        if not path.is_file():
            raise MissingDataError(f"data set shapenetpart: no file {path}. {ORIGIN}")

        try:
            entries = []
            for entry in json.loads(read_text(path)):
                entries.append("/".join(PureWindowsPath(entry).parts[-2:]))
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path}: not a list of prefix/synset/id: {error}"
            ) from error

        for entry in entries:
            if entry.partition("/")[0] not in categories:
                raise ValueError(
                    f"{path}: {entry} is of no known synset: {', '.join(categories)}"
                )
            if entry in seen:
                raise ValueError(
                    f"{path}: {entry} is listed twice, first in {seen[entry]}"
                )

            seen[entry] = split

        if not entries:
            raise ValueError(f"{path}: lists no shape")

        lists[split] = entries

    return lists


def read_shape(path: Path, category: int) -> tuple[np.ndarray, np.ndarray]:
    """points (P, 3) float32 in the unit sphere and parts (P,) int64. Raises MissingDataError,
    ValueError naming the file.
    """
    if not path.is_file():
        raise MissingDataError(f"data set shapenetpart: no file {path}")

    rows = number_rows(read_text(path), str(path), (7,))
    check_clouds(rows[None, :, :3], np.array([category]), len(CATEGORIES), str(path))
    allowed = PARTS[category]
    bad = np.flatnonzero(~np.isin(rows[:, 6], allowed))

    if len(bad):
        names = f"{CATEGORIES[category]} has {allowed[0]} to {allowed[-1]}"
        raise ValueError(
            f"{path}: point {bad[0]} has part {rows[bad[0], 6]:g}, {names} ({len(bad)} such points)"
        )

    return unit_sphere(rows[None, :, :3])[0], rows[:, 6].astype(np.int64)


# The hdf5 layout


def hdf5_files(folder: Path) -> list[Path]:
    """Return all files that `read_hdf5` reads. Raises MissingDataError, ValueError."""
    names = folder / HDF5_NAMES
    files = [names] if names.is_file() else []

    for split in PUBLISHED:
        files += [hdf5_list(folder, split), *hdf5_listed(folder, split)]

    return files


def hdf5_list(folder: Path, split: str) -> Path:
    """Return the file that lists the hdf5 files of a split."""
    return folder / f"{split}_hdf5_file_list.txt"


def hdf5_listed(folder: Path, split: str) -> list[Path]:
    """Return the hdf5 files of a split; of a listed path its last part counts. Raises
    MissingDataError, ValueError.
    """
    path = hdf5_list(folder, split)
    if not path.is_file():
        raise MissingDataError(f"data set shapenetpart: no file {path}. {ORIGIN}")

    names = lines_of(read_text(path))
    if not names:
        raise ValueError(f"{path}: names no file")

    return files_of_list(path, names, "shapenetpart")


def read_hdf5(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the hdf5 layout, under the names and in the shapes that `read` gives.

    Raises MissingDataError, and ValueError naming the file and what is wrong with it.
    """
    _check_hdf5_names(folder / HDF5_NAMES)
    arrays: dict[str, np.ndarray] = {}

    for split in PUBLISHED:
        points: list[np.ndarray] = []
        parts: list[np.ndarray] = []
        labels: list[np.ndarray] = []

        for path in hdf5_listed(folder, split):
            clouds, categories = read_h5(path, len(CATEGORIES), "ShapeNetPart file")
            points += list(unit_sphere(clouds))
            parts += list(_parts_of(path, clouds.shape[:2], categories))
            labels.append(categories)

        arrays[f"{split}_points"] = np.concatenate(points)
        arrays[f"{split}_parts"] = np.concatenate(parts)
        arrays[f"{split}_starts"] = np.cumsum([0, *map(len, parts)])
        arrays[f"{split}_labels"] = np.concatenate(labels)

    return arrays


def _check_hdf5_names(path: Path) -> None:
    """Raise ValueError where the file of the categories' names has them in another order than the
    labels assume.
    """
    if not path.is_file():
        return

    names = tuple(line.split()[0].lower() for line in lines_of(read_text(path)))
    if names != CATEGORIES:
        raise ValueError(
            f"{path}: must list {', '.join(CATEGORIES)} in this order, found {', '.join(names)}"
        )


def _parts_of(path: Path, shape: tuple[int, ...], categories: np.ndarray) -> np.ndarray:
    """Return the parts (n, P) int64 of a file's points. Raises ValueError for a part that the
    shape's category does not have.
    """
    try:
        with h5py.File(path, "r") as file:
            parts = np.asarray(file["pid"][()])
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a ShapeNetPart file with pid: {error}"
        ) from error

    if parts.shape != shape or parts.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: pid must be whole numbers of the shape {shape}, found {parts.dtype}"
            f" {parts.shape}"
        )

    for number, (own, category) in enumerate(zip(parts, categories, strict=True)):
        allowed = PARTS[category]
        bad = np.flatnonzero(~np.isin(own, allowed))
        if len(bad):
            names = f"{CATEGORIES[category]} has {allowed[0]} to {allowed[-1]}"
            raise ValueError(
                f"{path}: point {bad[0]} of cloud {number} has part {own[bad[0]]}, {names}"
                f" ({len(bad)} such points)"
            )

    return parts.astype(np.int64)
