"""ScanObjectNN: real scans of 15 kinds of objects.

Source: arXiv 1908.04616; layout, splits and class order of spec 6.1. y is up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import h5py
import numpy as np

from pointsweep.config import DatasetConfig
from pointsweep.data.base import Dataset, check_clouds, data_folder
from pointsweep.data.cache import cached_arrays, signature
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

    def __init__(self, config: ScanObjectNNConfig) -> None:
        files = split_files(config)

        def make() -> dict[str, np.ndarray]:
            return {f"{split}_{name}": array for split, file in files.items() for name, array in read_h5(file).items()}

        arrays, digest = cached_arrays(f"scanobjectnn-{signature(files.values())}", make)
        super().__init__(config, CLASSES, arrays, digest)

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        split_files(config)  # type: ignore[arg-type]


def split_files(config: ScanObjectNNConfig) -> dict[str, Path]:
    """The training and the test file of a variant; the folders may lie in h5_files/. Raises MissingData."""
    root = data_folder("scanobjectnn", config.folder, ORIGIN)
    folder, ending = VARIANTS[config.variant]
    files = {}
    for split, stem in (("train", "training_objectdataset"), ("test", "test_objectdataset")):
        places = [root / inner / folder / f"{stem}{ending}.h5" for inner in (".", "h5_files")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise MissingData(f"data set scanobjectnn, variant {config.variant}: no file {places[0]}, nor below h5_files/. {ORIGIN}")
        files[split] = found
    return files


def read_h5(path: Path) -> dict[str, np.ndarray]:
    """points (n, 2048, 3) float32 and labels (n,) int64. Raises ValueError naming the file and what is wrong with it."""
    try:
        with h5py.File(path, "r") as file:
            points, labels = np.asarray(file["data"], dtype=np.float32), np.asarray(file["label"], dtype=np.int64)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a ScanObjectNN file with data and label: {error}") from error
    check_clouds(points, labels.reshape(-1), len(CLASSES), str(path))
    return {"points": points, "labels": labels.reshape(-1)}
