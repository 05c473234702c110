"""Facts about a data set on this machine, compared with what a configuration asks for and what was
published.

Facts are taken from the clouds, never from the configuration. They are remembered in the cache
beside a stamp of the files that they were taken from, so that a second look needs neither torch nor
the clouds. Importing this is free of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pointsweep.config import plugins, registry
from pointsweep.config.datasets import (
    S3DIS_FOLDERS,
    DatasetConfig,
    PartDatasetConfig,
    SceneDatasetConfig,
)
from pointsweep.data.splits import hold_out, in_turn
from pointsweep.errors import MissingDataError
from pointsweep.storage.base import write_whole
from pointsweep.storage.stores import is_address
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.provenance import tree_digest

if TYPE_CHECKING:
    from pointsweep.data.dataset import Dataset, Split

# Settings that change neither the stored clouds nor which of them are taken.
NOT_STORED = (
    "scale", "translate", "rotate", "center", "unit_sphere", "test_order", "allow_overlap",
)  # fmt: skip
# from a seed: what they hold stands in the configuration
MADE = ("synthetic", "synthetic_parts", "synthetic_rooms")
YOUNG_NS = 2 * 10**9  # the coarsest clock of a file system ticks every two seconds
DIGITS = 12  # of a digest, in messages
# The unit of tests is then a cloud. No deviation from a paper's protocol, so no reason against a
# verdict.
COPIES_UNKNOWN = (
    "several clouds of an object, not known which: intervals and tests over objects take each cloud"
    " for one"
)
NAMES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class DataFacts:
    """Facts found about a data set. Splits are `train`, `val` and `test`; a split that there is not
    has no entry.
    """

    folder: str = ""  # that was read
    digest: str = ""  # of the stored clouds; empty where trials make them
    sizes: Mapping[str, int] = field(default_factory=dict)  # clouds of a split
    # of train and test, before validation is held out
    taken: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[str, Sequence[int]] = field(default_factory=dict)
    # of a cloud of the split
    fewest_points: Mapping[str, int] = field(default_factory=dict)
    most_points: Mapping[str, int] = field(default_factory=dict)
    num_classes: int = 0  # that the split should hold
    # with a cloud in the split
    classes: Mapping[str, int] = field(default_factory=dict)
    # "val" and "test": how many of their clouds are training clouds, "both": how many test clouds
    # are validation clouds.
    shared: Mapping[str, int] = field(default_factory=dict)
    # As `shared`: clouds whose object has clouds in the other split too, where the objects are
    # known.
    shared_objects: Mapping[str, int] = field(default_factory=dict)
    # of a split; empty where every cloud is one, or none is known
    objects: Mapping[str, int] = field(default_factory=dict)
    # there are several clouds of an object, and nothing says which
    copies_unknown: bool = False


class UnreadableDataError(ValueError):
    """A data set is at hand and cannot be used."""


# What is remembered


def known(section: Mapping[str, Any], digest: bool = False) -> DataFacts | None:
    """Return what is remembered of a data set's section of a configuration; None if its files have
    changed since.

    `digest`: only facts that have one.
    """
    if section["name"] in MADE:
        return None

    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(_path(section).read_text())
        for folder, stamp in remembered["stamps"].items():
            if folder_stamp(Path(folder)) != stamp:
                return None

        facts = DataFacts(**remembered["facts"])
        if facts.digest or not digest:
            return facts

    return None


def is_here(section: Mapping[str, Any]) -> bool:
    """Return whether this machine has a folder for the data set, whatever is in it."""
    folders = _folders(section)
    return bool(folders) and folders[0].is_dir()


def _folders(section: Mapping[str, Any]) -> list[Path]:
    """Return where a section of a configuration looks for data, links followed: the parent's clouds
    first; none on S3.
    """
    root = os.environ.get("POINTSWEEP_DATA", "")
    if not root or is_address(root):
        return []

    folder = section.get("folder", section.get("root"))
    if folder is None and section["name"] == "modelnet40_fewshot":
        converted = section.get("source") == "point_bert"
        folder = "ModelNetFewshot" if converted else "modelnet40_ply_hdf5_2048"

    if folder is None and section["name"] == "s3dis":
        folder = S3DIS_FOLDERS[section.get("layout", "blocks")]

    names = [folder, section.get("corrupted_folder")]
    return [Path(root, name).resolve() for name in names if isinstance(name, str)]


def _remember(
    section: Mapping[str, Any], facts: DataFacts, stamps: Mapping[str, str]
) -> None:
    content = json.dumps({"facts": asdict(facts), "stamps": stamps})
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_whole(_path(section), content.encode())


def _path(section: Mapping[str, Any]) -> Path:
    settings = {}
    for name, value in section.items():
        if name not in NOT_STORED:
            settings[name] = value

    locations = [os.environ.get("POINTSWEEP_DATA", ""), *map(str, _folders(section))]
    plugin_digests = plugins.digests([("datasets", section["name"])])
    code = [tree_digest(), *plugin_digests.values()]
    text = json.dumps([*code, locations, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]

    return cache_folder() / "facts" / f"{digest}.json"


def data_stamps(config: DatasetConfig) -> tuple[str, ...]:
    """Return the stamps of a data set's folders; none of one that is made, or on S3. Raises
    MissingDataError.
    """
    if config.name in MADE or is_address(os.environ.get("POINTSWEEP_DATA")):
        return ()

    maker: Any = registry.load("datasets", config.name)
    return tuple(folder_stamp(folder) for folder in maker.folders(config))


def folder_stamp(folder: Path) -> str:
    """Return a digest of the names, sizes and times of all files below a folder; links are
    followed.
    """
    return _stamp_and_time(folder)[0]


def _stamp_and_time(folder: Path) -> tuple[str, int]:
    """The stamp, and when a file below the folder changed last (ns)."""
    digest = hashlib.sha256()
    latest = 0
    seen: set[tuple[int, int]] = set()
    pending = [folder]

    while pending:
        current = pending.pop()
        identity = current.stat()
        if (identity.st_dev, identity.st_ino) in seen:
            continue  # a link that leads back

        seen.add((identity.st_dev, identity.st_ino))
        for entry in sorted(os.scandir(current), key=lambda entry: entry.name):
            if entry.is_dir():
                pending.append(Path(entry.path))
                continue

            try:
                stat = entry.stat()
            except FileNotFoundError:  # a link to nowhere
                digest.update(os.fsencode(f"{entry.path} gone;"))
                continue

            times = (stat.st_mtime_ns, stat.st_ctime_ns)
            line = f"{entry.path} {stat.st_size} {times} {stat.st_ino};"
            digest.update(os.fsencode(line))
            latest = max(latest, *times)

    return digest.hexdigest(), latest


# What is read


def facts_of(config: DatasetConfig, digest: bool = False) -> DataFacts:
    """Return the facts of a data set: computed, remembered, or read.

    `digest`: with a digest even where that needs clouds that trials make. Raises MissingDataError,
    UnreadableDataError.
    """
    if config.name in MADE:
        return made_facts(config)

    section = section_of(config)
    remembered = known(section, digest=digest)
    if remembered is not None:
        return remembered

    try:
        maker: Any = registry.load("datasets", config.name)
        maker.available(config)
        folders = maker.folders(config)
        stamps = {}
        latest = 0

        for folder in folders:
            stamps[str(folder)], changed = _stamp_and_time(folder)
            latest = max(latest, changed)

        now = time.time_ns()
        dataset = maker(config) if digest else maker.preview(config)
    except MissingDataError:
        raise
    except (ValueError, OSError) as error:
        raise UnreadableDataError(f"{config.name}: {error}") from error
    except Exception as error:
        if not registry.source_of("datasets", config.name):
            raise
        # Somebody else's code may raise anything: the sweep is refused with its words.
        raise UnreadableDataError(
            f"{config.name}: {type(error).__name__}: {error}"
        ) from error

    facts = read_facts(dataset, config, overlap=True)
    if folders:
        facts = replace(facts, folder=str(folders[0]))

    # A younger file could change again without a change of its times.
    if latest < now - YOUNG_NS:
        _remember(section, facts, stamps)

    return facts


def section_of(config: DatasetConfig) -> dict[str, Any]:
    """Return the data set's part of a trial's plain configuration."""
    return config.to_dict()


def read_facts(dataset: Dataset, config: DatasetConfig, overlap: bool) -> DataFacts:
    """Return the facts of an open data set; without `overlap` nothing is said of clouds that splits
    share.
    """
    maker: Any = registry.load("datasets", config.name)
    splits = {"train": dataset.train, "test": dataset.test}

    if dataset.val is not None:
        splits["val"] = dataset.val

    sizes = {}
    fewest_points = {}
    most_points = {}
    num_classes = {}
    num_objects = {}

    for name, split in splits.items():
        points = _num_points(split)
        sizes[name] = len(split.labels)
        fewest_points[name] = int(points.min())
        most_points[name] = int(points.max())
        num_classes[name] = len(np.unique(split.labels))

        if split.groups is not None:
            num_objects[name] = len(np.unique(split.groups))

    published = {}
    for name, counts in maker.published_sizes(config).items():
        published[name] = list(counts)

    return DataFacts(
        digest=dataset.digest,
        sizes=sizes,
        taken=dict(dataset.num_taken),
        published=published,
        fewest_points=fewest_points,
        most_points=most_points,
        num_classes=_expected_classes(config, dataset.num_classes),
        classes=num_classes,
        shared=shared_counts(splits) if overlap else {},
        shared_objects=_shared_objects(splits),
        objects=num_objects,
        copies_unknown=maker.holds_copies(config) and dataset.test.groups is None,
    )


def _shared_objects(splits: Mapping[str, Split]) -> dict[str, int]:
    pairs = [
        ("test", "test", "train"),
        ("val", "val", "train"),
        ("both", "test", "val"),
    ]

    shared: dict[str, int] = {}
    for name, split, other in pairs:
        if split not in splits or other not in splits:
            continue

        groups, other_groups = splits[split].groups, splits[other].groups
        if groups is not None and other_groups is not None:
            shared[name] = int(np.isin(groups, other_groups).sum())

    return shared


def _expected_classes(config: DatasetConfig, num_classes: int) -> int:
    way: int | None = getattr(config, "way", None)  # of a few-shot episode
    return way or config.num_categories or num_classes


def _num_points(split: Split) -> np.ndarray:
    """Points of each cloud of a split."""
    starts: np.ndarray | None = getattr(split, "starts", None)
    if starts is None:
        return np.full(len(split.labels), split.points.shape[1])

    sizes: np.ndarray = np.diff(starts)[split.index]
    return sizes


def _clouds(split: Split) -> list[np.ndarray]:
    """The clouds (P, 3) of a split; a block that is evaluated as several clouds is one of them."""
    starts: np.ndarray | None = getattr(split, "starts", None)
    if starts is None:
        return [split.points[row][:, :3] for row in split.index]

    rows = dict.fromkeys(split.index.tolist())
    return [split.points[starts[row] : starts[row + 1]] for row in rows]


def shared_counts(splits: Mapping[str, Split]) -> dict[str, int]:
    """Return how many clouds of a split are those of another, in whatever order their points are;
    see DataFacts.
    """
    from pointsweep.data.duplicates import groups_of_splits, shared_clouds

    groups = groups_of_splits({name: _clouds(split) for name, split in splits.items()})
    counts = {"test": len(shared_clouds(groups, "train", "test"))}

    if "val" in splits:
        counts["val"] = len(shared_clouds(groups, "train", "val"))
        counts["both"] = len(shared_clouds(groups, "val", "test"))

    return counts


def made_facts(config: Any) -> DataFacts:
    """Return the facts of a data set that is made from a seed, without making it."""
    if hasattr(config, "train_per_category"):
        num_classes = config.num_categories
        per_class = {
            "train": config.train_per_category,
            "test": config.test_per_category,
        }
    else:
        num_classes = config.num_classes
        per_class = {"train": config.train_per_class, "test": config.test_per_class}

    sizes: dict[str, int] = {}
    taken: dict[str, int] = {}
    for split, limit in (("train", config.train_limit), ("test", config.test_limit)):
        labels = np.arange(num_classes * per_class[split]) % num_classes
        if limit:
            labels = labels[np.sort(in_turn(labels)[:limit])]

        sizes[split] = taken[split] = len(labels)
        if split == "train" and config.val_fraction:
            train, val = hold_out(labels, config.val_fraction)
            sizes |= {"train": len(train), "val": len(val)}

    if config.stand_in == SceneDatasetConfig.stand_in:
        # of a block that is evaluated
        clouds = -(-config.source_points // config.num_points)
        for split in sizes:
            if split != "train":
                sizes[split] *= clouds

    points = dict.fromkeys(sizes, config.source_points)
    return DataFacts(
        sizes=sizes,
        taken=taken,
        fewest_points=points,
        most_points=points,
        num_classes=num_classes,
    )


# What they mean


def marks(facts: DataFacts, config: DatasetConfig, trains: bool) -> tuple[str, ...]:
    """Return what a table must say of the data beside a number; `trains`: the model learns from
    batches.
    """
    marks_of_data = (
        *_size_marks(facts),
        *_class_marks(facts),
        *_shared_marks(facts, config),
        *_point_marks(facts, config, trains),
    )
    if facts.copies_unknown:
        return (*marks_of_data, COPIES_UNKNOWN)

    return marks_of_data


def _size_marks(facts: DataFacts) -> Iterator[str]:
    for split in ("test", "train"):
        published, taken = facts.published.get(split), facts.taken.get(split)
        if not published or taken is None or taken in published:
            continue

        objects = f"{NAMES[split]} objects"
        if taken < min(published):
            yield f"part of the set: {taken:,} of {min(published):,} {objects}"
        else:
            counts = " or ".join(f"{count:,}" for count in published)
            yield f"another set: {taken:,} {objects}, published {counts}"


def _class_marks(facts: DataFacts) -> Iterator[str]:
    for split in ("test", "train"):
        if split in facts.classes and facts.classes[split] < facts.num_classes:
            yield (
                f"{facts.classes[split]} of {facts.num_classes} classes have {NAMES[split]} objects"
            )


def _shared_marks(facts: DataFacts, config: DatasetConfig) -> Iterator[str]:
    """Return the marks of clouds that two splits share. Without permission the launch is refused:
    no table can have such a mark.
    """
    if config.allow_overlap:
        for text in overlaps(facts):
            yield f"{text} (allowed by dataset.allow_overlap)"


def overlaps(facts: DataFacts) -> list[str]:
    """Return a sentence for each pair of splits that share clouds."""
    pairs = [
        ("test", "test", "training"),
        ("val", "validation", "training"),
        ("both", "test", "validation"),
    ]

    sentences = []

    for name, of, other in pairs:
        size = facts.sizes.get("test" if name == "both" else name, 0)
        shared = facts.shared.get(name, 0)
        if shared:
            sentences.append(f"{shared:,} of {size:,} {of} clouds are {other} clouds")

        copies = facts.shared_objects.get(name, 0)
        if copies:
            sentences.append(
                f"{copies:,} of {size:,} {of} clouds are of objects that have {other} clouds too"
            )

    if facts.copies_unknown and "val" in facts.sizes:
        sentences.append(
            "validation clouds may be of objects that have training clouds too, for which clouds"
            " are copies is not known"
        )

    return sentences


def _point_marks(
    facts: DataFacts, config: DatasetConfig, trains: bool
) -> Iterator[str]:
    stored = facts.most_points.get("train")
    # points are drawn of every cloud, without a presample
    drawn = isinstance(config, PartDatasetConfig)
    if trains and not drawn and stored is not None and stored < config.presample:
        yield f"training clouds of {stored:,} points, presample asks for {config.presample:,}"


def refusals(facts: DataFacts, data: DatasetConfig, batch: int | None) -> list[str]:
    """Return why the data that are here cannot give what a trial asks for, each with what to do.

    `batch`: the clouds of a training batch; None where no batches are trained on.
    """
    data_name = f"{data.name} in {facts.folder}" if facts.folder else data.name
    problems = [
        *_too_few_points(facts, data, data_name),
        *_too_few_clouds(facts, data, data_name),
    ]

    num_train = facts.sizes["train"]

    if batch is not None and batch > num_train:
        problems.append(
            f"train.batch_size: {batch} is more than the {num_train} training clouds of"
            f" {data_name}: at most {num_train} make a batch"
        )

    if not data.allow_overlap:
        for text in overlaps(facts):
            problems.append(
                f"{data_name}: {text}{_what_to_do(text)}, or set dataset.allow_overlap: true, and"
                " every table says so"
            )

    return problems


def _what_to_do(text: str) -> str:
    if "not known" in text:
        return (
            ": leave out dataset.val_fraction, take a variant with one cloud an object (obj_bg,"
            " obj_only), name the objects in text files beside the data (docs/models.md)"
        )
    if "objects" in text:
        return ": mend the data, or the files that name the objects"

    return ", whatever the order of their points: mend the data"


def _too_few_points(
    facts: DataFacts, data: DatasetConfig, data_name: str
) -> Iterator[str]:
    """A cloud of parts may have fewer points than are drawn of it, as in the published programs,
    but not all of them.
    """
    # corrupted test clouds are given whole
    splits = ["train"] if hasattr(data, "corruption") else ["train", "test"]
    counts = [facts.most_points[split] for split in splits]
    most = max(counts) if isinstance(data, PartDatasetConfig) else min(counts)

    if data.num_points > most:
        yield (
            f"dataset.num_points: {data.num_points} asked for, the clouds of {data_name} have"
            f" {most} points: at most {most}"
        )


def _too_few_clouds(
    facts: DataFacts, data: DatasetConfig, data_name: str
) -> Iterator[str]:
    """A limit above what is there would give rows of different labels the same clouds."""
    for split in ("train", "test"):
        limit = getattr(data, f"{split}_limit", None)
        num_taken = facts.taken.get(split)
        if limit is not None and num_taken is not None and limit > num_taken:
            yield (
                f"dataset.{split}_limit: {limit} asked for, there are {num_taken} {NAMES[split]}"
                f" clouds in {data_name}: at most {num_taken}, or leave it out to take all"
            )


def differs(recorded: Mapping[str, Any], facts: DataFacts) -> str:
    """Return how the data of a record differ from those that are here; empty if they do not, or if
    it is not known.
    """
    before = str(recorded.get("digest") or "")
    if not before or not facts.digest or before == facts.digest:
        return ""

    return (
        f"data changed since: {recorded.get('name')} was {before[:DIGITS]}, here it is"
        f" {facts.digest[:DIGITS]}"
    )
