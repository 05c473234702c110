"""Launchers: what runs packs of trials, each by its name. A launch knows none of them by its class.

A further launcher (a batch system, a pool of processes) is a file with a class that holds
`Launcher`, and a line in `LAUNCHERS`; tests/contracts/test_launchers.py runs the same trials
through every one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pointsweep.training.runner import Job, Task
from pointsweep.training.supervisor import Outcome


@dataclass(frozen=True)
class Event:
    """Event of a launch: a trial has `started`, ended an `epoch`, or has ended itself
    (`finished`, `failed`, `stopped`).

    A `phase` is of no trial: its reason says what the launch is busy with. Nor is a `notice`: its
    reason is a line to show.
    """

    kind: str
    key: str
    epoch: int = 0
    epochs: int = 0
    metrics: Mapping[str, float] | None = None
    reason: str = ""


Listener = Callable[[Event], None]

Pack = Sequence[Task]


@dataclass(frozen=True)
class Resources:
    """Resources that one pack takes of the cluster; fractions of a GPU let packs share it."""

    cpus: float = 1
    gpus: float = 0
    processes: int = 1  # of one trial, that share these
    max_concurrent: int = 0  # packs at once; 0 = as many as fit


def always() -> bool:
    """Return True: the answer of a launch without a budget to whether another pack may start."""
    return True


class Launcher(Protocol):
    """Contract of what runs packs and says on the way what happens."""

    divides: bool
    """Whether one trial may have several processes, and packs share a GPU by what they are measured
    to need.
    """

    def run(
        self,
        packs: Sequence[Pack],
        job: Job,
        resources: Resources,
        listen: Listener,
        may_start: Callable[[], bool] = always,
    ) -> list[Outcome]:
        """Run the packs, each once `may_start` is true; return how each trial ended, in any order.

        `listen` hears of each trial that it started, of its epochs (of quick ones the last), and
        that it ended; but not of one that another process holds, whose outcome is `held`. A pack
        that `may_start` forbids ends as `not_started`. Raises InterruptionError after the trials
        under way have saved their checkpoints, and a class of pointsweep.errors where the machines
        fail.
        """

    def measure(
        self, function: Callable[[Any], Any], argument: Any, resources: Resources
    ) -> Any:
        """Return function(argument), called where a pack with these resources would run."""


LAUNCHERS = {
    "inline": "pointsweep.execution.inline:InlineLauncher",
    "ray": "pointsweep.execution.ray_tune:RayLauncher",
}


def load(name: str) -> Launcher:
    """Return the launcher of a name; it is imported now."""
    module, _, kind = LAUNCHERS[name].partition(":")
    launcher: Launcher = getattr(importlib.import_module(module), kind)()
    return launcher


def not_started(key: str) -> Outcome:
    """Return how a trial ends that the budget does not reach."""
    return Outcome(key, "waiting", "the budget is used up")


def phase(activity: str) -> Event:
    """Return what a launch is busy with while no trial trains."""
    return Event("phase", "", reason=activity)


def notice(text: str) -> Event:
    """Return a line that the launch has to say beside what happens to its trials."""
    return Event("notice", "", reason=text)


def epoch_event(result: Mapping[str, Any]) -> Event:
    """Return the event of what a trial reports at the end of an epoch."""
    metrics = {}
    for name, value in result.items():
        if "/" in name and isinstance(value, (int, float)):
            metrics[name] = value

    return Event("epoch", result["key"], result["epoch"], result["epochs"], metrics)


def end_event(outcome: Outcome) -> Event:
    """Return the event of a trial's end."""
    return Event(outcome.status, outcome.key, reason=outcome.reason)
