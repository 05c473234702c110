"""The arms that a dry run examines, and how small each is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pointsweep.config import registry
from pointsweep.config.base import Config, canonical_json
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig, without_seed
from pointsweep.planning.arm_groups import Key, training_key
from pointsweep.planning.dry_run_data import BATCH, EVAL_BATCH
from pointsweep.planning.dry_run_trial import EPOCHS
from pointsweep.planning.probe import POINTS, SMALL

CLIP_NORM = 0.05  # so small that clipping acts in every step
# a trial of a larger rate may diverge, which is its own result and no fault of the code
LARGEST_LR = 0.1
BLOCKS = 1  # of a backbone: the audit's probe looks at all of them
# than the audit's probe, which looks at models in more detail
SMALLER = {"num_tokens": 4, "neighbours": 3}
VIEWS = 2  # of a projection
MADE = {
    "train_per_class": 4,
    "test_per_class": 2,
    "train_per_category": 4,
    "test_per_category": 2,
    "source_points": 2 * POINTS,
}
DEPTHS = ("depth", "prompt_depth")  # fields of methods that count blocks
PER_FIELD = 3  # values of a training setting that get a dry run of their own


@dataclass(frozen=True)
class Arm:
    """A trial's configuration and the cell that it stands for."""

    config: TrialConfig
    name: str


def chosen(arms: Sequence[Arm]) -> list[Arm]:
    """Return one arm of every structure, and of every training setting that varies a few values in
    the first arm that has them.
    """
    structures: set[Key] = set()
    trains: set[str] = set()
    values: defaultdict[str, set[Any]] = defaultdict(set)
    arms_by_key: dict[str, Arm] = {}

    for arm in arms:
        structure = training_key(arm.config)
        settings = canonical_json(arm.config.train)
        new = structure not in structures

        if settings not in trains:
            trains.add(settings)
            for name, value in arm.config.train:
                if value not in values[name] and len(values[name]) < PER_FIELD:
                    values[name].add(value)
                    new = True

        structures.add(structure)
        if new:
            config = without_seed(arm.config)
            arms_by_key.setdefault(config.key(), Arm(config, arm.name))

    return list(arms_by_key.values())


def smaller(config: TrialConfig) -> TrialConfig:
    """Few tokens and blocks, small clouds, two epochs of two steps; all other settings as they
    are.
    """
    dataset = config.dataset.model_copy(
        update={
            "num_points": POINTS,
            "presample": POINTS,
            "train_limit": None,
            "test_limit": None,
        }
    )

    train = config.train.replace(
        epochs=EPOCHS, batch_size=BATCH, eval_batch_size=EVAL_BATCH, votes=1, clip_norm=CLIP_NORM,
        precision="fp32", compile=False, lr=min(config.train.lr, LARGEST_LR),
        min_lr=min(config.train.min_lr, LARGEST_LR),
    )  # fmt: skip

    parts: dict[str, Any] = {"dataset": dataset, "train": train}

    for name in ("tokenizer", "network", "backbone", "method"):
        part = getattr(config, name)
        if part is not None:
            parts[name] = part.model_copy(update=_known(type(part), SMALL | SMALLER))

    if config.positions is not None:
        views = min(config.positions.num_views, VIEWS)
        parts["positions"] = config.positions.model_copy(update={"num_views": views})

    backbone = parts.get("backbone")
    has_categories = config.dataset.num_categories != 0
    if backbone is not None and not has_categories and "scales" not in vars(backbone):
        parts |= _shallow(backbone, parts["method"])

    return config.model_copy(update=parts)


def _shallow(backbone: Any, method: Any) -> dict[str, Any]:
    """Return backbone and method with few blocks, where so few can be built and there is a single
    scale.

    A method that works to a certain depth keeps blocks on both sides of it.
    """
    with torch.device("meta"):
        shallow = registry.load("backbones", backbone.name)(backbone)

    total = len(shallow.blocks)
    depths = {name: value for name, value in method if name in DEPTHS}
    blocks = BLOCKS + bool(depths)

    if total <= blocks or len(shallow.scale_starts) > 1:
        return {}

    lowered: dict[str, int] = {}
    for name, value in depths.items():
        if isinstance(value, int):
            lowered[name] = blocks if value >= total else min(value, blocks - 1)

    return {
        "backbone": backbone.replace(num_blocks=blocks),
        "method": method.model_copy(update=lowered),
    }


def _known(kind: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    known = kind.model_fields
    return {name: value for name, value in values.items() if name in known}


def made_data(config: DatasetConfig) -> DatasetConfig:
    """Made clouds in place of those that are not here, changed at random as those would be."""
    name = config.stand_in
    kind: Any = registry.config_class("datasets", name)
    shared = set(DatasetConfig.model_fields) & set(kind.model_fields)
    values = {name: getattr(config, name) for name in shared - {"name", "folder"}}
    values |= _known(kind, MADE)

    return kind(name=name, **values)  # type: ignore[no-any-return]
