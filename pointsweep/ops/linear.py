"""Products of matrices on a CPU, by oneDNN where that is faster than what torch takes.

Torch multiplies single precision by MKL. With AVX-512 on AMD's processors oneDNN takes half the
time. The choice depends on the processor, torch's build and the shapes alone, so a trial gives the
same digits in every run on one kind of processor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pointsweep.ops.vmap import is_eager_on_cpu

# The operator is an internal one of torch: a build without it multiplies as others do.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# number of multiplications; with fewer, the call of oneDNN takes longer than it saves
SMALLEST = 1 << 20


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows (n, C) times weight (C, D), plus a bias (D,)."""
    if ONEDNN and rows.dtype == torch.float32:
        return _by_onednn(rows, weight.t(), bias)

    return rows @ weight if bias is None else torch.addmm(bias, rows, weight)


def transposed_product(first: Tensor, second: Tensor) -> Tensor:
    """first (n, C), transposed, times second (n, D): (C, D)."""
    return product(first.t(), second)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., C), weight (D, C), bias (D,) -> (..., D), but for rounding."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)

    output: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return output


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    if not ONEDNN or not is_eager_on_cpu(x):
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if x.dim() < 2:  # a vector, whose gradient of the weight would need rows
        return False

    return x.numel() * len(weight) >= SMALLEST


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(
        _dense(x), _dense(weight), bias, "none", [], ""
    )
    return output


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor without gaps between its rows: with them oneDNN multiplies number by
    number, a thousand times as slowly.
    """
    if tensor.dim() == 2 and tensor.t().is_contiguous():
        return tensor

    return tensor.contiguous()


class _Linear(torch.autograd.Function):
    """See `linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients by `linear` itself, so that they can be differentiated again."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None

        if needs_x:
            grad_x = linear(grad, weight.t())
        if needs_weight:
            grad_weight = linear(grad.flatten(0, -2).t(), x.flatten(0, -2).t())
        if needs_bias:
            grad_bias = grad.flatten(0, -2).sum(0)

        return grad_x, grad_weight, grad_bias
