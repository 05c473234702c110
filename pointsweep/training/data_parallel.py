"""The processes of one trial: each computes its part of every batch, and all take the same step
with the gradient of the whole.

Source: data-parallel training as in PyTorch Distributed (arXiv 2006.15704), without its overlap:
the gradients are summed in one tensor after the backward pass. The first process is the trial: it
has the folder, evaluates and writes. The others (data_parallel_worker.py) hold copies of its
state: a step is a function of the trial's config and its number (loop.py), so that they need no
further messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pointsweep.results.failures import ProcessLostError

# with the others: one may still load its data, the first one evaluates
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """One process among `size`, the first of which has rank 0."""

    rank: int = 0
    size: int = 1

    def part(self, tensor: Tensor) -> Tensor:
        """(B, ...) -> this process's clouds of the batch."""
        return tensor.tensor_split(self.size)[self.rank]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put into each of the tensors, all of one dtype, its sum over the processes. Raises
        ProcessLostError.
        """
        if self.size == 1:
            return

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _lost():
            dist.all_reduce(flat)

        for tensor, total in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(total.view_as(tensor))

    def share(self, data: bytes) -> bytes:
        """The bytes that the first process has, at least one; the others give none. Raises
        ProcessLostError.
        """
        if self.size == 1:
            return data

        count = torch.tensor([len(data)])
        with _lost():
            dist.broadcast(count, src=0)
            received = torch.empty(int(count), dtype=torch.uint8)
            if self.rank == 0:
                received = torch.frombuffer(bytearray(data), dtype=torch.uint8)

            dist.broadcast(received, src=0)

        return received.numpy().tobytes()


ALONE = Group()


def alone(*_: object) -> AbstractContextManager[Group]:
    """Return the group of a trial that one process computes."""
    return nullcontext(ALONE)


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as torch.distributed says that a connection is gone
        raise ProcessLostError(
            f"another process of the trial is gone: {error}"
        ) from error


def _summed(x: Tensor) -> Tensor:
    total = x.clone()
    with _lost():
        dist.all_reduce(total)

    return total


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, of whose losses the sum is minimised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(grad)


def synchronise(model: nn.Module) -> None:
    """Put a SynchronisedNorm in the place of every batch normalisation inside a model; it has the
    same tensors.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                module.register_module(name, SynchronisedNorm(child))


class SynchronisedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that takes its statistics over the clouds of all processes while it
    trains.

    torch's SyncBatchNorm does it on CUDA alone; this is the same arithmetic on every device.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight = norm.weight
        self.bias = norm.bias
        self.running_mean = norm.running_mean
        self.running_var = norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take clouds of any shape (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape: its process's part of the normalised whole. Raises
        ProcessLostError.
        """
        if not self.training:
            return super().forward(x)

        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.momentum is not None
        )

        wide = x.to(self.running_mean.dtype)
        reduced_axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = _summed(wide.new_tensor(wide.numel() / wide.shape[1]))
        mean = _Sum.apply(wide.sum(reduced_axes)) / count  # (C,)
        centred = wide - mean.view(shape)
        var = _Sum.apply(centred.square().sum(reduced_axes)) / count  # (C,)

        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)

        normal = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)

        return normal.to(x.dtype)


def meeting(host: str, size: int, port: int = 0) -> TCPStore:
    """Return where `size` processes find each other: at a free port of this one, that `port` tells
    the others. To be kept to the end.
    """
    return TCPStore(
        host, port, size, is_master=not port, wait_for_workers=False, timeout=PATIENCE
    )


@contextmanager
def joined(store: TCPStore, rank: int, size: int) -> Iterator[Group]:
    """This process in the group that meets at `store`. Raises ProcessLostError if the others do not
    come.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _lost():
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
        )

    try:
        yield Group(rank, size)
    finally:
        dist.destroy_process_group()
