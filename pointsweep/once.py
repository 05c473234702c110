"""What several trials work out of the same batch of clouds, worked out once per process: batches, neighbourhoods, projections.

Members of a pack with the same seed see the same batches, and every evaluation sees the same clouds again. A value is found under the
memory of the tensors that it was made of, which the entry keeps alive, so that it is another tensor's never: the same numbers come
out as without. The least recently used values are dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pointsweep.data.base import Dataset, Split

LIMIT_BYTES = 256 << 20  # of all values together
SHARE = 4  # a value larger than this part of the limit is not kept

T = TypeVar("T")


class Kept:
    """Values by key, the least recently used first, with their bytes and what must stay alive for the key to hold."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self.entries: OrderedDict[Hashable, tuple[Any, int, Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T], alive: Any = None) -> T:
        """The value of the key, made if it is not there."""
        if key in self.entries:
            self.entries.move_to_end(key)
            found: T = self.entries[key][0]
            return found
        value = make()
        size = sum(tensor.nbytes for tensor in _tensors((value, alive)))
        if size * SHARE > self.limit_bytes or any(tensor.requires_grad for tensor in _tensors(value)):
            return value
        self.entries[key] = value, size, alive
        self.bytes += size
        while self.bytes > self.limit_bytes:
            _, (_, dropped, _) = self.entries.popitem(last=False)
            self.bytes -= dropped
        return value


_kept = Kept()


def once(made_of: Sequence[Tensor], name: Hashable, make: Callable[[], T]) -> T:
    """`make()`, a function of these tensors and of what `name` tells alone; nobody may change in place what it gives."""
    if any(tensor.requires_grad or tensor.is_meta for tensor in made_of):
        return make()
    kind = made_of[0].device.type
    # Products are rounded otherwise under autocast.
    modes = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return _kept.get((name, modes, *map(_identity, made_of)), make, tuple(made_of))


def train_batch(dataset: Dataset, index: np.ndarray, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
    """`dataset.train_batch` on a device; the generator moves on as if it had drawn."""
    key = ("train", id(dataset), index.tobytes(), generator.get_state().numpy().tobytes(), device)

    def make() -> tuple[tuple[Tensor, ...], Tensor]:
        batch = tuple(tensor.to(device) for tensor in dataset.train_batch(index, generator))
        return batch, generator.get_state()

    batch, state = _kept.get(key, make, dataset)
    generator.set_state(state)
    return batch


def eval_batch(dataset: Dataset, split: Split, rows: np.ndarray) -> tuple[Tensor, ...]:
    """`dataset.eval_batch`."""
    return _kept.get(("eval", id(dataset), split.name, rows.tobytes()), lambda: dataset.eval_batch(split, rows), dataset)


def _identity(tensor: Tensor) -> Hashable:
    """Its memory, and how often that was written to: views of the same values are the same."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor._version


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
