"""ModelNet40: 12,311 CAD shapes of 40 classes.

Source: arXiv 1406.5670; layouts of spec 6.2: hdf5 (`modelnet40_ply_hdf5_2048`) and text (`modelnet40_normal_resampled`), the latter
also packed as one .tar.xz beside its own name. Every cloud is moved to its mean and scaled to the unit sphere when it is read.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np

from pointsweep.config import DatasetConfig
from pointsweep.data.base import Copy, Dataset, check_clouds, data_folder, folders_with
from pointsweep.data.cache import cached_arrays, signature
from pointsweep.errors import MissingData

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain", "desk", "door",
    "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor", "night_stand", "person",
    "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase",
    "wardrobe", "xbox",
)  # fmt: skip
ORIGIN = "ModelNet40 (academic research only) comes from Princeton; these two layouts from Stanford."
# What tells a layout -> its published number of training shapes: the hdf5 files lack three (spec 6.2).
MARKERS = {"train_files.txt": 9840, "modelnet40_normal_resampled.tar.xz": 9843, "modelnet40_train.txt": 9843}


@dataclass(frozen=True)
class ModelNet40Config(DatasetConfig):
    num_classes: ClassVar[int] = 40

    folder: str = "modelnet40_ply_hdf5_2048"  # below POINTSWEEP_DATA; the layout is told from what is in it
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    translate: float = 0.2
    center: bool = False
    presample: int = 1200


class ModelNet40(Dataset):
    """Sampled first, then scaled and translated (spec 2.9)."""

    augment_first = False
    origin = ORIGIN

    def __init__(self, config: ModelNet40Config) -> None:
        arrays, digest = stored(data_folder("modelnet40", config.folder, ORIGIN))
        super().__init__(config, CLASSES, arrays, digest)

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        layout(data_folder("modelnet40", config.folder, ORIGIN))  # type: ignore[attr-defined]

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        for marker, train in MARKERS.items():
            for folder in folders_with(root, marker):
                yield Copy(
                    str(folder.relative_to(root)),
                    lambda folder=folder: layout(folder)[1](),  # type: ignore[misc]
                    CLASSES,
                    {"train": (train,), "test": (2468,)},
                )


def stored(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """All clouds and labels of a folder, memory-mapped, and their digest. Raises MissingData, ValueError."""
    files, read = layout(folder)
    if absent := [file for file in files if not file.is_file()]:
        raise MissingData(f"data set modelnet40: no file {absent[0]}. {ORIGIN}")
    return cached_arrays(f"modelnet40-{signature(files)}", read)


def layout(folder: Path) -> tuple[list[Path], Callable[[], dict[str, np.ndarray]]]:
    """The files of a folder and the function that reads them. Raises MissingData if the folder has neither layout."""
    packed = folder / "modelnet40_normal_resampled.tar.xz"
    if (folder / "train_files.txt").is_file():
        files = [folder / "shape_names.txt", *listed(folder, "train"), *listed(folder, "test")]
        return files, lambda: read_hdf5(folder)
    if packed.is_file():
        return [packed], lambda: read_text(packed)
    if (folder / "modelnet40_train.txt").is_file():
        return sorted(folder.glob("*.txt")), lambda: read_text(folder)
    raise MissingData(
        f"data set modelnet40: {folder} holds neither train_files.txt (hdf5 layout) nor modelnet40_train.txt (text layout). {ORIGIN}"
    )


def listed(folder: Path, split: str) -> list[Path]:
    """The h5 files that `<split>_files.txt` names; only their last part counts, the lists hold paths of the maker's machine."""
    names = (folder / f"{split}_files.txt").read_text().split()
    files = [folder / Path(name).name for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise MissingData(f"data set modelnet40: {folder / f'{split}_files.txt'} names {missing[0] if missing else 'no file'}")
    return files


def read_hdf5(folder: Path) -> dict[str, np.ndarray]:
    """All splits: {train,test}_points (n, P, 3) float32 and _labels (n,) int64. Raises ValueError naming file and cloud."""
    check_names(_text(folder / "shape_names.txt"), str(folder / "shape_names.txt"))
    arrays = {}
    for split in ("train", "test"):
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for file in listed(folder, split):
            parts.append(_read_h5(file))
            size, first = (part[0].shape[1] for part in (parts[-1], parts[0]))
            if size != first:
                raise ValueError(f"{file}: clouds of {size} points, those before have {first}")
        arrays[f"{split}_points"] = unit_sphere(np.concatenate([points for points, _ in parts]))
        arrays[f"{split}_labels"] = np.concatenate([labels for _, labels in parts])
    return arrays


def _read_h5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with h5py.File(path, "r") as file:
            points = np.asarray(file["data"], dtype=np.float32)
            labels = np.asarray(file["label"], dtype=np.int64).reshape(-1)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a ModelNet40 file with data and label: {error}") from error
    check_clouds(points, labels, len(CLASSES), str(path))
    return points, labels


def read_text(source: Path) -> dict[str, np.ndarray]:
    """The text layout from a folder or a .tar.xz: x, y, z of every shape that the lists name, in their order."""
    with _open_text(source) as read:
        check_names(read("modelnet40_shape_names.txt"), f"{source}: modelnet40_shape_names.txt")
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            ids = read(f"modelnet40_{split}.txt").split()
            # The class of an id is all before its last underscore: night_stand_0001 is a night_stand.
            names = [shape.rpartition("_")[0] for shape in ids]
            if unnamed := [shape for shape, name in zip(ids, names, strict=True) if name not in CLASSES]:
                raise ValueError(f"{source}: modelnet40_{split}.txt: {unnamed[0]} is of none of the 40 classes")
            clouds = [_cloud(read(f"{name}/{shape}.txt"), f"{source}: {shape}") for name, shape in zip(names, ids, strict=True)]
            labels = np.array([CLASSES.index(name) for name in names], dtype=np.int64)
            if len({len(cloud) for cloud in clouds}) != 1:
                raise ValueError(f"{source}: {split}: the clouds must have as many points each, and there must be some")
            points = np.stack(clouds)
            check_clouds(points, labels, len(CLASSES), f"{source}: {split}")
            arrays |= {f"{split}_points": unit_sphere(points), f"{split}_labels": labels}
    return arrays


@contextmanager
def _open_text(source: Path) -> Iterator[Callable[[str], str]]:
    """A reader of members by name. A tar is read as a stream of members; nothing is extracted."""
    if source.is_dir():
        yield lambda name: _text(source / name)
        return
    texts = {}
    try:
        with tarfile.open(source, "r:xz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    texts[member.name.partition("modelnet40_normal_resampled/")[2] or member.name] = file.read().decode()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source}: not a readable .tar.xz of texts: {error}") from error

    def read(name: str) -> str:
        if name not in texts:
            raise ValueError(f"{source}: no member {name}")
        return texts[name]

    yield read


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingData(f"data set modelnet40: no file {path}. {ORIGIN}")
    return path.read_text()


def _cloud(text: str, source: str) -> np.ndarray:
    try:
        return np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32, ndmin=2)[:, :3]
    except ValueError as error:
        raise ValueError(f"{source}: not rows of x,y,z,nx,ny,nz: {error}") from error


def check_names(text: str, source: str) -> None:
    """Raises ValueError unless the names are the 40 classes in alphabetical order, as the labels assume."""
    names = tuple(text.split())
    if names != CLASSES:
        first = next((i for i, (a, b) in enumerate(zip(names, CLASSES, strict=False)) if a != b), min(len(names), len(CLASSES)))
        found = names[first] if first < len(names) else "nothing"
        expected = CLASSES[first] if first < len(CLASSES) else "nothing"
        raise ValueError(f"{source}: class {first} is {found}, expected {expected} (40 classes in alphabetical order)")


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """(n, P, 3): every cloud's mean subtracted, then its largest norm made 1."""
    points = points - points.mean(axis=1, keepdims=True)
    return (points / np.linalg.norm(points, axis=2).max(axis=1)[:, None, None]).astype(np.float32)
