"""One batch ahead: the clouds of the next step and what depends on them alone are made on a GPU's
second stream while a step trains.

What is random is drawn on the CPU and in the order of the batches, so the numbers are those
without. Letters: B clouds, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from pointsweep.models.batch_cache import arrive, made

T = TypeVar("T")
Batch = Sequence[
    Tensor
]  # what a model takes, points (B, P, 3) first, and last the labels

# Where it is done. On a CPU nothing runs beside a step, and the geometry of two batches would be
# held in place of one.
AHEAD_ON = {"cuda"}


def one_ahead(
    items: Iterable[T],
    load: Callable[[T], Batch],
    prepare: Callable[[Batch], None],
    device: torch.device,
) -> Iterator[Batch]:
    """`load` of every item, in order; on a GPU loaded and prepared on a second stream before the
    one in front is given out.
    """
    if device.type not in AHEAD_ON:
        yield from map(load, items)
        return

    waiting: list[tuple[Batch, object]] = []
    # the model's own constants were copied on the first stream
    if device.type == "cuda":
        _stream(device).wait_stream(torch.cuda.current_stream(device))

    for item in items:
        with _second_stream(device):
            batch = load(item)
            prepare(batch)
            waiting.append((batch, made(batch)))

        if len(waiting) > 1:
            yield arrive(*waiting.pop(0))

    for remaining in waiting:
        yield arrive(*remaining)


def _second_stream(device: torch.device) -> AbstractContextManager[object]:
    return (
        torch.cuda.stream(_stream(device)) if device.type == "cuda" else nullcontext()
    )


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all members of a pack, so that what one has made the others find without waiting."""
    return torch.cuda.Stream(device)
