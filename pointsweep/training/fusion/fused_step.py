"""The end of a training step: gradients clipped, the optimiser's step; of one trial, or of several
members of a pack as one.

As one they are one AdamW over the parameters of all, with a group for every learning rate and
weight decay among them; its states are those of the members' own optimisers, which checkpoints
read. Each member's gradients are clipped by their own norm.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pointsweep.training.adamw import AdamW


@dataclass(frozen=True)
class Step:
    """Parts of a trial's step: its optimiser, all that it trains, and the norm to which gradients
    are clipped.
    """

    optimizer: AdamW
    trained: Sequence[Tensor]
    clip_norm: float

    def take(self) -> None:
        """Alone."""
        nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()


def take_together(steps: Sequence[Step]) -> None:
    """All of them, each as it would be alone."""
    groups: dict[Hashable, dict[str, Any]] = {}
    for step in steps:
        nn.utils.clip_grad_norm_(step.trained, step.clip_norm)
        for group in step.optimizer.param_groups:
            settings = dict(group)
            parameters = settings.pop("params")
            key = tuple(settings.items())
            joint_group = groups.setdefault(key, {**settings, "params": []})
            joint_group["params"] += parameters

    together = AdamW(list(groups.values()))
    for step in steps:
        together.moments |= step.optimizer.moments

    together.step()
    for step in steps:  # a first step has made them
        for parameter in step.trained:
            if parameter in together.moments:
                step.optimizer.moments[parameter] = together.moments[parameter]
