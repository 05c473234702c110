"""What every launch is: packs in, outcomes out, events on the way. And the plainest one, in this process; launch.py has Ray's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pointsweep.training.runner import Job, Task, run_pack
from pointsweep.training.supervisor import Outcome


@dataclass(frozen=True)
class Event:
    """What happens in a launch: a trial has `started`, ended an `epoch`, or has ended itself (`finished`, `failed`, `stopped`).

    A `phase` is of no trial: its reason says what the launch is busy with.
    """

    kind: str
    key: str
    epoch: int = 0
    epochs: int = 0
    metrics: Mapping[str, float] | None = None
    reason: str = ""


Listener = Callable[[Event], None]

Pack = Sequence[Task]

Launcher = Callable[[Sequence[Pack], Job], list[Outcome]]

WAIT_S = 60.0  # for trials that others hold, after everything else is done


@dataclass(frozen=True)
class Resources:
    """What one pack takes of the cluster; fractions of a GPU let packs share it."""

    cpus: float = 1
    gpus: float = 0
    processes: int = 1  # of one trial, that share these
    max_concurrent: int = 0  # packs at once; 0 = as many as fit


def run_all(packs: Sequence[Pack], job: Job, launcher: Launcher, say: Callable[[str], None]) -> list[Outcome]:
    """Runs the packs; those that another process works on come last, when it may be done or gone."""
    outcomes = {outcome.key: outcome for outcome in launcher(packs, job)}
    held = [pack for pack in packs if any(outcomes[task.config.key()].status == "held" for task in pack)]
    if held:
        for pack in held:
            say(f"waiting for {outcomes[pack[0].config.key()].reason}")
        outcomes |= {outcome.key: outcome for outcome in launcher(held, replace(job, wait_s=WAIT_S))}
    return list(outcomes.values())


def always() -> bool:
    """Of a launch without a budget."""
    return True


def not_started(key: str) -> Outcome:
    """How a trial ends that the budget does not reach."""
    return Outcome(key, "waiting", "the budget is used up")


def run_inline(packs: Sequence[Pack], job: Job, listen: Listener, may_start: Callable[[], bool] = always) -> list[Outcome]:
    """One pack after the other in this process: for debugging, tests, and machines without Ray."""
    outcomes = []
    for pack in packs:
        if not may_start():
            outcomes += [not_started(task.config.key()) for task in pack]
            continue
        for task in pack:
            listen(Event("started", task.config.key()))
        for outcome in run_pack(pack, job, lambda result: listen(epoch_event(result))):
            if outcome.status != "held":
                listen(end_event(outcome))
            outcomes.append(outcome)
    return outcomes


def phase(doing: str) -> Event:
    """What a launch is busy with while no trial trains."""
    return Event("phase", "", reason=doing)


def epoch_event(result: Mapping[str, Any]) -> Event:
    """Of what a trial reports at the end of an epoch."""
    metrics = {name: value for name, value in result.items() if "/" in name and isinstance(value, (int, float))}
    return Event("epoch", result["key"], result["epoch"], result["epochs"], metrics)


def end_event(outcome: Outcome) -> Event:
    """Of a trial's end."""
    return Event(outcome.status, outcome.key, reason=outcome.reason)
