"""Is what lies below a data root sound? Every copy of every data set is read afresh, past the
cache.

A copy is `wrong` if its reader refuses it (damaged, not finite, empty, labels out of range, classes
out of order), if it has more clouds than were published, or one cloud twice, in whatever order its
points are; it is a `part` if it merely has fewer clouds or classes than were published.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from pointsweep.config import registry
from pointsweep.data.dataset import Copy
from pointsweep.data.duplicates import groups_of_splits, shared_clouds
from pointsweep.utils.array_cache import content_digest


@dataclass
class Report:
    """Findings about one copy of a data set."""

    location: str
    facts: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # less than was published
    wrong: list[str] = field(default_factory=list)


def readers() -> Iterator[tuple[str, type]]:
    """All registered data sets."""
    for name in registry.names("datasets"):
        yield name, registry.load("datasets", name)


def check(copy: Copy) -> Report:
    """Read a copy and compare it with what was published."""
    report = Report(copy.location)
    try:
        arrays = copy.read()
    except (ValueError, OSError) as error:  # MissingDataError is one
        report.wrong.append(str(error))
        return report

    labels_of = {}
    for name, array in arrays.items():
        if name.endswith("_labels"):
            labels_of[name.removesuffix("_labels")] = array

    counts = [f"{split} {len(labels)}" for split, labels in labels_of.items()]
    report.facts.append(f"{', '.join(counts)}; {sizes(arrays, list(labels_of))}")
    report.facts.append(f"digest {content_digest(arrays)}")

    for split, labels in labels_of.items():
        _count(report, split, len(labels), copy)
        _classes(report, split, labels, copy)

    clouds_of = {split: clouds(arrays, split) for split in labels_of}
    _overlap(report, groups_of_splits(clouds_of))
    return report


def sizes(arrays: Mapping[str, np.ndarray], splits: list[str]) -> str:
    """Return how many points the clouds have, in words."""
    counts = []
    for split in splits:
        counts += [len(cloud) for cloud in clouds(arrays, split)]

    if min(counts) == max(counts):
        return f"{min(counts)} points a cloud"

    return f"{min(counts)} to {max(counts)} points a cloud"


def clouds(arrays: Mapping[str, np.ndarray], split: str) -> list[np.ndarray]:
    """The clouds (P, 3) of a split, stored as one array or end to end."""
    starts = arrays.get(f"{split}_starts")
    points = arrays[f"{split}_points"]

    if starts is None:
        return list(points)

    return np.split(points, starts[1:-1])


def _count(report: Report, split: str, count: int, copy: Copy) -> None:
    published = copy.published.get(split)
    if published is None:
        report.facts.append(f"{split}: no published number to compare with")
    elif count not in published:
        text = f"{split} holds {count} clouds, published: {' or '.join(map(str, published))}"
        if count < min(published):
            report.parts.append(text)
        else:
            report.wrong.append(text)


def _classes(report: Report, split: str, labels: np.ndarray, copy: Copy) -> None:
    """Readers refuse labels out of range and names out of order; what is left is a class without a
    cloud.
    """
    empty = []
    for number, name in enumerate(copy.class_names):
        if not (labels == number).any():
            empty.append(name)

    if empty:
        num_present = len(copy.class_names) - len(empty)
        report.parts.append(
            f"{split} holds no cloud of {', '.join(empty)} ({num_present} classes present)"
        )


def _overlap(report: Report, groups: Mapping[str, np.ndarray]) -> None:
    """Report copies of a cloud in one split or in two (`duplicates.py`); another sample of the same
    surface is not seen.
    """
    for split, numbers in groups.items():
        twice = len(numbers) - len(np.unique(numbers))
        if twice:
            report.wrong.append(f"{split} holds {twice} copies of its own clouds")

    for first, second in combinations(groups, 2):
        shared = shared_clouds(groups, first, second)
        text = f"{first} and {second} share {len(shared)} clouds"
        if len(shared):
            row = shared[0]
            original = np.flatnonzero(groups[first] == groups[second][row])[0]
            report.wrong.append(
                f"{text}; {second} cloud {row} is {first} cloud {original}"
            )
        else:
            report.facts.append(text)


def check_root(root: Path) -> Iterator[tuple[str, list[Report], str]]:
    """Every data set's name, the reports of its copies, and where it comes from if there is
    none.
    """
    is_present: dict[str, bool] = {}
    for name, reader in readers():
        reports = [check(copy) for copy in reader.copies(root)]  # type: ignore[attr-defined]
        is_present[name] = bool(reports)
        absence = "" if reports else _absence(reader, is_present)
        yield name, reports, absence


def _absence(reader: type, is_present: Mapping[str, bool]) -> str:
    made_from: str = reader.made_from  # type: ignore[attr-defined]
    origin: str = reader.origin  # type: ignore[attr-defined]
    if made_from not in is_present:
        return f"made from {made_from}" if made_from else f"not here. {origin}"

    here = "which is here" if is_present[made_from] else "which is not here"
    return f"source generated: made from {made_from}, {here}; published files: not here. {origin}"


# Names by which a folder, or what lies in it, is recognised.
KNOWN_FOLDERS = (
    "main_split", "main_split_nobg", "h5_files", "modelnet_c", "scanobjectnn_c", "train_test_split",
    "5way_10shot", "5way_20shot", "10way_10shot", "10way_20shot",
)  # fmt: skip
KNOWN_FILES = (
    "train_files.txt",
    "modelnet40_train.txt",
    "synsetoffset2category.txt",
    "train_hdf5_file_list.txt",
    "modelnet40_normal_resampled.tar.xz",
)
# a set's own, below the one to name
INNER_FOLDERS = ("main_split", "main_split_nobg", "h5_files", "train_test_split")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar")
OTHER_FOLDERS = ("weights",)  # read by backbones
MAX_FOLDERS = 2000  # that are looked into for a hint


def unread(root: Path, locations: Iterable[str]) -> list[str]:
    """Return a line on everything in a data root that no reader has taken, with a hint where there
    is one.

    `locations` are those of the copies that were found.
    """
    taken = {location.partition("/")[0].partition(" (")[0] for location in locations}
    if "." in taken:
        return []

    lines: list[str] = []
    files: list[str] = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or entry.name in (*taken, *OTHER_FOLDERS):
            continue

        if entry.is_dir():
            lines.append(f"{entry.name}/: {_hint(entry, root)}")
        elif entry.name.lower().endswith(ARCHIVES):
            lines.append(f"{entry.name}: an archive; unpack it")
        elif entry.is_symlink() and not entry.exists():
            lines.append(f"{entry.name}: a link that leads nowhere")
        else:
            files.append(entry.name)

    if files:
        lines.append(f"{_some(files)}: loose files")

    if root.name in INNER_FOLDERS or any(root.glob("*objectdataset*.h5")):
        above = next(
            (path for path in root.parents if path.name not in INNER_FOLDERS), root
        )
        lines.append(
            f"this folder is the inside of a data set; give {above.parent} instead"
        )

    return lines


def _hint(folder: Path, root: Path) -> str:
    """Say what a folder holds, and what its maker may have meant."""
    marker = _marker_below(folder)
    if marker is not None:
        folder_name = marker.parent.relative_to(root)
        return (
            f"{marker.name} lies at {folder_name}, too deep to be found; give"
            f" {root / folder_name.parent} as the"
            " root"
        )

    names = sorted(entry.name for entry in folder.iterdir())
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    if archives:
        return f"holds {_some(archives)}; unpack it"

    for name in (*names, folder.name):
        near = difflib.get_close_matches(
            name, [*KNOWN_FOLDERS, *KNOWN_FILES], n=1, cutoff=0.75
        )
        if near and near[0] != name:
            return f"no layout of a known set; should {name!r} be called {near[0]!r}?"

    return f"no layout of a known set; it holds {_some(names)}"


def _marker_below(folder: Path) -> Path | None:
    """Return the first file or folder below that tells a layout; links are not followed."""
    for count, (path, folders, files) in enumerate(os.walk(folder)):
        if count == MAX_FOLDERS:
            return None
        for name in sorted([*folders, *files]):
            if name in KNOWN_FILES or name in KNOWN_FOLDERS[:2]:
                return Path(path, name)

    return None


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"

    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
