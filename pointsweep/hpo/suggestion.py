"""One suggestion of a search: what was drawn, and what became of it in each batch that it was a
part of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsweep.hpo.pruners import Curve


@dataclass(frozen=True)
class Suggestion:
    """One trial of a study: drawn values, and once it is told its values, one an objective.
    `known`: found finished in the store.
    """

    number: int
    drawn: Mapping[str, Any]
    # in which it trained: that of its suggestion, and those in which it went on
    batches: tuple[int, ...]
    state: str  # running, complete, failed, stopped
    values: tuple[float, ...] = ()
    # its validation accuracy by epoch, where that is what the search aims at
    curve: Curve = field(default_factory=dict)
    known: bool = False
    # batch in which a scheduler let it wait -> after which epoch
    waits: Mapping[int, int] = field(default_factory=dict)
    # when it was suggested and when its values came, in seconds of Unix time
    times: tuple[float, ...] = field(default=(), compare=False)

    @property
    def batch(self) -> int:
        """The batch in which it was suggested; -1 if it was found."""
        return self.batches[0] if self.batches else -1

    @property
    def waiting(self) -> bool:
        """Return whether it may go on, but does not now."""
        return self.state == "running" and self.batches[-1] in self.waits

    @property
    def open(self) -> bool:
        """Return whether it is a part of the batch that trains now."""
        return self.state == "running" and not self.waiting

    def before(self, batch: int) -> tuple[str, Curve]:
        """Its state when a batch was put together, and what had been seen of it: a part of which
        may have come in that batch.
        """
        if self.known:
            return self.state, self.curve

        earlier = [number for number in self.batches if number < batch]
        if not earlier:
            return "not suggested", {}

        last_batch = max(earlier)
        ended = self.state != "running" and last_batch == self.batches[-1]
        if last_batch not in self.waits:
            if ended:
                return self.state, self.curve
            return "running", {}

        last_epoch = self.waits[last_batch]
        curve = {}
        for epoch, value in self.curve.items():
            if epoch <= last_epoch:
                curve[epoch] = value

        return "stopped" if ended else "waiting", curve
