"""Look at a folder of clouds and write the section of a sweep file that reads it: `pointsweep data
add FOLDER`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pointsweep.config import registry
from pointsweep.config.datasets import FilesConfig
from pointsweep.config.validation import component_problems
from pointsweep.data.files import SPLITS, Stored, stored
from pointsweep.data.readers import cloud_arrays, cloud_files
from pointsweep.data.readers.cloud_arrays import Keys, keys_of, read_arrays, splits_in
from pointsweep.data.readers.cloud_files import POINT_KEYS
from pointsweep.data.readers.feature_hints import features_in
from pointsweep.data.readers.file_splits import LISTS, contents, names_of, split_files
from pointsweep.errors import MissingDataError
from pointsweep.storage.stores import is_address

NAMES = {  # of splits, in the order in which they are looked for
    "train": ("train", "training", "Train", "TRAIN", "Training"),
    "val": ("val", "valid", "validation", "Val", "Valid", "Validation", "dev"),
    "test": ("test", "testing", "Test", "TEST", "Testing", "eval"),
}
NAMES_OF_CLASSES = re.compile(
    r"(shape|class|category|label)_?(es)?_?names?", re.IGNORECASE
)
TEST_FRACTION = 0.2  # where there is no test split
# no texts without quotes
YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
SHOWN = 10  # names of classes that are printed


def suggest(folder: Path) -> list[str]:
    """Return the lines of the section that reads a folder, with what it holds as comments.

    Everything is read, as a trial reads it. Raises MissingDataError, ValueError saying why the
    folder cannot be read.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no folder")

    fields = _fields(folder)
    config = FilesConfig(root=folder.name, num_classes=2, **fields)
    config = config.replace(num_classes=_count_classes(config, folder))
    clouds = stored(config, folder)

    # Points that a model sees: fewer than by default where the clouds are smaller.
    largest = 0

    for split in SPLITS:
        if f"{split}_sizes" in clouds.arrays:
            largest = max(largest, int(clouds.arrays[f"{split}_sizes"].max()))

    small: dict[str, Any] = {}
    if largest < config.presample:
        small["presample"] = largest

    if largest < config.num_points:
        small["num_points"] = largest

    section = {
        "name": "files",
        "root": folder.name,
        "num_classes": config.num_classes,
        **fields,
        **small,
    }

    problems = []
    for path, message in component_problems("dataset", section):
        problems.append(f"{path.removeprefix('dataset.')}: {message}")

    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}")

    root, notes = _root(folder)
    section["root"] = root
    comments = [
        *notes,
        *_counts(clouds),
        *_other_kinds(folder, fields),
        *_not_read(config, folder),
    ]

    lines = [f"# {comment}" for comment in comments]
    lines.append("dataset:")
    lines += [f"  {key}: {_yaml(value)}" for key, value in section.items()]
    lines += _features(config, folder)

    return lines


def _features(config: FilesConfig, folder: Path) -> Iterator[str]:
    """Yield a commented line with the features that the first training file gives: most models take
    coordinates alone and refuse them.
    """
    files = split_files(folder, "train", config.train, config.pattern)
    keys = Keys(
        config.points_key,
        config.labels_key,
        config.offsets_key,
        splits=config.split_key,
    )

    features = features_in(files, keys, "train")

    if not features:
        return

    first = files.arrays[0] if files.arrays else files.clouds[0][0]
    networks = []
    for name, config_class in registry.config_classes("networks").items():
        if getattr(config_class, "takes_features", False):
            networks.append(name)

    yield (
        f"  # features: [{', '.join(('xyz', *features))}]  # as {first.name} has them; for the"
        f" networks {', '.join(networks)}, other models take coordinates alone"
    )


def _root(folder: Path) -> tuple[str, list[str]]:
    """Return the folder's name below POINTSWEEP_DATA, and what has to be set for it to lie
    there.
    """
    data_root = os.environ.get("POINTSWEEP_DATA", "")
    if data_root and not is_address(data_root):
        path = Path(data_root).expanduser().resolve()
        if folder.is_relative_to(path):
            return folder.relative_to(path).as_posix(), []

    return folder.name, [
        f"export POINTSWEEP_DATA={folder.parent}  (or link {folder.name} into the folder that it"
        " names)"
    ]


