"""Cache of what several trials compute from the same batch of clouds, once per process: batches,
neighbourhoods, projections.

Members of a pack with the same seed see the same batches, and every evaluation sees the same clouds
again. The key of a value is the memory of the tensors that it was made of and the number of writes
to it. The entry keeps these tensors alive, so that no other tensor can have the same key: results
do not depend on the cache. Torch alone counts writes: an array that NumPy changes has to be copied
before it becomes a tensor. The least recently used values are dropped first. What was made on one
stream of a GPU is waited for on another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pointsweep.data.dataset import Dataset, Split
from pointsweep.ops.point_ops import to_device
from pointsweep.ops.vmap import current, for_each, tensors

# Of all values together, on a CPU and on a GPU, where those of every member's next batch are there
# too.
LIMIT_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
SHARE = 4  # a value larger than this part of the limit is not kept
# of the limit: what is kept of evaluations while others are trained on
LASTING_SHARE = 5 / 8

T = TypeVar("T")
# a value, its bytes, where it was made, and what must live
Entry = tuple[Any, int, Any, Any]


class LeastRecentlyUsed:
    """Values by key, the least recently used first: their bytes, where they were made, and what
    must live for the key to hold.

    What is asked for as `lasting`, and what is made of its memory, goes after all else, within its
    share of the limit: each epoch evaluates the same clouds, and between two evaluations lie the
    batches of an epoch, which nobody asks for again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.lasting_bytes = 0
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.lasting: OrderedDict[Hashable, Entry] = OrderedDict()
        self.lasting_memory: Counter[Hashable] = Counter()

    def get(
        self,
        key: Hashable,
        make: Callable[[], T],
        alive: Any = None,
        lasting: bool = False,
    ) -> T:
        """The value of the key, made if it is not there."""
        for entries in (self.entries, self.lasting):
            if key in entries:
                entries.move_to_end(key)
                cached, _, where, _ = entries[key]
                return arrive(cached, where)  # type: ignore[no-any-return]

        value = make()
        size = sum(tensor.nbytes for tensor in tensors((value, alive)))
        has_gradients = any(tensor.requires_grad for tensor in tensors(value))

        if size * SHARE > self.limit_bytes or has_gradients:
            return value

        if not lasting:
            memories = map(_memory, tensors(alive))
            lasting = any(memory in self.lasting_memory for memory in memories)

        entry = value, size, made(value), alive
        self.bytes += size
        if lasting:
            self.lasting[key] = entry
            self.lasting_bytes += size
            self.lasting_memory.update(map(_memory, tensors(value)))
        else:
            self.entries[key] = entry

        self._shrink()
        return value

    def _shrink(self) -> None:
        while self.lasting_bytes > LASTING_SHARE * self.limit_bytes:
            _, (value, size, _, _) = self.lasting.popitem(last=False)
            self.lasting_bytes -= size
            self.bytes -= size
            self.lasting_memory -= Counter(map(_memory, tensors(value)))

        while self.bytes > self.limit_bytes:
            _, (_, size, _, _) = self.entries.popitem(last=False)
            self.bytes -= size


def _memory(tensor: Tensor) -> Hashable:
    """Return what a tensor shares with all its views."""
    return tensor.device, tensor.untyped_storage().data_ptr()


_caches = {kind: LeastRecentlyUsed(limit) for kind, limit in LIMIT_BYTES.items()}


def made(value: Any) -> Any:
    """The stream that made a value, and an event on it, for `arrive`; None of a value on a CPU."""
    devices = {tensor.device for tensor in tensors(value) if tensor.is_cuda}
    if not devices:
        return None

    stream = torch.cuda.current_stream(devices.pop())
    return stream, stream.record_event()


def arrive(value: T, where: Any) -> T:
    """The value, for use on the current stream: not before it is there, and its memory is not given
    away while it is used.
    """
    if where is not None:
        stream, event = where
        current_stream = torch.cuda.current_stream(stream.device)
        if current_stream != stream:
            current_stream.wait_event(event)
            for tensor in tensors(value):
                if tensor.is_cuda:
                    tensor.record_stream(current_stream)

    return value


def cached(
    made_of: Sequence[Tensor],
    name: Hashable,
    make: Callable[..., T],
    as_one: bool = False,
) -> T:
    """`make(*made_of)`, a function of these tensors and of what `name` identifies alone, made if it
    is not cached; nobody may change it in place.

    Of members that run as one each gets its own value; with `as_one` it is made for all of them in
    one call, without the cache.
    """
    joint = current()
    if joint is None:
        return _cached_alone(made_of, name, make)

    of_members = None if as_one else joint.parts(made_of)
    if of_members is None:
        return make(*made_of)

    return for_each(
        joint, lambda: [_cached_alone(own, name, make) for own in of_members]
    )


def is_cacheable(made_of: Tensor, num_values: int) -> bool:
    """Return whether so many values, of the type of what they are made of, are small enough for
    `cached`.
    """
    size = (num_values + made_of.numel()) * made_of.element_size()
    return size * SHARE <= LIMIT_BYTES[made_of.device.type]


def _cached_alone(
    made_of: Sequence[Tensor], name: Hashable, make: Callable[..., T]
) -> T:
    if any(tensor.requires_grad or tensor.is_meta for tensor in made_of):
        return make(*made_of)
    # A tensor of inference mode counts no writes, and no later training step could use it.
    if torch.is_inference_mode_enabled() or any(map(torch.is_inference, made_of)):
        return make(*made_of)

    kind = made_of[0].device.type
    # Products are rounded otherwise under autocast.
    modes = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    key = (name, modes, *map(_identity, made_of))

    return _caches[kind].get(key, lambda: make(*made_of), alive=tuple(made_of))


def train_batch(
    dataset: Dataset,
    index: np.ndarray,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """`dataset.train_batch` on a device; the generator moves on as if it had drawn."""
    key = (
        "train",
        id(dataset),
        index.tobytes(),
        generator.get_state().numpy().tobytes(),
        device,
    )

    def make() -> tuple[tuple[Tensor, ...], Tensor]:
        batch = dataset.train_batch(index, generator, device)
        moved = tuple(to_device(tensor, device) for tensor in batch)
        return moved, generator.get_state()

    batch, state = _caches[device.type].get(key, make, alive=dataset)
    generator.set_state(state)
    return batch


def eval_batch(dataset: Dataset, split: Split, rows: np.ndarray) -> tuple[Tensor, ...]:
    """`dataset.eval_batch`."""
    return _caches["cpu"].get(
        key=("eval", id(dataset), split.name, rows.tobytes()),
        make=lambda: dataset.eval_batch(split, rows),
        alive=dataset,
        lasting=True,
    )


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, the same one every time, so that what is made of it is found again."""
    if tensor.device == device:
        return tensor

    return cached([tensor], ("on", device), lambda own: to_device(own, device))


def _identity(tensor: Tensor) -> Hashable:
    """Its memory, and how often that was written to: views of the same values are the same."""
    return (
        tensor.data_ptr(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor._version,
    )
