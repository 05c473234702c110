"""S3DIS: 271 rooms in six areas of buildings, every point of one of 13 classes.

Source: 3D Semantic Parsing of Large-Scale Indoor Spaces (Armeni et al. 2016); blocks, split and
evaluation as of PointNet (arXiv 1612.00593): one area is tested on, area 5 by default. Layouts:

- `blocks`: PointNet's `indoor3d_sem_seg_hdf5_data`: `all_files.txt` lists h5 files with `data`
  (n, 4096, 9) and `label` (n, 4096), `room_filelist.txt` the room of every block.
- `rooms`: `Area_N_ROOM.npy`, rows x y z r g b class, as PointNet's collect_indoor3d_data.py writes
  them; or the text files `Area_N/ROOM/Annotations/CLASS_I.txt`, rows x y z r g b, of
  `Stanford3dDataset_v1.2_Aligned_Version`. A room is cut into blocks here.

Models are given coordinates alone: in metres, the middle of the block's square at 0, heights above
the room's lowest point. The files have z up; rows are turned so that y is, as everywhere here.
Letters: n blocks, P points.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pointsweep.config.datasets import S3DIS_FOLDERS, S3DISConfig
from pointsweep.data.dataset import Copy, data_folder, folders_with, text_digest
from pointsweep.data.readers.clouds import check_clouds
from pointsweep.data.readers.hdf5 import read_data_and_label
from pointsweep.data.readers.text import files_of_list, lines_of, number_rows, read_text
from pointsweep.data.scenes.dataset import CATEGORIES, SceneDataset
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import arrays_of_files

CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa",
    "bookcase", "board", "clutter",
)  # fmt: skip
CLUTTER = CLASSES.index("clutter")  # what is of no other class, say stairs
AREAS = range(1, 7)
# Blocks of an area in PointNet's files, where the number is known.
PUBLISHED_BLOCKS, PUBLISHED_OF_AREA = 23585, {1: 3687, 5: 6852}
BLOCKS_LIST, ROOMS_LIST = "all_files.txt", "room_filelist.txt"
ROOM_NAME = re.compile(r"Area_([1-6])_\w+")
ORIGIN = (
    "S3DIS comes from Stanford, on request (http://buildingparser.stanford.edu/dataset.html), its"
    " blocks from https://shapenet.cs.stanford.edu/media/indoor3d_sem_seg_hdf5_data.zip."
)


class S3DIS(SceneDataset):
    """Blocks of rooms; the test split is one area, and the training split the other five."""

    origin = ORIGIN

    def __init__(self, config: S3DISConfig) -> None:
        files, read = layout(config, self.folders(config)[0])
        settings = (
            config.layout,
            config.test_area,
            config.block,
            config.stride,
            config.stored_points,
            config.min_points,
        )

        arrays, digest = arrays_of_files("s3dis", files, read, *settings)
        super().__init__(config, CLASSES, arrays, digest)

    @classmethod
    def available(cls, config: S3DISConfig) -> None:  # type: ignore[override]
        layout(config, cls.folders(config)[0])

    @classmethod
    def folders(cls, config: S3DISConfig) -> list[Path]:  # type: ignore[override]
        """See `Dataset.folders`."""
        folder = config.folder or S3DIS_FOLDERS[config.layout]
        return [data_folder("s3dis", folder, ORIGIN)]

    @classmethod
    def published_sizes(cls, config: S3DISConfig) -> Mapping[str, Sequence[int]]:  # type: ignore[override]
        tested = PUBLISHED_OF_AREA.get(config.test_area)
        if config.layout != "blocks" or tested is None:
            return {}

        return {"train": (PUBLISHED_BLOCKS - tested,), "test": (tested,)}

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        """See `Dataset.copies`."""
        config = S3DISConfig()
        sizes = cls.published_sizes(config)

        for folder in folders_with(root, ROOMS_LIST):
            read = partial(_read_blocks, folder, config.test_area)
            yield Copy(f"{folder.relative_to(root)} (blocks)", read, CATEGORIES, sizes)

        config = config.model_copy(update={"layout": "rooms"})
        folders = {
            *folders_with(root, "Area_*.npy"),
            *folders_with(root, "Area_*/*/Annotations"),
        }
        for folder in sorted(folders):
            read = partial(_read_rooms, config, folder)
            yield Copy(f"{folder.relative_to(root)} (rooms)", read, CATEGORIES)


@dataclass(frozen=True)
class Blocks:
    """Blocks of rooms: points (total, 3) float32, classes (total,) uint8, the points of each block
    and its room.
    """

    points: np.ndarray
    classes: np.ndarray
    sizes: np.ndarray  # (n,)
    rooms: Sequence[str]  # n names


def layout(
    config: S3DISConfig, folder: Path
) -> tuple[list[Path], Callable[[], dict[str, np.ndarray]]]:
    """Return all files of a folder, and a function that reads them. Raises MissingDataError,
    ValueError.
    """
    if config.layout == "blocks":
        lists = [folder / BLOCKS_LIST, folder / ROOMS_LIST]
        for path in lists:
            if not path.is_file():
                raise MissingDataError(f"data set s3dis: no file {path}. {ORIGIN}")

        files = [*block_files(folder), *lists]
        return files, partial(_read_blocks, folder, config.test_area)

    files = list(itertools.chain.from_iterable(room_files(folder).values()))
    return files, partial(_read_rooms, config, folder)


# The hdf5 files of blocks


def block_files(folder: Path) -> list[Path]:
    """Return the h5 files that the list names; of a listed path its last part counts. Raises
    MissingDataError, ValueError.
    """
    list_file = folder / BLOCKS_LIST
    names = lines_of(read_text(list_file))

    if not names:
        raise ValueError(f"{list_file}: names no file")

    return files_of_list(list_file, names, "s3dis")


def _read_blocks(folder: Path, test_area: int) -> dict[str, np.ndarray]:
    """Return the arrays of the hdf5 files. Raises ValueError naming the file and what is wrong."""
    points_of_files = []
    classes_of_files = []

    for path in block_files(folder):
        file_points, file_classes = _read_block_file(path)
        points_of_files.append(file_points)
        classes_of_files.append(file_classes)

    points = np.concatenate(points_of_files)  # (n, P, 3)
    classes = np.concatenate(classes_of_files)  # (n, P)
    rooms = lines_of(read_text(folder / ROOMS_LIST))

    if len(rooms) != len(points):
        raise ValueError(
            f"{folder / ROOMS_LIST}: names the rooms of {len(rooms)} blocks, the h5 files hold"
            f" {len(points)}"
        )

    sizes = np.full(len(points), points.shape[1])
    blocks = Blocks(points.reshape(-1, 3), classes.reshape(-1), sizes, rooms)
    arrays: dict[str, np.ndarray] = {}

    for split, is_member in _areas_of(rooms, test_area, folder / ROOMS_LIST).items():
        arrays |= _arrays(split, _selected(blocks, is_member), rooms)

    return arrays


def _read_block_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, P, 3) and classes (n, P) of a file. Raises ValueError."""
    data, classes = read_data_and_label(path, "S3DIS file")
    if data.ndim != 3 or data.shape[2] != 9 or classes.shape != data.shape[:2]:
        raise ValueError(
            f"{path}: data must be (n, P, 9) and label (n, P), found {data.shape} and"
            f" {classes.shape}"
        )

    points = y_up(data[:, :, :3])
    check_clouds(points, np.zeros(len(points)), 1, str(path))
    return points.astype(np.float32), point_classes(classes, str(path))


