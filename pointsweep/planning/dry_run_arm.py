"""The arms that a dry run looks at, and how small each is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.planning.dry_run_data import BATCH, EVAL_BATCH
from pointsweep.planning.dry_run_trial import EPOCHS
from pointsweep.planning.probe import POINTS, SMALL

CLIP_NORM = 0.05  # so small that clipping acts in every step
LARGEST_LR = 0.1  # a trial of a larger rate may diverge, which is its own result and no fault of the code
BLOCKS = 1  # of a backbone: the audit's probe looks at all of them
PER_FIELD = 3  # values of a training setting that get a dry run of their own


@dataclass(frozen=True)
class Arm:
    """A trial's configuration and the cell that it stands for."""

    config: TrialConfig
    name: str


def chosen(arms: Sequence[Arm]) -> list[Arm]:
    """One arm of every structure, and of every training setting that varies a few values in the first structure that has them."""
    found: dict[tuple[Any, ...], Arm] = {}
    seen: dict[tuple[str, Any], int] = {}
    for arm in arms:
        fresh = []
        for name, value in vars(arm.config.train).items():
            key = (name, value)
            if key not in seen and sum(other == name for other, _ in seen) < PER_FIELD:
                fresh.append(key)
        structure = _structure(arm.config)
        if structure in found and not fresh:
            continue
        for key in fresh:
            seen[key] = 1
        found.setdefault(structure, arm)
        found[(structure, *fresh)] = arm
    unique: dict[str, Arm] = {}
    for arm in found.values():
        unique.setdefault(arm.config.key(), arm)
    return list(unique.values())


def _structure(config: TrialConfig) -> tuple[Any, ...]:
    parts = config.tokenizer, config.backbone, config.positions, config.method, config.head, config.network
    return (*parts, config.compat, config.dataset.name)


def smaller(config: TrialConfig) -> TrialConfig:
    """Few tokens and blocks, small clouds, two epochs of two steps; all other settings as they are."""
    dataset = config.dataset.model_copy(update={"num_points": POINTS, "presample": POINTS, "train_limit": None, "test_limit": None})
    train = config.train.replace(
        epochs=EPOCHS, batch_size=BATCH, eval_batch_size=EVAL_BATCH, votes=1, clip_norm=CLIP_NORM,
        precision="fp32", compile=False, lr=min(config.train.lr, LARGEST_LR), min_lr=min(config.train.min_lr, LARGEST_LR),
    )  # fmt: skip
    parts: dict[str, Any] = {"dataset": dataset, "train": train}
    for name in ("tokenizer", "network", "backbone", "method"):
        part = getattr(config, name)
        if part is not None:
            parts[name] = part.model_copy(update=_known(part, SMALL))
    backbone = parts.get("backbone")
    if backbone is not None and "scales" not in vars(backbone) and config.dataset.num_categories == 0:
        parts["backbone"] = _shallow(config, backbone)
    return config.model_copy(update=parts)


def _shallow(config: TrialConfig, backbone: Any) -> Any:
    """The backbone with a few blocks, where one of so many can be built and has a single scale."""
    if config.method is not None and any(name in vars(config.method) for name in ("depth", "prompt_depth")):
        return backbone
    with torch.device("meta"):
        made = registry.load("backbones", backbone.name)(backbone)
    if len(made.blocks) <= BLOCKS or len(made.scale_starts) > 1:
        return backbone
    return backbone.replace(num_blocks=BLOCKS)


def _known(part: Any, values: dict[str, Any]) -> dict[str, Any]:
    known = type(part).model_fields
    return {name: value for name, value in values.items() if name in known}


def made_data(config: DatasetConfig) -> DatasetConfig:
    """Made clouds in place of those that are not here, changed at random as those would be."""
    name = "synthetic_parts" if config.num_categories else "synthetic"
    kind: Any = registry.config_class("datasets", name)
    shared = set(DatasetConfig.model_fields) & set(kind.model_fields)
    values = {name: getattr(config, name) for name in shared - {"name", "folder"}}
    return kind(name=name, **values)  # type: ignore[no-any-return]
