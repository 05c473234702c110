"""Settings that a sweep varies and that change nothing: of the data, the start and the votes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset
from pointsweep.planning.dry_run_arm import PER_FIELD, Arm, made_data, smaller
from pointsweep.planning.dry_run_data import dataset_of, small
from pointsweep.planning.dry_run_trial import Run
from pointsweep.results.failures import DivergedError

TRAIN_SETTINGS = (
    "init",
    "votes",
)  # of training, whose values are compared with each other
# `compat: official` sets it by itself, whether or not a cloud has points so near the origin
CHOSEN_BY_PROGRAMS = {"skip_near_origin"}


def settings_without_effect(arms: Sequence[Arm]) -> Iterator[str]:
    """Say which settings of the data that a sweep varies give the same clouds, and the like of
    `train.init` and `train.votes`.
    """
    yield from _equal_data(arms)
    for name in TRAIN_SETTINGS:
        for first, second in _pairs([arm.config.train for arm in arms], name):
            config = next(arm.config for arm in arms if arm.config.train == first)
            other = config.replace(train=second)
            if config.network is not None or _differs(name, config, other):
                continue

            yield f"train.{name}: {getattr(first, name)} or {getattr(second, name)} changes nothing"


def _differs(name: str, first: TrialConfig, second: TrialConfig) -> bool:
    values = [getattr(config.train, name) for config in (first, second)]
    config = smaller(first)
    if dataset_of(config.dataset) is None:
        config = config.model_copy(update={"dataset": made_data(config.dataset)})

    dataset = dataset_of(config.dataset)
    if dataset is None:
        return True

    first, second = (
        config.replace(train=config.train.replace(**{name: value})) for value in values
    )
    with tempfile.TemporaryDirectory() as folder:
        if name == "init":
            one, two = (
                Run(config, dataset, Path(folder) / str(n)).start.state_dict()
                for n, config in enumerate((first, second))
            )
            return any(not torch.equal(one[key], two[key]) for key in one)

        losses = []
        for number, config in enumerate((first, second)):
            run = Run(config, dataset, Path(folder) / str(number))
            run.trial.model.double()
            try:
                run.trial.run()
            except DivergedError:
                return True

            losses.append(run.trial.folder.epochs()[-1]["metrics"]["test/loss"])

        return losses[0] != losses[1]


def _equal_data(arms: Sequence[Arm]) -> Iterator[str]:
    configs = list(dict.fromkeys(arm.config.dataset for arm in arms))
    for kind in {type(config) for config in configs}:
        own = [config for config in configs if type(config) is kind]
        for setting in sorted(kind.model_fields.keys() - CHOSEN_BY_PROGRAMS):
            for first, second in _pairs(own, setting):
                a, b = dataset_of(first), dataset_of(second)
                if a is None or b is None or _seen(a) != _seen(b):
                    continue

                values = f"{getattr(first, setting)} or {getattr(second, setting)}"
                yield f"dataset.{setting}: {values} gives the same clouds"


def _pairs(configs: Sequence[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """A few pairs of configs that differ in one field alone."""
    if len({getattr(config, name) for config in configs}) < 2:
        return

    groups: dict[Any, list[Any]] = {}
    for config in dict.fromkeys(configs):
        rest = tuple(
            value
            for key, value in vars(config).items()
            if key != name and not key.startswith("_")
        )
        groups.setdefault(rest, []).append(config)

    for own in groups.values():
        if len(own) > 1:
            for other in own[1 : PER_FIELD + 1]:
                yield own[0], other
            return


def _seen(dataset: Dataset) -> tuple[Any, ...]:
    """Return what a trial sees of a data set: the splits' sizes and rows, a batch of each, and the
    order of an evaluation.
    """
    seen: list[Any] = []
    for split in (dataset.train, dataset.val, dataset.test):
        if split is None:
            seen.append(None)
            continue
        seen += [
            split.labels.tobytes(),
            split.index.tobytes(),
            dataset.evaluation_order(split).tobytes(),
        ]

    few = small(dataset)
    batches = [
        few.train_batch(np.arange(2), torch.Generator().manual_seed(0)),
        few.eval_batch(few.test, np.arange(2)),
    ]

    seen += [tensor.numpy().tobytes() for batch in batches for tensor in batch]

    return tuple(seen)
