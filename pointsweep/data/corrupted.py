"""ModelNet-C and ScanObjectNN-C: the training split of the parent data set, and for testing one
corruption at one severity.

Sources: ModelNet-C, arXiv 2202.03377; ScanObjectNN-C: the same corruptions of PB_T50_RS's test
clouds; layout of spec 6.5: one h5 file per test split, `clean` and `<corruption>_<0..4>`, keys data
and label. `published` reads such files as they are; `generated` makes the test split from the clean
test clouds at hand (`corruptions.py` states every parameter).

Test clouds are given whole, as in ModelNet-C's evaluation: a farthest point sample would take every
added point first and hide what was dropped, so `num_points` cuts training clouds only. A test cloud
with fewer points than `min_points` is filled up by repeating its points in order, because a
tokenizer needs as many points as it makes centres (512 in Any2Point's); this stands for the
repeated centres that the published samplers return then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pointsweep.data import modelnet40, scanobjectnn
from pointsweep.data.corruptions import CORRUPTIONS, NUM_SEVERITIES, REVISION, corrupt
from pointsweep.data.dataset import Copy, Dataset, Split, data_folder, folders_with
from pointsweep.data.readers.clouds import as_stored
from pointsweep.data.readers.hdf5 import read_h5
from pointsweep.errors import MissingDataError
from pointsweep.utils.array_cache import arrays_of_files, cached_arrays, content_digest


class Corrupted(Dataset):
    """Base of the corrupted data sets. The digest covers exactly the training and the corrupted
    clouds.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    num_test: ClassVar[int]  # clouds in every published file
    default_folder: ClassVar[str]

    def __init__(self, config: Any) -> None:
        self.available(config)
        parent, parent_digest = self.parent(config)
        if config.source == "generated":
            key = f"corrupted-{parent_digest[:32]}-{config.corruption}-{config.severity}-{REVISION}"
            test_arrays, _ = cached_arrays(key, lambda: self._make(parent, config))
        else:
            path = self.split_file(config)
            read = partial(read_split, path, len(self.classes))
            test_arrays, _ = arrays_of_files("corrupted", [path], read, self.name)

        arrays = {
            "train_points": parent["train_points"],
            "train_labels": parent["train_labels"],
            **test_arrays,
        }

        arrays["test_points"] = fill(test_arrays["test_points"], config.min_points)
        super().__init__(
            config,
            self.classes,
            arrays,
            digest=content_digest(arrays),
            groups=self.parent_objects(config, parent),
        )

        if config.source == "generated" and config.corruption != "clean":
            self.marks = ("generated corruption",)

    @classmethod
    def folders(cls, config: Any) -> list[Path]:
        """See `Dataset.folders`: of the parent's clouds, and of the published files where they are
        read.
        """
        data_folders = [data_folder(cls.name, config.folder, cls.origin)]
        if config.source == "published":
            data_folders.append(
                data_folder(cls.name, config.corrupted_folder, cls.origin)
            )

        return data_folders

    @classmethod
    def preview(cls, config: Any) -> Dataset:
        """See `Dataset.preview`: without the corruption that trials make, and so without a
        digest.
        """
        if config.source == "published":
            return super().preview(config)

        parent, _ = cls.parent(config)
        # refuses clouds of too few points
        corrupt(parent["test_points"][:1], config.corruption, config.severity)
        test_points = fill(parent["test_points"], config.min_points)

        return Dataset(
            config,
            cls.classes,
            parent | {"test_points": test_points},
            digest="",
            groups=cls.parent_objects(config, parent),
        )

    @classmethod
    def parent_objects(
        cls, config: Any, parent: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        """Return which object each of the parent's clouds is of; the corrupted test clouds stand in
        the same order.
        """
        return None

    @classmethod
    def published_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        return {**cls.parent_sizes(config), "test": (cls.num_test,)}

    @classmethod
    def parent_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        """The published numbers of the parent's clouds."""
        raise NotImplementedError

    @classmethod
    def parent(cls, config: Any) -> tuple[dict[str, np.ndarray], str]:
        """The parent's arrays and their digest. Raises MissingDataError, ValueError."""
        raise NotImplementedError

    @classmethod
    def split_file(cls, config: Any) -> Path:
        """The published file of a corruption and severity. Raises MissingDataError."""
        folder = data_folder(cls.name, config.corrupted_folder, cls.origin)
        path = folder / f"{split_name(config.corruption, config.severity)}.h5"

        if not path.is_file():
            raise MissingDataError(f"data set {cls.name}: no file {path}. {cls.origin}")

        return path

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        names = ["clean"]
        for corruption in CORRUPTIONS:
            for severity in range(NUM_SEVERITIES):
                names.append(split_name(corruption, severity))

        for folder in folders_with(root, cls.default_folder):
            for name in names:
                path = folder / cls.default_folder / f"{name}.h5"
                yield Copy(
                    location=str(path.relative_to(root)),
                    read=partial(read_split, path, len(cls.classes)),
                    class_names=cls.classes,
                    published={"test": (cls.num_test,)},
                )

    def _samples(self, split: Split) -> np.ndarray:
        if split.name == "test":
            return split.points
        return super()._samples(split)

    @staticmethod
    def _make(parent: Mapping[str, np.ndarray], config: Any) -> dict[str, np.ndarray]:
        points = corrupt(parent["test_points"], config.corruption, config.severity)
        return {"test_points": points, "test_labels": np.array(parent["test_labels"])}


class ModelNet40C(Corrupted):
    """ModelNet-C: the training shapes of ModelNet40."""

    augment_first = False
    shuffles = True
    name = "modelnet40_c"
    classes = modelnet40.CLASSES
    num_test = 2468
    default_folder = "modelnet_c"
    origin = "ModelNet-C's files come from its authors (pointcloud-c.github.io)."
    made_from = "modelnet40"

    @classmethod
    def parent_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        return modelnet40.ModelNet40.published_sizes(config)

    @classmethod
    def parent(cls, config: Any) -> tuple[dict[str, np.ndarray], str]:
        folder = data_folder(cls.name, config.folder, modelnet40.ORIGIN)
        return modelnet40.stored(folder)

    @classmethod
    def available(cls, config: Any) -> None:
        modelnet40.layout(data_folder(cls.name, config.folder, modelnet40.ORIGIN))
        if config.source == "published":
            cls.split_file(config)


class ScanObjectNNC(Corrupted):
    """ScanObjectNN-C: the training objects of ScanObjectNN."""

    name = "scanobjectnn_c"
    classes = scanobjectnn.CLASSES
    num_test = 2882
    default_folder = "scanobjectnn_c"
    origin = (
        "ScanObjectNN-C's files come from the authors of AdaptPoint"
        " (github.com/Roywangj/AdaptPoint)."
    )
    made_from = "scanobjectnn"

    @classmethod
    def parent_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        return scanobjectnn.published_sizes(config.variant)

    @classmethod
    def published_sizes(cls, config: Any) -> Mapping[str, Sequence[int]]:
        if config.source == "generated":
            # as many test clouds as the variant at hand has
            return cls.parent_sizes(config)
        return super().published_sizes(config)

    @classmethod
    def parent(cls, config: Any) -> tuple[dict[str, np.ndarray], str]:
        folder = data_folder(cls.name, config.folder, scanobjectnn.ORIGIN)
        return scanobjectnn.stored(folder, config.variant)

    @classmethod
    def parent_objects(
        cls, config: Any, parent: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        folder = data_folder(cls.name, config.folder, scanobjectnn.ORIGIN)
        files = scanobjectnn.split_files(folder, config.variant)
        return scanobjectnn.objects_of(files, parent, config.copies_in_a_row)

    @classmethod
    def holds_copies(cls, config: Any) -> bool:
        return config.variant not in scanobjectnn.ONE_CLOUD_AN_OBJECT

    @classmethod
    def available(cls, config: Any) -> None:
        folder = data_folder(cls.name, config.folder, scanobjectnn.ORIGIN)
        scanobjectnn.split_files(folder, config.variant)
        if config.source == "published":
            cls.split_file(config)


def fill(points: np.ndarray, count: int) -> np.ndarray:
    """Clouds (n, P, 3) -> (n, max(P, count), 3): the points repeated in order."""
    if points.shape[1] >= count:
        return points

    return points[:, np.arange(count) % points.shape[1]]


def split_name(corruption: str, severity: int) -> str:
    """clean, or jitter_3: the name of a published file."""
    if corruption == "clean":
        return corruption

    return f"{corruption}_{severity}"


def read_split(path: Path, num_classes: int) -> dict[str, np.ndarray]:
    """test_points (n, P, 3) float32 and test_labels (n,) int64 as stored. Raises ValueError naming
    the file and what is wrong.
    """
    if not path.is_file():
        raise MissingDataError(f"no file {path}")

    points, labels = read_h5(path, num_classes, "file of corrupted clouds")
    return {"test_points": as_stored(points, str(path)), "test_labels": labels}
