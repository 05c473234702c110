"""How the trials of a launch ended, as their packs tell it. In the driver; what one result costs does not grow with the launch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pointsweep.failures import POLICIES, Failure
from pointsweep.gauges import Gauges
from pointsweep.guard import Outcome, note_loss
from pointsweep.inline import Listener, Pack, end_event, epoch_event, not_started
from pointsweep.store import open_store
from pointsweep.trial import Job

RETRIES = POLICIES["lost_node"].retries + POLICIES["hang"].retries  # of a pack whose worker ended, for whatever reason


class Ends:
    """Collects how the trials of all packs ended, and passes events on. `show` is called where the gauges may have changed."""

    def __init__(self, packs: Sequence[Pack], job: Job, listen: Listener, gauges: Gauges, show: Callable[[], None]) -> None:
        self.job, self.listen = job, listen
        self.gauges, self.show = gauges, show
        self.ended: dict[str, Outcome] = {}
        self.keys = [task.config.key() for pack in packs for task in pack]

    def result(self, result: Mapping[str, Any]) -> None:
        """What a pack reports: the end of an epoch, or how its trials ended."""
        if "outcomes" not in result:
            self.gauges.epoch(result)
            self.show()
            self.listen(epoch_event(result))
            return
        for item in json.loads(result["outcomes"]):
            self.end(Outcome(**item))

    def lost(self, pack: Pack, error: str) -> None:
        """Ray has given a pack up. The worker could not say so in the histories of its trials, so it is said here."""
        for task in pack:
            key = task.config.key()
            if key in self.ended:
                continue
            failure = Failure("lost_node", f"its worker was lost {RETRIES + 1} times: {error}")
            failure = note_loss(open_store(self.job.store), key, failure, self.job.launch, self.job.wait_s)
            self.end(Outcome(key, "failed", failure.reason, failure.kind))

    def end(self, outcome: Outcome) -> None:
        """A trial has ended."""
        self.ended[outcome.key] = outcome
        self.gauges.end(outcome.key, outcome.status, outcome.reason)
        self.show()
        if outcome.status != "held":
            self.listen(end_event(outcome))

    def outcomes(self, may_start: Callable[[], bool]) -> list[Outcome]:
        """How each trial ended; what was not begun waits for a larger budget, or was lost with Ray."""
        left = may_start()
        return [
            self.ended.get(key) or (Outcome(key, "failed", "Ray ended before it ran", "lost_node") if left else not_started(key))
            for key in self.keys
        ]
