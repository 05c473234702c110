"""Settings that a sweep varies and that change nothing: of the data, the start and the votes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.schema import TrialConfig
from pointsweep.data.dataset import Dataset
from pointsweep.planning.dry_run_arm import PER_FIELD, Arm, made_data, smaller
from pointsweep.planning.dry_run_data import dataset_of, first_rows, small
from pointsweep.planning.dry_run_trial import Run
from pointsweep.results.failures import DivergedError

# of training, whose values are compared with each other
TRAIN_SETTINGS = ("init", "votes")
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
    """Return whether small trials with the two values of a training setting differ."""
    config = smaller(first)
    if dataset_of(config.dataset) is None:
        config = config.model_copy(update={"dataset": made_data(config.dataset)})

    dataset = dataset_of(config.dataset)
    if dataset is None:
        return True

    configs = []
    for train in (first.train, second.train):
        value = getattr(train, name)
        configs.append(config.replace(train=config.train.replace(**{name: value})))

    with tempfile.TemporaryDirectory() as folder:
        if name == "init":
            starts = []
            for number, config in enumerate(configs):
                run = Run(config, dataset, Path(folder) / str(number))
                starts.append(run.start.state_dict())

            one, other = starts
            return any(not torch.equal(one[key], other[key]) for key in one)

        losses = []
        for number, config in enumerate(configs):
            run = Run(config, dataset, Path(folder) / str(number))
            run.trial.model.double()
            try:
                run.trial.run()
            except DivergedError:
                return True

            losses.append(run.trial.folder.epochs()[-1]["metrics"]["test/loss"])

        return losses[0] != losses[1]


def _equal_data(arms: Sequence[Arm]) -> Iterator[str]:
    by_class: dict[type[DatasetConfig], list[DatasetConfig]] = {}
    for config in dict.fromkeys(arm.config.dataset for arm in arms):
        by_class.setdefault(type(config), []).append(config)

    for config_class, configs in by_class.items():
        for setting in sorted(config_class.model_fields.keys() - CHOSEN_BY_PROGRAMS):
            for first, second in _pairs(configs, setting):
                one, other = dataset_of(first), dataset_of(second)
                if one is None or other is None or _content(one) != _content(other):
                    continue

                values = f"{getattr(first, setting)} or {getattr(second, setting)}"
                yield f"dataset.{setting}: {values} gives the same clouds"


def _pairs(configs: Sequence[Any], name: str) -> Iterator[tuple[Any, Any]]:
    """A few pairs of configs that differ in one field alone."""
    if len({getattr(config, name) for config in configs}) < 2:
        return

    groups: dict[Any, list[Any]] = {}
    for config in dict.fromkeys(configs):
        other_values = []
        for key, value in vars(config).items():
            if key != name and not key.startswith("_"):
                other_values.append(value)

        groups.setdefault(tuple(other_values), []).append(config)

    for first, *others in groups.values():
        if others:
            for other in others[:PER_FIELD]:
                yield first, other
            return


def _content(dataset: Dataset) -> tuple[Any, ...]:
    """Return what a trial sees of a data set: the splits' sizes and rows, a batch of each, and the
    order of an evaluation.
    """
    content: list[Any] = []
    for split in (dataset.train, dataset.val, dataset.test):
        if split is None:
            content.append(None)
            continue

        content.append(split.labels.tobytes())
        content.append(split.index.tobytes())
        content.append(dataset.evaluation_order(split).tobytes())

    few = small(dataset)
    generator = torch.Generator().manual_seed(0)
    train_batch = few.train_batch(first_rows(few.train), generator)
    test_batch = few.eval_batch(few.test, first_rows(few.test))

    for tensor in (*train_batch, *test_batch):
        content.append(tensor.numpy().tobytes())

    return tuple(content)