def _counts(data: Stored) -> Iterator[str]:
    names = data.class_names
    more = ", ..." if len(names) > SHOWN else ""
    yield f"{len(names)} classes: {', '.join(names[:SHOWN])}{more}"

    for split in SPLITS:
        if f"{split}_labels" not in data.arrays:
            continue

        sizes = data.arrays[f"{split}_sizes"]
        span = f"{sizes.min():,}"
        if sizes.min() != sizes.max():
            span = f"{span} to {sizes.max():,}"

        present = len(np.unique(data.arrays[f"{split}_labels"]))
        yield f"{split}: {len(sizes):,} clouds of {present} classes, {span} points each"


def _not_read(config: FilesConfig, folder: Path) -> Iterator[str]:
    """Yield a line on the arrays that a file holds beside those that are read."""
    files = split_files(folder, "train", config.train, config.pattern).arrays
    if not files:
        return

    usual = {
        *POINT_KEYS,
        *cloud_arrays.LABEL_KEYS,
        *cloud_arrays.OFFSET_KEYS,
        *cloud_arrays.NAME_KEYS,
    }

    configured = _configured_keys(config)
    others = []

    for key in keys_of(files[0]):
        if key.lower() not in usual and key not in configured:
            others.append(key)

    if others:
        yield (
            f"not read of {files[0].name}: {', '.join(others)}; groups_key may name the one"
            " that numbers the objects"
        )


def _configured_keys(config: FilesConfig) -> set[str]:
    """Return the keys of arrays that the configuration names, of all splits."""
    keys: set[str] = set()
    for key in (
        config.points_key,
        config.labels_key,
        config.offsets_key,
        config.split_key,
    ):
        if key is not None:
            keys.update(key.replace("{split}", split) for split in SPLITS)

    return keys


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return str(value)

    is_word = re.fullmatch(r"[A-Za-z_][\w./-]*", value) is not None
    if is_word and value.lower() not in YAML_WORDS:
        return str(value)

    return json.dumps(value, ensure_ascii=False)


def _fields(folder: Path) -> dict[str, Any]:
    """Return the fields that say where the splits are. Raises MissingDataError naming what was
    looked for.
    """
    for detect in (_folders, _lists, _arrays, _classes):
        fields = detect(folder)
        if fields:
            if "test" not in fields:
                fields |= {"test": None, "test_fraction": TEST_FRACTION}
            return fields | _pattern(folder, fields)

    raise MissingDataError(
        f"{folder}: no layout that is read. Looked for: lists (*train*.txt) of files, folders"
        f" train/CLASS or CLASS/train, files of arrays ({', '.join(cloud_arrays.SUFFIXES)}) called"
        " *train*, one such file, folders of classes with clouds"
        f" ({', '.join(cloud_files.SUFFIXES)}). {contents(folder)}"
    )


def _named(names: list[str], split: str) -> list[str]:
    """Return the names that hold the name of a split as a word of their own."""
    alternatives = "|".join(name.lower() for name in NAMES[split])
    word = re.compile(rf"(^|[^a-z])({alternatives})([^a-z]|$)")
    return [name for name in names if word.search(name.lower())]


def _lists(folder: Path) -> dict[str, Any]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in LISTS:
            names.append(path.name)

    named = _named(names, "train")
    if not named:
        return {}

    # Of several (modelnet10_train.txt, modelnet40_train.txt) the longest, and what is called as it
    # is.
    longest = max(named, key=lambda name: len(names_of(folder / name)))
    fields: dict[str, Any] = {"train": longest}
    prefix, _, _ = longest.lower().partition("train")
    siblings = [name for name in names if name.lower().startswith(prefix)]

    for split in ("test", "val"):
        named = _named(siblings, split)
        if named:
            fields[split] = named[0]

    classes = [name for name in siblings if NAMES_OF_CLASSES.search(name)]
    if len(classes) == 1:
        fields["class_names"] = classes[0]

    return fields


def _folders(folder: Path) -> dict[str, Any]:
    splits, inner = [], set()
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue

        below = [child.name for child in path.iterdir() if child.is_dir()]
        if below:  # a class may be called train too; a split has folders of its own
            splits.append(path.name)

        inner.update(below)

    fields: dict[str, Any] = {}
    for split in ("train", "test", "val"):
        for names in (splits, sorted(inner)):
            exact = [name for name in NAMES[split] if name in names]
            matching = exact or _named(names, split)
            if matching:
                fields[split] = matching[0]
                break

    return fields if "train" in fields else {}


