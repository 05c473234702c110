"""Requests of the members of a pack (coroutines.py), each served in turn; the end of a step is in
fused_step.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pointsweep.ops.vmap import Inputs, Part


@dataclass(frozen=True)
class Pass:
    """Request to pass its rows through a frozen part. `order` orders the parts of one forward."""

    order: tuple[int, ...]
    part: Callable[[Tensor], Tensor]
    rows: Tensor
    modes: tuple[Any, ...]


@dataclass(frozen=True)
class BatchedCall:
    """A part of its model run on its inputs. Calls of one kind run as one."""

    order: tuple[int, ...]
    part: Part
    inputs: Inputs
    kind: Hashable


@dataclass(frozen=True)
class LeaderTurn:
    """The answer to the first of the members whose calls are of one kind: it runs their parts, and
    gives the others what comes out.
    """

    followers: Sequence[Any]  # members
    calls: Sequence[BatchedCall]  # the leader's first


@dataclass
class FollowerResult:
    """Result of a batched call for those who follow."""

    over: bool = False


@dataclass(frozen=True)
class Backward:
    """The gradients of its loss."""

    loss: Tensor


@dataclass(frozen=True)
class BatchBarrier:
    """Request to wait until all others come to the end of their batch."""


@dataclass(frozen=True)
class Call:
    """Something done in the thread that runs the pack."""

    work: Callable[[], Any]


@dataclass(frozen=True)
class DiskWait:
    """Request for its turn again, once `over` is set. Until then its thread waits for the disk."""

    over: threading.Event = field(default_factory=threading.Event)
