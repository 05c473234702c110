"""Machine time that trials have used, and the budget that lets another pack start or not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pointsweep.planning.plan import Plan
from pointsweep.results.events import Event, device_s, epochs_of, read_events
from pointsweep.results.record_index import sound_record
from pointsweep.results.records import Record
from pointsweep.storage.base import Store


def seconds_of(key: str, store: Store) -> float:
    """Return what a trial took, whatever became of it: of a finished one the whole, else its
    epochs.
    """
    record, epochs = _record_or_epochs(key, store)
    if record:
        return record.seconds.get("total", 0.0)

    return math.fsum(event["seconds"] for event in epochs)


def device_hours_of(key: str, store: Store) -> float:
    """The same times the devices that the trial had, in hours."""
    record, epochs = _record_or_epochs(key, store)
    seconds = record.device_s if record else device_s(epochs)
    return seconds / 3600


def _record_or_epochs(key: str, store: Store) -> tuple[Record | None, Sequence[Event]]:
    """Return the record of a trial that has finished, else the epochs that it has trained."""
    record = sound_record(store, key)
    if record is not None:
        return record, ()

    return None, epochs_of(read_events(store, key))


class Spending:
    """The hours of a sweep's trials against its budget; trials of earlier launches count."""

    def __init__(self, plan: Plan, store: Store) -> None:
        resources = plan.sweep.resources
        self.name = plan.sweep.name
        self.store = store
        self.budget = resources.budget
        self.unit = resources.unit()
        self.limit = self.budget.limit_hours()
        # Without a limit nobody asks, and a large sweep's histories need not be read.
        self.hours: dict[str, float] = {}

        if math.isfinite(self.limit):
            for key in plan.states:
                self.hours[key] = device_hours_of(key, store)

    def ended(self, key: str) -> None:
        """Read again what a trial has used, now that it has ended."""
        if key in self.hours:
            self.hours[key] = device_hours_of(key, self.store)

    def left(self) -> bool:
        """Return whether another pack may start."""
        return math.fsum(self.hours.values()) < self.limit

    def text(self) -> str:
        """ "1.2 of 40 GPU-hours used"; nothing where there is no limit."""
        if not math.isfinite(self.limit):
            return ""

        used = math.fsum(self.hours.values())
        text = f"budget of {self.name}: {used:.4g} of {self.limit:.4g} {self.unit} used"
        price = self.budget.per_hour

        if price:
            text += f", {used * price:.4g} of {self.limit * price:.4g} in money"

        return text
