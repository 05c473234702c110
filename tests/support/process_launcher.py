"""A third launcher, as somebody outside the package would write it: each pack in a fresh process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from pointsweep.execution.launchers import Event, Listener, Pack, Resources, always, end_event, epoch_event, not_started
from pointsweep.training.runner import Job, run_pack
from pointsweep.training.supervisor import Outcome


class ProcessLauncher:
    divides = False

    def run(
        self, packs: Sequence[Pack], job: Job, resources: Resources, listen: Listener, may_start: Callable[[], bool] = always
    ) -> list[Outcome]:
        ended: list[Outcome] = []
        for pack in packs:
            if not may_start():
                ended += [not_started(task.config.key()) for task in pack]
                continue
            for task in pack:
                listen(Event("started", task.config.key()))
            epochs, outcomes = self.measure(_trained, (pack, job), resources)
            for result in epochs:
                listen(epoch_event(result))
            for outcome in outcomes:
                if outcome.status != "held":
                    listen(end_event(outcome))
            ended += outcomes
        return ended

    def measure(self, function: Callable[[Any], Any], argument: Any, resources: Resources) -> Any:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, argument).result()


def _trained(asked: tuple[Pack, Job]) -> tuple[list[dict[str, Any]], list[Outcome]]:
    pack, job = asked
    epochs: list[dict[str, Any]] = []
    outcomes = run_pack(pack, job, lambda result: epochs.append(dict(result)))
    return epochs, list(outcomes)
