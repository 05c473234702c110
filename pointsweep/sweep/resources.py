"""The `resources:` of a sweep file: what one pack takes of the machines, and what the whole sweep
may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pointsweep.config.base import Config, Count
from pointsweep.config.schema import TrialConfig
from pointsweep.config.validation import problems_of

Complain = Callable[[tuple[Any, ...], str], None]
# Whole numbers stay whole, as they are printed.
Amount = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)]
AboveZero = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0)]


class Budget(Config):
    """Budget of a sweep: what it may use, in hours of devices or in money.

    A trial uses its time, multiplied by its part of a pack's `gpus`, or of its `cpus` where there
    is no GPU. `per_hour` is the price of one such hour; alone it limits nothing.
    """

    hours: AboveZero | None = None
    """Of devices."""
    money: AboveZero | None = None
    """Needs per_hour."""
    per_hour: AboveZero | None = None
    """The price of an hour of one device."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.money is not None and self.per_hour is None:
            yield "money", "needs per_hour, the price of an hour of one device"

    def limit_hours(self) -> float:
        """The hours after which no further pack starts."""
        bought = allowed = math.inf
        if self.money is not None and self.per_hour:
            bought = self.money / self.per_hour

        if self.hours is not None:
            allowed = self.hours

        return min(bought, allowed)


class Resources(Config):
    """Resources that one pack takes of the cluster, and the sweep's budget."""

    cpus: Amount = 1
    """Of one pack."""
    gpus: Amount | Literal["auto"] = 0
    """Of one pack; auto: the part of a GPU that the largest pack's measured memory needs."""
    # Not auto by default: on a GPU a joined product's last digits depend on how many share it.
    pack: Count | Literal["auto"] = 1
    """Trials over one frozen backbone that train in one process; auto: as many as is fastest."""
    processes: Count = 1
    """Of one trial, each with its share of cpus and gpus and of every batch; for what freezes
    nothing.
    """
    recompute: bool = False
    """The tokenizer's stages in the backward pass: less memory, more time, the same numbers."""
    budget: Budget = Budget()
    """What the whole sweep may use."""

    def unit(self) -> str:
        """Return what a budget's hours are hours of."""
        return "GPU-hours" if self.gpus else "CPU-hours"


def read_resources(data: Any, complain: Complain) -> Resources:
    """Return the section of a file; worth something only if `complain` was not called. Raises
    nothing.
    """
    try:
        return Resources.model_validate(data)
    except ValidationError as error:
        for path, message in problems_of(error, Resources, "resources"):
            complain(tuple(path.split(".")), message)
        return Resources()


def misfits(
    resources: Resources, configs: Iterable[TrialConfig], search: bool
) -> Iterator[tuple[str, str]]:
    """Yield what does not go together: keys of the section, they and the arms' trials, they and a
    search. By key.
    """
    if search and math.isfinite(resources.budget.limit_hours()):
        yield (
            "budget",
            "a search has trials: and hours: of its own; here it may have per_hour alone",
        )

    if search and resources.processes > 1:
        yield (
            "processes",
            f"a search has trials of one process, got {resources.processes}",
        )

    if resources.processes > 1 and resources.pack != 1:
        yield (
            "processes",
            (
                f"a trial of {resources.processes} processes is a pack of its own: leave pack at 1,"
                f" got {resources.pack!r}"
            ),
        )

    if resources.processes > 1 and resources.gpus == "auto":
        yield (
            "processes",
            f"each process takes a whole GPU or none: set gpus to {resources.processes} or 0, got"
            " auto",
        )
    elif (
        resources.gpus != "auto"
        and (resources.gpus > 1 or resources.processes > 1)
        and resources.gpus not in (0, resources.processes)
    ):
        yield (
            "gpus",
            (
                f"a process uses one GPU: set processes to as many, got gpus {resources.gpus:g} and"
                f" processes {resources.processes}"
            ),
        )

    if resources.processes > 1:
        texts: dict[str, None] = {}  # each once, in the order of the trials
        for config in configs:
            texts |= dict.fromkeys(_unshared(config, resources.processes))

        for text in texts:
            yield "processes", text


def _unshared(config: TrialConfig, processes: int) -> Iterator[str]:
    """Yield why a trial cannot be computed by so many processes."""
    if config.network is not None:
        name = config.network.name
        trains_whole = config.network.trainable
    else:
        assert config.method is not None
        name = config.method.name
        trains_whole = name == "full"

    if not trains_whole:
        yield (
            f"{processes} are for what trains whole, a network or the method full; {name} does"
            " not: train it in packs"
        )

    if config.train.compile:
        yield "train.compile: true is for a trial of one process"

    if config.compat == "official":
        yield (
            "compat: official lets the clouds of a batch see each other, and processes do not have"
            " each other's"
        )

    if config.train.batch_size < 2 * processes:
        yield (
            f"{processes} leave less than two clouds of a batch of {config.train.batch_size} to"
            " each"
        )