def _arrays(folder: Path) -> dict[str, Any]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in cloud_arrays.SUFFIXES:
            names.append(path.name)

    fields: dict[str, Any] = {}
    for split in ("train", "test", "val"):
        named = _named(names, split)
        if len(named) == 1:
            fields[split] = named[0]
        elif named:
            fields[split] = _common(named)

    if "train" not in fields and len(names) == 1:
        fields = _one_file(folder / names[0])

    if "train" in fields:
        return fields | _class_list(folder)

    return {}


def _one_file(path: Path) -> dict[str, Any]:
    """Return the fields of one file that holds all splits, under keys of their own (train_data,
    test_data) or not.
    """
    keys = keys_of(path)
    fields: dict[str, Any] = {"train": path.name}

    for field, usual in (
        ("points_key", (*POINT_KEYS, "x")),
        ("labels_key", cloud_arrays.LABEL_KEYS),
        ("offsets_key", cloud_arrays.OFFSET_KEYS),
    ):
        for key in keys:
            without_split = re.sub(r"(^|[^a-z])train([^a-z]|$)", r"\1\2", key.lower())
            kind = without_split.strip("_-./ ")
            if kind != key.lower() and kind in usual:
                fields[field] = key.replace("train", "{split}")

    if "points_key" in fields:
        for split in ("test", "val"):
            if fields["points_key"].replace("{split}", split) in keys:
                fields[split] = path.name

        return fields

    split_keys = [key for key in keys if key.lower() in ("split", "splits")]
    if split_keys:
        present = splits_in(path, split_keys[0])
        fields |= dict.fromkeys(present, path.name)
        fields["split_key"] = split_keys[0]

    return fields


def _class_list(folder: Path) -> dict[str, Any]:
    names = []
    for path in sorted(folder.glob("*.txt")):
        if NAMES_OF_CLASSES.search(path.name):
            names.append(path.name)

    if len(names) == 1:
        return {"class_names": names[0]}

    return {}


def _common(names: list[str]) -> str:
    """Return a pattern of several names: what they begin with, and their ending."""
    length = 0
    while len({name[: length + 1] for name in names}) == 1:
        length += 1

    return f"{names[0][:length]}*{Path(names[0]).suffix}"


def _classes(folder: Path) -> dict[str, Any]:
    for path in folder.glob("*/*"):
        if path.suffix.lower() in cloud_files.SUFFIXES:
            return {"train": "."}

    return {}


def _pattern(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the pattern of the most frequent kind where files of several kinds lie in the folders
    of classes.
    """
    counts = _kinds(folder, fields)
    if len({suffix.lower() for suffix in counts}) < 2:
        return {}

    [(most_frequent, _)] = counts.most_common(1)
    return {"pattern": f"*{most_frequent}"}


def _kinds(folder: Path, fields: Mapping[str, Any]) -> Counter[str]:
    """Return how many files of each kind lie in the folders of classes."""
    counts: Counter[str] = Counter()
    for split in SPLITS:
        if fields.get(split) is not None:
            files = split_files(folder, split, fields[split], pattern=None)
            counts.update(path.suffix for path, _ in files.clouds)

    return counts


def _other_kinds(folder: Path, fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line on the files that the pattern leaves out."""
    if "pattern" not in fields:
        return

    counts = _kinds(folder, fields)
    shown = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
    yield (
        f"files of several kinds: {shown}; pattern {fields['pattern']!r} reads one of them,"
        " '*' all"
    )


def _count_classes(config: Any, folder: Path) -> int:
    """Return the number of classes: of names, or the largest number and one more."""
    if config.class_names is not None:
        return len(names_of(folder / config.class_names))

    keys = Keys(
        config.points_key,
        config.labels_key,
        config.offsets_key,
        splits=config.split_key,
    )

    names: set[str] = set()
    largest = 0

    for split in SPLITS:
        value = getattr(config, split)
        if value is None:
            continue

        files = split_files(folder, split, value, config.pattern)
        names.update(name for _, name in files.clouds)
        for path in files.arrays:
            labels = read_arrays(path, keys, split).labels
            if labels.dtype.kind in "iuf" and np.isfinite(labels).all():
                largest = max(largest, int(labels.max()) + 1)
            else:
                names.update(map(str, labels))

    return max(len(names), largest)
