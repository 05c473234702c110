"""Data sets of whole clouds: clouds and labels in memory maps, the batches made of them, and a
digest of the content.

Letters: B clouds, P points.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointsweep.config.datasets import DatasetConfig
from pointsweep.data.augment import augment, normalise
from pointsweep.data.splits import hold_out, in_turn
from pointsweep.errors import MissingDataError
from pointsweep.ops.point_ops import farthest_points, gather, to_device
from pointsweep.storage.staging import staged
from pointsweep.storage.stores import is_address
from pointsweep.utils.array_cache import cached_arrays

CPU = torch.device("cpu")
CHUNK = 64  # clouds whose evaluation samples are made at once
# The variant of farthest point sampling, in its cache's key: from index 0, no point skipped unless
# the configuration asks for it (T40), each square rounded.
SAMPLING = "fps-first-0-unfused"


@dataclass(frozen=True)
class Split:
    """One split: clouds (n, P, 3) float32, read-only, the labels (n,) int64, and which of the
    stored clouds they are.
    """

    name: str
    points: np.ndarray
    labels: np.ndarray
    index: np.ndarray  # (n,) rows of `points`
    # Clouds of one object share a number (n,); None: every cloud is an object of its own, or it is
    # not known.
    groups: np.ndarray | None = field(default=None, kw_only=True)

    def take(self, rows: np.ndarray, name: str) -> Split:
        """A part of this split, in file order."""
        rows = np.sort(rows)
        groups = None if self.groups is None else self.groups[rows]
        return dataclasses.replace(
            self,
            name=name,
            labels=self.labels[rows],
            index=self.index[rows],
            groups=groups,
        )


@dataclass(frozen=True)
class Copy:
    """Stored clouds found below a data root, for `pointsweep data`.

    `read` gives {split}_points (n, P, 3), or (total, 3) with {split}_starts (n + 1,) where clouds
    differ in size, and {split}_labels; it raises ValueError. `published`: split -> the numbers of
    clouds that were published; none where no number is known.
    """

    location: str  # below the root, and which part
    read: Callable[[], Mapping[str, np.ndarray]]
    class_names: Sequence[str]
    published: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Dataset:
    """A training and a test split, and a validation split: its own, or taken from the training one
    where the config asks for it.

    `digest` covers the stored content; `marks` are what a table must say about it.
    """

    # Whether augmentation comes before sampling (the ScanObjectNN program) or after it (the
    # ModelNet program).
    augment_first = True
    # A training cloud's points are shuffled before they are sampled (the ModelNet program): another
    # sample in every epoch, so that all stored points are seen, and not only the farthest ones.
    shuffles = False
    origin = ""  # where the data are obtained
    made_from = ""  # the data set, or the seed, that this one can be made from

    def __init__(
        self,
        config: DatasetConfig,
        class_names: Sequence[str],
        arrays: Mapping[str, np.ndarray],
        digest: str,
        groups: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """`groups`: of each stored split, which object a cloud is of (n,); numbers of two splits
        are comparable.
        """
        self.config = config
        self.class_names = tuple(class_names)
        self.digest = digest
        self.num_classes = len(class_names)
        self._sampled: dict[str, np.ndarray] = {}
        self.marks: tuple[str, ...] = ()
        # clouds of each stored split after its limit, before validation is held out
        self.num_taken: dict[str, int] = {}
        splits = {}

        for name, limit in (
            ("train", config.train_limit),
            ("val", None),
            ("test", config.test_limit),
        ):
            if f"{name}_labels" not in arrays:
                continue  # most sets have no validation split of their own

            labels = np.asarray(arrays[f"{name}_labels"], dtype=np.int64)
            split = self._stored_split(name, arrays, labels)
            if groups is not None:
                split_groups = checked_groups(groups[name], labels, name)
                split = dataclasses.replace(split, groups=split_groups)

            if limit:
                split = split.take(in_turn(labels)[:limit], name)

            splits[name] = split
            if name != "val":
                self.num_taken[name] = len(split.labels)

        self.test = splits["test"]
        self.has_own_val = "val" in splits
        if self.has_own_val:
            self.train = splits["train"]
            self.val: Split | None = splits["val"]
            return

        stored = splits["train"]
        train_rows, val_rows = hold_out(
            stored.labels, config.val_fraction, stored.groups
        )
        self.train = stored.take(train_rows, "train")
        self.val = stored.take(val_rows, "val") if len(val_rows) else None

    def _stored_split(
        self, name: str, arrays: Mapping[str, np.ndarray], labels: np.ndarray
    ) -> Split:
        return Split(name, arrays[f"{name}_points"], labels, np.arange(len(labels)))

    @classmethod
    def holds_copies(cls, config: DatasetConfig) -> bool:
        """Return whether the published set has several clouds of one object. Without `groups` it is
        not known which they are.
        """
        return False

    @classmethod
    def available(cls, config: DatasetConfig) -> None:
        """Raise MissingDataError if this machine lacks the files; say where they were looked for
        and where they come from.
        """

    @classmethod
    def folders(cls, config: DatasetConfig) -> list[Path]:
        """The folders whose files this data set is read from; none if it is made. Raises
        MissingDataError.
        """
        folder = getattr(config, "folder", None)
        if folder:
            return [data_folder(config.name, folder, cls.origin)]

        return []

    @classmethod
    def published_sizes(cls, config: DatasetConfig) -> Mapping[str, Sequence[int]]:
        """The numbers of clouds that were published of the splits train and test; nothing where
        none is known.
        """
        return {}

    @classmethod
    def preview(cls, config: DatasetConfig) -> Dataset:
        """The data set as far as it can be read without making anything that trials make on their
        nodes.
        """
        make: Callable[[DatasetConfig], Dataset] = cls  # type: ignore[assignment]  # a subclass takes its config alone
        return make(config)

    @classmethod
    def copies(cls, root: Path) -> Iterator[Copy]:
        """Yield what lies below a data root in this data set's layouts, wherever it lies."""
        yield from ()

    def train_batch(
        self, index: np.ndarray, generator: torch.Generator, device: torch.device = CPU
    ) -> tuple[Tensor, ...]:
        """Rows of the training split -> augmented points (B, num_points, 3) and labels (B,) (spec
        2.9).

        In general what a model takes, the points first, and last the labels. On a GPU sampling is
        done there: what it gives is on `device`, or still on the CPU.
        """
        points = self._points(self.train, index)
        if self.augment_first:
            points = augment(points, self.config, generator)

        points = to_device(points, device)
        if self.shuffles and self.config.presample < points.shape[1]:
            points = shuffled(points, generator)

        points = sample(points, self.config.presample, self.config.skip_near_origin)
        # One random subset for the whole batch, as the program draws it (T19).
        order = torch.randperm(points.shape[1], generator=generator)
        subset = order[: self.config.num_points]
        points = points[:, to_device(subset, device)]

        if not self.augment_first:
            points = augment(points, self.config, generator)

        return points.contiguous(), torch.from_numpy(self.train.labels[index])

    def evaluation_order(self, split: Split) -> np.ndarray:
        """Rows (n,) of a split in the order in which evaluation goes through them: `test_order` for
        the test split.
        """
        rows = np.arange(len(split.labels))
        if split.name != "test" or self.config.test_order == "file":
            return rows
        if self.config.test_order == "by_class":
            return np.argsort(split.labels, kind="stable")

        return np.random.default_rng(0).permutation(rows)

    def augmented(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """points (B, P, 3) changed at random as training clouds are."""
        return augment(points, self.config, generator)

    def eval_batch(self, split: Split, index: np.ndarray) -> tuple[Tensor, ...]:
        """Rows of a split -> points (B, num_points, 3), farthest point samples of the stored
        clouds, and labels (B,).
        """
        rows = split.index[index]
        samples = self._samples(split)
        points = normalise(torch.from_numpy(np.array(samples[rows])), self.config)

        return points, torch.from_numpy(split.labels[index])

    def _points(self, split: Split, index: np.ndarray) -> Tensor:
        rows = split.index[index]
        # a copy: the map is read-only
        return torch.from_numpy(np.array(split.points[rows], dtype=np.float32))

    def _samples(self, split: Split) -> np.ndarray:
        """The farthest point samples (n, num_points, 3) of all stored clouds of a split, made once
        per node.
        """
        count, skip = self.config.num_points, self.config.skip_near_origin
        if count >= split.points.shape[1]:
            return split.points

        is_stored = split.name == "test" or (split.name == "val" and self.has_own_val)
        stored = split.name if is_stored else "train"

        def make() -> dict[str, np.ndarray]:
            samples = []
            for start in range(0, len(split.points), CHUNK):
                clouds = torch.from_numpy(np.array(split.points[start : start + CHUNK]))
                samples.append(sample(clouds, count, skip).numpy())

            return {"points": np.concatenate(samples)}

        if stored not in self._sampled:
            variant = f"{SAMPLING}-skip" if skip else SAMPLING
            key = f"samples-{variant}-{self.digest[:24]}-{stored}-{count}"
            arrays, _ = cached_arrays(key, make)
            self._sampled[stored] = arrays["points"]

        return self._sampled[stored]


def checked_groups(groups: np.ndarray, labels: np.ndarray, split: str) -> np.ndarray:
    """Return the groups (n,) as they are. Raises ValueError for another number of them, or for an
    object of two classes.
    """
    if groups.shape != labels.shape:
        raise ValueError(
            f"objects of {groups.size} {split} clouds are given, the split has {len(labels)}"
        )

    order = np.lexsort((labels, groups))
    same = groups[order][1:] == groups[order][:-1]
    mixed = np.flatnonzero(same & (labels[order][1:] != labels[order][:-1]))

    if len(mixed):
        first, second = order[mixed[0]], order[mixed[0] + 1]
        raise ValueError(
            f"{split} clouds {min(first, second)} and {max(first, second)} are given as one object"
            " and have different labels"
        )

    return groups


def shuffled(points: Tensor, generator: torch.Generator) -> Tensor:
    """points (B, P, C), those of each cloud in an order of their own."""
    order = torch.rand(points.shape[:2], generator=generator).argsort(dim=1)
    return gather(points, to_device(order, points.device))


def sample(points: Tensor, count: int, skip_near_origin: bool = False) -> Tensor:
    """Farthest point samples (B, count, 3) of points (B, P, 3); all points, as they are, where
    there are no more.
    """
    if count >= points.shape[1]:
        return points

    return gather(points, farthest_points(points[:, :, :3], count, skip_near_origin))


def data_folder(name: str, folder: str, origin: str, key: str = "folder") -> Path:
    """Return $POINTSWEEP_DATA/folder; `key` is the field that names it.

    Raises MissingDataError naming what was looked for and where the data are obtained.
    """
    root = os.environ.get("POINTSWEEP_DATA")
    if not root:
        raise MissingDataError(
            f"data set {name}: POINTSWEEP_DATA is not set; it must name the folder that holds"
            f" {folder}/. {origin}"
        )

    if is_address(root):
        root = str(_from_s3(name, root, folder, origin))

    # A link below the root may lead anywhere: whoever made it has said so. A name in a sweep file
    # may not.
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise MissingDataError(
            f"dataset.{key}: {folder!r} leads out of POINTSWEEP_DATA; allowed are names below it"
        )

    path = Path(root).expanduser() / folder
    if not path.is_dir():
        reason = "a broken link" if path.is_symlink() else "no folder"
        raise MissingDataError(
            f"data set {name}: {reason} {path} (dataset.{key} below"
            f" POINTSWEEP_DATA).{_similar(path)} {origin}"
        )

    return path


def _similar(path: Path) -> str:
    """Return a hint at a folder beside `path` with almost its name; empty if there is none."""
    if not path.parent.is_dir():
        return ""

    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _from_s3(name: str, root: str, folder: str, origin: str) -> Path:
    try:
        return staged(root, folder)
    except ValueError as error:  # a bad name, or a store that cannot be read
        raise MissingDataError(f"data set {name}: {error}. {origin}") from error


def folders_with(root: Path, marker: str, depth: int = 2) -> list[Path]:
    """Return the folders below `root`, at most `depth` deep, and `root` itself, in which `marker`
    is found; sorted.

    Links are followed; a folder that is reached in several ways, say by a link to one above it, is
    given once.
    """
    folders: dict[Path, Path] = {}
    for level in range(depth + 1):
        for path in sorted(root.glob("*/" * level + marker)):
            folder = path.parents[marker.count("/")]
            folders.setdefault(folder.resolve(), folder)

    return sorted(folders.values())


def text_digest(text: str) -> str:
    """32 hex digits of a text, for a cache key."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
