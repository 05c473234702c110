"""ModelNet40: 12,311 CAD shapes of 40 classes.

Source: arXiv 1406.5670; layouts of spec 6.2: hdf5 (`modelnet40_ply_hdf5_2048`) and text
(`modelnet40_normal_resampled`), the latter also packed as one .tar.xz beside its own name. Every
cloud is moved to its mean and scaled to the unit sphere when it is read.
"""

from __future__ import annotations

import itertools
import lzma
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from pointsweep.config.datasets import DatasetConfig, ModelNet40Config
from pointsweep.data.dataset import Copy, Dataset, data_folder, folders_with
from pointsweep.data.readers.clouds import check_clouds, unit_sphere
from pointsweep.data.readers.hdf5 import read_h5
from pointsweep.data.readers.text import (
    decode,
    files_of_list,
    last_part,
    lines_of,
    number_rows,
)
from pointsweep.data.readers.text import read_text as read_text_file
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import arrays_of_files

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone",
    "cup", "curtain", "desk", "door",
    "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel",
    "monitor", "night_stand", "person",
    "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table", "tent",
    "toilet", "tv_stand", "vase",
    "wardrobe", "xbox",
)  # fmt: skip
COLUMNS = (3, 6)  # of the text layout: x, y, z, and the normal
ORIGIN = (
    "ModelNet40 (academic research only) comes from Princeton; "
    "these two layouts from Stanford."
)
NUM_TEST = 2468  # published test shapes
# What tells a layout -> its published number of training shapes: Stanford's hdf5 files lack three
# (spec 6.2), those that `pointsweep data --convert-fps` writes do not.
MARKERS = {
    "train_files.txt": (9840, 9843),
    "modelnet40_normal_resampled.tar.xz": (9843,),
    "modelnet40_train.txt": (9843,),
}


class ModelNet40(Dataset):
    """Sampled first, then scaled and translated (spec 2.9)."""

    augment_first = False
    shuffles = True
    origin = ORIGIN

    def __init__(self, config: ModelNet40Config) -> None:
        arrays, digest = stored(data_folder("modelnet40", config.folder, ORIGIN))
        super().__init__(config, CLASSES, arrays, digest)

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        layout(data_folder("modelnet40", config.folder, ORIGIN))  # type: ignore[attr-defined]

    @classmethod
    def published_sizes(cls, config: DatasetConfig) -> Mapping[str, Sequence[int]]:
        return {"train": MARKERS["train_files.txt"], "test": (NUM_TEST,)}

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        for marker, train in MARKERS.items():
            for folder in folders_with(root, marker):
                yield Copy(
                    location=str(folder.relative_to(root)),
                    read=partial(_read, folder),
                    class_names=CLASSES,
                    published={"train": train, "test": (NUM_TEST,)},
                )


