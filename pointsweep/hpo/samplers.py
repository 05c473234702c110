"""Samplers and distributions of Optuna for the names and ranges of a search."""

from __future__ import annotations

from typing import Any

import optuna

from pointsweep.errors import ResourcesError
from pointsweep.sweep.search_space import Parameter, Search


def suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Any:
    """A value for a parameter, by the call that a define-by-run program would make."""
    if parameter.kind == "choice":
        return trial.suggest_categorical(parameter.key, parameter.labels)

    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return trial.suggest_int(
            parameter.key,
            int(parameter.low),
            int(parameter.ends()[1]),
            log=parameter.log,
            step=step,
        )

    value = trial.suggest_float(
        parameter.key,
        parameter.low,
        parameter.ends()[1],
        log=parameter.log,
        step=parameter.step,
    )
    return parameter.nearest(value)


def distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """The same as Optuna keeps it."""
    if parameter.kind == "choice":
        return optuna.distributions.CategoricalDistribution(parameter.labels)

    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return optuna.distributions.IntDistribution(
            int(parameter.low), int(parameter.ends()[1]), log=parameter.log, step=step
        )

    return optuna.distributions.FloatDistribution(
        parameter.low, parameter.ends()[1], log=parameter.log, step=parameter.step
    )


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
    try:
        created: optuna.samplers.BaseSampler = classes[search.sampler](
            seed=seed, **search.options
        )
    except ValueError as error:
        raise ResourcesError(f"sampler {search.sampler}: {error}") from None

    return created
