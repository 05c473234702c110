"""ModelNet10: 4,899 CAD shapes of 10 classes, all of them oriented alike.

Source: arXiv 1406.5670. Layouts: Princeton's meshes, `CLASS/{train,test}/CLASS_0001.off`, sampled
on their surface; or the lists `modelnet10_{train,test}.txt` in `modelnet40_normal_resampled`, whose
clouds are those of ModelNet40.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pointsweep.config.datasets import CloudFilesConfig, DatasetConfig, ModelNet10Config
from pointsweep.data.dataset import Copy
from pointsweep.data.files import Files, folder_of, named_copies

ORIGIN = "ModelNet10 (academic research only) comes from Princeton (modelnet.cs.princeton.edu)."
PUBLISHED = {"train": 3991, "test": 908}
LISTS = {
    "train": "modelnet10_train.txt",
    "test": "modelnet10_test.txt",
    "class_names": "modelnet10_shape_names.txt",
}


class ModelNet10(Files):
    """Sampled first, then scaled and translated, as ModelNet40 (spec 2.9)."""

    origin = ORIGIN

    @classmethod
    def as_found(cls, config: CloudFilesConfig) -> CloudFilesConfig:
        return in_layout(config, folder_of(config, ORIGIN))

    @classmethod
    def published_sizes(cls, config: DatasetConfig) -> Mapping[str, Sequence[int]]:
        return {split: (count,) for split, count in PUBLISHED.items()}

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        own_folder = ModelNet10Config().root
        for folder in (own_folder, "modelnet40_normal_resampled"):
            if folder == own_folder or (root / folder / LISTS["train"]).is_file():
                config = in_layout(ModelNet10Config(root=folder), root / folder)
                yield from named_copies(config, root, PUBLISHED)


def in_layout(config: CloudFilesConfig, folder: Path) -> CloudFilesConfig:
    """Return the configuration with the lists of ModelNet10, where the folder has them and no other
    training split is asked for.
    """
    if config.train == ModelNet10Config().train and (folder / LISTS["train"]).is_file():
        return config.model_copy(update=LISTS)

    return config
