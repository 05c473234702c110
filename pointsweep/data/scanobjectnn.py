"""ScanObjectNN: real scans of 15 kinds of objects.

Source: arXiv 1908.04616; layout, splits and class order of spec 6.1. y is up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pointsweep.config import DatasetConfig
from pointsweep.data.base import Copy, Dataset, data_folder, folders_with
from pointsweep.data.cache import arrays_of_files
from pointsweep.data.clouds import as_stored
from pointsweep.data.hdf5 import read_h5
from pointsweep.data.text import read_text
from pointsweep.errors import MissingData

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink", "sofa", "toilet",
)  # fmt: skip
VARIANTS = {  # variant -> folder, ending of the file names
    "pb_t50_rs": ("main_split", "_augmentedrot_scale75"),
    "pb_t50_r": ("main_split", "_augmentedrot"),
    "pb_t25_r": ("main_split", "_augmented25rot"),
    "pb_t25": ("main_split", "_augmented25_norot"),
    "obj_bg": ("main_split", ""),
    "obj_only": ("main_split_nobg", ""),
}
PUBLISHED = {"pb_t50_rs": (11416, 2882), "obj_bg": (2309, 581), "obj_only": (2309, 581)}  # training and test objects (spec 6.1)
ORIGIN = "ScanObjectNN is handed out after a terms-of-use form by its authors (hkust-vgd.github.io/scanobjectnn)."


@dataclass(frozen=True)
class ScanObjectNNConfig(DatasetConfig):
    num_classes: ClassVar[int] = 15

    variant: Literal["pb_t50_rs", "pb_t50_r", "pb_t25_r", "pb_t25", "obj_bg", "obj_only"] = "pb_t50_rs"
    folder: str = "scanobjectnn"  # below POINTSWEEP_DATA
    scale: tuple[float, float] = (0.9, 1.1)
    rotate: Literal["none", "gravity", "all"] = "gravity"


class ScanObjectNN(Dataset):
    """2,048 points a cloud, not normalised; augmented before it is sampled (spec 2.9)."""

    origin = ORIGIN

    def __init__(self, config: ScanObjectNNConfig) -> None:
        arrays, digest = stored(data_folder("scanobjectnn", config.folder, ORIGIN), config.variant)
        super().__init__(config, CLASSES, arrays, digest)

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        split_files(data_folder("scanobjectnn", config.folder, ORIGIN), config.variant)  # type: ignore[attr-defined]

    @classmethod
    def published_sizes(cls, config: DatasetConfig) -> Mapping[str, Sequence[int]]:
        return published_sizes(config.variant)  # type: ignore[attr-defined]

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        markers = [f"{inner}{folder}" for inner in ("", "h5_files/") for folder in ("main_split", "main_split_nobg")]
        found = set()
        for marker in markers:
            for path in folders_with(root, marker):
                # The folder above h5_files/ is the one that a config names.
                found.add(path.parent if path.name == "h5_files" and path != root else path)
        for folder in sorted(found):
            for variant in VARIANTS:
                if any(path.is_file() for places in candidates(folder, variant).values() for path in places):
                    yield Copy(
                        f"{folder.relative_to(root)} ({variant})",
                        lambda folder=folder, variant=variant: read(folder, variant),  # type: ignore[misc]
                        CLASSES,
                        published_sizes(variant),
                    )


def published_sizes(variant: str) -> dict[str, Sequence[int]]:
    """The published numbers of training and test objects of a variant; nothing for a variant without known ones."""
    counts = PUBLISHED.get(variant)
    return {"train": (counts[0],), "test": (counts[1],)} if counts else {}


def stored(folder: Path, variant: str) -> tuple[dict[str, np.ndarray], str]:
    """All clouds and labels of a variant, memory-mapped, and their digest. Raises MissingData, ValueError."""
    files = list(split_files(folder, variant).values())
    names = folder / "shape_names.txt"
    if names.is_file():
        files.append(names)
    return arrays_of_files("scanobjectnn", files, lambda: read(folder, variant))


def read(folder: Path, variant: str) -> dict[str, np.ndarray]:
    """{train,test}_points (n, 2048, 3) float32 and _labels (n,) int64. Raises MissingData, ValueError."""
    names = folder / "shape_names.txt"
    if names.is_file() and tuple(read_text(names).split()) != CLASSES:
        raise ValueError(f"{names}: not the {len(CLASSES)} classes in the order of their labels: {', '.join(CLASSES)}")
    arrays = {}
    for split, file in split_files(folder, variant).items():
        points, labels = read_h5(file, len(CLASSES), "ScanObjectNN file")
        arrays[f"{split}_points"] = as_stored(points, str(file))
        arrays[f"{split}_labels"] = labels
    return arrays


def candidates(folder: Path, variant: str) -> dict[str, list[Path]]:
    """Where the training and the test file of a variant may lie: below the folder, or below h5_files/ in it."""
    inner, ending = VARIANTS[variant]
    stems = {"train": "training_objectdataset", "test": "test_objectdataset"}
    return {split: [folder / above / inner / f"{stem}{ending}.h5" for above in (".", "h5_files")] for split, stem in stems.items()}


def split_files(folder: Path, variant: str) -> dict[str, Path]:
    """The training and the test file of a variant. Raises MissingData."""
    files = {}
    for split, places in candidates(folder, variant).items():
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise MissingData(f"data set scanobjectnn, variant {variant}: no file {places[0]}, nor below h5_files/. {ORIGIN}")
        files[split] = found
    return files
