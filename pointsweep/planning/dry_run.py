"""The dry run of an arm: a small trial through the real optimiser, training loop and evaluation,
before anything is launched.

`audit.py` examines models; this examines the training around a model. Every arm is trained for two
epochs of two steps on a few clouds, in double precision, by the code that a launch runs. The result
is compared with the definitions of a step, of the learning rate and of an evaluation, which
dry_run_reference.py writes out with torch's own parts. In double precision both agree to rounding,
so that every deviation shows (a frozen weight that moved, a setting that was not read, labels of
other clouds). A step in the middle and one at the end of the planned epochs show what changes later
(a head that is frozen after three epochs).

Letters: B clouds, P points.
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from pointsweep.config.base import canonical_json
from pointsweep.config.schema import TrialConfig, without_seed
from pointsweep.errors import Finding
from pointsweep.planning.dry_run_arm import Arm as Arm
from pointsweep.planning.dry_run_arm import chosen, made_data, smaller
from pointsweep.planning.dry_run_data import BATCH, STEPS, dataset_of, wrong_data
from pointsweep.planning.dry_run_reference import wrong_rates
from pointsweep.planning.dry_run_settings import TRAIN_SETTINGS, settings_without_effect
from pointsweep.planning.dry_run_trial import EPOCHS, Run, wrong_seeds, wrong_start
from pointsweep.results.failures import DivergedError


def dry_run(arms: Sequence[Arm]) -> list[Finding]:
    """Look at the training of a sweep's arms; every finding refuses the sweep. Needs the data that
    are here; made ones for others.
    """
    texts: dict[str, None] = {}
    trained: set[str] = set()
    threads = torch.get_num_threads()
    random = torch.get_rng_state()
    torch.set_num_threads(1)  # the products are small: more threads cost time

    try:
        for number, arm in enumerate(chosen(arms)):
            if not arm.config.trains:
                continue

            thorough = number == 0
            late = _late_epochs(arm.config, trained, thorough=thorough)
            for text in examine(arm.config, late, thorough=thorough):
                texts[f"{arm.name}: {text}"] = None

        texts |= dict.fromkeys(settings_without_effect(_by_settings(arms)))
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)

    return [Finding(True, text) for text in texts]


def _by_settings(arms: Sequence[Arm]) -> list[Arm]:
    """Return the first arm of every setting of data and training, without its seed.

    Settings of training count where the sweep varies one that is compared: a sweep may have a
    hundred thousand learning rates.
    """
    settings = operator.attrgetter(*TRAIN_SETTINGS)
    varies = len({settings(arm.config.train) for arm in arms}) > 1
    arms_by_key: dict[tuple[str, str], Arm] = {}

    for arm in arms:
        train = canonical_json(arm.config.train) if varies else ""
        key = canonical_json(arm.config.dataset), train
        if key not in arms_by_key:
            arms_by_key[key] = Arm(without_seed(arm.config), arm.name)

    return list(arms_by_key.values())


def _late_epochs(config: TrialConfig, trained: set[str], thorough: bool) -> list[int]:
    """Return the late epochs that are looked at: the last one of the first arm of every method or
    network, which `trained` remembers.

    Of the first arm of all the middle too.
    """
    component = config.method if config.network is None else config.network
    name = "" if component is None else component.name

    if name in trained:
        return []

    trained.add(name)
    planned = config.train.epochs
    numbers = {planned, (planned + 1) // 2} if thorough else {planned}

    return sorted(number for number in numbers if number > EPOCHS)


def examine(
    config: TrialConfig, late: Sequence[int] = (), thorough: bool = False
) -> list[str]:
    """Return everything that is wrong with the training of one arm; `late`: epochs of it to look at
    besides the first.

    `thorough`: with what is the same for all arms of a launch.
    """
    problems = wrong_rates(config.train)
    try:
        dataset = dataset_of(config.dataset)
        if dataset is not None:
            problems += wrong_data(dataset, config)

        problems += _wrong_training(
            smaller(config), thorough=thorough, late=late, planned=config.train.epochs
        )
    except DivergedError:
        pass  # the launch says so of each seed, and the table of the cell
    except Exception as error:
        # a method or a data set of somebody else's may raise anything: the sweep is refused with
        # its words
        problems.append(
            f"a small trial of it does not run: {type(error).__name__}: {error}"
        )

    return list(dict.fromkeys(problems))


def _wrong_training(
    config: TrialConfig, thorough: bool, late: Sequence[int], planned: int
) -> list[str]:
    if dataset_of(config.dataset) is None:
        config = config.model_copy(update={"dataset": made_data(config.dataset)})

    dataset = dataset_of(config.dataset)
    if dataset is None or len(dataset.train.labels) < STEPS * BATCH:
        return []

    other = config.replace(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.of(config, dataset, Path(folder) / "first")
        again = Run(config, dataset, Path(folder) / "again")
        other_start = Run(other, dataset, Path(folder) / "other")
        problems = list(wrong_start(run, again, other_start))

        # The step last: its definition trains the start itself.
        problems += [
            *run.wrong_order(),
            *run.wrong_evaluation(),
            *run.wrong_choice(),
            *run.wrong_statistics(),
            *run.wrong_step(),
        ]

        if thorough:
            same = Run.of(config, dataset, Path(folder) / "same", last_epoch=1)
            next_seed = Run.of(other, dataset, Path(folder) / "next", last_epoch=1)
            problems += wrong_seeds(run, same, next_seed)

        # at a rate that the first epochs have not reached
        with suppress(DivergedError):
            problems += list(run.wrong_late_epochs(late, planned))

    return problems
