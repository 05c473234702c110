"""ShapeNetPart: 16,881 shapes of 16 categories, every point labelled with one of 50 parts.

Source: A Scalable Active Framework for Region Annotation (Yi et al. 2016); text layout of spec 6.4: `synsetoffset2category.txt`,
`<synset>/<id>.txt` with rows x y z nx ny nz part, `train_test_split/shuffled_{train,val,test}_file_list.json`. Every cloud is moved
to its mean and scaled to the unit sphere when it is read. Shapes differ in their number of points, so arrays lie end to end.
Letters: B shapes, P points.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointsweep.data.base import Copy, check_clouds, data_folder, folders_with
from pointsweep.data.cache import cached_arrays, signature
from pointsweep.data.modelnet40 import unit_sphere
from pointsweep.errors import MissingData

CATEGORIES = (
    "airplane", "bag", "cap", "car", "chair", "earphone", "guitar", "knife", "lamp", "laptop", "motorbike", "mug", "pistol", "rocket",
    "skateboard", "table",
)  # fmt: skip
FIRST_PARTS = (0, 4, 6, 8, 12, 16, 19, 22, 24, 28, 30, 36, 38, 41, 44, 47)
NUM_PARTS = 50
PARTS = tuple(range(first, end) for first, end in zip(FIRST_PARTS, (*FIRST_PARTS[1:], NUM_PARTS), strict=True))  # by category
PUBLISHED = {"train": 12137, "val": 1870, "test": 2874}
FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
ORIGIN = f"ShapeNetPart ({FOLDER}) comes from Stanford; ShapeNet's terms of use apply."


@dataclass(frozen=True)
class PartSplit:
    """Shape i has rows starts[i] to starts[i + 1] of points (total, 3) float32 and parts (total,), and category[i] of CATEGORIES."""

    name: str
    points: np.ndarray
    parts: np.ndarray
    starts: np.ndarray  # (n + 1,)
    category: np.ndarray  # (n,)

    def __len__(self) -> int:
        return len(self.category)

    def shape(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """points (P, 3), parts (P,) and the category of one shape."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.points[rows], self.parts[rows], int(self.category[index])

    def batch(self, index: np.ndarray, num_points: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random points (B, num_points, 3), their parts (B, num_points) and the categories (B,).

        No point is taken twice, except of shapes with fewer points than `num_points`.
        """
        points, parts = [], []
        for shape_points, shape_parts, _ in map(self.shape, index):
            size = len(shape_parts)
            chosen = random.choice(size, num_points, replace=size < num_points)
            points.append(shape_points[chosen])
            parts.append(shape_parts[chosen])
        return np.stack(points), np.stack(parts), np.array(self.category[index])


class ShapeNetPart:
    """The three splits, and a digest of their content. Not in the registry: a trial classifies whole clouds."""

    origin = ORIGIN
    made_from = ""

    def __init__(self, folder: str = FOLDER) -> None:
        arrays, self.digest = stored(data_folder("shapenetpart", folder, ORIGIN))
        self.train, self.val, self.test = (
            PartSplit(split, *(arrays[f"{split}_{name}"] for name in ("points", "parts", "starts", "labels"))) for split in PUBLISHED
        )

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        """See `Dataset.copies`."""
        for folder in folders_with(root, "synsetoffset2category.txt"):
            counts = {split: (count,) for split, count in PUBLISHED.items()}
            yield Copy(str(folder.relative_to(root)), lambda folder=folder: read(folder), CATEGORIES, counts)  # type: ignore[misc]


def stored(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """What `read` gives, memory-mapped, and its digest. Raises MissingData, ValueError."""
    lists = split_lists(folder, synsets(folder))
    files = [folder / f"{entry}.txt" for entries in lists.values() for entry in entries]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingData(f"data set shapenetpart: no file {missing[0]} ({len(missing)} such shapes of {len(files)}). {ORIGIN}")
    return cached_arrays(f"shapenetpart-{signature(files, lists)}", lambda: read(folder))


def read(folder: Path) -> dict[str, np.ndarray]:
    """{train,val,test}_points (total, 3), _parts (total,), _starts (n + 1,) and _labels (n,), the categories.

    Raises MissingData, and ValueError naming the file and what is wrong with it.
    """
    categories = synsets(folder)
    arrays: dict[str, np.ndarray] = {}
    for split, entries in split_lists(folder, categories).items():
        labels = [categories[entry.partition("/")[0]] for entry in entries]
        shapes = [read_shape(folder / f"{entry}.txt", label) for entry, label in zip(entries, labels, strict=True)]
        arrays |= {
            f"{split}_points": np.concatenate([points for points, _ in shapes]),
            f"{split}_parts": np.concatenate([parts for _, parts in shapes]),
            f"{split}_starts": np.cumsum([0, *(len(parts) for _, parts in shapes)]),
            f"{split}_labels": np.array(labels, dtype=np.int64),
        }
    return arrays


def synsets(folder: Path) -> dict[str, int]:
    """Synset (a folder's name) -> its place in CATEGORIES. Raises MissingData, ValueError."""
    path = folder / "synsetoffset2category.txt"
    if not path.is_file():
        raise MissingData(f"data set shapenetpart: no file {path}. {ORIGIN}")
    pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs) or tuple(sorted(pair[0].lower() for pair in pairs)) != CATEGORIES:
        raise ValueError(f"{path}: must give a synset to each of {', '.join(CATEGORIES)}, found {pairs}")
    return {synset: CATEGORIES.index(name.lower()) for name, synset in pairs}


def split_lists(folder: Path, categories: Mapping[str, int]) -> dict[str, list[str]]:
    """Split -> `<synset>/<id>` of its shapes, in the list's order. Raises MissingData, ValueError."""
    lists: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for split in PUBLISHED:
        path = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        if not path.is_file():
            raise MissingData(f"data set shapenetpart: no file {path}. {ORIGIN}")
        try:
            entries = ["/".join(entry.split("/")[-2:]) for entry in json.loads(path.read_text())]
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
    """points (P, 3) float32 in the unit sphere and parts (P,) int64. Raises MissingData, ValueError naming the file."""
    if not path.is_file():
        raise MissingData(f"data set shapenetpart: no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file is told of below
            rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not rows of x y z nx ny nz part: {error}") from error
    if not len(rows) or rows.shape[1] != 7:
        raise ValueError(f"{path}: must hold rows of 7 numbers, found {rows.shape}")
    check_clouds(rows[None, :, :3], np.array([category]), len(CATEGORIES), str(path))
    allowed = PARTS[category]
    bad = np.flatnonzero(~np.isin(rows[:, 6], allowed))
    if len(bad):
        names = f"{CATEGORIES[category]} has {allowed[0]} to {allowed[-1]}"
        raise ValueError(f"{path}: point {bad[0]} has part {rows[bad[0], 6]:g}, {names} ({len(bad)} such points)")
    return unit_sphere(rows[None, :, :3])[0], rows[:, 6].astype(np.int64)
