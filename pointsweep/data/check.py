"""Is what lies below a data root sound? Every copy of every data set is read afresh, past the cache.

A copy is `wrong` if its reader refuses it (damaged, not finite, empty, labels out of range, classes out of order), if it has more
clouds than were published, or one cloud twice; it is a `part` if it merely has fewer clouds or classes than were published.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from pointsweep import registry
from pointsweep.data.base import Copy
from pointsweep.data.cache import content_digest


@dataclass
class Report:
    """What was found of one copy."""

    place: str
    facts: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # less than was published
    wrong: list[str] = field(default_factory=list)


def readers() -> Iterator[tuple[str, type]]:
    """All registered data sets."""
    for name in registry.names("datasets"):
        yield name, registry.load("datasets", name)


def check(copy: Copy) -> Report:
    """Reads a copy and compares it with what was published."""
    report = Report(copy.place)
    try:
        arrays = copy.read()
    except (ValueError, OSError) as error:  # MissingData is one
        report.wrong.append(str(error))
        return report
    splits = [name.removesuffix("_labels") for name in arrays if name.endswith("_labels")]
    report.facts.append(", ".join(f"{split} {len(arrays[f'{split}_labels'])}" for split in splits) + f"; {sizes(arrays, splits)}")
    report.facts.append(f"digest {content_digest(arrays)}")
    for split in splits:
        _count(report, split, len(arrays[f"{split}_labels"]), copy)
        _classes(report, split, arrays[f"{split}_labels"], copy)
    _overlap(report, {split: fingerprints(arrays, split) for split in splits})
    return report


def sizes(arrays: Mapping[str, np.ndarray], splits: list[str]) -> str:
    """How many points the clouds have, in words."""
    counts = [len(cloud) for split in splits for cloud in clouds(arrays, split)]
    return f"{min(counts)} points a cloud" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} points a cloud"


def clouds(arrays: Mapping[str, np.ndarray], split: str) -> list[np.ndarray]:
    """The clouds (P, 3) of a split, stored as one array or end to end."""
    starts = arrays.get(f"{split}_starts")
    points = arrays[f"{split}_points"]
    return list(points) if starts is None else np.split(points, starts[1:-1])


def fingerprints(arrays: Mapping[str, np.ndarray], split: str) -> list[bytes]:
    """sha256 of every cloud's points in sorted order: equal for equal clouds, whatever the order of their points."""
    found = []
    for cloud in clouds(arrays, split):
        cloud = cloud + np.float32(0)  # -0 becomes 0
        found.append(hashlib.sha256(cloud[np.lexsort(cloud.T)].tobytes()).digest())
    return found


def _count(report: Report, split: str, count: int, copy: Copy) -> None:
    published = copy.published.get(split)
    if published is None:
        report.facts.append(f"{split}: no published number to compare with")
    elif count not in published:
        text = f"{split} holds {count} clouds, published: {' or '.join(map(str, published))}"
        (report.parts if count < min(published) else report.wrong).append(text)


def _classes(report: Report, split: str, labels: np.ndarray, copy: Copy) -> None:
    """Readers refuse labels out of range and names out of order; what is left is a class without a cloud."""
    empty = [name for number, name in enumerate(copy.class_names) if not (labels == number).any()]
    if empty:
        report.parts.append(f"{split} holds no cloud of {', '.join(empty)} ({len(copy.class_names) - len(empty)} classes present)")


def _overlap(report: Report, found: Mapping[str, list[bytes]]) -> None:
    """Exact copies of a cloud in one split or in two; another sample of the same surface is not seen."""
    for split, prints in found.items():
        twice = sum(number - 1 for number in Counter(prints).values())
        if twice:
            report.wrong.append(f"{split} holds {twice} exact repetitions of its own clouds")
    for first, second in combinations(found, 2):
        shared = len(set(found[first]) & set(found[second]))
        (report.wrong if shared else report.facts).append(f"{first} and {second} share {shared} clouds")


def check_root(root: Path) -> Iterator[tuple[str, list[Report], str]]:
    """Every data set's name, the reports of its copies, and where it comes from if there is none."""
    found: dict[str, bool] = {}
    for name, reader in readers():
        reports = [check(copy) for copy in reader.copies(root)]  # type: ignore[attr-defined]
        found[name] = bool(reports)
        yield name, reports, _absence(reader, found) if not reports else ""


def _absence(reader: type, found: Mapping[str, bool]) -> str:
    made_from: str = reader.made_from  # type: ignore[attr-defined]
    origin: str = reader.origin  # type: ignore[attr-defined]
    if made_from not in found:
        return f"made from {made_from}" if made_from else f"not here. {origin}"
    here = "which is here" if found[made_from] else "which is not here"
    return f"source generated: made from {made_from}, {here}; published files: not here. {origin}"