# Rooms, cut into blocks


def room_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of every room, `Area_N_ROOM`, by its name. Raises MissingDataError where
    there is none.
    """
    arrays = sorted(folder.glob("Area_[1-6]_*.npy"))
    if arrays:
        return {path.stem: [path] for path in arrays}

    rooms: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("Area_[1-6]/*/Annotations/*_*.txt")):
        room = path.parents[1]
        rooms.setdefault(f"{room.parent.name}_{room.name}", []).append(path)

    if not rooms:
        raise MissingDataError(
            f"data set s3dis: {folder} holds neither Area_N_ROOM.npy nor"
            f" Area_N/ROOM/Annotations/CLASS_I.txt. {ORIGIN}"
        )

    return rooms


def _read_rooms(config: S3DISConfig, folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of all rooms, cut into blocks. Raises ValueError naming the file and what
    is wrong.
    """
    rooms = room_files(folder)
    names = list(rooms)
    arrays: dict[str, np.ndarray] = {}

    for split, is_member in _areas_of(names, config.test_area, folder).items():
        blocks_of_rooms: list[Blocks] = []
        for name in itertools.compress(names, is_member):
            points, classes = read_room(rooms[name])
            room_blocks = cut(
                name, points, classes, config=config, trains=split == "train"
            )
            blocks_of_rooms.append(room_blocks)

        blocks = _joined(blocks_of_rooms)
        if not len(blocks.sizes):
            raise ValueError(
                f"{folder}: no {split} block has {config.min_points} points"
            )

        arrays |= _arrays(split, blocks, names)

    return arrays


