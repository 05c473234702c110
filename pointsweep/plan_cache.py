"""What the plan found out about a sweep's arms, kept on this machine: a second look at the same sweep needs no torch.

Kept under a digest of all that it depends on: the package's files, torch, the cells with their trials and published numbers, and the
folders of data. Only a plan that lacks nothing is kept, and it holds as long as the weights that it found lie there unchanged.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pointsweep.data.cache import cache_folder
from pointsweep.errors import Finding
from pointsweep.origin import tree_digest
from pointsweep.store import write_whole
from pointsweep.sweep import Sweep

DEPTH = 3  # of the folders of data that are looked at: a file added, removed or renamed changes the time of its folder


@dataclass(frozen=True)
class Checked:
    """Of the trials without a record: the counts of those that can be built, the audit's findings, and what is missing here."""

    parameters: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]
    weights: tuple[str, ...] = ()  # files that were found


def read(sweep: Sweep, keys: Sequence[str]) -> Checked | None:
    """What was kept of the sweep; None if nothing was, if it does not cover these trials, or if weights have changed."""
    path = _place(sweep)
    if path is None:
        return None
    # A damaged file, say after a full disk, is made again.
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        if set(keys) <= set(kept["keys"]) and all(_stamp(Path(name)) == stamp for name, stamp in kept["weights"].items()):
            parameters = {key: kept["parameters"][key] for key in keys if key in kept["parameters"]}
            return Checked(parameters, tuple(Finding(**finding) for finding in kept["findings"]), (), tuple(kept["weights"]))
    return None


def keep(sweep: Sweep, keys: Sequence[str], checked: Checked) -> None:
    """Keeps it, unless something is missing. A disk that refuses is no reason to stop."""
    path = _place(sweep)
    if path is None or checked.missing:
        return
    content = {
        "keys": sorted(keys),
        "parameters": {key: dict(counts) for key, counts in checked.parameters.items()},
        "findings": [asdict(finding) for finding in checked.findings],
        "weights": {name: _stamp(Path(name)) for name in checked.weights},
    }
    with suppress(OSError):
        write_whole(path, json.dumps(content).encode())


def _place(sweep: Sweep) -> Path | None:
    root = os.environ.get("POINTSWEEP_DATA", "")
    if root.startswith("s3://"):
        return None
    cells = [
        [sweep.cell_name(cell), asdict(cell.published) if cell.published else None, [trial.key() for trial in cell.trials]]
        for cell in sweep.cells
    ]
    code = [tree_digest(), importlib.metadata.version("torch")]
    depends = json.dumps([code, cells, root, list(_folders(Path(root))) if root else []])
    return cache_folder() / "plans" / f"{hashlib.sha256(depends.encode()).hexdigest()[:32]}.json"


def _folders(root: Path, depth: int = DEPTH) -> Iterator[tuple[str, int]]:
    """The folders below `root` with the times of their last change, sorted."""
    with suppress(OSError):
        yield str(root), root.stat().st_mtime_ns
        if depth:
            for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
                if entry.is_dir():
                    yield from _folders(Path(entry.path), depth - 1)


def _stamp(path: Path) -> list[int]:
    """Size and time of a file. Raises OSError if it is gone."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
