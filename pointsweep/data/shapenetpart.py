"""ShapeNetPart: 16,881 shapes of 16 categories, every point labelled with one of 50 parts.

Source: A Scalable Active Framework for Region Annotation (Yi et al. 2016); text layout of spec 6.4:
`synsetoffset2category.txt`, `<synset>/<id>.txt` with rows x y z nx ny nz part,
`train_test_split/shuffled_{train,val,test}_file_list.json`. Every cloud is moved to its mean and
scaled to the unit sphere when it is read. Shapes differ in their number of points, so arrays lie
end to end. As in the published programs (Point-MAE, arXiv 2203.06604) one trains on the training
and the validation list together. Letters: B shapes, P points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np

from pointsweep.config.datasets import ShapeNetPartConfig
from pointsweep.data.dataset import Copy, data_folder, folders_with
from pointsweep.data.part_dataset import PartDataset
from pointsweep.data.readers.clouds import check_clouds, unit_sphere
from pointsweep.data.readers.text import lines_of, number_rows, read_text
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
    range(first, end) for first, end in zip(FIRST_PARTS, (*FIRST_PARTS[1:], NUM_PARTS), strict=True)
)
PUBLISHED = {"train": 12137, "val": 1870, "test": 2874}
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
        super().__init__(config, CATEGORIES, PARTS, arrays, digest)

    @classmethod
    def available(cls, config: ShapeNetPartConfig) -> None:  # type: ignore[override]
        folder = data_folder("shapenetpart", config.folder, ORIGIN)
        listed_files(folder)

    @classmethod
    def published_sizes(cls, config: ShapeNetPartConfig) -> Mapping[str, Sequence[int]]:  # type: ignore[override]
        return {"train": (PUBLISHED["train"] + PUBLISHED["val"],), "test": (PUBLISHED["test"],)}

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        """See `Dataset.copies`."""
        for folder in folders_with(root, "synsetoffset2category.txt"):
            counts = {split: (count,) for split, count in PUBLISHED.items()}
            yield Copy(
                str(folder.relative_to(root)),
                partial(read, folder),
                CATEGORIES,
                counts,
            )


def listed_files(folder: Path) -> list[Path]:
    """The files of all shapes, in the lists' order. Raises MissingDataError, ValueError."""
    lists = split_lists(folder, synsets(folder))
    files = [folder / f"{entry}.txt" for entries in lists.values() for entry in entries]
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
    lists = [
        folder / "synsetoffset2category.txt",
        *(list_file(folder, split) for split in PUBLISHED),
    ]
    return arrays_of_files(
        "shapenetpart-trainval", [*listed_files(folder), *lists], lambda: training(read(folder))
    )


def training(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what `read` gives, with the validation shapes behind the training shapes."""
    first = {name: arrays[f"train_{name}"] for name in ("points", "parts", "starts", "labels")}
    behind = {name: arrays[f"val_{name}"] for name in first}
    behind["starts"] = behind["starts"][1:] + first["starts"][-1]
    joined = {f"train_{name}": np.concatenate([first[name], behind[name]]) for name in first}
    return joined | {name: array for name, array in arrays.items() if name.startswith("test_")}


def read(folder: Path) -> dict[str, np.ndarray]:
    """{train,val,test}_points (total, 3), _parts (total,), _starts (n + 1,) and _labels (n,), the
    categories.

    Raises MissingDataError, and ValueError naming the file and what is wrong with it.
    """
    categories = synsets(folder)
    arrays: dict[str, np.ndarray] = {}
    for split, entries in split_lists(folder, categories).items():
        labels = [categories[entry.partition("/")[0]] for entry in entries]
        shapes = [
            read_shape(folder / f"{entry}.txt", label)
            for entry, label in zip(entries, labels, strict=True)
        ]
        arrays |= {
            f"{split}_points": np.concatenate([points for points, _ in shapes]),
            f"{split}_parts": np.concatenate([parts for _, parts in shapes]),
            f"{split}_starts": np.cumsum([0, *(len(parts) for _, parts in shapes)]),
            f"{split}_labels": np.array(labels, dtype=np.int64),
        }
    return arrays


def synsets(folder: Path) -> dict[str, int]:
    """Synset (a folder's name) -> its place in CATEGORIES. Raises MissingDataError, ValueError."""
    path = folder / "synsetoffset2category.txt"
    if not path.is_file():
        raise MissingDataError(f"data set shapenetpart: no file {path}. {ORIGIN}")
    pairs = [line.split() for line in lines_of(read_text(path))]
    if (
        any(len(pair) != 2 for pair in pairs)
        or tuple(sorted(pair[0].lower() for pair in pairs)) != CATEGORIES
    ):
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
            entries = [
                "/".join(PureWindowsPath(entry).parts[-2:]) for entry in json.loads(read_text(path))
            ]
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: not a list of prefix/synset/id: {error}") from error
        for entry in entries:
            if entry.partition("/")[0] not in categories:
                raise ValueError(f"{path}: {entry} is of no known synset: {', '.join(categories)}")
            if entry in seen:
                raise ValueError(f"{path}: {entry} is listed twice, first in {seen[entry]}")
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
