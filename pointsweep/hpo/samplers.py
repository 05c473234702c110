"""Samplers and distributions of Optuna for the names and ranges of a search."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pointsweep.errors import ResourcesError
from pointsweep.sweep.search_space import Parameter, Search


def suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Any:
    """A value for a parameter, by the call that a define-by-run program would make."""
    key, is_log = parameter.key, parameter.log
    if parameter.kind == "choice":
        return trial.suggest_categorical(key, parameter.labels)

    low = parameter.low
    _, high = parameter.ends()
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return trial.suggest_int(key, int(low), int(high), log=is_log, step=step)

    value = trial.suggest_float(key, low, high, log=is_log, step=parameter.step)
    return parameter.nearest(value)


def distribution(parameter: Parameter) -> BaseDistribution:
    """The same as Optuna keeps it."""
    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.labels)

    low, is_log = parameter.low, parameter.log
    _, high = parameter.ends()
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return IntDistribution(int(low), int(high), log=is_log, step=step)

    return FloatDistribution(low, high, log=is_log, step=parameter.step)


def sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a search names. A grid's points are start points, so nothing is left to its
    sampler.

    Raises ResourcesError for options that do not go together.
    """
    classes: dict[str, Any] = {
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "nsga3": optuna.samplers.NSGAIIISampler,
        "qmc": optuna.samplers.QMCSampler,
        "random": optuna.samplers.RandomSampler,
        "grid": optuna.samplers.RandomSampler,
    }

    sampler_class = classes[search.sampler]

    try:
        created: optuna.samplers.BaseSampler = sampler_class(
            seed=seed, **search.options
        )
    except ValueError as error:
        raise ResourcesError(f"sampler {search.sampler}: {error}") from None

    return created