def _joined(several: Sequence[Blocks]) -> Blocks:
    rooms: list[str] = []
    for blocks in several:
        rooms += blocks.rooms

    return Blocks(
        points=np.concatenate([blocks.points for blocks in several]),
        classes=np.concatenate([blocks.classes for blocks in several]),
        sizes=np.concatenate([blocks.sizes for blocks in several]),
        rooms=rooms,
    )


def read_room(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (P, 3) of a room in metres from its lowest corner, z up, and their classes
    (P,). Raises ValueError.
    """
    if paths[0].suffix == ".npy":
        try:
            rows = np.load(paths[0], allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{paths[0]}: not an array: {error}") from error

        if rows.ndim != 2 or rows.shape[1] != 7 or rows.dtype.kind not in "fiu":
            raise ValueError(
                f"{paths[0]}: must be rows of numbers x y z r g b class, found {rows.dtype}"
                f" {rows.shape}"
            )

        points = rows[:, :3]
        classes = point_classes(rows[:, 6], str(paths[0]))
    else:
        objects = []
        for path in paths:
            rows = number_rows(read_text(path), str(path), (6,))
            objects.append(rows[:, :3])

        points = np.concatenate(objects)
        object_classes = np.array([class_of(path) for path in paths], dtype=np.uint8)
        classes = np.repeat(object_classes, [len(rows) for rows in objects])

    source = paths[0] if len(paths) == 1 else paths[0].parent
    check_clouds(points[None], np.zeros(1), 1, str(source))
    return points - points.min(axis=0), classes


def class_of(path: Path) -> int:
    """Return the class of an annotation file by its name, `chair_3.txt`; clutter for any other
    name, as in PointNet's program.
    """
    name = path.stem.partition("_")[0]
    return CLASSES.index(name) if name in CLASSES else CLUTTER


def cut(
    room: str,
    points: np.ndarray,
    classes: np.ndarray,
    config: S3DISConfig,
    trains: bool,
) -> Blocks:
    """Cut a room (P, 3), z up, into square blocks: every `stride` for training, edge to edge for
    testing, where no point is left out.
    """
    stride = config.stride if trains else config.block
    fewest = config.min_points if trains else 1
    most = config.stored_points
    taken: list[np.ndarray] = []
    centers: list[tuple[float, float]] = []
    by_x = np.argsort(points[:, 0], kind="stable")

    for x, in_strip in _intervals(points[by_x, 0], config.block, stride):
        strip = by_x[in_strip]
        by_y = strip[np.argsort(points[strip, 1], kind="stable")]
        for y, in_block in _intervals(points[by_y, 1], config.block, stride):
            rows = np.sort(by_y[in_block])
            if len(rows) < fewest:
                continue

            if most is not None and len(rows) > most:
                seed = int(text_digest(f"{room} {trains} {len(taken)}"), 16)
                generator = np.random.default_rng(seed)
                rows = np.sort(generator.choice(rows, most, replace=False))

            taken.append(rows)
            centers.append((x, y))

    if not taken:
        return Blocks(
            points=np.zeros((0, 3), dtype=np.float32),
            classes=np.zeros(0, dtype=np.uint8),
            sizes=np.zeros(0, dtype=np.int64),
            rooms=[],
        )

    sizes = np.array([len(rows) for rows in taken])
    all_rows = np.concatenate(taken)
    moved = points[all_rows].astype(np.float64)
    moved[:, :2] -= np.repeat(centers, sizes, axis=0)

    return Blocks(
        points=y_up(moved).astype(np.float32),
        classes=classes[all_rows],
        sizes=sizes,
        rooms=[room] * len(sizes),
    )


def _intervals(
    sorted_values: np.ndarray, width: float, stride: float
) -> Iterator[tuple[float, slice]]:
    """Yield the middle of every interval from 0 on, and which of the sorted values lie in it.

    The last interval takes the largest value too.
    """
    if not len(sorted_values):
        return

    largest = float(sorted_values[-1])
    count = max(math.ceil((largest - width) / stride), 0) + 1
    for number in range(count):
        start = number * stride
        end = start + width if number < count - 1 else np.inf
        first, last = np.searchsorted(sorted_values, [start, end])
        yield start + width / 2, slice(int(first), int(last))


# Of both layouts


def point_classes(classes: np.ndarray, source: str) -> np.ndarray:
    """Return the classes of points as uint8. Raises ValueError for what is no number of a class."""
    allowed = np.isin(classes, np.arange(len(CLASSES)))
    if not allowed.all():
        first = tuple(np.argwhere(~allowed)[0])
        num_wrong = int((~allowed).sum())
        raise ValueError(
            f"{source}: point {first[-1]} has class {classes[first]:g}, allowed 0 to"
            f" {len(CLASSES) - 1} ({num_wrong} such points)"
        )

    return classes.astype(np.uint8)


def y_up(points: np.ndarray) -> np.ndarray:
    """Return points (..., 3) with z up, turned so that y is."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def _areas_of(
    rooms: Sequence[str], test_area: int, source: Path
) -> dict[str, np.ndarray]:
    """Return which of the rooms (n,) are of the training and of the test split. Raises ValueError
    for a name without an area, and for a split without a room.
    """
    areas = []
    for room in rooms:
        match = ROOM_NAME.fullmatch(room)
        if match is None:
            raise ValueError(
                f"{source}: {room!r} is no room; allowed: Area_1_NAME to Area_6_NAME"
            )

        areas.append(int(match[1]))

    is_test = np.array(areas) == test_area
    if not is_test.any() or is_test.all():
        here = ", ".join(map(str, sorted(set(areas))))
        raise ValueError(
            f"{source}: test_area {test_area} needs rooms of that area and of others; here are"
            f" areas {here}"
        )

    return {"train": ~is_test, "test": is_test}


def _selected(blocks: Blocks, is_selected: np.ndarray) -> Blocks:
    """Return those blocks (n,) that are selected."""
    rows = np.repeat(is_selected, blocks.sizes)
    return Blocks(
        points=blocks.points[rows],
        classes=blocks.classes[rows],
        sizes=blocks.sizes[is_selected],
        rooms=list(itertools.compress(blocks.rooms, is_selected)),
    )


def _arrays(split: str, blocks: Blocks, rooms: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays of one split; `rooms` are those of both, whose order gives their
    numbers.
    """
    number_of = {room: number for number, room in enumerate(sorted(set(rooms)))}
    groups = [number_of[room] for room in blocks.rooms]

    return {
        f"{split}_points": blocks.points,
        f"{split}_parts": blocks.classes,
        f"{split}_starts": np.concatenate([[0], np.cumsum(blocks.sizes)]),
        f"{split}_labels": np.zeros(len(blocks.sizes), dtype=np.int64),
        f"{split}_groups": np.array(groups, dtype=np.int64),
    }
