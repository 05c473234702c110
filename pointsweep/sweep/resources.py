"""The `resources:` of a sweep file: what one pack takes of the machines, and what the whole sweep may."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pointsweep.config import scalars
from pointsweep.config.schema import TrialConfig
from pointsweep.errors import unknown

Complain = Callable[[tuple[Any, ...], str], None]


@dataclass(frozen=True)
class Budget:
    """What a sweep may use, in hours of devices or in money.

    A trial uses its time, multiplied by its part of a pack's `gpus`, or of its `cpus` where there is no GPU. `per_hour` is the price
    of one such hour; alone it limits nothing.
    """

    hours: float | None = None
    money: float | None = None
    per_hour: float | None = None

    def limit_hours(self) -> float:
        """The hours after which no further pack starts."""
        bought = self.money / self.per_hour if self.money is not None and self.per_hour else math.inf
        return min(bought, math.inf if self.hours is None else self.hours)


@dataclass(frozen=True)
class Resources:
    """What one pack takes of the cluster, and the sweep's budget."""

    cpus: float = 1
    gpus: float | Literal["auto"] = 0  # auto: the part of a GPU that the largest pack's measured memory needs (calibrate.py)
    # Trials over one frozen backbone that train in one process; what cpus and gpus are then is the pack's. `auto`: as calibrate.py
    # measures. Not the default: on a GPU a joined product's last digits depend on how many share it.
    pack: int | Literal["auto"] = 1
    # Of one trial, each with its share of cpus and gpus and of every batch (group.py); for what freezes nothing.
    processes: int = 1
    recompute: bool = False  # the tokenizer's stages in the backward pass: less memory, more time, the same numbers
    budget: Budget = Budget()

    def unit(self) -> str:
        """What a budget's hours are hours of."""
        return "GPU-hours" if self.gpus else "CPU-hours"


def read_resources(data: Any, complain: Complain) -> Resources:
    """The section of a file; worth something only if `complain` was not called. Raises nothing."""
    known = tuple(field.name for field in fields(Resources))
    for key in data if isinstance(data, Mapping) else ["resources"]:
        problem = unknown("resource", key, known, "Allowed") if key not in known else _problem(key, data[key])
        if problem:
            complain(("resources", key), problem)
    values = {key: data[key] for key in known if isinstance(data, Mapping) and key in data and not _problem(key, data[key])}
    return Resources(**(values | {"budget": _budget(values.get("budget", {}), complain)}))


def _problem(key: str, value: Any) -> str:
    if key == "budget" or (key in ("pack", "gpus") and value == "auto"):
        return ""
    if key == "recompute":
        return "" if isinstance(value, bool) else f"must be true or false, got {value!r}"
    if not _number(value):
        return f"must be {'auto or ' if key == 'gpus' else ''}a number from 0 on, got {scalars.shown(value)}"
    if key in ("pack", "processes") and (not isinstance(value, int) or value < 1):
        return f"must be {'auto or ' if key == 'pack' else ''}a whole number from 1 on, got {scalars.shown(value)}"
    return ""


def misfits(made: Resources, configs: Iterable[TrialConfig], search: bool) -> Iterator[tuple[str, str]]:
    """What does not go together: keys of the section, they and the arms' trials, they and a search. By key."""
    if search and math.isfinite(made.budget.limit_hours()):
        yield "budget", "a search has trials: and hours: of its own; here it may have per_hour alone"
    if search and made.processes > 1:
        yield "processes", f"a search has trials of one process, got {made.processes}"
    if made.processes > 1 and made.pack != 1:
        yield "processes", f"a trial of {made.processes} processes is a pack of its own: leave pack at 1, got {made.pack!r}"
    if made.processes > 1 and made.gpus == "auto":
        yield "processes", f"each process takes a whole GPU or none: set gpus to {made.processes} or 0, got auto"
    elif made.gpus != "auto" and (made.gpus > 1 or made.processes > 1) and made.gpus not in (0, made.processes):
        yield "gpus", f"a process uses one GPU: set processes to as many, got gpus {made.gpus:g} and processes {made.processes}"
    if made.processes > 1:
        for text in dict.fromkeys(text for config in configs for text in _unshared(config, made.processes)):
            yield "processes", text


def _unshared(config: TrialConfig, processes: int) -> Iterator[str]:
    """Why a trial cannot be computed by so many processes."""
    part = config.network or config.method
    assert part is not None
    if not (config.network.trainable if config.network else part.name == "full"):
        yield f"{processes} are for what trains whole, a network or the method full; {part.name} does not: train it in packs"
    if config.train.compile:
        yield "train.compile: true is for a trial of one process"
    if config.compat == "official":
        yield "compat: official lets the clouds of a batch see each other, and processes do not have each other's"
    if config.train.batch_size < 2 * processes:
        yield f"{processes} leave less than two clouds of a batch of {config.train.batch_size} to each"


def _number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < math.inf


def _budget(data: Any, complain: Complain) -> Budget:
    path, known = ("resources", "budget"), tuple(field.name for field in fields(Budget))
    if not isinstance(data, Mapping):
        complain(path, f"must be a mapping such as {{hours: 40}} or {{money: 100, per_hour: 2.5}}, got {data!r}")
        return Budget()
    wrong = {key: unknown("key", key, known, "Allowed") for key in data if key not in known}
    wrong |= {
        key: f"must be a number above 0, got {scalars.shown(value)}"
        for key, value in data.items()
        if key in known and not (_number(value) and value > 0)
    }
    for key, text in wrong.items():
        complain((*path, key), text)
    if "money" in data and "per_hour" not in data:
        complain((*path, "money"), "needs per_hour, the price of an hour of one device")
    return Budget() if wrong else Budget(**data)
