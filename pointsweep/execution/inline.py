"""The plainest launcher: one pack after the other in this process, for debugging, tests, and
machines without Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pointsweep.execution.launchers import (
    Event,
    Listener,
    Pack,
    Resources,
    always,
    end_event,
    epoch_event,
    not_started,
)
from pointsweep.training.runner import Job, run_pack
from pointsweep.training.supervisor import Outcome


class InlineLauncher:
    """Launcher that runs packs in this process."""

    divides = False

    def run(
        self,
        packs: Sequence[Pack],
        job: Job,
        resources: Resources,
        listen: Listener,
        may_start: Callable[[], bool] = always,
    ) -> list[Outcome]:
        """Run the packs one after the other; what `resources` asks for is not kept apart within one
        process.
        """

        def report(result: dict[str, Any]) -> None:
            listen(epoch_event(result))

        outcomes = []
        for pack in packs:
            if not may_start():
                outcomes += [not_started(task.config.key()) for task in pack]
                continue

            for task in pack:
                listen(Event("started", task.config.key()))

            for outcome in run_pack(pack, job, report):
                outcomes.append(outcome)
                if outcome.status != "held":
                    listen(end_event(outcome))

        return outcomes

    def measure(
        self, function: Callable[[Any], Any], argument: Any, resources: Resources
    ) -> Any:
        """Return function(argument), called here."""
        return function(argument)
