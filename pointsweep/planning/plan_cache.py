"""Cache of the plan's findings about a sweep's arms on this machine: planning the same sweep again
needs no torch.

Kept under a digest of all that it depends on: the package's files, torch, the cells with their
trials and published numbers. Of data and weights nothing is kept here: data/facts.py and inputs.py
do that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pointsweep.config.schema import TrialConfig
from pointsweep.errors import Finding
from pointsweep.results.plugin_origin import digests_of
from pointsweep.results.records import CHECKSUM, checksum, sealed
from pointsweep.storage.base import read_file, write_whole
from pointsweep.sweep.sweep import Sweep
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.provenance import tree_digest


@dataclass(frozen=True)
class Checked:
    """Result of the checks of trials without a record: the counts of those that can be built, and
    the audit's findings.
    """

    parameters: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...]


def read(sweep: Sweep, keys: Sequence[str]) -> Checked | None:
    """Return what was kept of the sweep; None if nothing was, or if it does not cover these
    trials.
    """
    # A damaged file, say after a full disk, is made again.
    with suppress(
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ):
        cached = json.loads(read_file(_path(sweep)))
        if checksum(cached) == cached[CHECKSUM] and set(keys) <= set(cached["keys"]):
            parameters = {}
            for key in keys:
                if key in cached["parameters"]:
                    parameters[key] = cached["parameters"][key]

            findings = [Finding(**finding) for finding in cached["findings"]]
            return Checked(parameters, tuple(findings))

    return None


def keep(sweep: Sweep, keys: Sequence[str], checked: Checked) -> None:
    """Keep it. A disk that refuses is no reason to stop."""
    parameters = {key: dict(counts) for key, counts in checked.parameters.items()}
    findings = [asdict(finding) for finding in checked.findings]
    content = {"keys": sorted(keys), "parameters": parameters, "findings": findings}

    with suppress(OSError):
        write_whole(_path(sweep), json.dumps(sealed(content)).encode())


def _path(sweep: Sweep) -> Path:
    code: list[Any] = [tree_digest(), importlib.metadata.version("torch")]
    first_trials: list[TrialConfig] = []
    for cell in sweep.cells:
        first_trials += cell.trials[:1]

    plugin_digests = digests_of(first_trials)
    if plugin_digests:
        code.append(plugin_digests)

    digest = hashlib.sha256(json.dumps(code).encode())
    for cell in sweep.cells:
        published = asdict(cell.published) if cell.published else None
        keys = [trial.key() for trial in cell.trials]
        digest.update(json.dumps([sweep.cell_name(cell), published, keys]).encode())

    return cache_folder() / "plans" / f"{digest.hexdigest()[:32]}.json"