def stored(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """All clouds and labels of a folder, memory-mapped, and their digest. Raises MissingDataError,
    ValueError.
    """
    files, read = layout(folder)
    return arrays_of_files("modelnet40", files(), read)


def _read(folder: Path) -> dict[str, np.ndarray]:
    _, read = layout(folder)
    return read()


def layout(
    folder: Path,
) -> tuple[Callable[[], list[Path]], Callable[[], dict[str, np.ndarray]]]:
    """Return two functions of a folder's layout: one lists all files that are read, one reads them.

    Raises MissingDataError if the folder has neither layout, or if a list or one of the hdf5 files
    is absent.
    """
    packed = folder / "modelnet40_normal_resampled.tar.xz"
    if (folder / "train_files.txt").is_file():
        files = hdf5_files(folder)
        return lambda: files, lambda: read_hdf5(folder)

    if packed.is_file():
        return lambda: [packed], lambda: read_text(packed)
    if (folder / "modelnet40_train.txt").is_file():
        return lambda: text_files(folder), lambda: read_text(folder)

    raise MissingDataError(
        f"data set modelnet40: {folder} holds neither train_files.txt (hdf5 layout) nor"
        f" modelnet40_train.txt (text layout). {ORIGIN}"
    )


def hdf5_files(folder: Path) -> list[Path]:
    """Return all files that `read_hdf5` reads. Raises MissingDataError."""
    files = []
    for name in ("shape_names.txt", "train_files.txt", "test_files.txt"):
        if not (folder / name).is_file():
            raise MissingDataError(
                f"data set modelnet40: no file {folder / name}. {ORIGIN}"
            )

        files.append(folder / name)

    return [*files, *listed(folder, "train"), *listed(folder, "test")]


def text_files(folder: Path) -> list[Path]:
    """Return all files that `read_text` reads from a folder. Raises MissingDataError,
    ValueError.
    """
    files = [
        folder / "modelnet40_shape_names.txt",
        folder / "modelnet40_train.txt",
        folder / "modelnet40_test.txt",
    ]
    for file in files[1:]:
        for name, shape in shape_ids(_text(file), str(file)):
            files.append(folder / name / f"{shape}.txt")

    for file in files:
        if not file.is_file():
            raise MissingDataError(f"data set modelnet40: no file {file}. {ORIGIN}")

    return files


def listed(folder: Path, split: str) -> list[Path]:
    """The h5 files that `<split>_files.txt` names; only their last part counts, the lists hold
    paths of the maker's machine.
    """
    list_file = folder / f"{split}_files.txt"
    names = lines_of(_text(list_file))

    if not names:
        raise MissingDataError(f"data set modelnet40: {list_file} names no file")

    return files_of_list(list_file, names, "modelnet40")


def read_hdf5(folder: Path) -> dict[str, np.ndarray]:
    """All splits: {train,test}_points (n, P, 3) float32 and _labels (n,) int64. Raises ValueError
    naming file and cloud.
    """
    check_names(_text(folder / "shape_names.txt"), str(folder / "shape_names.txt"))
    arrays = {}

    for split in ("train", "test"):
        points: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for file in listed(folder, split):
            stored_points, stored_labels = read_h5(
                file, len(CLASSES), "ModelNet40 file"
            )
            if points and stored_points.shape[1] != points[0].shape[1]:
                size = stored_points.shape[1]
                raise ValueError(
                    f"{file}: clouds of {size} points, those before have {points[0].shape[1]}"
                )

            points.append(unit_sphere(stored_points))
            labels.append(stored_labels)

        arrays[f"{split}_points"] = np.concatenate(points)
        arrays[f"{split}_labels"] = np.concatenate(labels)

    return arrays


def read_text(source: Path) -> dict[str, np.ndarray]:
    """The text layout from a folder or a .tar.xz: x, y, z of every shape that the lists name, in
    their order.
    """
    with _open_text(source) as read:
        check_names(
            read("modelnet40_shape_names.txt"), f"{source}: modelnet40_shape_names.txt"
        )
        arrays: dict[str, np.ndarray] = {}
        columns: tuple[int, ...] = COLUMNS

        for split in ("train", "test"):
            clouds: list[np.ndarray] = []
            labels: list[int] = []
            list_name = f"modelnet40_{split}.txt"

            for name, shape in shape_ids(read(list_name), f"{source}: {list_name}"):
                file = f"{source}: {name}/{shape}.txt"
                if source.is_dir():
                    file = f"{source / name / shape}.txt"

                rows = number_rows(read(f"{name}/{shape}.txt"), file, columns)
                columns = (rows.shape[1],)  # all files have as many as the first
                cloud = rows[None, :, :3]
                label = CLASSES.index(name)
                check_clouds(cloud, np.array([label]), len(CLASSES), file)

                if clouds and len(rows) != len(clouds[0]):
                    raise ValueError(
                        f"{file}: {len(rows)} points, those before have {len(clouds[0])}"
                    )

                clouds.append(unit_sphere(cloud)[0])
                labels.append(label)

            arrays[f"{split}_points"] = np.stack(clouds)
            arrays[f"{split}_labels"] = np.array(labels, dtype=np.int64)

    return arrays


def shape_ids(text: str, source: str) -> list[tuple[str, str]]:
    """Return class and id of the shapes in a list. Raises ValueError naming the list and the first
    bad one.
    """
    ids = []
    for line in lines_of(text):
        shape = last_part(line).removesuffix(".txt")
        # The class of an id is all before its last underscore: night_stand_0001 is a night_stand.
        name = shape.rpartition("_")[0]
        if name not in CLASSES:
            raise ValueError(f"{source}: {line} is of none of the 40 classes")

        ids.append((name, shape))

    if not ids:
        raise ValueError(f"{source}: lists no shape")

    return ids


@contextmanager
def _open_text(source: Path) -> Iterator[Callable[[str], str]]:
    """A reader of members by name. A tar is read as a stream of members; nothing is extracted."""
    if source.is_dir():
        yield lambda name: _text(source / name)
        return

    members = {}
    try:
        with tarfile.open(source, "r:xz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    _, _, below = member.name.partition("modelnet40_normal_resampled/")
                    members[below or member.name] = file.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(
            f"{source}: not a readable .tar.xz of texts: {error}"
        ) from error

    def read(name: str) -> str:
        if name not in members:
            raise ValueError(f"{source}: no member {name}")
        return decode(members[name], f"{source}: {name}")

    yield read


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingDataError(f"data set modelnet40: no file {path}. {ORIGIN}")
    return read_text_file(path)


def check_names(text: str, source: str) -> None:
    """Raise ValueError unless the names are the 40 classes in alphabetical order, as the labels
    assume.
    """
    pairs = itertools.zip_longest(text.split(), CLASSES, fillvalue="nothing")
    for number, (name, expected) in enumerate(pairs):
        if name != expected:
            raise ValueError(
                f"{source}: class {number} is {name}, expected {expected} (40 classes in"
                " alphabetical order)"
            )
