"""The data and weights that trials need, as they are on this machine: read as a trial reads them,
and remembered.

A second look at unchanged files needs neither torch nor the files' content. Importing this is free
of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pointsweep.config import plugins, registry
from pointsweep.config.backbones import BackboneConfig
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.facts import MADE, DataFacts, UnreadableDataError, facts_of
from pointsweep.errors import (
    MissingDataError,
    MissingWeightsError,
    WeightsNotFetchedError,
)
from pointsweep.storage.base import write_whole
from pointsweep.storage.stores import is_address
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.provenance import tree_digest


@dataclass(frozen=True)
class WeightFacts:
    """A checkpoint file that fits its backbone."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """Data and weights that were found. `missing`: what is not here or cannot be used; `to_fetch`:
    weights that a launch gets first.
    """

    data: Mapping[DatasetConfig, DataFacts]
    weights: Mapping[BackboneConfig, WeightFacts]
    missing: tuple[str, ...] = ()
    to_fetch: tuple[str, ...] = ()


def needed(configs: Iterable[TrialConfig], fetch: bool) -> Inputs:
    """Read what trials need, as they will read it, and list everything that is wrong with it.

    `fetch`: weights are got from their hubs first.
    """
    datasets, backbones = parts_of(configs)
    return read_all(datasets, backbones, fetch)


def read_all(
    datasets: Iterable[DatasetConfig], backbones: Iterable[BackboneConfig], fetch: bool
) -> Inputs:
    """Read data sets and weights; see `needed`."""
    data: dict[DatasetConfig, DataFacts] = {}
    weights: dict[BackboneConfig, WeightFacts] = {}
    missing: dict[str, None] = {}
    to_fetch: dict[str, None] = {}

    for dataset in datasets:
        try:
            facts = _facts_for_plan(dataset)
            if facts is not None:
                data[dataset] = facts
        except (MissingDataError, UnreadableDataError) as error:
            missing[str(error)] = None

    for backbone in backbones:
        try:
            weights[backbone] = weight_facts(backbone, fetch)
        except WeightsNotFetchedError as error:
            to_fetch[str(error)] = None
        except MissingWeightsError as error:
            missing[str(error)] = None
        except ValueError as error:
            missing[f"weights of {backbone.name}: {error}"] = None

    return Inputs(
        data,
        weights,
        missing=tuple(sorted(missing)),
        to_fetch=tuple(sorted(to_fetch)),
    )


def parts_of(
    configs: Iterable[TrialConfig],
) -> tuple[list[DatasetConfig], list[BackboneConfig]]:
    """Return the distinct data sets, and the distinct backbones that files are read for, in
    order.
    """
    datasets: dict[DatasetConfig, None] = {}
    backbones: dict[BackboneConfig, None] = {}

    for config in configs:
        datasets[config.dataset] = None
        if config.backbone is not None and config.backbone.reads_files:
            backbones[config.backbone] = None

    return list(datasets), list(backbones)


def _facts_for_plan(dataset: DatasetConfig) -> DataFacts | None:
    """None for data on S3, which each node stages and reads by itself."""
    if on_server() and dataset.name not in MADE:
        registry.load("datasets", dataset.name).available(dataset)  # type: ignore[attr-defined]
        return None

    return facts_of(dataset)


def on_server() -> bool:
    """Return whether the data root is on a server."""
    return is_address(os.environ.get("POINTSWEEP_DATA"))


# Weights


def weight_facts(backbone: BackboneConfig, fetch: bool) -> WeightFacts:
    """Return the checkpoint of a backbone, remembered or read and compared with the backbone's
    names and shapes.

    Raises MissingWeightsError, and ValueError for a checkpoint that cannot be used.
    """
    section = weight_section(backbone)
    remembered = known_weights(section)

    if remembered is not None:
        return remembered

    from pointsweep.utils.digests import file_sha256

    loader: Any = registry.load("backbones", backbone.name)
    path = loader.locate(backbone, fetch)
    stamp = _stamp(path)
    loader.check(backbone)
    facts = WeightFacts(str(path), file_sha256(path))
    content = json.dumps({"facts": asdict(facts), "stamp": stamp})

    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        write_whole(_path(section), content.encode())

    return facts


def known_weights(section: Mapping[str, Any]) -> WeightFacts | None:
    """Return what is remembered of a backbone's section of a configuration; None if its file has
    changed since.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(_path(section).read_text())
        facts = WeightFacts(**remembered["facts"])
        if _stamp(Path(facts.path)) == remembered["stamp"]:
            return facts

    return None


def weight_section(backbone: BackboneConfig) -> dict[str, Any]:
    """Return the backbone's plain configuration."""
    return backbone.to_dict()


def _path(section: Mapping[str, Any]) -> Path:
    variables = ("POINTSWEEP_DATA", "HF_HOME", "HF_HUB_CACHE")
    roots = [os.environ.get(name, "") for name in variables]

    # a relative path is one below the working folder
    is_absolute = Path(str(section["weights"])).is_absolute()
    base = "" if is_absolute else str(Path.cwd())

    # The draws of `shuffled` have the published checkpoint in common.
    settings = dict(section)

    if settings["weights"] == "shuffled":
        settings |= {"weights": "pretrained", "weights_seed": 0}

    plugin_digests = plugins.digests([("backbones", str(section["name"]))])
    code = [tree_digest(), *plugin_digests.values()]
    text = json.dumps([*code, roots, base, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]

    return cache_folder() / "weights" / f"{digest}.json"


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
